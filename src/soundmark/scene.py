"""Samples of a scene made in code: noise, ringing modes, voices and rooms, tools of all such sounds.

No spectrum is needed: filters are short FIR kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from soundmark.errors import ConfigError

PEAK = 0.7
FADE_S = 0.01

Wave = npt.NDArray[np.float64]
Curve = Sequence[tuple[float, float]]
"""A filter as points (frequency in Hz, gain in dB), joined by straight lines over log frequency."""


@dataclass(frozen=True, slots=True)
class DemoClip:
    """One synthetic clip: a name fit for a file, what it is (an ESC-50 category), and mono samples in [-1, 1]."""

    name: str
    label: str
    samples: npt.NDArray[np.float32]  # (n_samples,)
    sample_rate: int  # Hz


def check(sample_rate: int, seconds: float, seed: int) -> None:
    """Refuse what sounds cannot be made with.

    Raises:
        ConfigError: an argument is outside its range.
    """
    if not 8_000 <= sample_rate <= 96_000:
        raise ConfigError(f"sample_rate {sample_rate} Hz", wanted="8000 to 96000 Hz")
    if not 1.0 <= seconds <= 60.0:
        raise ConfigError(f"seconds {seconds}", wanted="1 to 60 s")
    if seed < 0:
        raise ConfigError(f"seed {seed}", wanted="0 or a positive integer")


def finished(wave: Wave, rate: int) -> npt.NDArray[np.float32]:
    """Return ``wave`` without DC, peak at `PEAK`, faded in and out over `FADE_S`."""
    wave = wave - wave.mean()
    ramp = 0.5 - 0.5 * np.cos(np.pi * np.arange(round(FADE_S * rate)) / round(FADE_S * rate))
    wave[: ramp.size] *= ramp
    wave[-ramp.size :] *= ramp[::-1]
    return np.asarray(wave * (PEAK / np.abs(wave).max()), dtype=np.float32)


@dataclass(slots=True)
class Scene:
    """A canvas of ``n`` samples, and the few tools that all sounds are made with."""

    rng: np.random.Generator
    rate: int
    n: int
    out: Wave = field(init=False)
    t: Wave = field(init=False)

    def __post_init__(self) -> None:
        self.out = np.zeros(self.n)
        self.t = np.arange(self.n) / self.rate

    @property
    def end_s(self) -> float:
        """Length of the scene."""
        return self.n / self.rate

    def times(self, every_s: float, *, jitter: float = 0.0, start_s: float = 0.0) -> Wave:
        """Return event times up to the end, ``every_s`` apart, each step off by up to ``jitter``."""
        steps = every_s * (1 + jitter * self.rng.uniform(-1, 1, int(2 * self.end_s / every_s) + 4))
        times: Wave = start_s + np.cumsum(steps) - steps[0]
        return times[: int(np.searchsorted(times, self.end_s))]

    def sway(self, hz: float, low: float, high: float) -> Wave:
        """Return a smooth random curve between ``low`` and ``high`` with about ``hz`` new values a second."""
        nodes = self.rng.uniform(low, high, int(self.end_s * hz) + 3)
        place = self.t * hz
        left = place.astype(np.intp)
        ease = 0.5 - 0.5 * np.cos(np.pi * (place - left))
        curve: Wave = nodes[left] * (1 - ease) + nodes[left + 1] * ease
        return curve

    def noise(self, curve: Curve, *, length_s: float | None = None, slow: int = 1) -> Wave:
        """Return noise shaped by ``curve`` with unit RMS; ``slow`` draws it at a lower rate (for rumble)."""
        n = self.n if length_s is None else max(8, round(length_s * self.rate))
        half = max(16, round(0.0029 * self.rate))  # the same width in Hz at every sample rate
        rough = self.rng.standard_normal(n // slow + 2 + 2 * half)
        rough = np.convolve(rough, _kernel(self.rate / slow, tuple(curve), half), mode="valid")
        wave = rough[:n] if slow == 1 else np.interp(np.arange(n) / slow, np.arange(rough.size), rough)
        return np.asarray(wave / (np.sqrt(np.mean(wave**2)) + 1e-12), dtype=np.float64)

    def ring(self, modes: Sequence[tuple[float, float, float]], *, length_s: float = 0.0) -> Wave:
        """Return struck ``modes``, each (Hz, gain, seconds to fall by 60 dB), as long as the longest."""
        t = np.arange(max(8, round((length_s or max(m[2] for m in modes)) * self.rate))) / self.rate
        wave = np.zeros(t.size)
        for hz, gain, fall_s in modes:
            if hz < 0.45 * self.rate:
                phase = 2 * np.pi * (hz * t + self.rng.random())
                wave += gain * np.exp(-6.9 * t / fall_s) * np.sin(phase)
        return wave * np.minimum(1, (t * self.rate + 1) / 4)

    def burst(self, curve: Curve, length_s: float, *, attack_s: float = 0.001) -> Wave:
        """Return a puff of shaped noise that rises over ``attack_s`` and falls by 60 dB over the rest."""
        wave = self.noise(curve, length_s=length_s)
        t = np.arange(wave.size) / self.rate
        return wave * np.minimum(t / attack_s, np.exp(-6.9 * np.maximum(0, t - attack_s) / length_s))

    def add(self, at_s: float, sound: Wave, gain: float = 1.0) -> None:
        """Mix ``sound`` in from ``at_s`` on; what runs over either edge is cut."""
        start = round(at_s * self.rate)
        first, last = max(0, start), min(self.n, start + sound.size)
        if first < last:
            self.out[first:last] += gain * sound[first - start : last - start]

    def voice(self, hz: Wave, gains: Sequence[float]) -> Wave:
        """Return a tone that follows ``hz`` sample by sample, with harmonic ``gains``, none above Nyquist."""
        phase = 2 * np.pi * np.cumsum(hz) / self.rate
        wave = np.zeros(hz.size)
        for k, gain in enumerate(gains, start=1):
            if gain:
                wave += gain * np.sin(k * phase) * (k * hz < 0.45 * self.rate)
        return wave

    def room(self, wet: float, fall_s: float, *, echoes: int = 40) -> None:
        """Add a reverberation of single reflections, as a room has them at first."""
        dry = self.out.copy()
        for at_s in self.rng.uniform(0.007, fall_s, echoes):
            self.add(at_s, dry, wet * np.exp(-6.9 * at_s / fall_s) * self.rng.choice([-1.0, 1.0]))

    def surroundings(self, level_db: float) -> None:
        """Add the place itself, low-heavy noise, ``level_db`` above the RMS of the sound."""
        level = np.sqrt(np.mean(self.out**2)) * 10 ** (level_db / 20) * self.sway(2, 0.7, 1.3)
        self.out += level * self.noise([(40, 0), (200, -6), (2000, -16), (9000, -24)], slow=2)


@lru_cache(maxsize=128)
def _kernel(rate: float, curve: tuple[tuple[float, float], ...], half: int) -> Wave:
    """Return a linear-phase FIR filter of ``2 * half + 1`` taps: a sum of cosines under a Hann window."""
    bands = half + 1
    hz = (np.arange(bands) + 0.5) * rate / (2 * bands)
    points_hz, points_db = np.array(curve).T
    gain = 10 ** (np.interp(np.log(hz), np.log(points_hz), points_db) / 20)
    m = np.arange(-half, half + 1)
    taps: Wave = np.hanning(m.size + 2)[1:-1] * (gain @ np.cos(2 * np.pi * np.outer(hz, m) / rate)) / bands
    taps.setflags(write=False)
    return taps
