"""How loud a recording is: its power spectrum (from `soundmark.frontend`) and the gated loudness of ITU-R BS.1770-4."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from soundmark.config import FrontendConfig
from soundmark.frontend import Frontend

Samples = npt.NDArray[np.float32]

FLOOR_DB = -120.0  # what silence is given as: JSON has no minus infinity
N_FFT = 2048


def spectrum(samples: Samples, rate: int) -> npt.NDArray[np.float32]:
    """Return the mean square per bin, (1025, n_frames): Hann frames of `N_FFT`, half overlapping, none over the edges.

    Scaled (Parseval) so that the sum over bins is the mean square of the frame.
    """
    front = _front(rate)
    power: npt.NDArray[np.float32] = front.linear(np.pad(samples, (0, max(0, N_FFT - len(samples)))))
    power *= np.float32(2.0 / (N_FFT * float(np.square(front.window, dtype=np.float64).sum())))
    power[[0, -1]] *= np.float32(0.5)
    return power


def loudness(power: npt.NDArray[np.float32], rate: int) -> float:
    """Return the gated loudness in LUFS of a `spectrum`, `FLOOR_DB` for what is below the gate.

    ITU-R BS.1770-4 for one channel: K-weighting, blocks of 0.4 s with 75 % overlap, absolute gate -70 LUFS, relative
    gate -10 LU. The K-weighting is applied to the power spectrum (response of the 48 kHz filters of annex 1), not in
    time. A sine of 997 Hz at full scale is at -3.01 LUFS.
    """
    weighted = np.einsum(
        "b,bt->t", _k_weights(rate), power.astype(np.float64)
    )  # (n_frames,); BLAS wakes threads
    hop_s = N_FFT / 2 / rate
    width = min(len(weighted), max(1, round(0.4 / hop_s)))
    step = max(1, round(0.1 / hop_s))
    sums = np.concatenate([[0.0], np.cumsum(weighted)])
    starts = np.arange(0, len(weighted) - width + 1, step)
    blocks = np.maximum(sums[starts + width] - sums[starts], 0.0) / width
    blocks = blocks[blocks > 10 ** ((-70 + 0.691) / 10)]
    if not len(blocks):
        return FLOOR_DB
    blocks = blocks[blocks > 0.1 * blocks.mean()]
    return power_db(float(blocks.mean())) - 0.691


def power_db(mean_square: float) -> float:
    """Return a mean square in dB relative to full scale 1, at least `FLOOR_DB`."""
    return max(FLOOR_DB, 10 * math.log10(mean_square)) if mean_square > 0 else FLOOR_DB


@functools.lru_cache(maxsize=16)
def _front(rate: int) -> Frontend:
    return Frontend(
        FrontendConfig(
            kind="spectrogram",
            sample_rate=rate,
            n_fft=N_FFT,
            hop_length=N_FFT // 2,
            center=False,
            scale="linear",
        )
    )


@functools.lru_cache(maxsize=16)
def _k_weights(rate: int) -> npt.NDArray[np.float64]:
    """Return the power response of the two filters of ITU-R BS.1770-4 annex 1 at the bins of `spectrum`."""
    z = np.exp(-2j * np.pi * np.minimum(np.arange(N_FFT // 2 + 1) * rate / N_FFT, 23_999.0) / 48_000)  # z^-1
    shelf = np.polyval([1.19839281085285, -2.69169618940638, 1.53512485958697], z)
    shelf /= np.polyval([0.73248077421585, -1.69065929318241, 1.0], z)
    highpass = np.polyval([1.0, -2.0, 1.0], z) / np.polyval([0.99007225036621, -1.99004745483398, 1.0], z)
    return np.square(np.abs(shelf * highpass))  # type: ignore[no-any-return]
