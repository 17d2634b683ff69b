"""Frozen layers: who learns in which epoch, and embeddings that are computed once where nothing changes them.

The last layer (*head*) is what `networks` defines last, `head` or a weight and a bias; all before it is the *trunk*.
What is frozen is a deterministic function of its input (batch norm keeps its numbers), and no gradient is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from soundmark.config import TrainConfig
from soundmark.errors import ConfigError
from soundmark.learn import cosine
from soundmark.learn.batches import Source
from soundmark.learn.embeddings import Embedder, Embedding, head_of

OnClip = Callable[[int], None] | None


@runtime_checkable
class Settling(Protocol):
    """A network with parts that its weights know nothing of, and that begin by changing nothing."""

    def settle(self, parts: Iterable[Tensor]) -> None:
        """Bring them in line with features, some ``(batch, n_rows, n_frames)`` at a time."""


def fit_head(network: nn.Module, source: Source, size: int, on_clip: OnClip = None) -> None:
    """Let a head of cosines begin as the discriminants of the windows of ``source``; leave any other alone.

    Args:
        network: to change.
        source: what is learnt from.
        size: windows at a time.
        on_clip: called with 0, so that a person can stop it.
    """
    head = getattr(network, "head", None)
    if not isinstance(head, cosine.CosineHead):
        return
    embedder, parts = Embedder(network.eval()), list[Tensor]()
    for features in source.plain(size):
        parts.append(embedder(features))
        if on_clip:
            on_clip(0)
    x = torch.cat(parts).double().numpy()
    head.fitted(x, source.targets[: len(x)].numpy())


def check(config: TrainConfig) -> None:
    """Refuse to thaw layers over several processes, which share out gradients once, at the start.

    Raises:
        ConfigError: some epochs are frozen, others not, and there is more than one process.
    """
    if 0 < config.frozen_epochs < config.epochs and config.devices * config.num_nodes > 1:
        raise ConfigError(
            f"`train.frozen_epochs` {config.frozen_epochs} of {config.epochs} on {config.devices} devices",
            wanted="one device, or all epochs frozen, or none",
        )


def first_layers(network: nn.Module, count: int) -> list[nn.Module]:
    """Return the first ``count`` convolutions, in the order of definition, and the batch norm that belongs to them.

    Raises:
        ConfigError: the network has fewer convolutions.
    """
    kinds = (nn.Conv2d, nn.modules.batchnorm._BatchNorm)
    layers: list[nn.Module] = [module for module in network.modules() if isinstance(module, kinds)]
    convolutions = [place for place, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    if count > len(convolutions):
        raise ConfigError(
            f"`train.frozen_layers` {count} of {len(convolutions)} convolutions",
            wanted=f"0 to {len(convolutions)}",
        )
    return layers[: [*convolutions, len(layers)][count]]


def to_train(network: nn.Module, *, frozen: bool, layers: int = 0) -> None:
    """Put ``network`` in train mode; what is frozen gets no gradient, and batch norm in it keeps its numbers.

    Args:
        network: to change.
        frozen: whether its whole trunk is.
        layers: first convolutions that are, whatever ``frozen`` says.
    """
    network.train()
    head = {id(parameter) for parameter in head_of(network)}
    for parameter in network.parameters():
        parameter.requires_grad_(not frozen or id(parameter) in head)
    still = first_layers(network, layers)
    for layer in still:
        layer.requires_grad_(False)
    for module in network.modules() if frozen else still:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


class Embedded:
    """What a `Source` gives, but embeddings instead of features, computed once for all epochs.

    Attributes:
        weights: as in `Source`.
        targets: as in `Source`.
    """

    def __init__(
        self,
        network: nn.Module,
        batches: Source,
        size: int,
        device: torch.device,
        on_clip: OnClip = None,
    ) -> None:
        """Get them, ``size`` windows at a time; ``on_clip`` is called with 0, so that a person can stop it."""
        self.weights, self.targets, self._source = batches.weights, batches.targets, batches
        unused = torch.Generator()  # nothing is drawn from it: see `fits`
        parts: list[tuple[Tensor, Tensor]] = []
        embedder = Embedder(network, device)
        for first in range(0, len(batches), size):
            features, soft = batches(torch.arange(first, min(first + size, len(batches))), unused)
            parts.append((embedder(features), soft))
            if on_clip:
                on_clip(0)
        self._embeddings = torch.cat([embedding for embedding, _ in parts])  # (n_windows, width)
        self._soft = torch.cat([soft for _, soft in parts])

    @staticmethod
    def fits(network: nn.Module, batches: Source, config: TrainConfig) -> bool:
        """Return whether one embedding per window says all: every epoch is frozen and chance changes no window."""
        return config.frozen_epochs >= config.epochs and batches.steady and isinstance(network, Embedding)

    @property
    def steady(self) -> bool:
        """True."""
        return True

    def plain(self, size: int) -> Iterator[Tensor]:
        """Yield the embeddings, ``size`` at a time."""
        yield from torch.split(self._embeddings, size)

    def __len__(self) -> int:
        return len(self._embeddings)

    def learner(self, network: nn.Module) -> nn.Module:
        """Return ``network``."""
        return network

    def loss(self, out: Tensor, told: Tensor) -> Tensor:
        """Return the loss of logits, as the source of the features counts it."""
        return self._source.loss(out, told)

    def __call__(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return embeddings ``(batch, width)`` and targets ``(batch, n_labels)`` of windows ``rows``."""
        del generator
        return self._embeddings[rows], self._soft[rows]
