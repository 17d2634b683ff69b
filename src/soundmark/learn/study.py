"""One study of trials on the disk, shared by any number of processes; a trial whose process died is taken over.

``journal.log`` is Optuna's journal of the study. Who works on a trial holds a lock on its folder's ``lock`` file, which
the kernel drops when the process dies, however it dies: whoever comes next finds the trial running without an owner and
goes on with it, from the checkpoint in its folder. What a trial draws follows from the seed, its number and the trials
before it, so a study that was killed equals one that was not (with one process at a time).
"""

from __future__ import annotations

import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from soundmark.errors import MissingExtraError, StorageError

try:
    import optuna
except ImportError as _error:
    raise MissingExtraError.of("tune", "optuna") from _error

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial as FrozenTrial
from optuna.trial import Trial as Trial
from optuna.trial import TrialState as TrialState

Pruner = Literal["median", "hyperband", "none"]
STARTUP_TRIALS = 5
"""Trials that run to their end before the median prunes any."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


def pruner(kind: Pruner, epochs: int) -> optuna.pruners.BasePruner:
    """Return what ends trials early; the median leaves a trial its first fifth of ``epochs``."""
    if kind == "median":
        return optuna.pruners.MedianPruner(STARTUP_TRIALS, n_warmup_steps=max(1, epochs // 5))
    if kind == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=max(1, epochs // 27), max_resource=epochs)
    return optuna.pruners.NopPruner()


@dataclass
class FileLock:
    """An exclusive lock on a file, waited for; the kernel drops it when the process dies (Optuna's own ones stay)."""

    path: Path
    handle: int = -1

    def acquire(self) -> bool:
        """Wait for the lock."""
        self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self.handle, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        """Give it back."""
        os.close(self.handle)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@dataclass(frozen=True, slots=True)
class SharedStudy:
    """The study in the folder ``out``."""

    out: Path
    seed: int
    study: optuna.Study

    @classmethod
    def open(cls, out: Path, name: str, *, seed: int, kind: Pruner, epochs: int) -> SharedStudy:
        """Return the study in ``out``, a new one where there is none.

        Raises:
            StorageError: ``out`` cannot be written.
        """
        path = out / "journal.log"
        try:
            out.mkdir(parents=True, exist_ok=True)
            with FileLock(out / "journal.lock"):
                _drop_half_line(path)
            lock: Any = FileLock(out / "journal.lock")  # has what Optuna calls: acquire and release
            storage = JournalStorage(JournalFileBackend(str(path), lock))
        except OSError as error:
            raise StorageError(
                f"{out} cannot be written ({error.strerror})", wanted="a writable folder"
            ) from None
        with FileLock(out / "ask.lock"):  # or two processes make two studies
            study = optuna.create_study(
                storage=storage,
                study_name=name,
                load_if_exists=True,
                direction="minimize",
                sampler=_sampler(seed),
                pruner=pruner(kind, epochs),
            )
        return cls(out, seed, study)

    def first(self, values: dict[str, Any]) -> None:
        """Let the first trial try these values (the preset as it is), where there is no trial yet."""
        with FileLock(self.out / "ask.lock"):
            if not self.study.get_trials(deepcopy=False):
                self.study.enqueue_trial(values)

    @contextmanager
    def next_trial(self, trials: int) -> Iterator[Trial | None]:
        """Yield a trial to work on, its folder locked, or None when ``trials`` are finished or being worked on.

        One that was left by a dead process comes first.
        """
        with FileLock(self.out / "ask.lock"):
            trial, handle = self._orphan()
            begun = [
                one for one in self.study.get_trials(deepcopy=False) if one.state is not TrialState.WAITING
            ]
            if trial is None and len(begun) < trials:
                trial = self.study.ask()
                handle = _try_lock(self.folder(trial.number))
                assert handle is not None
            if trial is not None:
                self.study.sampler = _sampler(self.seed * 100_003 + trial.number)
        try:
            yield trial
        finally:
            if handle is not None:
                os.close(handle)

    def folder(self, number: int) -> Path:
        """Return the folder of a trial."""
        return self.out / "trials" / f"{number:04d}"

    def finished(self) -> list[FrozenTrial]:
        """Return the trials that ended, pruned ones included, by number."""
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        return self.study.get_trials(deepcopy=False, states=ended)

    def best(self) -> FrozenTrial | None:
        """Return the finished, not pruned trial with the smallest loss, None where there is none."""
        whole = [trial for trial in self.finished() if trial.state is TrialState.COMPLETE]
        return min(whole, key=lambda trial: (trial.value, trial.number), default=None)

    def importances(self) -> dict[str, float]:
        """Return path -> share of what makes trials good (PED-ANOVA, Watanabe et al. 2023), {} for too few trials."""
        whole = [trial for trial in self.finished() if trial.state is TrialState.COMPLETE]
        if len(whole) < 4 or len({trial.value for trial in whole}) < 2:
            return {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = optuna.importance.get_param_importances(
                    self.study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
                )
        except (RuntimeError, ValueError):  # nothing varies among them
            return {}
        return {name: round(float(value), 4) for name, value in found.items()}

    def _orphan(self) -> tuple[Trial | None, int | None]:
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            handle = _try_lock(self.folder(frozen.number))
            if handle is not None:
                return Trial(self.study, frozen._trial_id), handle
        return None, None


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed % 2**32, constant_liar=True)


def _try_lock(folder: Path) -> int | None:
    """Return a handle that holds ``folder/lock``, None where another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _drop_half_line(path: Path) -> None:
    """Cut what a process that was killed while writing left behind the last whole line."""
    if path.exists() and (data := path.read_bytes()) and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)
