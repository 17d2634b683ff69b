"""What a student hears of a view: its finished features, in 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from soundmark.errors import ConfigError
from soundmark.frontend import Frontend, fingerprint
from soundmark.preset import Preset

Array = npt.NDArray[np.float32]
_LEVELS = 255


class Seen:
    """The student's finished features as whole numbers of 8 bits; a `views.Consumer`.

    Attributes:
        key: of the front end and the scale.
        sample_rate: at which it hears, in Hz.
        row: rows and frames.
        dtype: uint8.
        low: the feature value of 0.
        step: from one number to the next.
    """

    def __init__(self, preset: Preset) -> None:
        """Set the scale, which follows from the front end alone: silence below, sines of full scale above."""
        config = preset.frontend
        if config.kind not in ("logmel", "spectrogram") or config.scale == "linear":
            raise ConfigError(
                f"`frontend.kind` {config.kind}, `frontend.scale` {config.scale}",
                wanted="logmel or spectrogram on a logarithmic scale: others cannot be kept in 8 bits",
            )
        self._frontend, self.sample_rate = Frontend(config), config.sample_rate
        size = round(preset.window.window_s * config.sample_rate)
        self.row, self.dtype = self._frontend.shape(size), np.dtype(np.uint8)
        n = np.arange(4 * config.n_fft) / config.sample_rate
        tones = np.geomspace(max(20.0, config.fmin), config.top_hz * 0.98, 48)
        loudest = [self._frontend(np.sin(2 * np.pi * hz * n).astype(np.float32)).max() for hz in tones]
        self.low = float(self._frontend(np.zeros(4 * config.n_fft, dtype=np.float32)).min())
        self.step = (float(max(loudest)) - self.low) / _LEVELS
        self.key = f"seen {fingerprint(config)} {preset.window.window_s}"

    def __call__(self, samples: Array) -> npt.NDArray[Any]:
        """Return ``(n, n_rows, n_frames)`` uint8; what is beyond the scale is at its end."""
        features = np.stack([self._frontend(one) for one in samples])
        stored: npt.NDArray[Any] = np.clip(np.rint((features - self.low) / self.step), 0, _LEVELS)
        return stored.astype(np.uint8)

    def features(self, stored: npt.NDArray[Any]) -> Tensor:
        """Return float features of stored ones, to half a `step`."""
        return torch.from_numpy(stored.astype(np.float32)) * self.step + self.low
