"""cv with teachers: each student has the teacher of its fold, views are made once, and inner answers are honest."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from msgspec.structs import replace  # noqa: E402

import synthetic  # noqa: E402
from soundmark import bundle, inner_answers  # noqa: E402
from soundmark.config import DistillConfig, EnsembleConfig, NetworkConfig, to_toml  # noqa: E402
from soundmark.dataset import Dataset, load_esc50  # noqa: E402
from soundmark.ensemble import Ensemble, load_model  # noqa: E402
from soundmark.errors import BundleError, ConfigError, DatasetError, TrainingError  # noqa: E402
from soundmark.learn import cv, distill, fold_bundle, views  # noqa: E402
from soundmark.learn.fold_teachers import names_of, with_teachers  # noqa: E402
from soundmark.learn.inner_folds import inner_runs  # noqa: E402
from soundmark.preset import Preset, load_preset  # noqa: E402

pytestmark = pytest.mark.train

FOLDS = (1, 2, 3, 4)
HOMES = {"fold1": (2, 3, 4), "fold2": (1, 3, 4), "fold3": (1, 2, 4), "inner-3-4": (3, 4)}


def student(**distilling: Any) -> Preset:
    made = synthetic.tiny_preset(epochs=2)
    return replace(
        made,
        network=NetworkConfig(kind="yamnet", keep=3, channels=(4,) * 14, batch_norm=True, dropout=0.0),
        distill=DistillConfig(**{"views": 2, **distilling}),
        export=replace(made.export, quantize=False, golden_windows=8),
    )


@pytest.fixture
def four() -> Dataset:
    """Return the clips of four folds."""
    return load_esc50(synthetic.shared_data()).in_folds(FOLDS)


@pytest.fixture
def teachers(four: Dataset, tmp_path: Path) -> Path:
    """Return a folder with a bundle for some folds and an inner run; they say whom they know, and share a trunk."""
    return made_teachers(tmp_path / "teachers", four)


def made_teachers(folder: Path, data: Dataset, **changes: Any) -> Path:
    verified = bundle.read(synthetic.shared_bundle("fp32"))
    manifest = verified.manifest
    for name, folds in HOMES.items():
        training = {
            **manifest.provenance["training"],
            "train_folds": list(folds),
            "test_fold": min({*FOLDS} - {*folds}),
            "data_digest": data.in_folds(folds).digest(),
            **changes,
        }
        said = replace(manifest, provenance={**manifest.provenance, "training": training})
        home = folder / name if name == "fold2" else folder / name / "bundle"  # both ways are found
        bundle.write(home, manifest=said, model=verified.model, readme="# teacher\n")
    return folder


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what would be processes in this one."""

    def in_this_process(function: Any, calls: Any, *, jobs: int, on_wait: Any = None) -> list[Any]:
        results = [function(*call) for call in calls]
        if on_wait:
            on_wait()
        return results

    monkeypatch.setattr(fold_bundle, "in_processes", in_this_process)
    monkeypatch.setattr(distill, "in_processes", in_this_process)


def training_of(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = bundle.read(home / "bundle").manifest.provenance["training"]
    return found


def test_students_of_all_folds_and_their_temperatures(
    four: Dataset, teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUNDMARK_CACHE", str(tmp_path / "cache"))
    out, learn, taught = tmp_path / "cv", fold_bundle.distill, []
    given = ((teachers, 0.5),)

    def lesson(*args: Any, ended_at: int = 0, **options: Any) -> Any:
        taught.append((options["test_fold"], options["train_folds"]))
        if options["test_fold"] == ended_at:
            raise KeyboardInterrupt
        with monkeypatch.context() as patch:  # everything was stored before the first training
            patch.setattr(views, "render", lambda *a, **k: pytest.fail("a view was made by a training"))
            return learn(*args, **options)

    monkeypatch.setattr(fold_bundle, "distill", lambda *a, **k: lesson(*a, ended_at=2, **k))
    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        cv.cross_validate(
            student(),
            four,
            out=out,
            folds=(1, 2),
            teachers=given,
            calibrate=True,
            jobs=2,
            on_view=seen.append,
        )
    assert taught == [(1, ()), (2, ())]
    assert sum(seen) == cv.n_views(student(), four, (1, 2), inner=True) == 4 * 20 * 2
    first = (out / "fold1" / "bundle" / "bundle.json").stat().st_mtime_ns

    opened = listened(monkeypatch)
    monkeypatch.setattr(fold_bundle, "distill", lesson)
    taught.clear()
    epochs, clips, notes = [], [], []
    report = cv.cross_validate(
        student(),
        four,
        out=out,
        folds=(1, 2),
        teachers=given,
        calibrate=True,
        on_epoch=epochs.append,
        on_clip=clips.append,
        on_note=notes.append,
    )
    assert taught == [(2, ()), (1, (3, 4))]  # what was finished is kept
    assert sum(epochs) == cv.n_epochs(student(), four, (1, 2), inner=True) == 3 * 2
    assert sum(clips) == cv.n_clips(student(), four, (1, 2), calibrate=True) == 4 * 20
    assert (report.stamps, report.provenance["folds"]) == ((), [1, 2])
    for name in ("fold1", "fold2", "inner-3-4"):
        training = training_of(out / name)
        (whose,) = training["teachers"]
        of_teacher = load_model(teachers / name / ("bundle" if name != "fold2" else ""))
        assert (whose["digest"], whose["weight"]) == (of_teacher.digest, 1.0)
        assert training["train_folds"] == whose["train_folds"] == list(HOMES[name])
    for fold, other in ((1, 2), (2, 1)):
        model = load_model(out / f"fold{fold}" / "bundle")
        record = model.trainings[1]
        assert (record["train_folds"], record["test_fold"], record["clips"]) == ([other], fold, 20)
        assert model.decision.temperature == record["temperature"] != 1.0
        assert [one["digest"] for one in record["inner"]] == [load_model(out / "inner-3-4" / "bundle").digest]
        assert any(f"fold {fold}: temperature {record['temperature']:g}" in note for note in notes)
        heard = {int(Path(path).name.split("-")[0]) for path in opened[fold] if path.endswith(".wav")}
        assert heard == {other}
    assert (
        report.provenance["members"][0]["temperature"]
        == load_model(out / "fold1" / "bundle").decision.temperature
    )
    assert (
        out / "fold1" / "bundle" / "bundle.json"
    ).stat().st_mtime_ns > first  # the temperature, nothing else

    monkeypatch.setattr(fold_bundle, "distill", lambda *a, **k: pytest.fail("it was trained again"))
    monkeypatch.setattr(inner_answers, "calibrate", lambda *a, **k: pytest.fail("it was fitted again"))
    monkeypatch.setenv(
        "SOUNDMARK_CACHE", str(tmp_path / "empty")
    )  # views of finished students are not missed
    again = cv.cross_validate(student(), four, out=out, folds=(1, 2), teachers=given, calibrate=True)
    assert again.figures == report.figures
    assert not (tmp_path / "empty" / "views").exists()
    whose = json.loads((out / "cv.json").read_text())["teachers"]
    assert sorted(whose) == ["fold1", "fold2", "inner-3-4"]
    assert whose["fold2"] == [f"tiny {load_model(teachers / 'fold2').digest} 1"]
    others = made_teachers(tmp_path / "others", four, seed=7)
    with pytest.raises(TrainingError, match=r"teachers\.fold1 was") as caught:
        cv.cross_validate(student(), four, out=out, folds=(1,), teachers=((others, 1.0),))
    assert caught.value.code == "other_run"
    with pytest.raises(TrainingError, match="n_teachers was 1, now None"):
        cv.cross_validate(student(), four, out=out, folds=(1,))


def listened(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[str]]:
    """Return a dictionary that comes to hold, by fold, the files that were opened while its temperature was fitted."""
    opened: dict[int, list[str]] = {}
    fit, now = inner_answers.calibrate, [0]

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and now[0] and isinstance(args[0], str | bytes | os.PathLike):
            opened[now[0]].append(os.fsdecode(args[0]))

    def fitted(model: Path, *args: Any, **options: Any) -> Any:
        now[0] = int(model.parent.name.removeprefix("fold"))
        opened[now[0]] = []
        try:
            return fit(model, *args, **options)
        finally:
            now[0] = 0

    sys.addaudithook(audit)
    monkeypatch.setattr(inner_answers, "calibrate", fitted)
    return opened


@pytest.mark.parametrize(
    ("folds", "options", "kind", "said"),
    [
        ((1, 4), {}, BundleError, "teachers has no bundle for fold 4"),
        ((3,), {"calibrate": True}, BundleError, "no bundle inner-1-2"),
        (
            (1,),
            {"preset": replace(student(), train=replace(student().train, patience=2))},
            ConfigError,
            "patience",
        ),
        ((1,), {"preset": load_preset("frozen-pair")}, ConfigError, "is an ensemble"),
    ],
)
def test_what_cannot_be_taught_is_said_before_anything_is_made(
    four: Dataset, teachers: Path, tmp_path: Path, folds: tuple[int, ...], options: Any, kind: Any, said: str
) -> None:
    wanted = {"preset": student(), **options}
    with pytest.raises(kind, match=said) as caught:
        cv.cross_validate(
            dataset=four, out=tmp_path / "cv", folds=folds, teachers=((teachers, 1.0),), **wanted
        )
    assert kind is not BundleError or caught.value.code == "model_not_found"
    assert not (tmp_path / "cv").exists()


def test_folders_that_were_mixed_up_are_refused(four: Dataset, teachers: Path, tmp_path: Path) -> None:
    shutil.copytree(teachers / "fold3" / "bundle", teachers / "inner-3-4" / "bundle", dirs_exist_ok=True)
    given = ((teachers, 1.0),)
    with pytest.raises(TrainingError, match="trained on fold 1, 2") as caught:
        cv.cross_validate(student(), four, out=tmp_path / "cv", folds=(2,), teachers=given, calibrate=True)
    assert caught.value.code == "leak"
    (teachers / "fold1").rename(teachers / "fold5")
    (teachers / "fold2").rename(teachers / "fold1")
    with pytest.raises(TrainingError, match="trained on fold 1"):
        cv.cross_validate(student(), four, out=tmp_path / "cv", folds=(1,), teachers=given)
    assert not (tmp_path / "cv").exists()


def test_two_folds_leave_nothing_to_calibrate_on(four: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has 2 folds"):
        cv.cross_validate(student(), four.in_folds([1, 2]), out=tmp_path / "cv", calibrate=True)
    with pytest.raises(ConfigError, match=r"ensemble\.fit"):
        cv.cross_validate(load_preset("frozen-pair"), four, out=tmp_path / "cv", calibrate=True)


def test_a_frozen_pair_leaves_teachers_for_folds_and_inner_runs(
    four: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fold_bundle, "export", lambda *a, **k: None)  # the layer is fitted on runs
    off = {"mix_probability": 0.0, "gain_db": 0.0, "roll": 0.0, "time_masks": 0, "freq_masks": 0}
    plain = student()
    frozen = replace(
        plain,
        name="frozen",
        augment=replace(plain.augment, **off),
        train=replace(plain.train, epochs=1, frozen_epochs=1),
        export=replace(plain.export, quantize=True, max_int8_disagreement=1.0),
    )
    (tmp_path / "frozen.toml").write_text(to_toml(frozen))
    member = str(tmp_path / "frozen.toml")
    shipped = load_preset("frozen-pair")
    pair = replace(shipped, ensemble=replace(shipped.ensemble, members=(f"{member} + {member}",)))
    out, epochs = tmp_path / "teachers", []
    report = cv.cross_validate(pair, four, out=out, folds=(1,), inner=True, on_epoch=epochs.append)
    assert sum(epochs) == cv.n_epochs(pair, four, (1,), inner=True) == 2
    assert report.stamps == ()
    students = cv._trainings(student(), {1: tmp_path / "fold1"}, inner_runs(FOLDS, [1]), tmp_path)
    taught = with_teachers(students, ((out, 1.0),))
    for one, folds in zip(taught, ([2, 3, 4], [3, 4]), strict=True):
        made = load_model(one.teachers[0][0])
        assert isinstance(made, Ensemble)
        assert (made.decision.temperature, made.manifest.members[0].temperature) == (1.0, 1.0)
        assert [training["train_folds"] for training in made.trainings] == [folds] * 2
    said = names_of(taught, four, four.hashes(), on_note=pytest.fail)
    assert {name: len(whose) for name, whose in said.items()} == {"fold1": 2, "inner-3-4": 2}
    parts = [bundle.read(path.parent) for path in (out / "fold1" / "bundle").rglob("bundle.json")]
    assert [one.manifest.provenance["export"]["arithmetic"] for one in parts] == ["fp32"] * 2


def test_members_are_counted_with_their_inner_runs_where_they_are_wanted(four: Dataset) -> None:
    both = Preset(name="both", ensemble=EnsembleConfig(members=("yamnet-transfer", "aisfx-transfer")))
    epochs = 2 * 60
    assert cv.n_epochs(both, four, ()) == (4 + 2) * epochs
    equal = replace(both, ensemble=replace(both.ensemble, fit=False))
    assert cv.n_epochs(equal, four, ()) == 4 * epochs
    assert cv.n_epochs(equal, four, (), inner=True) == (4 + 2) * epochs


def test_the_verb(
    call: Callable[..., tuple[object, str, str]], data_root: Path, teachers: Path, tmp_path: Path
) -> None:
    (tmp_path / "p.toml").write_text(to_toml(student()))
    args = ("cv", tmp_path / "p.toml", "--data", data_root, "--out", tmp_path / "cv", "--folds", "1")
    status, _, err = call(*args, "--teacher", f"{tmp_path}=0.5")
    assert (status, "has no bundle for fold 1" in err) == (5, True)
    status, _, err = call(*args, "--teacher", teachers)  # they know nothing of fold 5
    assert status == 0, err
    status, _, err = call("cv", "frozen-pair", *args[2:], "--teacher", teachers)
    assert (status, "is an ensemble" in err) == (2, True)
