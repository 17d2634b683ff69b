"""cv and tune: they go on after a kill at any point, and tuning never opens a clip of the test fold."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")
optuna = pytest.importorskip("optuna")

from msgspec.structs import replace  # noqa: E402

import synthetic  # noqa: E402
from soundmark import bundle  # noqa: E402
from soundmark.checked import Search, from_dict, to_dict, to_toml  # noqa: E402
from soundmark.dataset import Dataset  # noqa: E402
from soundmark.errors import ConfigError, StorageError, TrainingError  # noqa: E402
from soundmark.learn import cv, fold_bundle, tune, workers  # noqa: E402
from soundmark.learn.search import as_it_is, search_space, with_values  # noqa: E402
from soundmark.learn.study import SharedStudy, TrialState  # noqa: E402
from soundmark.learn.train import train  # noqa: E402
from soundmark.preset import Preset, load_preset  # noqa: E402
from soundmark.sources import open_dataset  # noqa: E402

pytestmark = pytest.mark.train

ROOT = Path(__file__).resolve().parents[2]


def small(epochs: int = 3, **changes: Any) -> Preset:
    preset = synthetic.tiny_preset(epochs=epochs, **changes)
    return replace(preset, tune={"network.channels": Search(choices=((4, 6), (6, 8)))})


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what would be processes in this one."""

    def in_this_process(function: Any, calls: Any, *, jobs: int, on_wait: Any = None) -> list[Any]:
        results = [function(*call) for call in calls]
        if on_wait:
            on_wait()
        return results

    monkeypatch.setattr(tune, "in_processes", in_this_process)
    monkeypatch.setattr(fold_bundle, "in_processes", in_this_process)


def killed(args: list[str], until: Callable[[], bool]) -> None:
    """Start the command and kill it, and nothing else, with SIGKILL once ``until`` holds; wait for its children."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [sys.executable, "-m", "soundmark", *args], env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    limit = time.monotonic() + 120
    while not until() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, said = (
        process.communicate()
    )  # its children hold the other end of the pipe: it closes when they are gone
    assert process.returncode == -signal.SIGKILL, said


# --- search space ------------------------------------------------------------------------------------------------


def test_the_space_is_the_defaults_and_what_the_preset_says() -> None:
    space = search_space(small())
    assert space["train.lr"] == Search(low=1e-5, high=0.1, log=True)
    assert space["network.channels"].choices == ((4, 6), (6, 8))
    assert list(space) == sorted(space)
    assert "augment.stretch" not in search_space(load_preset("acdnet"))  # a wave has no rows
    without = search_space(replace(small(), tune={"train.lr": Search()}))
    assert "train.lr" not in without
    for name in ("tenclass-scratch", "edge", "acdnet", "mfcc-cnn"):
        preset = load_preset(name)
        for path, search in search_space(preset).items():  # every corner can be built
            for value in search.choices or (search.low, search.high):
                with_values(preset, {path: value})


def test_the_kind_of_number_follows_from_the_field(tmp_path: Path) -> None:
    preset = replace(small(), tune={"network.dropout": Search(low=0, high=1)})
    shared = SharedStudy.open(tmp_path, "x", seed=0, kind="none", epochs=3)
    values = [tune.drawn(preset, shared.study.ask()) for _ in range(4)]
    assert all(0 < v["network.dropout"] < 1 for v in values)  # not 0 or 1, as whole numbers would be
    assert all(isinstance(v["augment.time_masks"], int) for v in values)
    assert all(isinstance(with_values(preset, v), Preset) for v in values)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"train.lrr": {"low": 0.1, "high": 0.2}}, "unknown field `train.lrr`"),
        ({"lr": {"low": 0.1, "high": 0.2}}, "unknown field"),
        ({"train.lr": {"low": 0.2, "high": 0.1}}, "is above"),
        ({"train.lr": {"low": 0.1}}, "`low` and `high`"),
        ({"train.lr": {"low": 0.0, "high": 0.1, "log": True}}, "`log` needs"),
        ({"train.lr": {"choices": [0.1, 0.1]}}, "twice"),
        ({"train.lr": {"lo": 0.1}}, "lo"),
    ],
)
def test_a_search_that_cannot_be_is_refused(section: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        from_dict({**to_dict(small()), "tune": section}, Preset)


def test_a_value_that_its_field_refuses_is_said_before_any_trial(dataset: Dataset, tmp_path: Path) -> None:
    preset = replace(small(), tune={"train.optimizer": Search(choices=("adam", "adamm"))})
    with pytest.raises(ConfigError, match="adamm"):
        tune.tune(preset, dataset, test_fold=5, out=tmp_path / "out", trials=1)
    assert not (tmp_path / "out").exists()


# --- tune --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_it_finds_writes_and_never_opens_the_test_fold(dataset: Dataset, tmp_path: Path) -> None:
    opened: list[str] = []
    active = [True]

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and active[0] and isinstance(args[0], str | bytes | os.PathLike):
            opened.append(os.fsdecode(args[0]))

    sys.addaudithook(audit)
    out, preset, ended = tmp_path / "tuned", small(), []
    tuned = tune.tune(preset, dataset, test_fold=5, out=out, trials=4, on_trial=ended.append)
    active[0] = False
    read = {Path(name).name for name in opened if name.endswith(".wav")}
    assert {name[0] for name in read} == {"1", "2", "3", "4"}  # and the hook does see clips
    assert len(tuned.rows) == 4
    assert [row.number for row in ended] == [0, 1, 2, 3]
    first = tuned.rows[0].values  # the preset as it is
    assert {path: first[path] for path in as_it_is(preset)} == as_it_is(preset)
    whole = [row for row in tuned.rows if row.state == "complete"]
    assert tuned.loss == min(row.loss for row in whole if row.loss is not None)
    best = load_preset(out / "best.toml")
    assert best == tuned.best
    assert best.name == "tiny-tuned"
    assert "fold 5 alone was not looked at" in best.provenance.different
    assert best.train.patience == 0
    chosen = tuned.rows[tuned.number].values
    assert best.train.lr == chosen["train.lr"]
    assert json.dumps(best.network.channels) == chosen["network.channels"]
    with (out / "trials.csv").open(newline="") as file:
        assert [row["trial"] for row in csv.DictReader(file)] == ["0", "1", "2", "3"]
    page = (out / "tune.html").read_text("utf-8")
    assert page.count("<circle") == sum(row.loss is not None for row in tuned.rows)
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert not list(out.glob("trials/*/run/checkpoints"))  # nobody needs them
    done = train(best, dataset, test_fold=5, out=tmp_path / "run")
    assert done.info["finished"] is True
    more = tune.tune(preset, dataset, test_fold=5, out=out, trials=5)  # goes on
    assert [row.number for row in more.rows] == [0, 1, 2, 3, 4]
    assert more.rows[:4] == tuned.rows
    with pytest.raises(TrainingError, match=r"train\.epochs was 3, now 4") as caught:
        tune.tune(small(4), dataset, test_fold=5, out=out, trials=5)
    assert caught.value.code == "other_run"


@pytest.mark.usefixtures("here")
def test_bad_places_are_pruned_and_a_full_disk_is_not(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[Exception] = [
        TrainingError("the loss was not finite", code="loss_not_finite"),
        ConfigError("three stages for two rows"),
        StorageError("no space"),
    ]

    def failing(*args: Any, **kwargs: Any) -> None:
        raise faults[0]

    monkeypatch.setattr(tune, "train", failing)
    for trials in (1, 2):
        tuned = tune.tune(small(), dataset, test_fold=5, out=tmp_path / "out", trials=trials)
        faults.pop(0)
    assert [row.state for row in tuned.rows] == ["pruned", "pruned"]
    assert ["not finite" in tuned.rows[0].why, "impossible" in tuned.rows[1].why] == [True, True]
    assert tuned.best is None
    with pytest.raises(StorageError):
        tune.tune(small(), dataset, test_fold=5, out=tmp_path / "out", trials=3)
    monkeypatch.undo()
    shared = SharedStudy.open(tmp_path / "out", "tiny", seed=0, kind="median", epochs=3)
    assert shared.study.get_trials()[2].state is TrialState.RUNNING  # to be taken over


def test_a_trial_without_an_owner_is_taken_over_and_one_with_an_owner_is_not(tmp_path: Path) -> None:
    def opened() -> SharedStudy:
        return SharedStudy.open(tmp_path, "x", seed=0, kind="none", epochs=3)

    one, other = opened(), opened()
    with one.next_trial(2) as first:
        assert first is not None
        rate = first.suggest_float("a", 0, 1)
        with other.next_trial(2) as second, opened().next_trial(2) as third:
            assert second is not None
            assert (first.number, second.number, third) == (0, 1, None)
            other.study.tell(second, 1.0)
    journal = tmp_path / "journal.log"
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, "wor')  # a process that died while writing
    with opened().next_trial(2) as again:
        assert again is not None
        assert again.number == 0
        assert again.suggest_float("a", 0, 1) == rate


@pytest.mark.usefixtures("here")
def test_the_median_prunes_what_is_worse(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 1.1, 1.2, 1.3, 1.4, 9.0])

    def told(preset: Preset, dataset: Dataset, *, on_epoch: Any, out: Path, **options: Any) -> Any:
        loss = next(losses)
        for epoch in range(1, 11):
            on_epoch(tune.EpochReport(epoch, 10, loss, 0.1, 0.0, 0, loss))
        return None

    monkeypatch.setattr(tune, "train", told)
    tuned = tune.tune(small(10), dataset, test_fold=5, out=tmp_path, trials=6)
    assert [row.state for row in tuned.rows] == ["complete"] * 5 + ["pruned"]
    assert (tuned.rows[5].epochs, tuned.number) == (2, 0)  # after its first fifth


def test_a_killed_tuning_goes_on_to_what_an_uninterrupted_one_finds(
    data_root: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    dataset, preset, killed_out = open_dataset(data_root), small(6), tmp_path / "killed"
    (tmp_path / "p.toml").write_text(to_toml(preset))
    args = [
        "tune",
        str(tmp_path / "p.toml"),
        "--data",
        str(data_root),
        "--out",
        str(killed_out),
        "--trials",
        "3",
    ]
    killed(args, lambda: bool(list(killed_out.glob("trials/0001/run/checkpoints/epoch-00002"))))
    before = SharedStudy.open(killed_out, "tiny", seed=0, kind="median", epochs=6).study.get_trials()
    assert [trial.state for trial in before] == [TrialState.COMPLETE, TrialState.RUNNING]
    request.getfixturevalue("here")
    whole = tune.tune(preset, dataset, test_fold=5, out=tmp_path / "whole", trials=3)
    again = tune.tune(preset, dataset, test_fold=5, out=killed_out, trials=3)
    assert [(row.values, row.loss, row.epochs) for row in again.rows] == [
        (row.values, row.loss, row.epochs) for row in whole.rows
    ]
    assert (killed_out / "best.toml").read_bytes() == (tmp_path / "whole" / "best.toml").read_bytes()


# --- cv ----------------------------------------------------------------------------------------------------------


def test_a_killed_cross_validation_goes_on(
    data_root: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    dataset, out, preset = open_dataset(data_root), tmp_path / "cv", synthetic.tiny_preset(epochs=10)
    (tmp_path / "p.toml").write_text(to_toml(preset))
    args = ["cv", str(tmp_path / "p.toml"), "--data", str(data_root), "--out", str(out), "--folds", "1,2"]
    killed(args, lambda: (out / "fold1" / "run" / "checkpoints" / "epoch-00003").exists())
    assert not (out / "fold1" / "bundle").exists()
    request.getfixturevalue("here")
    epochs: list[int] = []
    report = cv.cross_validate(preset, dataset, out=out, folds=(1, 2), on_epoch=epochs.append)
    assert sum(epochs) == 20
    assert report.provenance["folds"] == [1, 2]
    assert json.loads((out / "report.json").read_text())["figures"] == report.figures
    for fold in (1, 2):
        training = bundle.read(out / f"fold{fold}" / "bundle").manifest.provenance["training"]
        assert training["test_fold"] == fold
        assert fold not in training["train_folds"]
        assert json.loads((out / f"fold{fold}" / "report.json").read_text())["folds"] == [fold]
    train(preset, dataset, test_fold=1, out=tmp_path / "run")  # as if it had never been killed
    weights = [home / "weights.safetensors" for home in (tmp_path / "run", out / "fold1" / "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    (out / "fold1" / "bundle" / "model.onnx").write_bytes(b"half")  # a damaged bundle is written again
    again = cv.cross_validate(preset, dataset, out=out, folds=(1, 2))
    assert again.figures == report.figures
    with pytest.raises(TrainingError, match=r"train\.epochs was 10, now 11"):
        cv.cross_validate(synthetic.tiny_preset(epochs=11), dataset, out=out)


def test_what_distributes_itself_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    for call in (
        lambda: cv.cross_validate(small(devices=2), dataset, out=tmp_path),
        lambda: tune.tune(small(num_nodes=2), dataset, test_fold=5, out=tmp_path, trials=1),
    ):
        with pytest.raises(ConfigError, match=r"`train\.devices`"):
            call()


# --- processes ---------------------------------------------------------------------------------------------------


def test_processes_give_results_errors_and_deaths_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import called

    waits: list[int] = []
    results = workers.in_processes(
        called.by_name, [("threads",), ("error",), ("dies",)], jobs=2, on_wait=lambda: waits.append(1)
    )
    assert results[0] == "2"  # of four, for two at a time
    assert (type(results[1]), results[1].code) == (TrainingError, "loss_not_finite")
    assert "status 7" in str(results[2])
    assert waits
    assert os.environ["OMP_NUM_THREADS"] == "4"
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        workers.in_processes(called.by_name, [("fault",)], jobs=1)
