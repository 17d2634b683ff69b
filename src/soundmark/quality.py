"""Mono samples and quality flags out of decoded blocks: silence, clipping, DC, channels that cancel."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from soundmark.errors import AudioError

Samples: TypeAlias = npt.NDArray[np.float32]

MAX_ABSOLUTE = 1e3  # beyond +60 dBFS the samples are integers in float clothing, or garbage
SILENT_PEAK = 1e-4  # -80 dBFS
MAX_DC = 0.05  # of full scale
CLIPPED_SHARE = 0.01  # of all samples, in runs of three or more on the extreme value
CLIPPED_LEVEL = 0.25  # extremes below are quiet sounds with few steps, not clipping
OVER_FULL_SCALE = {"VORBIS": 1.5, "OPUS": 1.5, "MPEG_LAYER_III": 1.5}  # lossy decoders overshoot
COARSE = frozenset({"PCM_U8", "PCM_S8", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610"})


class Quality:
    """Mono blocks out of decoded blocks, with running quality checks."""

    def __init__(self, name: str, subtype: str) -> None:
        self.name = name
        self.full_scale = OVER_FULL_SCALE.get(subtype, 1.01)
        self.clip_level = 0.98 if subtype in COARSE else CLIPPED_LEVEL
        self.denormals = subtype in ("FLOAT", "DOUBLE", "array")
        self.frames, self.values = 0, 0
        self.low, self.high = np.inf, -np.inf  # of all channels
        self.mono_low, self.mono_high = np.inf, -np.inf
        self.total, self.mono_energy, self.channel_energy = 0.0, 0.0, 0.0
        self.at_low, self.at_high = 0, 0  # samples in runs on the lowest and highest value
        self.channels = 1

    def see(self, block: Samples) -> Samples:
        """Return the mean over channels of ``block`` (n, channels), which may be written to and returned."""
        low, high = float(block.min()), float(block.max())
        if not (low >= -MAX_ABSOLUTE and high <= MAX_ABSOLUTE):
            raise self._unusable(block)
        if (
            self.denormals or -SILENT_PEAK < low <= high < SILENT_PEAK
        ):  # inaudible, and slow in every later step
            block[np.abs(block) < np.finfo(np.float32).tiny] = 0
        if low <= min(self.low, -self.clip_level):
            self.at_low = (self.at_low if low == self.low else 0) + _in_runs(block == np.float32(low))
        if high >= max(self.high, self.clip_level):
            self.at_high = (self.at_high if high == self.high else 0) + _in_runs(block == np.float32(high))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.channels = block.shape[1]
        self.values += block.size
        mono: Samples = block[:, 0]
        if self.channels > 1:
            mono = block[:, 0] + block[:, 1]
            for channel in range(2, self.channels):
                mono += block[:, channel]
            mono *= np.float32(1 / self.channels)
            flat = block.reshape(-1)
            self.channel_energy += float(np.dot(flat, flat)) / self.channels
            self.mono_energy += float(np.dot(mono, mono))
            low, high = float(mono.min()), float(mono.max())
        self.mono_low, self.mono_high = min(self.mono_low, low), max(self.mono_high, high)
        self.total += float(np.einsum("n->", mono))  # twice as quick as `sum`, and as good for a mean
        self.frames += len(mono)
        return mono

    def _unusable(self, block: Samples) -> AudioError:
        bad = ~np.isfinite(block)
        if bad.any():
            saw = f"{self.name}: NaN or infinity at sample {self.frames + int(np.argmax(bad.any(axis=1)))}"
            return AudioError(saw, wanted="finite samples", code="nonfinite_samples")
        saw, cause = f"{self.name}: a sample of {float(np.abs(block).max()):.3g}", "integers stored as float"
        return AudioError(saw, wanted="samples within -1 ... 1", cause=cause, code="sample_out_of_range")

    def flags(self) -> set[str]:
        """Return the quality flags of everything seen."""
        found = set()
        if (self.mono_high - self.mono_low) / 2 < SILENT_PEAK:
            found.add("silent")
        if abs(self.total) > MAX_DC * self.frames:
            found.add("dc_offset")
        if max(self.high, -self.low) > self.full_scale:
            found.add("over_full_scale")
        if self.low < self.high and self.at_low + self.at_high >= CLIPPED_SHARE * self.values:
            found.add("clipped")
        # n unrelated channels leave 1/n of the energy of one in the mean; far less is cancellation
        audible = self.channel_energy > self.frames * SILENT_PEAK**2
        if audible and self.mono_energy * self.channels < 0.05 * self.channel_energy:
            found.add("downmix_cancelled")
        return found


def _in_runs(at: npt.NDArray[np.bool_]) -> int:
    """Return how many values lie in runs of at least three along axis 0, a run counted as its length - 2."""
    if np.count_nonzero(at) < 3:  # as most recordings have it, and much quicker to tell
        return 0
    return int(np.count_nonzero(at[2:] & at[1:-1] & at[:-2]))
