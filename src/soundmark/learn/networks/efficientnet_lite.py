"""The `efficientnet-lite0` network: inverted residuals with ReLU6, without squeeze-and-excitation, made for int8.

Source: Tan and Le, "EfficientNet", ICML 2019 (arXiv 1905.11946); its Lite0 variant, tensorflow/tpu (Apache-2.0).
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from soundmark.config import NetworkConfig
from soundmark.errors import ConfigError
from soundmark.learn.networks.edge import SalientPool
from soundmark.learn.networks.same import same

DEFAULT_CHANNELS = (32, 16, 24, 40, 80, 112, 192, 320, 1280)
"""Widths: the first convolution, seven stages, the last convolution."""
STAGES = ((1, 3, 1, 1), (2, 3, 2, 6), (2, 5, 2, 6), (3, 3, 2, 6), (3, 5, 1, 6), (4, 5, 2, 6), (1, 3, 1, 6))
"""Blocks, kernel, stride of the first block, and expansion of each stage."""
_PUBLISHED = (
    (r"_conv_stem\.", "stem.conv."),
    (r"_bn0\.", "stem.bn."),
    (r"_conv_head\.", "last.conv."),
    (r"_bn1\.", "last.bn."),
    (r"_fc\.", "head."),
    (r"_blocks\.(\d+)\._(expand|depthwise|project)_conv\.", r"blocks.\1.\2.conv."),
    (r"_blocks\.(\d+)\._bn0\.", r"blocks.\1.expand.bn."),
    (r"_blocks\.(\d+)\._bn1\.", r"blocks.\1.depthwise.bn."),
    (r"_blocks\.(\d+)\._bn2\.", r"blocks.\1.project.bn."),
)


class EfficientNetLite(nn.Module):
    """Logits ``(batch, n_labels)`` from features ``(batch, n_rows, n_frames)``.

    ``config.channels``: widths as in `DEFAULT_CHANNELS`, for a thinner one without published weights.

    Attributes:
        width: numbers in an embedding.
    """

    def __init__(self, config: NetworkConfig, shape: tuple[int, int], n_labels: int) -> None:
        super().__init__()
        channels = config.channels or DEFAULT_CHANNELS
        if len(channels) != len(DEFAULT_CHANNELS) or min(shape) < 32:
            raise ConfigError(
                f"features of shape {shape} and {len(channels)} widths",
                wanted=f"32 or more rows and frames, and {len(DEFAULT_CHANNELS)} widths",
            )
        self.stem = Layer(1, channels[0], shape, kernel=3, stride=2)
        shape = self.stem.shape
        blocks: list[nn.Module] = []
        before = channels[0]
        for after, (count, kernel, stride, expansion) in zip(channels[1:8], STAGES, strict=True):
            for index in range(count):
                block = Block(
                    before, after, shape, kernel=kernel, stride=1 if index else stride, expansion=expansion
                )
                blocks.append(block)
                before, shape = after, block.shape
        self.blocks = nn.Sequential(*blocks)
        self.last = Layer(before, channels[8], shape)
        self.pool = SalientPool(shape[1])
        self.width = 2 * channels[8]
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(self.width, n_labels)

    def adopt(self, published: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a published state dict under our names; one of ours comes back as it is."""
        return {_own_name(name): tensor for name, tensor in published.items()}

    def embed(self, features: Tensor) -> Tensor:
        """Return ``(batch, width)``: the mean over time, and the mean of the largest quarter."""
        embedding: Tensor = self.pool(self.last(self.blocks(self.stem(features[:, None]))))
        return embedding

    def classify(self, embedding: Tensor) -> Tensor:
        """Return logits ``(batch, n_labels)`` of embeddings ``(batch, width)``."""
        logits: Tensor = self.head(self.dropout(embedding))
        return logits

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(batch, n_labels)``."""
        return self.classify(self.embed(features))


class Layer(nn.Module):
    """A convolution, batch norm, and ReLU6 where ``active``; padded as `same` says.

    Attributes:
        shape: rows and frames that come out.
    """

    def __init__(
        self,
        before: int,
        after: int,
        shape: tuple[int, int],
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        active: bool = True,
    ) -> None:
        super().__init__()
        self.shape, self.pad, padding = same(shape, kernel=kernel, stride=stride)
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=1e-3, momentum=0.01)
        self.act: nn.Module = nn.ReLU6() if active else nn.Identity()
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, after, *self.shape)``."""
        y: Tensor = self.act(self.bn(self.conv(self.pad(x))))
        return y


class Block(nn.Module):
    """An inverted residual: wider (1x1), depthwise, narrower (1x1), around a shortcut where shapes agree."""

    def __init__(
        self, before: int, after: int, shape: tuple[int, int], *, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        wide = before * expansion
        self.expand: nn.Module = Layer(before, wide, shape) if expansion > 1 else nn.Identity()
        self.depthwise = Layer(wide, wide, shape, kernel=kernel, stride=stride, groups=wide)
        self.shape = self.depthwise.shape
        self.project = Layer(wide, after, self.shape, active=False)
        self._around = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, after, *self.shape)``."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self._around else y


def _own_name(published: str) -> str:
    for pattern, ours in _PUBLISHED:
        name, found = re.subn(rf"^{pattern}", ours, published)
        if found:
            return name
    return published
