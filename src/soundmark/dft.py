"""Power spectra of frames: the DFT of the front end, as matrix products.

With ``n_fft = rows x columns`` (Cooley-Tukey) these are two, which the BLAS inside numpy does about four times faster
than `numpy.fft` a transform. The rest of `soundmark.frontend` does not know how spectra are made.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from soundmark.errors import ConfigError

_MAX_COLUMNS = 256
"""Longest second DFT: an ``n_fft`` of 2 x prime would ask for gigabytes of matrices."""

_MAX_PRODUCT = 64**3
"""Multiply-adds of one matrix product, at most: above that OpenBLAS wakes other threads, which costs more than it
brings (100 ms instead of 1 ms on busy cores) and would not be the one thread that was asked for."""

_MAX_FRAMES = 100
"""A block is worked on whole, however few of its frames are there. Windows of 5 s with a frame every 10, 25 or 50 ms
leave a frame or two of their blocks empty (of 64: up to 57)."""

Array = npt.NDArray[np.float32]


class Room(NamedTuple):
    """What a block of frames is worked on in; taken once for a recording, so that it stays in the cache."""

    block: Array  # (size, rows in use * columns), zeros beyond the window
    partial: Array  # (size, cuts, 2 k1 / cuts, columns)
    spectrum: Array  # (re and im, k1, size, k2)
    products: Array | None  # (k1, size, n_mels), to be added over k1


class Dft:
    """Power spectra of real frames by two batched matrix products.

    With ``n = columns * a + b`` and ``k = k1 + rows * k2``: first the sum over a, one product with a (rows/2 + 1)-bin
    DFT; then, for each k1, the sum over b, whose matrix holds the twiddle factors. Real input needs k1 only up to
    rows/2, because the other bins mirror these. What is always zero (a beyond the window) and what no filter asks for
    (k2 of other bins) is left out. Source: Cooley and Tukey 1965; Bailey 1990 ("four-step FFT").
    """

    def __init__(self, n_fft: int, width: int, filters: Array | None) -> None:
        splits = [d for d in range(2, n_fft + 1, 2) if n_fft % d == 0]
        # as square as can be, rows the longer side
        rows = min(splits, key=lambda d: (max(d, n_fft // d), -d))
        columns = n_fft // rows
        if columns > _MAX_COLUMNS:
            raise ConfigError(
                f"`n_fft` {n_fft} only splits into {rows} x {columns}",
                wanted="an `n_fft` without large prime factors",
                cause=f"use {1 << (n_fft - 1).bit_length()} with `win_length` {n_fft}",
            )
        k1, k2, b = np.arange(rows // 2 + 1), np.arange(columns), np.arange(columns)
        bins = np.minimum(k1[:, None] + rows * k2, n_fft - k1[:, None] - rows * k2)  # (k1, k2)
        if filters is not None:
            used = np.isin(bins, np.flatnonzero(filters.any(axis=0))).any(axis=0)
            k2, bins = k2[used], bins[:, used]
        in_use = -(-width // columns)  # of the rows
        first = np.exp(-2j * np.pi * np.outer(k1, np.arange(in_use)) / rows)  # (k1, a)
        turn = b[None, :, None] * (k1[:, None, None] / n_fft + k2[None, None, :] / columns)  # (k1, b, k2)
        second = np.exp(-2j * np.pi * turn)
        self.columns = columns
        both = float32(np.stack([first.real, first.imag], axis=1).reshape(-1, in_use))  # (2 k1, a)
        divisors = (d for d in range(1, len(both) + 1) if len(both) % d == 0)
        cuts = next(d for d in divisors if len(both) // d * n_fft <= _MAX_PRODUCT)
        self.first = both.reshape(cuts, -1, in_use)  # the same, some rows at a time
        second = np.concatenate([second, 1j * second], axis=1)  # (k1, [re b | im b], k2)
        self.second = float32(np.stack([second.real, second.imag]))  # (re and im, k1, [re b | im b], k2)
        # position: where each bin 0 ... n_fft / 2 stands, if all are there
        found, self.position = np.unique(bins, return_index=True)
        self.bands: Array | None = None
        if filters is not None:  # weights in the order of the bins; a bin that stands there twice counts once
            weights = np.zeros((bins.size, len(filters)), dtype=np.float32)
            weights[self.position] = filters[:, found].T
            self.bands = weights.reshape(*bins.shape, len(filters))  # (k1, k2, n_mels)

    def room(self, n_linear: int) -> Room:
        """Return arrays for as many frames as may share one product under `_MAX_PRODUCT`, at most `_MAX_FRAMES`."""
        _, n_k1, _, n_k2 = self.second.shape
        size = max(2, min(_MAX_FRAMES, _MAX_PRODUCT // (self.columns * max(4 * self.columns, n_linear))))
        cuts, m, in_use = self.first.shape
        return Room(
            block=np.zeros((size, in_use * self.columns), dtype=np.float32),
            partial=np.empty((size, cuts, m, self.columns), dtype=np.float32),
            spectrum=np.empty((2, n_k1, size, n_k2), dtype=np.float32),
            products=None if self.bands is None else np.empty((n_k1, size, n_linear), dtype=np.float32),
        )

    def power(self, room: Room) -> Array:
        """Return squared magnitudes ``(k1, n_frames, k2)`` of the frames in ``room.block``."""
        _, n_k1, twice, _ = self.second.shape
        size, (_, _, in_use) = len(room.block), self.first.shape
        np.matmul(self.first, room.block.reshape(size, 1, in_use, self.columns), out=room.partial)
        partial = room.partial.reshape(size, n_k1, twice).transpose(1, 0, 2)
        spectrum = np.matmul(partial, self.second, out=room.spectrum)
        spectrum *= spectrum
        return np.add(spectrum[0], spectrum[1], out=spectrum[0])  # type: ignore[no-any-return]


def float32(x: npt.NDArray[np.float64]) -> Array:
    """Return ``x`` as contiguous float32."""
    return np.ascontiguousarray(x, dtype=np.float32)
