"""The `acdnet` network: learns its own filter bank on raw samples, then a VGG-like CNN on what that gives.

Source: Mohaimenuzzaman, Bergmeir, West and Meyer, "Environmental Sound Classification on the Edge", Pattern
Recognition 2023 (arXiv 2103.03483), table 1 (ACDNet, 4.74 M parameters) and section 5 (micro-ACDNet, 131 K: the same
layers with the widths that pruning left).
"""

from __future__ import annotations

from torch import Tensor, nn

from soundmark.config import NetworkConfig
from soundmark.errors import ConfigError

DEFAULT_CHANNELS = (8, 64, 32, 64, 64, 128, 128, 256, 256, 512, 512, 50)
SAMPLE_RATE = 20_000
COLUMN_SAMPLES = SAMPLE_RATE // 100
"""The filter bank gives one column per 10 ms: two strides of 2, then a pooling over the rest."""


class ACDNet(nn.Module):
    """Logits ``(batch, n_labels)`` from a wave ``(batch, 1, n_samples)`` at 20 kHz.

    ``config.channels``: widths of its twelve convolutions.
    """

    def __init__(self, config: NetworkConfig, shape: tuple[int, int], n_labels: int) -> None:
        super().__init__()
        channels = config.channels or DEFAULT_CHANNELS
        columns = (((shape[1] - 9) // 2 + 1 - 5) // 2 + 1) // (COLUMN_SAMPLES // 4)
        if len(channels) != 12 or shape[0] != 1 or columns < 1:
            raise ConfigError(
                f"features of shape {shape} and {len(channels)} widths",
                wanted=f"a wave (frontend.kind wave, {SAMPLE_RATE} Hz) of 15 ms or more, and 12 widths",
            )
        self.filter_bank = nn.Sequential(
            *_block(1, channels[0], (1, 9), stride=(1, 2)),
            *_block(channels[0], channels[1], (1, 5), stride=(1, 2)),
            nn.MaxPool2d((1, COLUMN_SAMPLES // 4)),
        )
        layers: list[nn.Module] = []
        before, height, width = 1, channels[1], columns
        for index, after in enumerate(channels[2:11]):
            layers += _block(before, after, (3, 3), padding=1)
            before = after
            if index % 2 == 0:  # behind convolutions 3, 5, 7, 9 and 11 of the twelve
                pooling = (min(2, height), min(2, width))
                height, width = height // pooling[0], width // pooling[1]
                layers += [nn.MaxPool2d(pooling)] if max(pooling) > 1 else []
        self.body = nn.Sequential(*layers)
        self.dropout = nn.Dropout(config.dropout)
        self.last = nn.Sequential(*_block(before, channels[11], (1, 1)))
        self.head = nn.Linear(channels[11], n_labels)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(batch, n_labels)``."""
        x = self.filter_bank(features[:, None])  # (batch, bands, 1, columns)
        x = self.body(x.transpose(1, 2))  # (batch, channels, bands / 32, columns / 32)
        x = self.last(self.dropout(x))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def _block(
    before: int,
    after: int,
    kernel: tuple[int, int],
    *,
    stride: tuple[int, int] = (1, 1),
    padding: int = 0,
) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    ]
