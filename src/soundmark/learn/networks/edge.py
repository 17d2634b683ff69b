"""The `edge` network: a small residual CNN of dense 3x3 convolutions, made for int8 on one CPU thread.

Dense convolutions, because on CPUs depthwise ones are bound by memory and quantise badly; ReLU, because it folds
into the convolution's int8 output range; pooling over time by mean and by the mean of the largest quarter ("salient"
pooling, 10.1109/access.2022.3232807), because most sounds fill a part of the window only.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from soundmark.config import NetworkConfig
from soundmark.errors import ConfigError

DEFAULT_CHANNELS = (24, 40, 72, 128, 192)


class Edge(nn.Module):
    """Logits ``(batch, n_labels)`` from features ``(batch, n_rows, n_frames)``."""

    def __init__(self, config: NetworkConfig, shape: tuple[int, int], n_labels: int) -> None:
        super().__init__()
        channels = config.channels or DEFAULT_CHANNELS
        if len(channels) < 2 or min(shape) < 2 ** len(channels):
            raise ConfigError(
                f"features of shape {shape} and {len(channels)} stages",
                wanted=f"2 or more stages, and at least {2 ** len(channels)} rows and frames for {len(channels)}",
            )
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels[0], 3, 2, 1, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU()
        )
        stages: list[nn.Module] = []
        for before, after in pairwise(channels):
            stages += [nn.MaxPool2d(2), Residual(before, after)]
        self.stages = nn.Sequential(*stages)
        frames = -(-shape[1] // 2) >> (len(channels) - 1)  # after the stem and every pooling
        self.pool = SalientPool(frames)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(2 * channels[-1], n_labels)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(batch, n_labels)``."""
        x = self.stages(self.stem(features[:, None]))  # (batch, channels, rows / 32, frames / 32)
        logits: Tensor = self.head(self.dropout(self.pool(x)))
        return logits


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., CVPR 2016)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(before, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
        )
        self.conv2 = nn.Sequential(nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after))
        self.shortcut: nn.Module = nn.Identity()
        if before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, after, rows, frames)``."""
        return torch.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class SalientPool(nn.Module):
    """Mean over rows, then over time the mean and the mean of the largest quarter: ``(batch, 2 * channels)``."""

    parts = 2
    """Numbers per channel."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.k = max(1, frames // 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled embedding of ``x`` (batch, channels, rows, frames)."""
        over_time = mean_over_rows(x)
        largest = over_time.topk(self.k, dim=1, sorted=False).values  # of (batch, frames, channels)
        return torch.cat([over_time.mean(dim=1), largest.mean(dim=1)], dim=1)


LEAST = 1e-7
"""Added to a variance before its root; up to 1e-8 the exporter takes for nothing, and leaves out."""


class MomentsPool(nn.Module):
    """Mean over rows, then its mean and deviation over time: ``(batch, 2 * channels)``.

    Source: Snyder et al., ICASSP 2018 ("x-vectors").
    """

    parts = 2
    """Numbers per channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled embedding of ``x`` (batch, channels, rows, frames)."""
        over_time = mean_over_rows(x)
        mean = over_time.mean(dim=1, keepdim=True)
        deviation = ((over_time - mean).square().mean(dim=1) + LEAST).sqrt()
        return torch.cat([mean.flatten(1), deviation], dim=1)


class StatisticsPool(MomentsPool):
    """What `MomentsPool` gives, and the largest value: ``(batch, 3 * channels)``."""

    parts = 3
    """Numbers per channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled embedding of ``x`` (batch, channels, rows, frames)."""
        largest = nn.functional.max_pool2d(x, (x.shape[2], x.shape[3])).flatten(1)
        return torch.cat([super().forward(x), largest], dim=1)


def mean_over_rows(x: Tensor) -> Tensor:
    """Return ``(batch, frames, channels)`` of ``x`` (batch, channels, rows, frames).

    Channels last, as int8 kernels give them, and a matrix product, six times as fast as ONNX Runtime's mean.
    """
    channels, rows, frames = x.shape[1:]
    share = x.new_full((1, rows), 1 / rows)
    return (share @ x.permute(0, 2, 3, 1).flatten(2)).reshape(-1, frames, channels)
