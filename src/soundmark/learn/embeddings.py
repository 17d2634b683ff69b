"""What a trunk gives for features, computed once per trunk and window and kept in the cache folder.

The key is the content of both: SHA-256 of the trunk's weights and of the features. So folds, inner runs and layers side
by side share one pass of a frozen network. Every window goes through the trunk alone: what is read back equals, bit for
bit, what would be computed in any batch.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from soundmark import storage
from soundmark.errors import StorageError

PATIENCE_S = 60.0
"""How long one process waits for another that writes."""


@runtime_checkable
class Embedding(Protocol):
    """A network in two halves."""

    def embed(self, features: Tensor) -> Tensor:
        """Return ``(batch, width)`` of features ``(batch, n_rows, n_frames)``."""

    def classify(self, embedding: Tensor) -> Tensor:
        """Return logits ``(batch, n_labels)`` of embeddings."""


def head_of(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the last layer; of a learner, that of the network inside."""
    head = getattr(getattr(network, "network", network), "head", None)
    return list(head.parameters()) if isinstance(head, nn.Module) else list(network.parameters())[-2:]


class Embedder:
    """Embeddings ``(n, width)``, float32 on the CPU, of features ``(n, n_rows, n_frames)``.

    Attributes:
        path: the database, one for each trunk; deleting it costs time alone.
    """

    def __init__(self, network: nn.Module, device: torch.device | None = None) -> None:
        """Take ``network`` in eval mode; its last weight and bias, the head, are not part of the trunk.

        Raises:
            StorageError: the cache folder cannot be written.
        """
        assert isinstance(network, Embedding)
        self._trunk = network
        self._device = device or torch.device("cpu")
        self.path = storage.cache_dir() / "embeddings" / f"{_digest(network)}.sqlite"
        with _as_storage_error(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._prepare()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self.path.unlink()  # not a database: damaged
                self._prepare()

    def _prepare(self) -> None:
        with closing(sqlite3.connect(self.path, timeout=PATIENCE_S)) as kept, kept:
            kept.execute("CREATE TABLE IF NOT EXISTS embedding (features BLOB PRIMARY KEY, numbers BLOB)")

    def __call__(self, features: Tensor) -> Tensor:
        """Return the embedding of every window.

        Raises:
            StorageError: the cache folder cannot be written.
        """
        rows = features.detach().cpu().contiguous()
        keys = [hashlib.sha256(row.numpy().tobytes()).digest() for row in rows]
        with _as_storage_error(self.path), closing(sqlite3.connect(self.path, timeout=PATIENCE_S)) as kept:
            found: dict[bytes, Tensor] = {}
            for index, key in enumerate(keys):
                read = kept.execute("SELECT numbers FROM embedding WHERE features = ?", (key,)).fetchone()
                found[key] = _tensor(read[0]) if read else self._computed(rows[index : index + 1])
            new = [(key, found[key].numpy().tobytes()) for key in dict.fromkeys(keys)]
            with kept:
                kept.executemany("INSERT OR IGNORE INTO embedding VALUES (?, ?)", new)
        return torch.stack([found[key] for key in keys])

    def _computed(self, window: Tensor) -> Tensor:
        with torch.no_grad():
            embedding = self._trunk.embed(window.to(self._device))
        return embedding[0].float().cpu()


def _tensor(numbers: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(numbers, dtype="<f4").copy())


def _digest(network: nn.Module) -> str:
    """Return the SHA-256 of kind, names, shapes and values of all but the head."""
    kind = f"{type(network).__name__} torch {torch.__version__} {torch.get_num_threads()} threads"
    total = hashlib.sha256(kind.encode())
    for name, module in network.named_modules():  # what is pooled where has no weights
        if name and not name.startswith("head"):
            total.update(f"{name} {type(module).__name__}".encode())
    head = {tensor.data_ptr() for tensor in head_of(network)}
    for name, tensor in network.state_dict().items():
        if tensor.data_ptr() in head:
            continue
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


@contextmanager
def _as_storage_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise StorageError(
            f"embeddings cannot be kept in {path} ({error})",
            wanted="a writable place with enough space",
            cause=f"set {storage.CACHE_VARIABLE} to a folder on another disk",
        ) from None
