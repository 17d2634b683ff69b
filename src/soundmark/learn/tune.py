"""The best preset that a number of trials found, judged on the inner split alone: no clip of the test fold is read.

``out`` holds tune.json (whose it is), journal.log (Optuna's study), trials/<n>/run (preset, history, TensorBoard) and,
after every trial anew, best.toml, trials.csv and tune.html. The same command goes on wherever it was ended; started
several times, on one machine or on several that share the folder, it works on one study.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

import soundmark
from soundmark import storage
from soundmark.config import to_dict, to_toml
from soundmark.dataset import Dataset
from soundmark.errors import ConfigError, SoundmarkError, TrainingError
from soundmark.learn.run_folder import EpochReport, file_digest, read_history, settle
from soundmark.learn.search import as_it_is, drawn, search_space, with_values
from soundmark.learn.study import FileLock, FrozenTrial, Pruner, SharedStudy, Trial, TrialState
from soundmark.learn.train import train
from soundmark.learn.tune_page import Row, csv_table, page
from soundmark.learn.workers import in_processes, refuse_several_devices
from soundmark.preset import Preset
from soundmark.splits import Split

OUTPUTS = ("best.toml", "trials.csv", "tune.html")
_NOT_KEPT = ("checkpoints", "weights.safetensors", "best.safetensors")
_BAD_PLACE = frozenset({"loss_not_finite", "training_stopped"})
"""Codes of trainings that fail because of where the trial looked, not because of the disk or the data."""


@dataclass(frozen=True, slots=True)
class Task:
    """What every process of one tuning has to know."""

    preset: Preset
    dataset: Dataset  # all clips; those of test_fold are never read
    test_fold: int
    out: Path
    trials: int
    pruner: Pruner
    split: Split | None
    weights: Path | None

    @property
    def judged(self) -> Preset:
        """The preset with an inner split; where it stops early by itself, as it does, else never."""
        config = self.preset.train
        return replace(self.preset, train=replace(config, patience=config.patience or config.epochs))

    def open(self) -> SharedStudy:
        """Return its study."""
        config = self.preset.train
        return SharedStudy.open(
            self.out, self.preset.name, seed=config.seed, kind=self.pruner, epochs=config.epochs
        )


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a tuning has found so far.

    Attributes:
        best: the preset, None where no trial went to its end.
        number: of its trial, -1 for none.
        loss: its loss on the inner split, mean cross-entropy per window in nats.
        rows: all finished trials, by number.
        importances: field path -> share.
        out: where the files are.
    """

    best: Preset | None
    number: int
    loss: float
    rows: tuple[Row, ...]
    importances: dict[str, float]
    out: Path

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "best": {"trial": self.number, "inner_loss": self.loss, "preset": str(self.out / "best.toml")}
            if self.best
            else None,
            "importances": self.importances,
            "trials": [row.to_dict() for row in self.rows],
        }


class _Pruned(Exception):
    """A trial that is not worth going on with."""


def tune(
    preset: Preset,
    dataset: Dataset,
    *,
    test_fold: int,
    out: Path,
    trials: int,
    pruner: Pruner = "median",
    jobs: int = 1,
    split: Split | None = None,
    weights: Path | None = None,
    on_trial: Callable[[Row], None] | None = None,
) -> Tuned:
    """Search until the study in ``out`` has ``trials`` finished trials; write and return what was found.

    A trial trains on a part of the training folds and is judged on the rest of them, by source (`inner_split`): the
    loss of the last epoch, or of the best one where the preset stops early, as its weights are what a run keeps.

    Args:
        preset: where the search starts; its ``[tune]`` says where it looks.
        dataset: clips of all folds.
        test_fold: kept aside: none of its clips is opened.
        out: the folder; one that holds the tuning of another preset or of other data is refused.
        trials: pruned ones count.
        pruner: what ends trials early.
        jobs: trials at a time, each in a process with its share of the cores.
        split: what gave ``dataset`` its folds.
        weights: file of pretrained weights that every trial starts from.
        on_trial: called with every trial that ends while this waits.

    Raises:
        ConfigError: the search space is not one of this preset.
        TrainingError: ``out`` holds something else, or a training cannot go on.
        StorageError: the disk refuses; the study is intact.
    """
    refuse_several_devices(preset)
    search_space(preset)  # or it says what is wrong
    dataset = dataset.narrowed(preset.labels)
    dataset.in_folds([test_fold])  # or it says which there are
    task = Task(preset, dataset, test_fold, out, trials, pruner, split, weights)
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / "ask.lock"):
        settle(out / "tune.json", _identity(task))
    shared = task.open()
    shared.first(as_it_is(preset))
    seen = {trial.number for trial in shared.finished()}

    def look() -> None:
        for trial in shared.finished() if on_trial else ():
            if trial.number not in seen and on_trial:
                seen.add(trial.number)
                on_trial(_row(trial))

    results = in_processes(work, [(task,)] * jobs, jobs=jobs, on_wait=look)
    look()
    for result in results:
        if isinstance(result, SoundmarkError):
            raise result
    return write_outputs(task, shared)


def work(task: Task) -> None:
    """Work on trials of the study until there are enough."""
    shared = task.open()
    for done in shared.finished():  # what a killed process did not tidy up
        _tidy(shared.folder(done.number))
    while True:
        with shared.next_trial(task.trials) as trial:
            if trial is None:
                return
            state, value, why = run_trial(task, trial, shared.folder(trial.number))
            if why:
                trial.set_user_attr("why", why)
            shared.study.tell(trial, value, state=state)
            _tidy(shared.folder(trial.number))
        write_outputs(task, shared)


def run_trial(task: Task, trial: Trial, folder: Path) -> tuple[TrialState, float | None, str]:
    """Train one trial, from its checkpoint where it has one; return how it ended, its loss, and why it was pruned."""
    frozen = trial.study.get_trials(deepcopy=False)[trial.number]
    known = dict(frozen.intermediate_values)
    run = folder / "run"

    def note(epoch: int, loss: float | None) -> None:
        if loss is None or not math.isfinite(loss):
            raise _Pruned("the inner loss is not finite")
        if epoch not in known:
            known[epoch] = loss
            trial.report(loss, epoch)

    def on_epoch(report: EpochReport) -> None:
        note(report.epoch, report.inner_loss)
        if report.epoch < report.epochs and trial.should_prune():
            raise _Pruned(f"worse than others after epoch {report.epoch}")

    try:
        preset = with_values(task.judged, drawn(task.preset, trial))
        for row in read_history(run):  # a process may die between its checkpoint and its report
            note(int(row["epoch"]), row.get("inner_loss"))
        if known and max(known) < preset.train.epochs and trial.should_prune():  # or before it asked
            raise _Pruned(f"worse than others after epoch {max(known)}")
        done = train(
            preset,
            task.dataset,
            test_fold=task.test_fold,
            out=run,
            split=task.split,
            weights=task.weights,
            resume=(run / "run.json").exists(),
            on_epoch=on_epoch,
        )
    except _Pruned as reason:
        return TrialState.PRUNED, None, str(reason)
    except ConfigError as error:
        return TrialState.PRUNED, None, f"impossible: {error.saw}"
    except TrainingError as error:
        if error.code not in _BAD_PLACE:
            raise
        return TrialState.PRUNED, None, f"{error.code}: {error.saw}"
    loss = done.info["inner"]["loss"] if task.preset.train.patience else known[max(known)]
    return TrialState.COMPLETE, float(loss), ""


def write_outputs(task: Task, shared: SharedStudy) -> Tuned:
    """Write best.toml, trials.csv and tune.html from the study as it is now, and return what is in them."""
    with FileLock(task.out / "outputs.lock"):
        best = shared.best()
        preset = best_preset(task, shared, best) if best else None
        rows = tuple(_row(trial) for trial in shared.finished())
        loss = float(best.value) if best and best.value is not None else math.nan
        tuned = Tuned(preset, best.number if best else -1, loss, rows, shared.importances(), task.out)
        if preset:
            storage.write_bytes(task.out / "best.toml", to_toml(preset).encode())
        storage.write_bytes(task.out / "trials.csv", csv_table(rows).encode())
        curves = {row.number: _losses(shared.folder(row.number) / "run") for row in rows}
        html = page(task.preset.name, rows, tuned.importances, tuned.number, curves)
        storage.write_bytes(task.out / "tune.html", html.encode())
    return tuned


def best_preset(task: Task, shared: SharedStudy, best: FrozenTrial) -> Preset:
    """Return the preset of a trial, which says where it comes from and what it may not be judged on."""
    preset = with_values(task.preset, drawn(task.preset, Trial(shared.study, best._trial_id)))
    folds = ", ".join(str(fold) for fold in task.dataset.folds if fold != task.test_fold)
    note = (
        f"values found by soundmark tune: trial {best.number} of {task.trials}, inner loss {best.value:.4f} on "
        f"clips of folds {folds} of {task.dataset.name}; fold {task.test_fold} alone was not looked at"
    )
    different = "; ".join(filter(None, (preset.provenance.different, note)))
    return replace(
        preset, name=f"{preset.name}-tuned", provenance=replace(preset.provenance, different=different)
    )


def _identity(task: Task) -> dict[str, Any]:
    others = [fold for fold in task.dataset.folds if fold != task.test_fold]
    return {
        "soundmark": soundmark.__version__,
        "torch": torch.__version__.split("+")[0],
        "data": task.dataset.name,
        "data_digest": task.dataset.in_folds(others).digest(),
        "split": task.dataset.split,
        "test_fold": task.test_fold,
        "weights": file_digest(task.weights) if task.weights else "",
        "pruner": task.pruner,
        "preset": to_dict(task.preset),
    }


def _row(trial: FrozenTrial) -> Row:
    last = max(trial.intermediate_values, default=0)
    whole = trial.state is TrialState.COMPLETE
    began, ended = trial.datetime_start, trial.datetime_complete
    return Row(
        number=trial.number,
        state="complete" if whole else "pruned",
        loss=trial.value if whole else trial.intermediate_values.get(last),
        epochs=last,
        seconds=round((ended - began).total_seconds(), 1) if began and ended else 0.0,
        why=str(trial.user_attrs.get("why", "")),
        values=dict(trial.params),
    )


def _losses(run: Path) -> list[float]:
    return [row["inner_loss"] for row in read_history(run) if row.get("inner_loss") is not None]


def _tidy(folder: Path) -> None:
    """Remove what nobody needs of a finished trial: its weights can be trained again."""
    for name in _NOT_KEPT:
        path = folder / "run" / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
