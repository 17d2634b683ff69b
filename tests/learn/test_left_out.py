"""left_out: labels that are left out stay out, the report is of what was said, and the command goes on."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from msgspec.structs import replace

import synthetic
from soundmark import unknowns
from soundmark.classifier import Classifier
from soundmark.config import (
    DistillConfig,
    EnsembleConfig,
    ExportConfig,
    NetworkConfig,
    UnknownsConfig,
    to_toml,
)
from soundmark.dataset import Dataset, load_esc50
from soundmark.ensemble import Ensemble, load_model
from soundmark.errors import BundleError, ConfigError, DatasetError
from soundmark.learn import fold_bundle
from soundmark.learn.features import extract
from soundmark.learn.left_out import score_draws, train_draws
from soundmark.preset import Preset
from soundmark.unknown_report import known_labels, n_clips, unknown_report

LABELS = tuple(synthetic.CLASSES.values())
CONFIG = UnknownsConfig(draws=2, left_out=2, made=2)


@pytest.fixture
def preset(monkeypatch: pytest.MonkeyPatch) -> Preset:
    """Return a preset that learns in seconds; processes are this one."""

    def in_this_process(function: Any, calls: Any, *, jobs: int, on_wait: Any = None) -> list[Any]:
        results = [function(*call) for call in calls]
        on_wait()
        return results

    monkeypatch.setattr(fold_bundle, "in_processes", in_this_process)
    return replace(synthetic.tiny_preset(epochs=6), export=ExportConfig(quantize=False, golden_windows=8))


def test_labels_are_drawn_from_the_seed_and_more_draws_change_nothing() -> None:
    labels = tuple(f"l{i}" for i in range(50))
    drawn = [known_labels(labels, UnknownsConfig(draws=n), n) for n in range(1, 41)]
    assert drawn == [known_labels(labels, UnknownsConfig(draws=99), n) for n in range(1, 41)]
    assert all(len(known) == 40 and list(known) == [x for x in labels if x in known] for known in drawn)
    assert len({*drawn}) == 40
    out = Counter(label for known in drawn for label in labels if label not in known)
    assert len(out) == 50  # nobody is spared: 8 expected of 40, sd 2.5
    assert max(out.values()) <= 18
    assert known_labels(labels, UnknownsConfig(seed=1), 1) != drawn[0]
    with pytest.raises(ConfigError, match="two that are known"):
        known_labels(LABELS, UnknownsConfig(left_out=4), 1)


def test_the_command_from_data_to_report_and_on(
    call: Callable[..., tuple[object, str, str]],
    preset: Preset,
    data_root: Path,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: set[tuple[str, int]] = set()

    def spy(clips: Dataset, *args: Any, **kwargs: Any) -> Any:
        read.update((clip.label, clip.fold) for clip in clips.clips)
        return extract(clips, *args, **kwargs)

    for module in ("batches", "finished"):
        monkeypatch.setattr(f"soundmark.learn.{module}.extract", spy)
    (tmp_path / "p.toml").write_text(to_toml(preset))
    out = tmp_path / "out"
    base = ("unknowns", tmp_path / "p.toml", "--data", data_root, "--out", out, "--left-out", 2, "--made", 2)
    assert call(*base, "--draws", 1)[0] == 2  # which fold?
    assert call(*base, "--draws", 1, "--test-fold", 9)[0] == 2
    status, printed, err = call(*base, "--draws", 1, "--test-fold", 5)
    assert (status, err) == (0, "")
    *lines, last = printed.splitlines()
    assert max(map(len, lines)) <= 80
    assert last == f"report: {out / 'report.json'}"
    assert [line.split()[0] for line in lines if line.startswith(unknowns.SCORES)] == [*unknowns.SCORES]

    # what was left out was not read for training or export, nor was the test fold
    known = known_labels(LABELS, CONFIG, 1)
    assert {label for label, _ in read} == {*known}
    assert {fold for _, fold in read} == {1, 2, 3, 4}
    report = json.loads((out / "report.json").read_text())
    (draw,) = report["draws"]
    assert draw["left_out"] == [label for label in LABELS if label not in known]
    assert draw["training"]["data_digest"] == dataset.with_labels(known).in_folds([1, 2, 3, 4]).digest()
    assert report["stamps"] == []

    # figures are those of the rows, and rows those of the bundle
    model = Classifier.load(out / "draw1" / "bundle")
    test_set = dataset.in_folds([5])
    rows = {row["name"]: row for row in draw["clips"]}
    assert Counter(row["is"] for row in rows.values()) == {
        "known": 12, "left_out": 8, "speech": 2, "music": 2, "noise": 2
    }  # fmt: skip
    hits = []
    for clip in test_set.clips:
        heard, row = model.classify(clip.path), rows[clip.name]
        assert row["is"] == ("known" if clip.label in known else "left_out")
        assert row["heard"] == heard.label
        hits += [heard.label == clip.label] if clip.label in known else []
        energy = np.log(np.exp(heard.logits[0].astype(float)).sum())
        assert row["energy"] == pytest.approx(energy, abs=1e-5)
        assert row["max-logit"] == pytest.approx(heard.logits.max(), abs=1e-5)
        assert row["probability"] == pytest.approx(heard.score, abs=1e-5)
    assert draw["accuracy"] == report["figures"]["accuracy_known"]["mean"] == round(np.mean(hits), 6)
    for kind in unknowns.SCORES:
        mine = [row[kind] for row in rows.values() if row["is"] == "known"]
        for what in ("left_out", "speech", "music", "noise"):
            theirs = [row[kind] for row in rows.values() if row["is"] == what]
            figures = draw["scores"][kind][what]
            assert figures["auroc"] == pytest.approx(unknowns.auroc(mine, theirs), abs=1e-6)
            assert figures["fpr_at_95"] == pytest.approx(unknowns.fpr(mine, theirs), abs=1e-6)
            assert figures["clips"] == len(theirs)
            assert report["figures"][kind][what]["auroc"]["mean"] == figures["auroc"]

    # a second draw follows in the same folder, the first is kept; another seed is refused
    train = fold_bundle.train

    def one_more(preset: Preset, *args: Any, **kwargs: Any) -> Any:
        assert preset.labels != known, "the first draw was trained again"
        return train(preset, *args, **kwargs)

    monkeypatch.setattr(fold_bundle, "train", one_more)
    status, printed, err = call(*base, "--draws", 2, "--test-fold", 5, "--json")
    two = json.loads(printed)
    assert (status, err) == (0, f"report: {out / 'report.json'}\n")
    assert two == json.loads((out / "report.json").read_text())
    assert two["draws"][0] == draw
    mean = np.mean([one["scores"]["energy"]["left_out"]["auroc"] for one in two["draws"]])
    assert two["figures"]["energy"]["left_out"]["auroc"]["mean"] == pytest.approx(mean, abs=1e-6)
    assert str(tmp_path) not in printed
    for other, said in (
        (("--seed", 1), "seed was 0, now 1"),
        (("--train-folds", "1,2"), "train_folds was 'all others', now [1, 2]"),
    ):
        status, _, err = call(*base, "--draws", 2, "--test-fold", 5, *other)
        assert (status, said in err) == (1, True), err

    # a bundle of another draw, or one that was trained on the fold, is refused
    folders = [out / f"draw{n}" / "bundle" for n in (1, 2)]
    with pytest.raises(BundleError, match="other labels than draw 1"):
        unknown_report([Classifier.load(folders[1])], dataset, test_folds=(5,), config=CONFIG)
    with pytest.raises(DatasetError, match="fold 4 was trained on") as caught:
        unknown_report([Classifier.load(folders[0])], dataset, test_folds=(4,), config=CONFIG)
    assert caught.value.code == "leak"


def test_each_draw_is_taught_by_who_never_heard_of_its_labels_either(
    call: Callable[..., tuple[object, str, str]],
    preset: Preset,
    data_root: Path,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOUNDMARK_CACHE", str(tmp_path / "cache"))
    network = NetworkConfig(kind="yamnet", channels=(8,) * 14, keep=3)
    member = replace(preset, name="member", network=network, train=replace(preset.train, epochs=1))
    student = replace(member, name="student", distill=DistillConfig(views=1))
    (tmp_path / "member.toml").write_text(to_toml(member))
    (tmp_path / "student.toml").write_text(to_toml(student))
    whole = Preset(name="whole", ensemble=EnsembleConfig(members=(str(tmp_path / "member.toml"),)))
    (tmp_path / "whole.toml").write_text(to_toml(whole))
    rest = ("--data", data_root, "--test-fold", "4,5", "--draws", 2, "--left-out", 2, "--made", 1, "--json")

    # an ensemble has its members trained in the folder of each draw, whose folds take turns
    status, printed, err = call("unknowns", tmp_path / "whole.toml", *rest, "--out", tmp_path / "teachers")
    assert (status, err) == (0, f"report: {tmp_path / 'teachers' / 'report.json'}\n")
    assert [draw["model"] for draw in json.loads(printed)["draws"]] == ["whole", "whole"]
    assert (tmp_path / "teachers" / "draw2" / "member" / "run" / "run.json").exists()

    taught = ("unknowns", tmp_path / "student.toml", *rest, "--out", tmp_path / "taught")
    status, printed, err = call(*taught, "--teacher", tmp_path / "teachers")
    assert status == 0, err
    teachers = [load_model(tmp_path / "teachers" / f"draw{n}" / "bundle") for n in (1, 2)]
    report = json.loads(printed)
    assert (report["test_folds"], report["n_clips"]) == ([4, 5], 40)
    assert report["data_digest"] == dataset.in_folds([4, 5]).digest()
    assert "in all other folds, scored on fold 4, 5 in turn" in report["protocol"]
    for number, (draw, teacher) in enumerate(zip(report["draws"], teachers, strict=True), 1):
        assert isinstance(teacher, Ensemble)
        assert teacher.labels == known_labels(LABELS, CONFIG, number)
        (one,) = draw["training"]["teachers"]
        others = [[1, 2, 3, 5], [1, 2, 3, 4]][number - 1]
        assert (one["digest"], one["train_folds"]) == (teacher.models[0].digest, others)
        assert (draw["test_fold"], draw["training"]["train_folds"]) == ([4, 5][number - 1], others)
        names = {clip.name for clip in dataset.in_folds([draw["test_fold"]]).clips}
        assert {row["name"] for row in draw["clips"] if row["is"] in ("known", "left_out")} == names
        assert draw["training"]["data_digest"] == teacher.training["data_digest"]

    # whoever knows other labels may not teach, and another teacher is another folder
    status, _, err = call(*taught)
    assert (status, "n_teachers" in err) == (1, True), err
    shutil.move(tmp_path / "teachers" / "draw1", tmp_path / "was1")
    shutil.copytree(tmp_path / "teachers" / "draw2", tmp_path / "teachers" / "draw1")
    status, _, err = call(*taught[:-1], tmp_path / "again", "--teacher", tmp_path / "teachers")
    assert (status, "labels" in err) == (1, True), err


def test_clips_that_say_nothing_are_counted_and_have_no_score(
    preset: Preset, data_root: Path, tmp_path: Path
) -> None:
    own = load_esc50(Path(shutil.copytree(data_root, tmp_path / "data")))
    one = replace(preset, train=replace(preset.train, epochs=1))
    config = UnknownsConfig(draws=1, left_out=2, made=1)
    train_draws(one, own, test_folds=(5,), out=tmp_path / "out", config=config, train_folds=(1, 2))
    known = known_labels(LABELS, config, 1)
    first, second, *_ = [clip for clip in own.in_folds([5]).clips if clip.label in known]
    soundfile.write(first.path, np.zeros(16_000, np.float32), 16_000)
    second.path.write_bytes(b"RIFF")
    counted: list[int] = []
    model = Classifier.load(tmp_path / "out" / "draw1" / "bundle")
    report = unknown_report([model], own, test_folds=(5,), config=config, on_clip=counted.append)
    (draw,) = report["draws"]
    assert draw["training"]["train_folds"] == [1, 2]  # an inner choice: folds 3 and 4 are not looked at
    assert "in folds 1, 2, scored on fold 5" in report["protocol"]
    assert (draw["failed"], draw["silent"]) == (1, 1)
    rows = [row for row in draw["clips"] if row["is"] == "known"]
    assert not {first.name, second.name} & {row["name"] for row in rows}
    assert len(rows) == 10
    right = sum(clip.label == row["heard"] for row in rows for clip in own.clips if clip.name == row["name"])
    assert draw["accuracy"] == pytest.approx(right / 12, abs=1e-6)  # both count as wrong
    assert sum(counted) == n_clips(own, (5,), config, [1, 2]) == 24 + 20 + 3


def test_what_cannot_be_left_out_is_said(preset: Preset, dataset: Dataset, tmp_path: Path) -> None:
    whole = replace(preset, ensemble=EnsembleConfig(members=("edge",)))
    with pytest.raises(ConfigError, match="is an ensemble"):
        train_draws(whole, dataset, test_folds=(5,), out=tmp_path / "a", config=CONFIG, train_folds=(1, 2))
    none = ((tmp_path / "none", 1.0),)
    with pytest.raises(BundleError, match="has no bundle draw1") as missing:
        train_draws(preset, dataset, test_folds=(5,), out=tmp_path / "a", config=CONFIG, teachers=none)
    assert missing.value.code == "model_not_found"
    with pytest.raises(ConfigError, match="two that are known"):
        train_draws(preset, dataset, test_folds=(5,), out=tmp_path / "a", config=UnknownsConfig(left_out=4))
    assert not (tmp_path / "a").exists()
    with pytest.raises(BundleError):
        score_draws(dataset, test_folds=(5,), out=tmp_path / "b", config=CONFIG)
    few = dataset.narrowed(("hum", "tone", "clicks"))
    assert few.labels == ("hum", "tone", "clicks")
    assert dataset.narrowed(preset.labels) is dataset
