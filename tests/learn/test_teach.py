"""teach: members, inner runs that folds share, weights from held folds, one report; begun again, it goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as with_fields

import synthetic
from soundmark.config import EnsembleConfig, ExportConfig, NetworkConfig, to_toml
from soundmark.dataset import Dataset
from soundmark.ensemble import Ensemble, load_model
from soundmark.errors import ConfigError, TrainingError
from soundmark.learn import cv, fold_bundle
from soundmark.learn.inner_folds import pairs
from soundmark.learn.teach import members_of, plan
from soundmark.learn.train import train
from soundmark.preset import Preset, load_preset
from soundmark.sources import open_dataset


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Preset:
    """Return an ensemble of a network and of the same one frozen; processes are this one."""

    def in_this_process(function: Any, calls: Any, *, jobs: int, on_wait: Any = None) -> list[Any]:
        results = [function(*call) for call in calls]
        on_wait()
        return results

    monkeypatch.setattr(fold_bundle, "in_processes", in_this_process)
    network = NetworkConfig(kind="yamnet", channels=(8,) * 14, keep=3)
    export = ExportConfig(quantize=False, golden_windows=8)
    off = {"mix_probability": 0.0, "gain_db": 0.0, "roll": 0.0, "time_masks": 0, "freq_masks": 0}
    made = with_fields(synthetic.tiny_preset(epochs=2), name="learns", network=network, export=export)
    frozen = with_fields(
        made,
        name="frozen",
        augment=with_fields(made.augment, **off),
        train=with_fields(made.train, frozen_epochs=2),
    )
    files = [tmp_path / f"{one.name}.toml" for one in (made, frozen)]
    for file, one in zip(files, (made, frozen), strict=True):
        file.write_text(to_toml(one))
    return Preset(name="both", ensemble=EnsembleConfig(members=tuple(map(str, files))))


def test_pairs_leave_folds_to_learn_from_and_cover_all() -> None:
    assert pairs((1, 2, 3, 4, 5)) == [(1, 2), (3, 4), (5, 1)]
    assert pairs((1, 2, 3, 4)) == [(1, 2), (3, 4)]
    assert pairs((1, 2, 3)) == [(1, 2), (3, 1)]
    assert pairs((1, 2)) == []


def test_inner_trainings_are_shared_between_folds(teacher: Preset, dataset: Dataset, tmp_path: Path) -> None:
    homes = {fold: tmp_path / f"fold{fold}" for fold in dataset.folds}
    trainings, inner = plan(teacher, dataset, homes, tmp_path)
    assert len({one.home for one in trainings}) == len(trainings) == 2 * 5 + 2 * 3
    assert {fold: [home.name for home in found] for fold, found in inner.items()} == {
        1: ["inner-3-4-5", "inner-2-3-4"],
        2: ["inner-3-4-5"],
        3: ["inner-1-2-5"],
        4: ["inner-1-2-5"],
        5: ["inner-2-3-4"],
    }
    for fold, found in inner.items():  # no inner network may know the fold that is judged
        of = [one for one in trainings if one.home.parent in found]
        assert of
        assert all(fold not in one.train_folds and one.test_fold not in one.train_folds for one in of)
    trainings, inner = plan(teacher, dataset, {3: tmp_path}, tmp_path)
    assert (len(trainings), [home.name for home in inner[3]]) == (4, ["inner-1-2-5"])


def test_the_command_trains_a_teacher_and_cross_validation_goes_on_from_there(
    call: Callable[..., tuple[object, str, str]],
    teacher: Preset,
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = open_dataset(data_root)
    (tmp_path / "both.toml").write_text(to_toml(teacher))
    args = (
        "train",
        tmp_path / "both.toml",
        "--data",
        dataset.root,
        "--test-fold",
        2,
        "--out",
        tmp_path / "t",
    )
    assert call(*args, "--train-folds", "1,3")[0] == 2
    status, out, _ = call(*args, "--export", tmp_path / "e")
    assert (status, "2 members" in out) == (0, True)
    made = load_model(tmp_path / "e")
    assert isinstance(made, Ensemble)
    assert [member.name for member in made.manifest.members] == ["learns", "frozen"]
    assert sum(member.weight for member in made.manifest.members) == pytest.approx(1, abs=1e-3)
    record = made.manifest.provenance["weights"]
    assert (record["train_folds"], record["test_fold"], record["clips"]) == ([1], 2, 20)
    assert [model.training["train_folds"] for model in made.models] == [[1, 3, 4, 5]] * 2

    cross = tmp_path / "cv"
    for name in ("learns", "frozen"):
        shutil.copytree(tmp_path / "t" / name, cross / "fold2" / name)
    shutil.copytree(tmp_path / "t" / "inner-3-4-5", cross / "inner-3-4-5")
    monkeypatch.setattr(fold_bundle, "train", lambda *a, **k: pytest.fail("it was trained again"))
    epochs: list[int] = []
    report = cv.cross_validate(teacher, dataset, out=cross, folds=(2,), on_epoch=epochs.append)
    assert sum(epochs) == cv.n_epochs(teacher, dataset, (2,)) == 2 * 4
    assert report.provenance["members"][0]["model_digest"] == made.digest
    assert report.stamps == ()
    assert json.loads((cross / "report.json").read_text())["figures"] == report.figures
    (cross / "fold2" / "bundle" / "ensemble.json").write_text("{}")  # a damaged one is made again
    assert cv.cross_validate(teacher, dataset, out=cross, folds=(2,)).figures == report.figures
    other = with_fields(teacher, ensemble=EnsembleConfig(members=teacher.ensemble.members[:1]))
    with pytest.raises(TrainingError, match="members"):
        cv.cross_validate(other, dataset, out=cross, folds=(2,))


@pytest.mark.parametrize("fit", [True, False])
def test_an_ensemble_may_learn_from_all_clips(
    call: Callable[..., tuple[object, str, str]], teacher: Preset, data_root: Path, tmp_path: Path, fit: bool
) -> None:
    preset = with_fields(teacher, ensemble=with_fields(teacher.ensemble, fit=fit))
    (tmp_path / "both.toml").write_text(to_toml(preset))
    args = (
        "train",
        tmp_path / "both.toml",
        "--data",
        data_root,
        "--test-fold",
        "none",
        "--out",
        tmp_path / "t",
    )
    status, out, err = call(*args, "--export", tmp_path / "e")
    assert (status, "2 members" in out) == (0, True), err
    made = load_model(tmp_path / "e")
    assert isinstance(made, Ensemble)
    assert [model.training["train_folds"] for model in made.models] == [[1, 2, 3, 4, 5]] * 2
    assert [model.training.get("test_fold") for model in made.models] == [None, None]
    inner = sorted(path.name for path in (tmp_path / "t").glob("inner-*"))
    assert inner == (["inner-1-2-5", "inner-2-3-4", "inner-3-4-5"] if fit else [])
    if fit:  # on what each inner network had not heard: two folds of each
        assert made.manifest.provenance["weights"]["clips"] == 3 * 2 * 20
    assert call(*args, "--smoke")[0] == 2


def test_what_is_no_teacher_is_said(teacher: Preset, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is an ensemble"):
        train(teacher, dataset, test_fold=5, out=tmp_path / "run")
    with pytest.raises(ConfigError, match="SOUNDMARK_"):
        cv.cross_validate(teacher, dataset, out=tmp_path / "cv", weights=tmp_path / "w")
    nested = with_fields(teacher, ensemble=EnsembleConfig(members=("teacher",)))
    with pytest.raises(ConfigError, match="is an ensemble"):
        members_of(nested)
    with pytest.raises(ConfigError, match="no preset 'nobody'"):
        members_of(with_fields(teacher, ensemble=EnsembleConfig(members=("nobody",))))


def test_frozen_members_stand_side_by_side_and_smoke_goes_the_whole_road(
    call: Callable[..., tuple[object, str, str]], teacher: Preset, data_root: Path, tmp_path: Path
) -> None:
    frozen = teacher.ensemble.members[1]
    beside = with_fields(teacher, ensemble=EnsembleConfig(members=(f"{frozen} + {frozen}",)))
    (tmp_path / "beside.toml").write_text(to_toml(beside))
    home = tmp_path / "home"
    args = (tmp_path / "beside.toml", "--data", data_root, "--out", home)
    status, out, _ = call("train", *args, "--smoke")
    assert (status, "1 members" in out) == (0, True)
    made = load_model(home / "ensemble")
    assert isinstance(made, Ensemble)
    (inside,) = made.models
    assert isinstance(inside, Ensemble)
    assert (inside.name, inside.manifest.combine) == ("frozen-beside-frozen", "logits")
    assert call("tune", *args, "--trials", 1)[0] == 2


def test_the_shipped_teacher_has_members_and_fits_on_a_page() -> None:
    preset = load_preset("teacher")
    assert len(members_of(preset)) >= 2
