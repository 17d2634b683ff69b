"""Samples to features: the only implementation. Training caches it, serving calls it, export generates from it.

Float32 throughout. The DFT is two batched matrix products (Cooley-Tukey with ``n_fft = rows x columns``), which the
BLAS inside numpy does about four times faster than `numpy.fft`. Frames go through in blocks of one fixed size, and
frame i of a recording always stands in the same row of its block: any chunking of a recording gives bit-identical
features. Conventions are librosa's (`librosa.feature.melspectrogram`, `librosa.filters.mel`), with two
stated differences: a window shorter than ``n_fft`` is padded at its end (as `tf.signal.stft` does), and ``center``
pads half a *window* of zeros.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from soundmark.config import FrontendConfig, from_dict, to_dict
from soundmark.errors import AudioError, ConfigError

FRONTEND_VERSION = 1
"""Raised when the same config gives other features; part of every fingerprint and cache key."""

_MAX_COLUMNS = 256
"""Longest second DFT: an ``n_fft`` of 2 x prime would ask for gigabytes of matrices."""

_MAX_PRODUCT = 64**3
"""Multiply-adds of one matrix product, at most: above that OpenBLAS wakes other threads, which costs more than it
brings (100 ms instead of 1 ms on busy cores) and would not be the one thread that was asked for."""

Array = npt.NDArray[np.float32]


class Frontend:
    """Features of shape ``(n_rows, n_frames)``, float32, from mono samples at ``config.sample_rate``.

    Args:
        config: what to compute.

    Raises:
        ConfigError: a mel band holds no FFT bin.

    Source: Davis and Mermelstein 1980 (MFCC); O'Shaughnessy 1987 (HTK mel); Slaney 1998 (Auditory Toolbox mel).
    """

    def __init__(self, config: FrontendConfig) -> None:
        self.config = config
        self.window = _window(config)  # (win_length,)
        self.filters = mel_filters(config) if config.kind in ("logmel", "mfcc") else None  # (n_mels, n_bins)
        self.dct = _dct(config) if config.kind == "mfcc" else None  # (n_mfcc, n_mels)
        self._dft = None if config.kind == "wave" else _Dft(config.n_fft, config.window_length, self.filters)
        self._mean = np.asarray(config.mean, dtype=np.float32).reshape(-1, 1)  # (n_rows or 1, 1)
        self._std = np.asarray(config.std, dtype=np.float32).reshape(-1, 1)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the config and `FRONTEND_VERSION`: equal fingerprints mean equal features."""
        return fingerprint(self.config)

    def n_frames(self, n_samples: int) -> int:
        """Return how many columns ``n_samples`` samples give."""
        if self.config.kind == "wave":
            return n_samples
        padded = n_samples + 2 * self._pad
        return max(0, 1 + (padded - self.config.window_length) // self.config.hop_length)

    def shape(self, n_samples: int) -> tuple[int, int]:
        """Return ``(n_rows, n_frames)`` for ``n_samples`` samples."""
        return self.config.n_rows, self.n_frames(n_samples)

    def __call__(self, samples: Array) -> Array:
        """Return the features of ``samples`` (n_samples,): compressed, normalised, ``(n_rows, n_frames)``."""
        return self.finish(self.linear(samples))  # type: ignore[no-any-return]

    def linear(self, samples: Array) -> Array:
        """Return what can be mixed by addition (band power or magnitude, or the wave): ``(n_linear, n_frames)``.

        Training caches this and mixes it; `finish` turns it into features.
        """
        samples = _mono(samples)
        if self.config.level == "peak":
            peak = np.max(np.abs(samples), initial=0.0)
            samples = samples / peak if peak > 0 else samples
        if self.config.kind == "wave":
            return samples[None, :]
        return self._frames(np.pad(samples, self._pad) if self._pad else samples).T

    def finish(self, linear: Any, xp: Any = np) -> Any:
        """Return features from `linear` values ``(..., n_linear, n_frames)``, through the array library ``xp``.

        ``xp`` is numpy, or torch during training: one formula for both (it uses log, log10, clip and matmul only).
        """
        config = self.config

        def like(array: Array) -> Any:
            return xp.asarray(array, device=linear.device)

        if config.kind == "wave":
            return (linear * config.gain - like(self._mean)) / like(self._std)
        if config.scale == "db":
            x = (10.0 if config.power == 2 else 20.0) * xp.log10(xp.clip(linear, config.offset, None))
        elif config.scale == "ln":
            x = xp.log(linear + config.offset)
        elif config.scale == "log10":
            x = xp.log10(1.0 + config.gain * linear)
        else:
            x = linear
        if self.dct is not None:
            x = _dct_rows(like(self.dct), x)
        return (x - like(self._mean)) / like(self._std)

    def stream(self) -> FrontendStream:
        """Return a stateful front end that is fed in chunks of any size and equals the whole at the end."""
        return FrontendStream(self)

    @property
    def _pad(self) -> int:
        return self.config.window_length // 2 if self.config.center and self.config.kind != "wave" else 0

    def _frames(self, padded: Array, *, row: int = 0) -> Array:
        """Return ``(n_frames, n_linear)`` of already padded samples; ``row`` is the number of frames before them.

        Blocks have one fixed number of rows, and frame i of a recording always stands in the same row: BLAS (the AVX2
        kernels, for one) may round differently for another number of rows, or in another row.
        """
        dft, width = self._dft, self.config.window_length
        assert dft is not None
        n_linear = self.config.n_fft // 2 + 1 if self.filters is None else self.config.n_mels
        if padded.size < width:
            return np.empty((0, n_linear), dtype=np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(padded, width)[:: self.config.hop_length]
        out = np.empty((len(frames), n_linear), dtype=np.float32)
        room = dft.room(n_linear)
        size = len(room.block)
        for top in range(-(row % size), len(frames), size):  # the frame in row 0 of this block
            here = slice(max(top, 0), min(top + size, len(frames)))
            rows = slice(here.start - top, here.stop - top)
            np.multiply(frames[here], self.window, out=room.block[rows, :width])
            power = dft.power(room)  # (k1, size, k2)
            if self.config.power == 1:
                np.sqrt(power, out=power)
            if dft.bands is None:
                block_out = power.transpose(1, 0, 2).reshape(size, -1)[:, dft.position]
            else:
                block_out = np.matmul(power, dft.bands, out=room.products).sum(axis=0)  # (size, n_mels)
            out[here] = block_out[rows]
        return out


class _Room(NamedTuple):
    """What a block of frames is worked on in; taken once for a recording, so that it stays in the cache."""

    block: Array  # (size, rows in use * columns), zeros beyond the window
    partial: Array  # (size, cuts, 2 k1 / cuts, columns)
    spectrum: Array  # (re and im, k1, size, k2)
    products: Array | None  # (k1, size, n_mels), to be added over k1


class _Dft:
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
        both = _float32(np.stack([first.real, first.imag], axis=1).reshape(-1, in_use))  # (2 k1, a)
        divisors = (d for d in range(1, len(both) + 1) if len(both) % d == 0)
        cuts = next(d for d in divisors if len(both) // d * n_fft <= _MAX_PRODUCT)
        self.first = both.reshape(cuts, -1, in_use)  # the same, some rows at a time
        second = np.concatenate([second, 1j * second], axis=1)  # (k1, [re b | im b], k2)
        self.second = _float32(np.stack([second.real, second.imag]))  # (re and im, k1, [re b | im b], k2)
        # position: where each bin 0 ... n_fft / 2 stands, if all are there
        found, self.position = np.unique(bins, return_index=True)
        self.bands: Array | None = None
        if filters is not None:  # weights in the order of the bins; a bin that stands there twice counts once
            weights = np.zeros((bins.size, len(filters)), dtype=np.float32)
            weights[self.position] = filters[:, found].T
            self.bands = weights.reshape(*bins.shape, len(filters))  # (k1, k2, n_mels)

    def room(self, n_linear: int) -> _Room:
        """Return arrays for as many frames as may share one product under `_MAX_PRODUCT`, at most 64."""
        _, n_k1, _, n_k2 = self.second.shape
        size = max(2, min(64, _MAX_PRODUCT // (self.columns * max(4 * self.columns, n_linear))))
        cuts, m, in_use = self.first.shape
        return _Room(
            block=np.zeros((size, in_use * self.columns), dtype=np.float32),
            partial=np.empty((size, cuts, m, self.columns), dtype=np.float32),
            spectrum=np.empty((2, n_k1, size, n_k2), dtype=np.float32),
            products=None if self.bands is None else np.empty((n_k1, size, n_linear), dtype=np.float32),
        )

    def power(self, room: _Room) -> Array:
        """Return squared magnitudes ``(k1, n_frames, k2)`` of the frames in ``room.block``."""
        _, n_k1, twice, _ = self.second.shape
        size, (_, _, in_use) = len(room.block), self.first.shape
        np.matmul(self.first, room.block.reshape(size, 1, in_use, self.columns), out=room.partial)
        partial = room.partial.reshape(size, n_k1, twice).transpose(1, 0, 2)
        spectrum = np.matmul(partial, self.second, out=room.spectrum)
        spectrum *= spectrum
        return np.add(spectrum[0], spectrum[1], out=spectrum[0])  # type: ignore[no-any-return]


def _float32(x: npt.NDArray[np.float64]) -> Array:
    return np.ascontiguousarray(x, dtype=np.float32)


class FrontendStream:
    """Feeds a `Frontend` in chunks; the concatenated columns equal those of the whole recording, bit for bit."""

    def __init__(self, frontend: Frontend) -> None:
        if frontend.config.level != "none":
            raise ConfigError(
                f"`level` {frontend.config.level} looks at the whole window",
                wanted="`level` none for a stream",
                cause="scale the samples before, or classify windows instead of streaming features",
            )
        self._frontend = frontend
        self._tail: Array = np.zeros(frontend._pad, dtype=np.float32)
        self._n_frames = 0

    def push(self, chunk: Array) -> Array:
        """Return the columns ``(n_rows, k)`` that ``chunk`` (n_samples,) completes, k may be 0."""
        chunk = _mono(chunk)
        if self._frontend.config.kind == "wave":
            return self._frontend(chunk)
        config = self._frontend.config
        samples = np.concatenate([self._tail, chunk])
        n_frames = max(0, 1 + (samples.size - config.window_length) // config.hop_length)
        self._tail = samples[n_frames * config.hop_length :].copy()  # a view would keep the whole chunk alive
        linear = self._frontend._frames(samples if n_frames else samples[:0], row=self._n_frames)
        self._n_frames += n_frames
        return self._frontend.finish(linear.T)  # type: ignore[no-any-return]

    def flush(self) -> Array:
        """Return the last columns, made of what is left and the closing zeros of ``center``."""
        return self.push(np.zeros(self._frontend._pad, dtype=np.float32))


def fingerprint(config: FrontendConfig) -> str:
    """Return the SHA-256 of the canonical config and `FRONTEND_VERSION`.

    The round trip makes ``fmin=125`` and ``fmin=125.0`` the same, as they are after `bundle.json` is read back.
    """
    values = to_dict(from_dict(to_dict(config), FrontendConfig))
    canonical = json.dumps({"version": FRONTEND_VERSION, **values}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def mel_filters(config: FrontendConfig) -> Array:
    """Return triangular band weights ``(n_mels, n_fft // 2 + 1)``; equals `librosa.filters.mel` (same norm).

    Raises:
        ConfigError: a band holds no bin (too many bands for this ``n_fft``).
    """
    bins_hz = np.arange(config.n_fft // 2 + 1) * (config.sample_rate / config.n_fft)
    low, high = _hz_to_mel(np.array([config.fmin, config.top_hz]), config.mel_scale)
    edges = np.linspace(low, high, config.n_mels + 2)
    edges_hz = _mel_to_hz(edges, config.mel_scale)
    rising = (bins_hz - edges_hz[:-2, None]) / np.diff(edges_hz)[:-1, None]
    falling = (edges_hz[2:, None] - bins_hz) / np.diff(edges_hz)[1:, None]
    weights = np.maximum(0.0, np.minimum(rising, falling))  # (n_mels, n_bins)
    empty = np.flatnonzero(weights.sum(axis=1) <= 0)
    if empty.size:
        raise ConfigError(
            f"mel band {empty[0]} of {config.n_mels} ({edges_hz[empty[0]]:.0f}-{edges_hz[empty[0] + 2]:.0f} Hz) "
            "holds no FFT bin",
            wanted="a smaller `n_mels` or a larger `n_fft`",
            cause=f"bins are {config.sample_rate / config.n_fft:.1f} Hz apart",
        )
    if config.mel_norm == "slaney":
        weights *= (2.0 / (edges_hz[2:] - edges_hz[:-2]))[:, None]
    elif config.mel_norm == "sum":
        weights /= weights.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)


def _mono(samples: Array) -> Array:
    """Return ``samples`` as contiguous float32; whole numbers are refused, their full scale is not 1."""
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise AudioError(
            f"samples of shape {samples.shape} and type {samples.dtype}",
            wanted="one channel, floating point, full scale at 1",
            cause="call soundmark.audio first",
            code="unsupported_format",
        )
    return np.ascontiguousarray(samples, dtype=np.float32)


def _window(config: FrontendConfig) -> Array:
    n = np.arange(config.window_length) / config.window_length  # periodic: n = 1 would start the next period
    floor = {"hann": 0.5, "hamming": 0.54, "ones": 1.0}[config.window]
    return (floor - (1.0 - floor) * np.cos(2 * np.pi * n)).astype(np.float32)


def _dct(config: FrontendConfig) -> Array:
    """Return the orthonormal DCT-II ``(n_mfcc, n_mels)`` (Ahmed, Natarajan and Rao 1974)."""
    k, n = np.arange(config.n_mfcc)[:, None], np.arange(config.n_mels)[None, :]
    basis = np.sqrt(2.0 / config.n_mels) * np.cos(np.pi * k * (2 * n + 1) / (2 * config.n_mels))
    basis[0] *= np.sqrt(0.5)
    return _float32(basis)


def _dct_rows(dct: Any, x: Any) -> Any:
    """Return ``dct @ x`` as a running sum over bands, so that a column never depends on the number of columns."""
    total = dct[:, :1] * x[..., :1, :]
    for band in range(1, dct.shape[1]):
        total = total + dct[:, band : band + 1] * x[..., band : band + 1, :]
    return total


def _hz_to_mel(hz: npt.NDArray[np.float64], scale: str) -> npt.NDArray[np.float64]:
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hz / 700.0)
    linear = hz * 3.0 / 200.0
    log = 15.0 + np.log(np.maximum(hz, 1e-12) / 1000.0) * (27.0 / np.log(6.4))
    return np.where(hz < 1000.0, linear, log)


def _mel_to_hz(mel: npt.NDArray[np.float64], scale: str) -> npt.NDArray[np.float64]:
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    linear = mel * 200.0 / 3.0
    return np.where(mel < 15.0, linear, 1000.0 * np.exp((mel - 15.0) * (np.log(6.4) / 27.0)))
