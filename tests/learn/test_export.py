"""export: a finished run becomes a verified bundle; calibration sees training clips only and refuses nonsense."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

import onnx  # noqa: E402
import onnxruntime as ort  # noqa: E402
from msgspec.structs import replace  # noqa: E402
from torch import nn  # noqa: E402

import synthetic  # noqa: E402
from soundmark import audio, bundle  # noqa: E402
from soundmark.classifier import Classifier  # noqa: E402
from soundmark.config import ExportConfig, NetworkConfig  # noqa: E402
from soundmark.dataset import Dataset, load_esc50  # noqa: E402
from soundmark.errors import StorageError, TrainingError  # noqa: E402
from soundmark.evaluate import evaluate  # noqa: E402
from soundmark.learn import export as module  # noqa: E402
from soundmark.learn import networks  # noqa: E402
from soundmark.learn.compact import slim  # noqa: E402
from soundmark.learn.export import Agreement, export, fold_batch_norm  # noqa: E402
from soundmark.learn.finished import training_features  # noqa: E402
from soundmark.learn.quantize import int8_linear, quantize  # noqa: E402
from soundmark.learn.run_folder import Run  # noqa: E402
from soundmark.learn.train import train  # noqa: E402

pytestmark = pytest.mark.train


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, fp32_bundle: Path) -> None:
    """Let export copy the graph that was made once, because making it takes seconds."""
    model = (fp32_bundle / "model.onnx").read_bytes()
    monkeypatch.setattr(module, "to_onnx", lambda network, shape, path: path.write_bytes(model))


@pytest.fixture
def fp32(fp32_bundle: Path, tmp_path: Path) -> Path:
    """Return the fp32 graph, in a folder that may be written."""
    return Path(shutil.copy(fp32_bundle / "model.onnx", tmp_path / "fp32.onnx"))


def windows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 32, 51)).astype(np.float32)


@pytest.mark.parametrize("arithmetic", ["int8", "fp32"])
def test_the_bundle_is_one_that_every_reader_accepts(
    run: Run, arithmetic: str, int8_bundle: Path, fp32_bundle: Path
) -> None:
    path = {"int8": int8_bundle, "fp32": fp32_bundle}[arithmetic]
    assert sorted(os.listdir(path)) == ["README.md", "bundle.json", "model.onnx"]
    manifest = bundle.read(path).manifest
    assert manifest.labels == run.labels
    assert manifest.frontend == run.preset.frontend
    training, made = manifest.provenance["training"], manifest.provenance["export"]
    assert (training["train_folds"], training["test_fold"]) == ([1, 2, 3, 4], 5)
    assert training["data_digest"] == run.info["data_digest"]
    assert "data_root" not in json.dumps(manifest.provenance)  # no path of the trainer's machine
    assert str(synthetic.shared_folder()) not in (path / "bundle.json").read_text()
    assert made["arithmetic"] == arithmetic
    assert made["agreement"]["torch_onnx_max_difference"] <= 1e-4
    assert made["agreement"]["windows"] == 40
    model = Classifier.load(path)
    assert model.labels == run.labels
    card = (path / "README.md").read_text("utf-8")
    assert "folds 1, 2, 3, 4 (80 clips)" in card
    assert "--folds 5" in card
    assert arithmetic in card


def test_the_graph_names_its_ends_and_leaves_the_batch_open(fp32_bundle: Path) -> None:
    graph = onnx.load(fp32_bundle / "model.onnx").graph
    (features,), (logits,) = graph.input, graph.output
    assert (features.name, logits.name) == ("features", "logits")
    assert features.type.tensor_type.shape.dim[0].dim_param
    assert {node.op_type for node in graph.node} & {"BatchNormalization", "Loop", "If"} == set()
    text = str(onnx.load(fp32_bundle / "model.onnx"))
    assert str(Path(__file__).parents[2]) not in text  # no source path
    assert "site-packages" not in text


def test_int8_is_quantised_per_channel_with_a_float_first_convolution(
    int8_bundle: Path, fp32_bundle: Path
) -> None:
    graph = onnx.load(int8_bundle / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert "QuantizeLinear" in kinds
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert made_by.get(convolutions[0].input[1]) is None
    assert all(made_by[node.input[1]] == "DequantizeLinear" for node in convolutions[1:])
    stored = {t.name: t for t in graph.initializer}
    maker = {output: node for node in graph.node for output in node.output}
    scale = maker[maker[convolutions[1].input[1]].input[1]]
    assert scale.op_type == "Cast"
    assert onnx.numpy_helper.to_array(stored[scale.input[0]]).size > 1
    assert "QuantizeLinear" not in {n.op_type for n in onnx.load(fp32_bundle / "model.onnx").graph.node}


def test_no_sum_of_two_products_is_too_large_for_processors_that_add_in_16_bits(int8_bundle: Path) -> None:
    """Without VNNI, ONNX Runtime adds two products in 16 bits and cuts off what is larger: answers would differ."""
    graph = onnx.load(int8_bundle / "model.onnx").graph
    weights = [onnx.numpy_helper.to_array(t) for t in graph.initializer if len(t.dims) == 4]
    largest = [int(np.abs(weight).max()) for weight in weights if weight.dtype == np.int8]
    assert set(largest) == {64}
    assert 255 * 2 * max(largest) < 2**15


@pytest.mark.parametrize("kind", ["edge", "yamnet"])
def test_the_runtime_fuses_every_int8_layer(kind: str, tmp_path: Path) -> None:
    """Activations inside the int8 region: what stands between two convolutions otherwise costs a third of the time."""
    config = NetworkConfig(kind=kind, keep=7) if kind == "yamnet" else NetworkConfig(channels=(8, 16))
    network = networks.build(config, (32, 51), 5).eval()
    module.to_onnx(fold_batch_norm(network), (32, 51), tmp_path / "fp32.onnx")
    model = quantize(tmp_path / "fp32.onnx", windows(8), ExportConfig())
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED  # before layouts
    options.optimized_model_filepath = str(tmp_path / "runs.onnx")
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "runs.onnx").graph.node)
    in_float = kinds["Conv"] + kinds["FusedConv"]
    assert in_float == (2 if kind == "yamnet" else 1)  # the first, and the depthwise one behind it
    assert kinds["QLinearConv"] == (7 if kind == "yamnet" else 4) - in_float
    assert (kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (
        1,
        1,
    )  # behind float layers, before pooling
    assert (kinds["Gemm"], kinds["Cast"], kinds["Mul"]) == (
        1,
        0,
        0,
    )  # its weights became float when it was loaded
    assert kinds["Relu"] + kinds["Clip"] == 0


def test_int8_logits_are_not_rounded(int8_bundle: Path) -> None:
    """Of 256 levels two classes often share the highest, and a tie counts as wrong."""
    graph = onnx.load(int8_bundle / "model.onnx").graph
    assert next(node for node in graph.node if "logits" in node.output).op_type == "Gemm"
    logits = ort.InferenceSession(int8_bundle / "model.onnx").run(None, {"features": windows(200)})[0]
    assert len(np.unique(logits)) > 256


def test_linear_layers_hear_inputs_of_very_different_size(rng: np.random.Generator) -> None:
    """Rounded to levels that all inputs share, those that spread little would be lost."""
    sizes = np.geomspace(1e-3, 1e3, 40)
    weight = (rng.normal(0, 1, (5, 40)) / sizes).astype(np.float32)
    x = (rng.normal(0, 1, (30, 40)) * sizes).astype(np.float32)
    for transposed in (0, 1):
        node = onnx.helper.make_node("Gemm", ["x", "w"], ["logits"], transB=transposed)
        values = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            [node],
            "linear",
            [values("x", onnx.TensorProto.FLOAT, [None, 40])],
            [values("logits", onnx.TensorProto.FLOAT, [None, 5])],
            [onnx.numpy_helper.from_array(weight if transposed else weight.T.copy(), "w")],
        )
        made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        small = slim(int8_linear(made))
        assert {t.name: t.data_type for t in small.graph.initializer}["w"] == onnx.TensorProto.INT8
        assert all(len(name) < 4 for node in small.graph.node for name in node.output if name != "logits")
        found = ort.InferenceSession(small.SerializeToString()).run(None, {"x": x})[0]
        np.testing.assert_allclose(found, x @ weight.T, atol=0.1)


def test_int8_is_smaller_where_weights_weigh(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = networks.build(NetworkConfig(channels=(8, 200)), (32, 51), 5).eval()
    module.to_onnx(fold_batch_norm(network), (32, 51), tmp_path / "fp32.onnx")
    model = quantize(tmp_path / "fp32.onnx", windows(8), ExportConfig())
    assert len(model) < 0.4 * (tmp_path / "fp32.onnx").stat().st_size


def test_batch_norm_is_folded_and_nothing_changes() -> None:
    torch.manual_seed(3)
    network = networks.build(synthetic.tiny_preset().network, (32, 51), 5).double().eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.running_mean, layer.weight, layer.bias):
                values.data.normal_()
            layer.running_var.uniform_(0.1, 3)
    x = torch.from_numpy(windows(6)).double()
    with torch.no_grad():
        before = network(x)
        after = fold_batch_norm(network)(x)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    torch.testing.assert_close(after, before, atol=1e-9, rtol=1e-9)
    with torch.no_grad():
        single = network.float()(x.float())
    torch.testing.assert_close(torch.softmax(single, 1).double(), torch.softmax(before, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "calibration",
    [np.zeros((0, 32, 51)), np.zeros((4, 32, 51)), np.full((4, 32, 51), -4.5), np.full((4, 32, 51), np.nan)]
    + [np.where(np.arange(51) == 3, value, windows(4)) for value in (np.nan, np.inf, -np.inf)],
    ids=["empty", "zeros", "silent", "all NaN", "one NaN", "inf", "-inf"],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_calibration_on_nothing_is_refused(fp32: Path, calibration: np.ndarray) -> None:
    with pytest.raises(TrainingError) as caught:
        quantize(fp32, calibration.astype(np.float32), ExportConfig())
    assert caught.value.code == "bad_calibration"


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_every_calibration_method_gives_a_model_that_loads(run: Run, fp32: Path, method: Any) -> None:
    store = training_features(run, None, None)
    model = quantize(fp32, module._features(store, 10, offset=0), ExportConfig(calibration=method))
    runtime = module.Runtime(model, input_shape=(32, 51), n_labels=5)
    assert np.isfinite(runtime.logits(windows(3))).all()


def test_an_unfinished_run_is_refused(run: Run, tmp_path: Path) -> None:
    unfinished = Run(run.path, run.preset, {**run.info, "finished": False})
    with pytest.raises(TrainingError, match="not finished"):
        export(unfinished, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_training_data_is_refused_and_other_test_data_is_not_looked_at(
    run: Run, tmp_path: Path, data_root: Path
) -> None:
    shutil.copytree(data_root, tmp_path / "data")
    clips = load_esc50(tmp_path / "data").clips
    test = [clip for clip in clips if clip.fold == synthetic.TEST_FOLD]
    test[0].path.write_bytes(b"changed")
    assert len(training_features(run, tmp_path / "data", None).linear) == 80
    train_clip = next(clip for clip in clips if clip.fold == 2)
    shutil.copy(clips[0].path, train_clip.path)
    with pytest.raises(TrainingError) as caught:
        export(run, tmp_path / "out", data=tmp_path / "data")
    assert caught.value.code == "other_data"
    assert not (tmp_path / "out").exists()


def test_clips_of_the_test_fold_are_never_decoded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setenv("SOUNDMARK_CACHE", str(tmp_path / "cache"))
    real: Callable[..., audio.Audio] = audio.load
    decoded: list[str] = []

    def load(source: Path, **options: Any) -> audio.Audio:
        decoded.append(source.name)
        return real(source, **options)

    monkeypatch.setattr(audio, "load", load)
    export(run, tmp_path / "out")
    assert len(decoded) == 80
    assert not [name for name in decoded if name.startswith("5-")]


def test_the_same_run_gives_the_same_model_and_overwriting_must_be_asked_for(
    run: Run, tmp_path: Path, quick: None, int8_bundle: Path
) -> None:
    out = tmp_path / "out"
    first, agreement = export(run, out)
    assert isinstance(agreement, Agreement)
    assert first.model == (int8_bundle / "model.onnx").read_bytes()
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(StorageError, match="exists"):
        export(run, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == kept
    second, _ = export(run, out, config=replace(run.preset.export, quantize=False), overwrite=True)
    assert second.manifest.provenance["export"]["arithmetic"] == "fp32"
    assert second.manifest.provenance["export"]["agreement"]["int8_top1_agreement"] == 1.0
    assert bundle.read(out).digest == second.digest != first.digest
    assert os.listdir(tmp_path) == ["out"]
    other = tmp_path / "notes"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match="not a bundle"):
        export(run, other, overwrite=True)
    assert os.listdir(other) == ["thesis.txt"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"torch_onnx_max_difference": 2e-4}, "torch and ONNX differ"),
        ({"int8_top1_agreement": 0.5}, "int8 changes 50"),
    ],
)
def test_graphs_that_disagree_are_not_written(
    run: Run,
    tmp_path: Path,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, float],
    match: str,
) -> None:
    values = {
        "windows": 4,
        "torch_onnx_max_difference": 0.0,
        "int8_top1_agreement": 1.0,
        "int8_max_difference": 0.0,
        "int8_mean_difference": 0.0,
    }
    monkeypatch.setattr(module, "_agreement", lambda *_: Agreement(**{**values, **change}))  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=match) as caught:
        export(run, tmp_path / "out", config=ExportConfig(quantize=False))
    assert caught.value.code == "export_disagrees"
    assert not (tmp_path / "out").exists()


def test_damaged_weights_are_refused(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run" / "weights.safetensors").write_bytes(b"\x80\x04.")
    with pytest.raises(TrainingError, match="safetensors"):
        export(Run(tmp_path / "run", run.preset, run.info), tmp_path / "out")


def test_a_run_on_a_choice_of_labels_is_exported_with_them(dataset: Dataset, tmp_path: Path) -> None:
    part = dataset.with_labels(["hum", "tone", "clicks"])
    run = train(synthetic.tiny_preset(epochs=1), part, test_fold=5, out=tmp_path / "run", train_folds=(1, 2))
    assert len(training_features(run, None, None).linear) == len(part.in_folds([1, 2]).clips)


def test_calibration_and_golden_windows_are_spread_and_differ(run: Run) -> None:
    store = training_features(run, None, None)
    some, others = module._features(store, 8, offset=0), module._features(store, 8, offset=1)
    assert some.shape == others.shape == (8, 32, 51)
    assert not any(np.array_equal(a, b) for a in some for b in others)
    assert len(module._features(store, 10**6, offset=1)) == 80


def test_the_report_of_an_exported_bundle_is_clean_on_the_test_fold_and_stamped_elsewhere(
    int8_bundle: Path, dataset: Dataset
) -> None:
    model = Classifier.load(int8_bundle)
    report = evaluate(model, dataset, folds=[5])
    assert report.stamps == ()
    assert report.figures["accuracy"] > 0.8
    assert evaluate(model, dataset, folds=[4, 5]).stamps == ("TRAINED ON fold 4: not a test figure",)


def test_an_int8_file_holds_nothing_that_no_reader_needs(int8_bundle: Path) -> None:
    model = onnx.load(int8_bundle / "model.onnx")
    graph = model.graph
    used = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= used
    assert (len(graph.value_info), {node.name for node in graph.node}) == (0, {""})
    weights = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0].endswith(".weight")]
    assert {len(node.input) for node in weights} == {2}

    # given zero points again, it says the same
    full = onnx.ModelProto()
    full.CopyFrom(model)
    widened = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    for node in full.graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 2:
            name = node.input[0]
            like = next(t for t in full.graph.initializer if t.name == widened.get(name, name))
            kind = np.int32 if name in widened else onnx.helper.tensor_dtype_to_np_dtype(like.data_type)
            zero = onnx.numpy_helper.from_array(np.zeros(like.dims[0], kind), f"{node.output[0]}_zero")
            full.graph.initializer.append(zero)
            node.input.append(zero.name)
    x = {"features": windows(3)}
    said = [ort.InferenceSession(one.SerializeToString()).run(None, x)[0] for one in (model, full)]
    assert np.array_equal(*said)
    assert len(full.SerializeToString()) > 1.04 * len(model.SerializeToString())


def test_the_card_says_where_the_weights_began_and_names_a_wave(int8_bundle: Path) -> None:
    from soundmark.learn.card import model_card

    manifest = bundle.read(int8_bundle).manifest
    assert "started from" not in model_card(manifest, 1)
    assert "| front end | logmel, 16000 Hz, n_fft 512, hop 320, 32 rows |" in model_card(manifest, 1)
    training = {**manifest.provenance["training"], "start": "random weights, not ImageNet"}
    other = replace(
        manifest,
        frontend=replace(manifest.frontend, kind="wave"),
        provenance={**manifest.provenance, "training": training},
    )
    card = model_card(other, 1)
    assert "| started from | random weights, not ImageNet |" in card
    assert "| front end | wave, 16000 Hz |" in card
