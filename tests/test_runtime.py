"""runtime: shapes are checked at load, numbers before and after (RELIABILITY M9, M12, M17, M19, M20, M22)."""

from __future__ import annotations

import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from soundmark import runtime
from soundmark.errors import AudioError, BundleError, ConfigError
from soundmark.runtime import Runtime
from tiny import tiny_graph, tiny_model

SHAPE = (32, 63)


def load(model: onnx.ModelProto | bytes, **options) -> Runtime:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return Runtime(data, **{"input_shape": SHAPE, "n_labels": 4, "name": "tiny", **options})


@pytest.fixture(scope="module")
def tiny() -> Runtime:
    return load(tiny_graph())


def features(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal((n, *SHAPE)).astype(np.float32)


def test_logits_are_the_network(tiny: Runtime, rng: np.random.Generator) -> None:
    x = features(rng, 3)
    weights = {t.name: numpy_helper.to_array(t) for t in tiny_graph().graph.initializer}
    columns = np.lib.stride_tricks.sliding_window_view(x, 3, axis=2)[:, :, ::2]  # (3, 32, 31, 3)
    hidden = np.einsum("nrtk,crk->nct", columns, weights["w1"][:, 0]) + weights["b1"][:, None]
    expected = np.maximum(hidden, 0).mean(axis=2) @ weights["w2"].T + weights["b2"]
    np.testing.assert_allclose(tiny.logits(x), expected, atol=1e-4)


@pytest.mark.parametrize("n", [0, 1, 7, 32, 33, 100])
def test_m20_batches_of_any_size_give_equal_logits(tiny: Runtime, rng: np.random.Generator, n: int) -> None:
    x = features(rng, n)
    together = tiny.logits(x)
    assert (together.shape, together.dtype) == ((n, 4), np.float32)
    for i in range(n):
        np.testing.assert_allclose(together[i], tiny.logits(x[i : i + 1])[0], atol=1e-5)


def test_m22_threads_of_one_session_and_in_one_run(tiny: Runtime, rng: np.random.Generator) -> None:
    x = features(rng, 8)
    expected = tiny.logits(x)
    np.testing.assert_allclose(load(tiny_graph(), threads=2).logits(x), expected, atol=1e-5)
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: results.append(tiny.logits(x))) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 64
    assert all(np.array_equal(result, expected) for result in results)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_m19_features_that_are_not_finite_are_refused(
    tiny: Runtime, rng: np.random.Generator, bad: float
) -> None:
    x = features(rng, 40)
    x[39, 5, 5] = bad
    with pytest.raises(AudioError) as caught:
        tiny.logits(x)
    assert caught.value.code == "nonfinite_samples"


def test_m19_logits_that_are_not_finite_are_refused(tiny: Runtime) -> None:
    with pytest.raises(BundleError) as caught:
        tiny.logits(np.full((1, *SHAPE), 1e38, np.float32) * np.float32(1.5))
    assert caught.value.code == "nonfinite_logits"


@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_m9_weights_that_are_not_finite_show(rng: np.random.Generator, weight: float) -> None:
    model = tiny_graph()
    model.graph.initializer[4].CopyFrom(numpy_helper.from_array(np.full(4, weight, np.float32), "b2"))
    with pytest.raises(BundleError):
        load(model).logits(features(rng, 1))


def test_features_of_another_shape_are_refused(tiny: Runtime) -> None:
    for shape in ((32, 63), (1, 63, 32), (1, 32, 62), (1, 1, 32, 63)):
        with pytest.raises(BundleError, match="shape"):
            tiny.logits(np.zeros(shape, np.float32))


def test_other_dtypes_and_strides_are_taken_as_float32(tiny: Runtime, rng: np.random.Generator) -> None:
    x = features(rng, 4)
    np.testing.assert_array_equal(tiny.logits(x.astype(np.float64)), tiny.logits(x))
    np.testing.assert_array_equal(tiny.logits(x[::2]), tiny.logits(x[::2].copy()))


def renamed(old: str, new: str) -> onnx.ModelProto:
    model = tiny_graph()
    for value in (*model.graph.input, *model.graph.output):
        value.name = new if value.name == old else value.name
    for one in model.graph.node:
        for names in (one.input, one.output):
            for i, name in enumerate(names):
                names[i] = new if name == old else name
    return model


def shaped(which: str, shape: list[object], dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    model = tiny_graph()
    values = model.graph.input if which == "features" else model.graph.output
    del values[:]
    values.append(helper.make_tensor_value_info(which, dtype, shape))
    return model


def two(which: str) -> onnx.ModelProto:
    model = tiny_graph()
    values = model.graph.input if which == "input" else model.graph.output
    values.append(
        helper.make_tensor_value_info("f1" if which == "output" else "other", TensorProto.FLOAT, ["batch", 8])
    )
    return model


MISFITS = {
    "input name": lambda: renamed("features", "input"),
    "output name": lambda: renamed("logits", "output"),
    "rank 4": lambda: shaped("features", ["batch", 1, 32, 63]),
    "rank 2": lambda: shaped("features", ["batch", 32]),
    "fixed batch": lambda: shaped("features", [1, 32, 63]),
    "transposed": lambda: shaped("features", ["batch", 63, 32]),
    "double": lambda: shaped("features", ["batch", 32, 63], TensorProto.DOUBLE),
    "half": lambda: shaped("features", ["batch", 32, 63], TensorProto.FLOAT16),
    "no shape": lambda: shaped("features", []),
    "two inputs": lambda: two("input"),
    "two outputs": lambda: two("output"),
    "fixed output batch": lambda: shaped("logits", [1, 4]),
    "integer output": lambda: shaped("logits", ["batch", 4], TensorProto.INT64),
    "M13 three labels": lambda: tiny_graph(3),
    "M13 five labels": lambda: tiny_graph(5),
}


@pytest.mark.parametrize("case", MISFITS)
def test_m12_misfits_are_refused_at_load(case: str) -> None:
    with pytest.raises(BundleError, match="tiny") as caught:
        load(MISFITS[case]())
    assert "batch" in caught.value.wanted


def test_inner_shapes_that_do_not_fit_are_refused_at_load_or_run(rng: np.random.Generator) -> None:
    model = tiny_graph()
    model.graph.initializer[3].CopyFrom(numpy_helper.from_array(np.zeros((4, 9), np.float32), "w2"))
    with pytest.raises(BundleError):
        load(model).logits(features(rng, 1))
    lies = [
        helper.make_node("ReduceMean", ["features"], ["m"], axes=[1], keepdims=0),
        helper.make_node("Relu", ["m"], ["logits"]),
    ]
    model = tiny_model(lies, [])
    model.opset_import[0].version = 13
    model.graph.output[0].type.tensor_type.shape.dim[1].ClearField("dim_value")
    with pytest.raises(BundleError, match="logits"):
        load(model).logits(features(rng, 1))


def test_a_missing_weight_is_refused_at_load() -> None:
    model = tiny_graph()
    del model.graph.initializer[-1]
    with pytest.raises(BundleError, match="cannot be loaded"):
        load(model)


def bombs() -> dict[str, onnx.ModelProto]:
    ones = {
        n: numpy_helper.from_array(np.ones(s, np.float32), n)
        for n, s in (("a", (50_000, 1)), ("b", (1, 50_000)))
    }
    zero = helper.make_node("ReduceMean", ["features", "all"], ["zero"], keepdims=0)
    axes = numpy_helper.from_array(np.array([1, 2], np.int64), "all")
    end = [
        helper.make_node("ReduceMax", ["huge"], ["top"], keepdims=0),
        helper.make_node("Add", ["top", "zero"], ["one"]),
        helper.make_node("Unsqueeze", ["one", "last"], ["column"]),
        helper.make_node("Gemm", ["column", "w"], ["logits"]),
    ]
    tail = [
        axes,
        numpy_helper.from_array(np.array([1], np.int64), "last"),
        numpy_helper.from_array(np.ones((1, 4), np.float32), "w"),
    ]
    pads = numpy_helper.from_array(np.array([0, 0, 0, 0, 0, 1 << 32], np.int64), "pads")
    doubling = [helper.make_node("Concat", [f"d{i}", f"d{i}"], [f"d{i + 1}"], axis=0) for i in range(30)]
    doubling[0].input[:] = ["b", "b"]
    doubling[-1].output[0] = "huge"
    product, total = (helper.make_node(op, ["a", "b"], ["huge"]) for op in ("MatMul", "Add"))
    return {
        "constant product": tiny_model([zero, product, *end], [*ones.values(), *tail]),
        "product": tiny_model(
            [
                zero,
                helper.make_node("ReduceMean", ["zero"], ["scalar"], keepdims=0),
                helper.make_node("Add", ["a", "scalar"], ["c"]),
                helper.make_node("MatMul", ["c", "b"], ["huge"]),
                *end,
            ],
            [*ones.values(), *tail],
        ),
        "broadcast": tiny_model([zero, total, *end], [*ones.values(), *tail]),
        "pad": tiny_model(
            [zero, helper.make_node("Pad", ["features", "pads"], ["huge"]), *end], [pads, *tail]
        ),
        "doubling": tiny_model([zero, *doubling, *end], [ones["b"], *tail]),
    }


@pytest.mark.parametrize("case", ["constant product", "product", "broadcast", "pad", "doubling"])
def test_m17_allocation_bombs_fail_without_the_memory(case: str, rng: np.random.Generator) -> None:
    """Each asks for about 10 GB (the doubling for 200 TB) through allowed operators."""
    before = peak_mb()
    with pytest.raises(BundleError):
        load(bombs()[case]).logits(features(rng, 1))
    assert peak_mb() - before < 2 * runtime.MEMORY_BYTES / 2**20


def peak_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("threads", [0, -1, 10_000, True, 1.5, "2"])
def test_thread_counts(threads: object) -> None:
    with pytest.raises(ConfigError, match="threads"):
        load(tiny_graph(), threads=threads)


def test_no_such_provider() -> None:
    with pytest.raises(ConfigError, match="cuda"):
        load(tiny_graph(), provider="magic")


class FakeOrt:
    """ONNX Runtime as built for CUDA: sessions say that they run there, if the machine "has" a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, built: bool, gpu: bool) -> None:
        self.asked: list[list[object]] = []
        real = runtime.ort.InferenceSession
        names = [runtime.CUDA, "CPUExecutionProvider"]

        def session(model: bytes, options: object, *, providers: list[object]) -> object:
            self.asked.append(providers)
            found = real(model, options, providers=["CPUExecutionProvider"])
            if gpu and len(providers) == 2:
                found.get_providers = lambda: names
            return found

        monkeypatch.setattr(runtime.ort, "InferenceSession", session)
        monkeypatch.setattr(runtime.ort, "get_available_providers", lambda: names if built else names[1:])
        monkeypatch.setattr(runtime.ort, "set_default_logger_severity", lambda level: None)


@pytest.mark.parametrize(
    ("provider", "built", "gpu", "runs_on", "why"),
    [
        ("cuda", True, True, "cuda", ""),
        ("auto", True, True, "cuda", ""),
        ("cpu", True, True, "cpu", ""),
        ("cuda", True, False, "cpu", "cannot be started"),
        ("cuda", False, False, "cpu", "onnxruntime-gpu"),
        ("auto", True, False, "cpu", ""),
        ("auto", False, False, "cpu", ""),
    ],
)
def test_the_provider_is_cuda_where_it_works(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, tiny: Runtime,
    provider: str, built: bool, gpu: bool, runs_on: str, why: str,
) -> None:  # fmt: skip
    fake = FakeOrt(monkeypatch, built=built, gpu=gpu)
    found = load(tiny_graph(), provider=provider)
    assert found.provider == runs_on
    assert (why in found.fallback) if why else not found.fallback
    tried = provider != "cpu" and built
    assert [len(asked) for asked in fake.asked] == [2 if tried else 1]
    if tried:
        assert fake.asked[0][0] == (runtime.CUDA, runtime.CUDA_OPTIONS)
    x = features(rng, 2)
    np.testing.assert_array_equal(found.logits(x), tiny.logits(x))


def test_errors_stay_off_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_graph()
    del model.graph.initializer[-1]
    with pytest.raises(BundleError):
        load(model)
    assert capfd.readouterr().err == ""
