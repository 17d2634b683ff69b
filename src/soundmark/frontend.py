"""Samples to features: the only implementation. Training caches it, serving calls it, export generates from it.

Float32 throughout. Frames go through the DFT (`soundmark.dft`) in blocks of one fixed size, and frame i of a recording
always stands in the same row of its block: any chunking of a recording gives bit-identical features. Conventions are
librosa's (`librosa.feature.melspectrogram`, `librosa.filters.mel`), with three stated differences: a window shorter
than ``n_fft`` is padded at its end (as `tf.signal.stft` does), one longer than ``n_fft`` is folded (librosa refuses
it), and ``center`` pads half a *window* of zeros.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import numpy.typing as npt

from soundmark.config import FrontendConfig, from_dict, to_dict
from soundmark.dft import Dft, float32
from soundmark.errors import AudioError, ConfigError

FRONTEND_VERSION = 1
"""Raised when the same config gives other features; part of every fingerprint and cache key."""

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
        self._dft = (
            None
            if config.kind == "wave"
            else Dft(config.n_fft, min(config.window_length, config.n_fft), self.filters)
        )
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
        count, step = 1 + (padded.size - width) // self.config.hop_length, padded.itemsize
        frames: Array = np.ndarray(
            (count, width), np.float32, padded, strides=(self.config.hop_length * step, step)
        )
        out = np.empty((len(frames), n_linear), dtype=np.float32)
        room = dft.room(n_linear)
        size = len(room.block)
        for top in range(-(row % size), len(frames), size):  # the frame in row 0 of this block
            here = slice(max(top, 0), min(top + size, len(frames)))
            rows = slice(here.start - top, here.stop - top)
            self._windowed(frames[here], room.block[rows])
            power = dft.power(room)  # (k1, size, k2)
            if self.config.power == 1:
                np.sqrt(power, out=power)
            if dft.bands is None:
                block_out = power.transpose(1, 0, 2).reshape(size, -1)[:, dft.position]
            else:
                block_out = np.matmul(power, dft.bands, out=room.products).sum(axis=0)  # (size, n_mels)
            out[here] = block_out[rows]
        return out

    def _windowed(self, frames: Array, out: Array) -> None:
        """Write ``frames`` (n, win_length) times the window to ``out``; folded, where that is more than ``n_fft``.

        Samples that are ``n_fft`` apart turn alike in every bin, so that their sum gives the same bins: those of the
        whole window at multiples of ``sample_rate / n_fft``. Source: Crochiere, IEEE TASSP 1980 (weighted overlap-add).
        """
        width = self.config.window_length
        once = min(width, self.config.n_fft)
        times, rest = divmod(width, once)
        whole = width - rest
        parts, window = frames[:, :whole].reshape(-1, times, once), self.window[:whole].reshape(times, once)
        np.einsum("fsn,sn->fn", parts, window, out=out[:, :once])  # the bits of np.multiply, twice as quick
        if rest:
            out[:, :rest] += frames[:, whole:] * self.window[whole:]


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
    return float32(basis)


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
