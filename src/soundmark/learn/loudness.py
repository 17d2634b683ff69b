"""How loud a wave is to the ear: the A-weighted level of its loudest moment, which between-class mixing makes equal.

Source: IEC 61672-1 (A-weighting); Tokozume, Ushiku and Harada, "Learning from Between-class Examples for Deep Sound
Recognition", ICLR 2018, section 3.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from soundmark.config import FrontendConfig
from soundmark.frontend import Frontend

_N_FFT, _HOP = 2048, 1024


class Loudness:
    """Loudness of samples at one rate."""

    def __init__(self, sample_rate: int) -> None:
        self._spectrum = Frontend(
            FrontendConfig(kind="spectrogram", sample_rate=sample_rate, n_fft=_N_FFT, hop_length=_HOP)
        )
        self._weights = a_weighting(np.arange(_N_FFT // 2 + 1) * (sample_rate / _N_FFT))

    def __call__(self, samples: npt.NDArray[np.float32]) -> float:
        """Return the A-weighted power of the loudest frame of ``samples`` (n,); 0 for silence."""
        power = self._spectrum.linear(samples)  # (n_bins, n_frames)
        return float((self._weights @ power).max(initial=0.0))


def a_weighting(hz: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Return the A-weighting of powers at ``hz`` (any shape): 1 at 1 kHz, 0 at 0 Hz (IEC 61672-1, annex E)."""
    f2 = np.square(hz)
    response = 12194.0**2 * f2**2
    response /= (f2 + 20.6**2) * np.sqrt((f2 + 107.7**2) * (f2 + 737.9**2)) * (f2 + 12194.0**2)
    return np.asarray((response * 10 ** (2.0 / 20)) ** 2, dtype=np.float32)  # 2.0 dB: 0 dB at 1 kHz
