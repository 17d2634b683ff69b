"""The folder of a training run: whose it is, who writes to it, and what each epoch left there.

preset.toml, run.json, history.jsonl, checkpoints/, tensorboard/, weights.safetensors, and where they apply split.json
and best.safetensors.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from soundmark import storage
from soundmark.config import from_dict, to_dict, to_toml
from soundmark.errors import ConfigError, StorageError, TrainingError
from soundmark.preset import Preset, load_preset
from soundmark.splits import Split

BEST_FILE = "best.safetensors"
"""The weights of the best epoch so far, in the folder of a run that may stop early."""
SPLIT_FILE = "split.json"
"""The split that a run was trained under, in its folder, where the data has no folds of its own."""


@dataclass(frozen=True, slots=True)
class EpochReport:
    """What one epoch did; ``loss`` and ``accuracy`` are means over its steps, on augmented training clips.

    ``inner_loss`` and ``inner_accuracy`` are those of the averaged weights on the inner split, where there is one.
    ``seconds`` is wall-clock time since the epoch before, or since this process began to train.
    """

    epoch: int
    epochs: int
    loss: float
    lr: float
    seconds: float
    bad_batches: int
    inner_loss: float | None = None
    accuracy: float | None = None
    inner_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A finished (or unfinished) training run on disk."""

    path: Path
    preset: Preset
    info: dict[str, Any]

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels in target order."""
        return tuple(self.info["labels"])


def open_run(path: Path) -> Run:
    """Return the run at ``path``.

    Raises:
        TrainingError: not a run folder.
    """
    try:
        info = json.loads((path / "run.json").read_text("utf-8"))
    except (OSError, ValueError):
        raise TrainingError(
            f"{path} is not a training run", wanted="a folder made by `soundmark train`"
        ) from None
    return Run(path, load_preset(path / "preset.toml"), info)


def claim(out: Path, preset: Preset, info: dict[str, Any], resume: bool, split: Split | None) -> None:
    """Mark ``out`` as this run's, or refuse if it is another's, showing the difference."""
    same = [key for key in info if key != "data_root"]  # the same data may have moved
    mine = {**{key: info[key] for key in same}, "preset": to_dict(preset)}
    if (out / "run.json").exists():
        there = open_run(out)
        if not resume:
            raise TrainingError(
                f"{out} holds a run already", wanted="a new --out, or --resume to go on", code="run_exists"
            )
        theirs = {**{key: there.info.get(key) for key in same}, "preset": to_dict(there.preset)}
        differing = _differences(theirs, mine)
        if differing:
            raise TrainingError(
                f"{out} holds another run: {'; '.join(differing[:5])}",
                wanted="the same preset, data, folds and versions to resume, or another --out",
                code="other_run",
            )
        return
    if split:
        split.write(out / SPLIT_FILE)
    storage.write_bytes(out / "preset.toml", to_toml(preset).encode())
    storage.write_bytes(out / "run.json", json.dumps({**info, "finished": False}, indent=2).encode())


def settle(path: Path, info: dict[str, Any], *, growing: str = "") -> None:
    """Write ``info`` to ``path``, or refuse where another is there, showing the difference.

    Args:
        path: the file.
        info: plain data.
        growing: a key with named entries, which may come one after the other: one that is not there yet is written
            beside the others, one that is there may not change.

    Raises:
        TrainingError: the folder belongs to another command; code ``other_run``.
    """
    mine = json.loads(json.dumps(info))
    try:
        theirs = _with_defaults(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        storage.write_bytes(path, (json.dumps(mine, indent=2) + "\n").encode())
        return
    new = False
    if growing and isinstance(theirs, dict):
        there, here = theirs.get(growing) or {}, mine.get(growing) or {}
        new = not here.keys() <= there.keys()
        theirs, mine = {**theirs, growing: {**here, **there}}, {**mine, growing: {**there, **here}}
    differing = _differences(theirs, mine)
    if differing:
        raise TrainingError(
            f"{path.parent} holds something else: {'; '.join(differing[:5])}",
            wanted="the same preset, data, folds and versions to go on, or another --out",
            code="other_run",
        )
    if new:
        storage.write_bytes(path, (json.dumps(mine, indent=2) + "\n").encode())


def _with_defaults(info: dict[str, Any]) -> dict[str, Any]:
    """Return ``info`` with its presets as they are read today: fields that came later have their defaults."""

    def today(tree: dict[str, Any]) -> Any:
        return json.loads(json.dumps(to_dict(from_dict(tree, Preset))))

    try:
        read = {**info, "preset": today(info["preset"])}
        if "members" in info:
            read["members"] = [[today(one) for one in member] for member in info["members"]]
    except (KeyError, TypeError, AttributeError, ConfigError):  # it says nothing, or what is unknown here
        return info
    return read


def epochs_done(run: Path) -> int:
    """Return how many epochs the history of the run folder ``run`` has, 0 where there is none."""
    return len(read_history(run))


def read_history(run: Path) -> list[dict[str, Any]]:
    """Return what each epoch wrote into history.jsonl, in order."""
    try:
        return [json.loads(line) for line in (run / "history.jsonl").read_bytes().splitlines()]
    except (OSError, ValueError):
        return []


def training_seconds(run: Path) -> float:
    """Return how long the epochs that count took, in all processes that worked on them, one after the other.

    With preparations such as embeddings that are computed once; without features, which are cached for all runs.
    """
    return round(sum(float(row.get("seconds") or 0.0) for row in read_history(run)), 1)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file that a run starts from.

    Raises:
        TrainingError: it cannot be read; code ``bad_weights``.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TrainingError(f"{path} cannot be read ({error.strerror})", code="bad_weights") from None


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{name}.{k}" if name else k)]
    return [] if old == new else [f"{name} was {old!r}, now {new!r}"]


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold ``out/lock`` while training; the kernel drops it when the process dies, however it dies."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StorageError(
            f"{out} cannot be written ({error.strerror})", wanted="a writable run folder"
        ) from None
    try:
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(handle, 32, 0).decode(errors="replace").strip()
                raise TrainingError(
                    f"{out} is in use by process {owner}", wanted="one run per folder", code="run_in_use"
                ) from None
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def history_writer(out: Path, start: int) -> Callable[[EpochReport], None]:
    """Return a function that appends one epoch to history.jsonl, after the first ``start`` ones."""
    history = out / "history.jsonl"
    lines = history.read_bytes().splitlines(keepends=True)[:start] if history.exists() else []

    def append(report: EpochReport) -> None:
        lines.append(msgspec.json.encode(report) + b"\n")  # a loss that is not a number is null
        storage.write_bytes(history, b"".join(lines))

    return append
