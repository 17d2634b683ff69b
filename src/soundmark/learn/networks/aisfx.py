"""The `aisfx` network: the 9-layer CNN that was taught sound-effect libraries, over a whole window at once.

Features must be those it was learnt on: the presets' ``[frontend]``, 44.1 kHz, peak-normalised windows, 96 mel bands.
Source: Ma and Lerch, "Representation Learning for the Automatic Indexing of Sound Effects Libraries", ISMIR 2022 (its
weights are CC BY 4.0); the layers are those of Kong et al., "DCASE 2018 Challenge baseline" (arXiv 1808.00773).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soundmark.config import NetworkConfig
from soundmark.errors import ConfigError

DEFAULT_CHANNELS = (64, 128, 256, 512)
_TRUNK, _CLASSES = "embedding_net.", "fc."


class AiSFX(nn.Module):
    """Logits ``(batch, n_labels)`` from features ``(batch, n_rows, n_frames)``.

    ``config.channels``: widths of the four blocks, for a thinner one without published weights.

    Attributes:
        width: numbers in an embedding.
    """

    def __init__(self, config: NetworkConfig, shape: tuple[int, int], n_labels: int) -> None:
        super().__init__()
        channels = config.channels or DEFAULT_CHANNELS
        if len(channels) != 4 or min(shape) < 8:
            raise ConfigError(
                f"features of shape {shape} and {len(channels)} widths",
                wanted="8 or more rows and frames, and 4 widths",
            )
        before = 1
        for index, after in enumerate(channels, start=1):
            self.add_module(f"conv_block{index}", Block(before, after, pool=index < 4))
            before = after
        self.width = 2 * before
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(self.width, n_labels)

    def adopt(self, published: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a published state dict under our names: no classes of its own, rows of a kernel before frames."""
        trunk = {name: tensor for name, tensor in published.items() if name.startswith(_TRUNK)}
        if not trunk:
            return published  # one of ours
        others = {n: t for n, t in published.items() if not n.startswith((_TRUNK, _CLASSES))}
        return others | {
            name.removeprefix(_TRUNK): tensor.transpose(2, 3) if tensor.ndim == 4 else tensor
            for name, tensor in trunk.items()
        }

    def embed(self, features: Tensor) -> Tensor:
        """Return ``(batch, width)``: the mean over rows, and of that the largest frame and the mean over frames."""
        x = features[:, None]
        for index in range(1, 5):
            x = self.get_submodule(f"conv_block{index}")(x)
        over_time = x.mean(dim=2)  # (batch, channels, n_frames / 8)
        return torch.cat([over_time.amax(dim=2), over_time.mean(dim=2)], dim=1)

    def classify(self, embedding: Tensor) -> Tensor:
        """Return logits ``(batch, n_labels)`` of embeddings ``(batch, width)``."""
        logits: Tensor = self.head(self.dropout(embedding))
        return logits

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(batch, n_labels)``."""
        return self.classify(self.embed(features))


class Block(nn.Module):
    """Two 3x3 convolutions, and all but the last block halve rows and frames."""

    def __init__(self, before: int, after: int, *, pool: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.pool: nn.Module = nn.MaxPool2d(2) if pool else nn.Identity()
        for layer in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, after, rows, frames)``, halved where the block pools."""
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        pooled: Tensor = self.pool(y)
        return pooled
