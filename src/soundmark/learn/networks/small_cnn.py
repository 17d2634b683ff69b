"""The `small-cnn` network: plain convolution blocks and one linear layer, under half a megabyte in int8."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from soundmark.config import NetworkConfig
from soundmark.errors import ConfigError
from soundmark.learn.networks.edge import SalientPool

DEFAULT_CHANNELS = (24, 32, 64, 96, 112)


class SmallCNN(nn.Module):
    """Logits ``(batch, n_labels)`` from features ``(batch, n_rows, n_frames)``.

    ``config.channels``: one block (pooling, then two 3x3 convolutions with batch norm and ReLU) per width after the
    first; the first convolution has stride 2.
    """

    def __init__(self, config: NetworkConfig, shape: tuple[int, int], n_labels: int) -> None:
        super().__init__()
        channels = config.channels or DEFAULT_CHANNELS
        if len(channels) < 2 or min(shape) < 2 ** len(channels):
            raise ConfigError(
                f"features of shape {shape} and {len(channels)} stages",
                wanted=f"2 or more stages, and at least {2 ** len(channels)} rows and frames for {len(channels)}",
            )
        layers = convolution(1, channels[0], stride=2)
        for before, after in pairwise(channels):
            layers += [nn.MaxPool2d(2), *convolution(before, after), *convolution(after, after)]
        self.blocks = nn.Sequential(*layers)
        self.pool = SalientPool(-(-shape[1] // 2) >> (len(channels) - 1))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(2 * channels[-1], n_labels)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(batch, n_labels)``."""
        x = self.blocks(features[:, None])  # (batch, channels, rows / 2^n, frames / 2^n)
        logits: Tensor = self.head(self.dropout(self.pool(x)))
        return logits


def convolution(before: int, after: int, *, stride: int = 1) -> list[nn.Module]:
    """Return a 3x3 convolution with batch norm and ReLU, as neighbours, so that export folds them into one."""
    return [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
