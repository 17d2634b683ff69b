"""teachers: graphs cut in two, answers as when classifying, and nobody who knows the test fold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

import synthetic  # noqa: E402
import tiny  # noqa: E402
from soundmark import bundle, ensemble  # noqa: E402
from soundmark.bundle import Bundle  # noqa: E402
from soundmark.classifier import Classifier  # noqa: E402
from soundmark.config import DecisionConfig  # noqa: E402
from soundmark.dataset import Dataset  # noqa: E402
from soundmark.errors import BundleError, TrainingError  # noqa: E402
from soundmark.learn import views  # noqa: E402
from soundmark.learn.teachers import (  # noqa: E402
    agreed,
    described,
    external,
    open_teachers,
    refuse_strangers,
)
from soundmark.learn.trunks import Trunk, split_head  # noqa: E402
from soundmark.postprocess import softmax  # noqa: E402
from soundmark.runtime import Runtime  # noqa: E402

pytestmark = pytest.mark.train


def with_another_head(seed: int, n_labels: int = 4) -> bytes:
    """Return the tiny graph with other weights in its last layer."""
    graph, rng = tiny.tiny_graph(), np.random.default_rng(seed)
    for tensor in graph.graph.initializer:
        if tensor.name in ("w2", "b2"):
            values = rng.standard_normal(tuple(tensor.dims)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return graph.SerializeToString()


def test_trunk_and_head_are_the_whole_graph(rng: np.random.Generator) -> None:
    model = tiny.tiny_graph().SerializeToString()
    features = rng.standard_normal((5, *tiny.TINY_SHAPE)).astype(np.float32)
    trunk, head = split_head(model, name="tiny")
    assert head is not None
    embedding = Runtime(trunk, input_shape=tiny.TINY_SHAPE, n_labels=8).logits(features)
    whole = Runtime(model, input_shape=tiny.TINY_SHAPE, n_labels=4).logits(features)
    np.testing.assert_allclose(head(embedding), whole, atol=1e-5)


def test_a_trunk_does_not_depend_on_the_head() -> None:
    one, two = (split_head(with_another_head(seed), name="tiny") for seed in (1, 2))
    assert one[0] == two[0]
    assert one[1] is not None
    assert two[1] is not None
    assert not np.array_equal(one[1].weight, two[1].weight)
    other = tiny.tiny_graph(seed=1).SerializeToString()
    assert split_head(other, name="tiny")[0] != one[0]


@pytest.mark.parametrize("why", ["quantised", "scaled", "shared weight"])
def test_what_does_not_end_in_a_plain_layer_stays_whole(why: str, int8_bundle: Path) -> None:
    if why == "quantised":
        trunk, head = split_head(bundle.read(int8_bundle).model, name="int8")
    elif why == "scaled":
        graph = tiny.tiny_graph()
        graph.graph.node[-1].attribute.append(helper.make_attribute("alpha", 2.0))
        trunk, head = split_head(graph.SerializeToString(), name="tiny")
    else:
        graph = tiny.tiny_graph()  # logits go on through another node
        graph.graph.node[-1].output[0] = "before"
        graph.graph.node.append(helper.make_node("Relu", ["before"], ["logits"]))
        trunk, head = split_head(graph.SerializeToString(), name="tiny")
    assert head is None
    onnx.load_model_from_string(trunk)


def test_what_is_cached_gives_the_logits_of_the_classifier(
    fp32_bundle: Path, int8_bundle: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUNDMARK_CACHE", str(tmp_path))
    preset = synthetic.tiny_preset()
    (fold,) = views.folds_of(dataset.in_folds([1]), preset, dataset.hashes())
    given = [(fp32_bundle, 1.0), (int8_bundle, 1.0)]
    teachers = open_teachers(given, window_s=1.0)
    assert [teacher.trunk.dtype for teacher in teachers] == [np.float16, np.float32]
    views.build([teacher.trunk for teacher in teachers], [(fold, 0)], preset)
    for teacher, (path, _) in zip(teachers, given, strict=True):
        rows = views.open_block(teacher.trunk, fold, 0)
        assert rows is not None
        classifier = Classifier.load(path)
        wanted = np.stack([classifier.classify(clip.path).scores for clip in fold.clips])
        np.testing.assert_allclose(softmax(teacher.answers(rows)), wanted, atol=3e-3)


def test_equal_trunks_are_computed_once(make_bundle: Callable[..., Bundle]) -> None:
    one, two = (make_bundle(model=with_another_head(seed)).path for seed in (1, 2))
    teachers = open_teachers([(one, 1.0), (two, 0.5)], window_s=1.0)
    assert teachers[0].trunk is teachers[1].trunk
    assert teachers[0].head is not teachers[1].head
    other = make_bundle(model=tiny.tiny_graph(seed=3).SerializeToString()).path
    assert open_teachers([(other, 1.0)], window_s=1.0)[0].trunk.key != teachers[0].trunk.key
    assert Trunk(bundle.read(one), window_s=2.0).key != teachers[0].trunk.key
    assert Trunk(bundle.read(one), window_s=2.0).row == (2, 8)  # two of its windows in one of ours


def test_answers_are_added_up_as_written(rng: np.random.Generator) -> None:
    a, b = (np.log(softmax(rng.standard_normal((3, 4)))).astype(np.float32) for _ in "ab")
    np.testing.assert_allclose(agreed([a, b], [0.75, 0.25]), 0.75 * a + 0.25 * b, atol=1e-5)
    np.testing.assert_allclose(agreed([a], [1.0]), a, atol=1e-5)


def test_an_ensemble_teaches_what_it_says(
    fp32_bundle: Path, int8_bundle: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers deep, with weights and temperatures everywhere, beside a bundle."""
    monkeypatch.setenv("SOUNDMARK_CACHE", str(tmp_path))
    one, two = ensemble.load_model(fp32_bundle), ensemble.load_model(int8_bundle)
    inner = ensemble.write(tmp_path / "inner", [one, two], name="inner", combine="logits")
    outer = ensemble.write(
        tmp_path / "outer",
        [inner, one],
        name="outer",
        weights=[0.7, 0.3],
        temperatures=[1.5, 0.6],
        decision=DecisionConfig(temperature=0.8),
    )
    given = [(outer.path, 3.0), (fp32_bundle, 1.0)]
    teachers = open_teachers(given, window_s=1.0)
    assert len(teachers) == 4
    preset = synthetic.tiny_preset()
    (fold,) = views.folds_of(dataset.in_folds([1]), preset, dataset.hashes())
    views.build({t.trunk.key: t.trunk for t in teachers}.values(), [(fold, 0)], preset)
    blocks = [views.open_block(teacher.trunk, fold, 0) for teacher in teachers]
    answers = [t.answers(rows) for t, rows in zip(teachers, blocks, strict=True) if rows is not None]
    heard = agreed(answers, [teacher.weight for teacher in teachers])
    said = [[model.classify(clip.path).scores for clip in fold.clips] for model in (outer, one)]
    mean = 0.75 * np.log(np.array(said[0])) + 0.25 * np.log(np.array(said[1]))
    wanted = np.exp(mean) / np.exp(mean).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax(heard), wanted, atol=3e-3)


def opened(path: Path) -> Any:
    return open_teachers([(path, 1.0)], window_s=1.0)


def test_a_teacher_of_the_training_folds_alone_is_let_in(fp32_bundle: Path, dataset: Dataset) -> None:
    refuse_strangers(opened(fp32_bundle), dataset, (1, 2, 3, 4), dataset.hashes())


@pytest.mark.parametrize("folds", [(2, 3, 4, 5), (1, 2, 3), (1, 2, 3, 5)])
def test_a_teacher_that_knows_another_fold_is_refused(
    fp32_bundle: Path, dataset: Dataset, folds: tuple[int, ...]
) -> None:
    with pytest.raises(TrainingError, match=r"was trained on fold [14]") as caught:
        refuse_strangers(opened(fp32_bundle), dataset, folds, dataset.hashes())
    assert caught.value.code == "leak"


@pytest.mark.parametrize("what", ["bundle", "ensemble"])
def test_a_teacher_that_was_fitted_on_another_fold_is_refused(
    fp32_bundle: Path, dataset: Dataset, tmp_path: Path, what: str
) -> None:
    from msgspec.structs import replace

    record = {"train_folds": [5], "data": "ESC-50"}
    if what == "bundle":
        one = bundle.read(fp32_bundle)
        said = replace(one.manifest, provenance={**one.manifest.provenance, "calibration": record})
        bundle.write(tmp_path / "made", manifest=said, model=one.model, readme="#")
    else:
        models = [ensemble.load_model(fp32_bundle)] * 2
        ensemble.write(tmp_path / "made", models, name="made", provenance={"weights": record})
    with pytest.raises(TrainingError, match="calibrated or weighed on fold 5") as caught:
        refuse_strangers(opened(tmp_path / "made"), dataset, (1, 2, 3, 4), dataset.hashes())
    assert caught.value.code == "leak"
    refuse_strangers(opened(tmp_path / "made"), dataset, (1, 2, 3, 4, 5), dataset.hashes())


def test_a_teacher_of_other_folds_of_the_same_numbers_is_refused(fp32_bundle: Path, dataset: Dataset) -> None:
    from dataclasses import replace

    turned = replace(dataset, clips=tuple(replace(clip, fold=clip.fold % 5 + 1) for clip in dataset.clips))
    with pytest.raises(TrainingError, match="other data") as caught:
        refuse_strangers(opened(fp32_bundle), turned, (1, 2, 3, 4), turned.hashes())
    assert caught.value.code == "other_data"


def test_a_teacher_that_does_not_say_or_knows_other_labels_is_refused(
    make_bundle: Callable[..., Bundle], dataset: Dataset
) -> None:
    from msgspec.structs import replace

    path = make_bundle().path
    with pytest.raises(TrainingError, match="labels") as caught:
        refuse_strangers(opened(path), dataset, (1, 2, 3, 4), {})
    assert caught.value.code == "bad_teacher"
    del replace
    silent = make_bundle(
        labels=dataset.labels[:4],
    ).path
    with pytest.raises(TrainingError, match="does not say") as caught:
        refuse_strangers(opened(silent), dataset.with_labels(dataset.labels[:4]), (1, 2, 3, 4), {})
    assert caught.value.code == "leak"


def test_no_teacher_a_bad_weight_and_a_missing_folder_are_refused(fp32_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="--teacher"):
        open_teachers([], window_s=1.0)
    with pytest.raises(TrainingError, match="weight -1"):
        open_teachers([(fp32_bundle, -1.0)], window_s=1.0)
    with pytest.raises(BundleError):
        open_teachers([(tmp_path / "none", 1.0)], window_s=1.0)


def test_what_a_teacher_knew_from_outside_is_listed(fp32_bundle: Path) -> None:
    (said,) = described(opened(fp32_bundle))
    assert said["train_folds"] == [1, 2, 3, 4]
    assert said["external"] == []
    assert said["digest"] == bundle.read(fp32_bundle).digest
    assert external({"start": "weights 10c9", "pretrained": "YAMNet (AudioSet)"}) == ["YAMNet (AudioSet)"]
    assert external({"start": "weights 10c9"}) == ["weights 10c9"]
    assert external(
        {"start": "random weights, not X", "teachers": [{"external": ["b"]}, {"external": ["a"]}]}
    ) == [
        "a",
        "b",
    ]
