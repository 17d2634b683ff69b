"""Plain ResNet-18, -34 and -50 with one input channel, whose parameters are named as torchvision names them.

So a published state dict loads as it is (`soundmark.learn.pretrained`), and neither torchvision nor timm is needed.
Source: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (in ResNet-50, the stride is
in the 3x3 convolution, as in torchvision).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soundmark.config import NetworkConfig
from soundmark.errors import ConfigError

DEFAULT_CHANNELS = (64, 128, 256, 512)
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Depth -> blocks of each stage."""


class ResNet(nn.Module):
    """Logits ``(batch, n_labels)`` from features ``(batch, n_rows, n_frames)``.

    ``config.depth`` layers; ``config.channels``: widths of the four stages; ``config.resize``: rows and frames that
    the features are brought to first.
    """

    def __init__(self, config: NetworkConfig, shape: tuple[int, int], n_labels: int) -> None:
        super().__init__()
        channels = config.channels or DEFAULT_CHANNELS
        if len(channels) != 4 or len(config.resize) not in (0, 2):
            raise ConfigError(
                f"`network.channels` {list(channels)}, `network.resize` {list(config.resize)}",
                wanted="4 widths, and rows and frames (or nothing)",
            )
        rows, frames = config.resize or shape
        self.resize: nn.Module = Resize(shape, (rows, frames)) if config.resize else nn.Identity()
        self.conv1 = nn.Conv2d(1, channels[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        kind = Bottleneck if config.depth == 50 else BasicBlock
        before = channels[0]
        for stage, (width, count) in enumerate(zip(channels, BLOCKS[config.depth], strict=True), start=1):
            blocks: list[nn.Module] = []
            for index in range(count):
                blocks.append(kind(before, width, 2 if stage > 1 and index == 0 else 1))
                before = width * kind.expansion
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(before, n_labels)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(batch, n_labels)``."""
        x = self.resize(features)[:, None]  # (batch, 1, rows, frames)
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            x = self.get_submodule(stage)(x)  # (batch, channels, rows / 32, frames / 32) at the end
        logits: Tensor = self.fc(self.dropout(x.mean(dim=(2, 3))))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(before, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, width, rows / stride, frames / stride)``."""
        y = self.bn1(self.conv1(x)).relu()
        return torch.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut."""

    expansion = 4

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.downsample = _shortcut(before, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, 4 * width, rows / stride, frames / stride)``."""
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class Resize(nn.Module):
    """Bilinear resizing as two matrix products, because the operator Resize is not allowed in a bundle.

    Equals ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``.
    """

    def __init__(self, before: tuple[int, int], after: tuple[int, int]) -> None:
        super().__init__()
        rows, frames = (_weights(b, a) for b, a in zip(before, after, strict=True))
        self.register_buffer("rows", rows, persistent=False)  # (rows after, rows before)
        self.register_buffer(
            "frames", frames.T.contiguous(), persistent=False
        )  # (frames before, frames after)

    def forward(self, features: Tensor) -> Tensor:
        """Return ``(batch, rows after, frames after)``."""
        return self.get_buffer("rows") @ (features @ self.get_buffer("frames"))


def _weights(before: int, after: int) -> Tensor:
    """Return linear interpolation weights ``(after, before)``."""
    place = ((torch.arange(after) + 0.5) * (before / after) - 0.5).clamp(0, before - 1)
    low = place.floor().long().clamp(max=max(0, before - 2))
    weights = torch.zeros(after, before)
    here = torch.arange(after)
    weights[here, low] = 1.0
    if before > 1:
        weights[here, low] -= place - low
        weights[here, low + 1] = place - low
    return weights


def _shortcut(before: int, after: int, stride: int) -> nn.Module:
    if before == after and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
