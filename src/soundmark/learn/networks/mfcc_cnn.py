"""The `mfcc-cnn` network: two convolutions and two full layers on 13 MFCCs, the baseline that many tutorials train."""

from __future__ import annotations

from torch import Tensor, nn

from soundmark.config import NetworkConfig
from soundmark.errors import ConfigError

DEFAULT_CHANNELS = (16, 32, 64)


class MfccCNN(nn.Module):
    """Logits ``(batch, n_labels)`` from features ``(batch, n_rows, n_frames)``.

    ``config.channels``: filters of both convolutions, then width of the first full layer.
    """

    def __init__(self, config: NetworkConfig, shape: tuple[int, int], n_labels: int) -> None:
        super().__init__()
        channels = config.channels or DEFAULT_CHANNELS
        if len(channels) != 3 or min(shape) < 4:
            raise ConfigError(
                f"features of shape {shape} and `network.channels` {list(channels)}",
                wanted="at least 4 rows and frames, and 3 widths",
            )
        first, second, hidden = channels
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.dropout = nn.Dropout(config.dropout)
        self.full = nn.Linear(second * (shape[0] // 4) * (shape[1] // 4), hidden)
        self.head = nn.Linear(hidden, n_labels)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(batch, n_labels)``."""
        x = self.convolutions(features[:, None])  # (batch, second, rows / 4, frames / 4)
        logits: Tensor = self.head(self.full(self.dropout(x).flatten(1)).relu())
        return logits
