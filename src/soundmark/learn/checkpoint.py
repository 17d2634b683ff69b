"""Checkpoints: safetensors plus JSON in one folder per epoch, written atomically, the last two kept.

No pickle is ever read. A checkpoint that cannot be read is skipped in favour of the one before it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from soundmark import storage
from soundmark.errors import TrainingError

KEEP = 2
State = dict[str, Any]
"""Nested dicts of tensors and JSON values."""


def save(folder: Path, epoch: int, state: State) -> None:
    """Write the checkpoint after ``epoch`` epochs below ``folder`` and drop all but the last `KEEP`.

    One process at a time: what a killed one left half-written is removed.

    Raises:
        StorageError: the disk refuses; older checkpoints are intact.
    """
    tensors: dict[str, Tensor] = {}
    plain = {"epoch": epoch, "state": _split(state, "", tensors)}

    def fill(scratch: Path) -> None:
        data = to_bytes(tensors)
        (scratch / "tensors.safetensors").write_bytes(data)
        (scratch / "state.json").write_text(json.dumps({**plain, "sha256": _digest(plain, data)}), "utf-8")

    for half in folder.glob(".epoch-*"):
        shutil.rmtree(half, ignore_errors=True)
    storage.write_folder(folder / f"epoch-{epoch:05d}", fill, overwrite=True)
    for old in _folders(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def latest(folder: Path) -> tuple[int, State] | None:
    """Return ``(epochs done, state)`` of the newest readable checkpoint, or None where there is none.

    Raises:
        TrainingError: there are checkpoints, and none can be read.
    """
    folders = _folders(folder)
    for candidate in reversed(folders):
        try:
            data = (candidate / "tensors.safetensors").read_bytes()
            plain = json.loads((candidate / "state.json").read_text("utf-8"))
            if plain.pop("sha256") == _digest(plain, data):
                return int(plain["epoch"]), _join(plain["state"], from_bytes(data))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError):
            continue
    if folders:
        raise TrainingError(f"no checkpoint in {folder} can be read", wanted="at least one whole checkpoint")
    return None


def save_weights(path: Path, state: dict[str, Tensor]) -> None:
    """Write a flat state dict as one safetensors file, atomically."""
    storage.write_bytes(path, to_bytes({name: t.contiguous() for name, t in state.items()}))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a safetensors file.

    Raises:
        TrainingError: missing, damaged, or another format (pickles are never tried).
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read: {error}", wanted="a safetensors file") from None


def _folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-[0-9]*")) if folder.is_dir() else []


def _split(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return ``value`` with every tensor moved into ``tensors`` and replaced by a reference."""
    if isinstance(value, Tensor):
        name = f"{len(tensors)}{name}"  # numbered, because names may hold "/"
        tensors[name] = value.detach().cpu().contiguous().clone(memory_format=torch.contiguous_format)
        return {"$tensor": name}
    if isinstance(value, dict):
        return {str(key): _split(item, f"{name}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
    return value


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"$tensor"}:
            return tensors[value["$tensor"]]
        return {key: _join(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_join(item, tensors) for item in value]
    return value


def _digest(plain: dict[str, Any], tensors: bytes) -> str:
    """Return the SHA-256 of a checkpoint: neither JSON nor safetensors notices a flipped bit."""
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    digest.update(tensors)
    return digest.hexdigest()
