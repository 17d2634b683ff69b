"""Samples to a picture of what sounds when: log-mel, the same scale for every recording, whatever a model sees."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from soundmark import audio
from soundmark.config import AudioLimits, FrontendConfig
from soundmark.frontend import Frontend

RATE_HZ, RANGE_DB = 32_000, 80.0
_CONFIG = FrontendConfig(
    sample_rate=RATE_HZ, n_fft=1024, hop_length=320, n_mels=64, fmin=50.0, fmax=14_000.0, scale="db"
)


def mel_bands(samples: npt.NDArray[np.float32], rate: int) -> npt.NDArray[np.float32]:
    """Return (64, n_frames) in dB below the loudest cell, none below -`RANGE_DB`; a frame every 10 ms, 50 Hz to 14 kHz.

    Args:
        samples: mono (n,).
        rate: of the samples, in Hz.
    """
    heard = audio.load((samples, rate), sample_rate=RATE_HZ, limits=AudioLimits(min_seconds=0.0))
    bands = _front()(heard.samples)
    cut: npt.NDArray[np.float32] = np.maximum(bands - bands.max(), np.float32(-RANGE_DB))
    return cut


@functools.lru_cache(maxsize=1)
def _front() -> Frontend:
    return Frontend(_CONFIG)
