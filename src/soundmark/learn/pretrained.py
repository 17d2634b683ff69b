"""Weights of others, from a file, into one of our networks: what fits by name, and nothing that does not."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from torch import Tensor, nn

from soundmark import weights
from soundmark.config import NetworkConfig
from soundmark.errors import TrainingError
from soundmark.learn.embeddings import head_of
from soundmark.learn.tflite_weights import is_tflite, yamnet_layers
from soundmark.preset import Preset

_WANTED = "a state dict of that architecture (.safetensors, or .pth as torchvision publishes it)"


_NUMPY = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "_codecs.encode")
"""What the pickle of a numpy number calls."""


@runtime_checkable
class Adopting(Protocol):
    """A network whose published weights have other names or another layout than its own."""

    def adopt(self, published: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return ``published`` under the network's names; a state dict of ours comes back as it is."""


class _Nothing:
    """Stands where a file has a numpy number, so that reading it calls nothing of numpy."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def at_hand(config: NetworkConfig) -> Path | None:
    """Return the weights that a network which wants some finds by itself, None where there are none.

    First what ``SOUNDMARK_<KIND>`` names (``kind`` as in `NetworkConfig`), then what `soundmark weights get` fetched.
    """
    if not config.pretrained:
        return None
    named = os.environ.get(_variable(config.kind))
    if named:
        return Path(named).expanduser()
    entry = _fetchable(config)
    return weights.cached(entry) if entry else None


def _fetchable(config: NetworkConfig) -> weights.Entry | None:
    """Return the published weights that such a network can start from, None where there are none."""
    entry = weights.of_network(config.kind, config.depth)
    return entry if entry and (entry.thins or not config.channels) else None


def advice(config: NetworkConfig) -> str:
    """Return how such a network gets the weights that it wants."""
    entry = _fetchable(config)
    fetch = f"`soundmark weights get {entry.name}`, or " if entry else ""
    return f"{fetch}--weights FILE, or {_variable(config.kind)} naming it"


def missing(preset: Preset) -> TrainingError:
    """Return the error of a run that freezes layers nobody has taught."""
    return TrainingError(
        f"{preset.name} freezes layers, and there are no weights for them",
        wanted=f"{advice(preset.network)}: {preset.provenance.pretrained or preset.network.pretrained}",
        cause="nothing is bundled, or fetched without being asked for; --smoke does without",
        code="no_weights",
    )


def _variable(kind: str) -> str:
    return f"SOUNDMARK_{kind.upper().replace('-', '_')}"


def load_into(network: nn.Module, path: Path) -> str:
    """Load the state dict at ``path`` into ``network`` and return the file's SHA-256.

    The file is a state dict (or a tuple that begins with one), or YAMNet as TFLite. What others named or laid out in
    another way is brought to our names by the network's own `Adopting.adopt`. A first convolution for three colours is
    summed over them (the input is one channel); a last layer for other labels stays as it is. Everything else must be
    there with the right shape. A ``.pth`` is read by torch's reader for tensors alone, which runs no code; numpy
    numbers in it are passed over.

    Raises:
        TrainingError: no such file, damaged, or of another architecture; code ``bad_weights``.
    """
    given, digest = _read(path)
    given = network.adopt(given) if isinstance(network, Adopting) else given
    added: tuple[str, ...] = getattr(network, "added", ())
    own = network.state_dict()
    of_head = {id(parameter) for parameter in head_of(network)}
    head = {name for name, parameter in network.named_parameters() if id(parameter) in of_head}
    taken: dict[str, Tensor] = {}
    problems: list[str] = []
    for name, tensor in own.items():
        found = given.pop(name, None)
        if (
            found is not None
            and tensor.ndim == 4
            and found.ndim == 4
            and found.shape[1] == 3 != tensor.shape[1]
        ):
            found = found.sum(dim=1, keepdim=True)
        if found is not None and found.shape == tensor.shape:
            taken[name] = found.to(tensor.dtype)
        elif (
            name in head
            or (found is None and name.endswith("num_batches_tracked"))
            or (found is None and any(part in name for part in added))
        ):  # not in old files
            taken[name] = tensor
        else:
            saw = "missing" if found is None else f"{list(found.shape)} instead of {list(tensor.shape)}"
            problems.append(f"{name} {saw}")
    problems += [f"{name} unknown" for name in given]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise TrainingError(
            f"{path} does not fit: {'; '.join(problems[:3])}{more}",
            wanted=_WANTED,
            cause="network.kind or network.depth is another one",
            code="bad_weights",
        )
    network.load_state_dict(taken)
    return digest


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    try:
        data = path.read_bytes()
        if is_tflite(data):
            return _yamnet(data, path), hashlib.sha256(data).hexdigest()
        if path.suffix == ".safetensors":
            tree = from_bytes(data)
        else:
            with torch.serialization.safe_globals([(_Nothing, name) for name in _NUMPY]):
                tree = torch.load(path, map_location="cpu", weights_only=True)
            tree = tree[0] if isinstance(tree, tuple) and tree else tree
    except (
        OSError,
        SafetensorError,
        ValueError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        said = " ".join(str(error).split())[:150]
        raise TrainingError(
            f"{path} cannot be read: {said or type(error).__name__}", wanted=_WANTED, code="bad_weights"
        ) from None
    inside = tree.get("state_dict", tree) if isinstance(tree, dict) else None
    if not isinstance(inside, dict) or not inside or not all(isinstance(t, Tensor) for t in inside.values()):
        raise TrainingError(f"{path} holds no state dict", wanted=_WANTED, code="bad_weights")
    return {str(name): tensor for name, tensor in inside.items()}, hashlib.sha256(data).hexdigest()


def _yamnet(data: bytes, path: Path) -> dict[str, Tensor]:
    """Return the convolutions of YAMNet's file under our names, without its 521 classes."""
    *layers, _ = yamnet_layers(data, name=str(path))
    state: dict[str, Tensor] = {}
    for index, layer in enumerate(layers):
        state[f"layers.{index}.conv.weight"] = torch.from_numpy(layer.weight)
        state[f"layers.{index}.conv.bias"] = torch.from_numpy(layer.bias)
    return state
