"""A synthetic data set in ESC-50 layout: what tests, tutorials and CI train on where no recording is at hand.

The classes differ in *how a sound moves*, hardly in what it is made of: rising against falling chirps, decaying against
swelling strikes (each the other one played backwards), even against galloping pulses. Every source recording draws its
own pitch, material, room, level and noise floor, and its takes share them, as the takes of a real recording do. So the
mean spectrum tells little about the class and much about the source; tests/data/test_synth.py holds both to a figure.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from soundmark import storage
from soundmark.config import SynthConfig, to_dict
from soundmark.dataset import ESC50_COLUMNS, Dataset
from soundmark.errors import StorageError
from soundmark.sources import SYNTH_MARKER, open_dataset

SYNTH_VERSION = 1
"""Raised when the same config gives other samples."""

FOLDS = (1, 2, 3, 4, 5)
FIRST_SOURCE = 9_000_001  # beyond every number of ESC-50
TAKES = (2, 3, 1)  # clips of one source, in turn
FADE_S = 0.005

_Wave = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Row:
    """One clip to make."""

    fold: int
    source: int
    take: str
    target: int

    @property
    def stem(self) -> str:
        return f"{self.fold}-{self.source}-{self.take}-{self.target}"


def synthesise(out: Path, config: SynthConfig, *, on_clip: Callable[[int], None] | None = None) -> Dataset:
    """Write the set to ``out`` (meta/esc50.csv, audio/, synth.json) in one step, and return it.

    A finished set of the same config is returned as it is.

    Raises:
        StorageError: ``out`` holds something else; disk full, read-only.
    """
    made = json.dumps({"synth_version": SYNTH_VERSION, **to_dict(config)}, indent=1) + "\n"
    rows = list(plan(config))
    if _holds(out, made):
        if on_clip:
            on_clip(len(rows))
        return open_dataset(out)

    def fill(scratch: Path) -> None:
        for name in ("audio", "meta"):
            (scratch / name).mkdir()

        def make(row: _Row) -> None:
            target = scratch / "audio" / f"{row.stem}.wav"
            target.write_bytes(_wav(clip(row, config), config.sample_rate))

        with ThreadPoolExecutor() as pool:  # numpy lets go of the interpreter lock
            for _ in pool.map(make, rows):
                if on_clip:
                    on_clip(1)
        (scratch / "meta" / "esc50.csv").write_text(_table(rows), "utf-8")
        (scratch / SYNTH_MARKER).write_text(made, "utf-8")

    storage.write_folder(out, fill, overwrite=True)
    return open_dataset(out)


def plan(config: SynthConfig) -> Iterator[_Row]:
    """Yield the clips of the set: every class in every fold, every source in one fold."""
    source = FIRST_SOURCE
    for fold in FOLDS:
        for target in range(config.classes):
            left, turn = (config.clips + len(FOLDS) - fold) // len(FOLDS), target
            while left:
                takes = min(left, TAKES[turn % len(TAKES)])
                for take in "ABC"[:takes]:
                    yield _Row(fold, source, take, target)
                left, turn, source = left - takes, turn + 1, source + 1


def clip(row: _Row, config: SynthConfig) -> npt.NDArray[np.float32]:
    """Return the samples of one clip, (n_samples,) in [-1, 1]: a function of the row and the config alone."""
    source = _Source(np.random.default_rng([config.seed, row.source]), config.sample_rate)
    rng = np.random.default_rng([config.seed, row.source, ord(row.take)])
    scene = _Scene(rng, source, config.sample_rate, round(config.seconds * config.sample_rate))
    wave = scene.placed(_GENERATORS[row.target][1](scene))
    fade = np.minimum(1, np.arange(wave.size) / (FADE_S * config.sample_rate))
    return (wave * fade * fade[::-1]).astype(np.float32)


@dataclass(slots=True)
class _Source:
    """What the takes of one recording share: the thing that sounds, the room, the microphone."""

    rng: np.random.Generator
    rate: int
    pitch_hz: float = field(init=False)
    material: str = field(init=False)
    colour: _Wave = field(init=False)
    echoes: list[tuple[int, float]] = field(init=False)
    peak_db: float = field(init=False)
    floor_db: float = field(init=False)

    def __post_init__(self) -> None:
        rng = self.rng
        self.pitch_hz = float(np.exp(rng.uniform(np.log(300), np.log(2400))))
        self.material = str(rng.choice(["noise", "tone", "buzz"]))
        # A random FIR of 1 ms: smooth hills and valleys of some 10 dB, and a tilt.
        taps = max(16, round(0.001 * self.rate))
        self.colour = rng.standard_normal(taps) * np.exp(-4 * np.arange(taps) / taps)
        self.colour[0] = 2.0
        self.echoes = [
            (round(at_s * self.rate), float(rng.choice([-1, 1]) * 0.5 * np.exp(-30 * at_s)))
            for at_s in rng.uniform(0.004, 0.08, 10)
        ]
        self.peak_db = float(rng.uniform(-24, -1))
        self.floor_db = float(rng.uniform(-50, -26))


@dataclass(slots=True)
class _Scene:
    """A canvas of ``n`` samples for one take, and the tools that all generators share."""

    rng: np.random.Generator
    source: _Source
    rate: int
    n: int

    @property
    def seconds(self) -> float:
        return self.n / self.rate

    def tempo(self, low: float, high: float) -> float:
        """Return a rate in Hz that belongs to the source, off by a little in every take."""
        own = np.random.default_rng(round(self.source.pitch_hz * 1e6)).uniform(low, high)
        return float(own * self.rng.uniform(0.97, 1.03))

    def ramp(self, every_hz: float) -> _Wave:
        """Return a saw from 0 to 1, ``every_hz`` times a second, from a random phase on."""
        return np.asarray((np.arange(self.n) * (every_hz / self.rate) + self.rng.random()) % 1.0)

    def carrier(self, bend: _Wave | float = 1.0, *, material: str = "") -> _Wave:
        """Return the source's material at its pitch times ``bend``."""
        hz = np.broadcast_to(self.source.pitch_hz * self.rng.uniform(0.98, 1.02) * bend, self.n)
        phase = 2 * np.pi * (np.cumsum(hz) / self.rate + self.rng.random())
        material = material or self.source.material
        if material == "noise":  # a band around the pitch: slow noise on a tone
            nodes = self.rng.standard_normal((2, self.n // 64 + 2))
            at = np.arange(self.n) / 64
            slow = [np.interp(at, np.arange(row.size), row) for row in nodes]
            return np.asarray(slow[0] * np.sin(phase) + slow[1] * np.cos(phase))
        wave = np.zeros(self.n)
        for k in range(1, 7):
            gain = 1 / k if material == "tone" else (k % 2) / np.sqrt(k)
            if gain and k * hz.max() < 0.45 * self.rate:
                wave += gain * np.sin(k * phase)
        return wave

    def struck(self, times_s: _Wave, envelope: _Wave) -> _Wave:
        """Return ``envelope`` laid over the carrier at every time; what overlaps does not add up."""
        gate = np.zeros(self.n)
        for at_s in times_s:
            start = round(float(at_s) * self.rate)
            first, last = max(0, start), min(self.n, start + envelope.size)
            if first < last:
                part = gate[first:last]
                np.maximum(part, envelope[first - start : last - start], out=part)
        return gate * self.carrier()

    def beats(self, steps_s: list[float]) -> _Wave:
        """Return onset times that repeat ``steps_s`` over the whole clip, from a random phase on."""
        span = sum(steps_s)
        turns = int(self.seconds / span) + 3
        times: _Wave = np.concatenate([[0.0], np.cumsum(np.tile(steps_s, turns))])
        return times - span * (1 + self.rng.random()) + span / 2

    def bump(self, length_s: float, shape: str) -> _Wave:
        """Return an envelope of ``length_s``: ``decay``, ``swell`` (its mirror image) or an even ``pulse``."""
        x = np.arange(max(8, round(length_s * self.rate))) / max(8, round(length_s * self.rate))
        if shape == "pulse":
            return np.asarray(np.sin(np.pi * x) ** 0.5)
        decay = np.exp(-5 * x) * np.minimum(1, x / 0.02)
        return np.asarray(decay if shape == "decay" else decay[::-1])

    def placed(self, wave: _Wave) -> _Wave:
        """Return ``wave`` in the source's room, at its level, over its noise floor."""
        source, dry = self.source, wave / (np.abs(wave).max() + 1e-12)
        wet = dry.copy()
        for late, gain in source.echoes:
            wet[late:] += gain * dry[: self.n - late]
        wet += 10 ** (source.floor_db / 20) * self.rng.standard_normal(self.n)
        wet = np.convolve(wet, source.colour)[: self.n]
        peak = 10 ** ((source.peak_db + self.rng.uniform(-1, 0.9)) / 20)
        return np.asarray(wet * (peak / np.abs(wet).max()))


def _chirps(s: _Scene, up: bool) -> _Wave:
    x = s.ramp(s.tempo(2.6, 4.0))
    return s.carrier(2.0 ** (1.6 * ((x if up else 1 - x) - 0.5)))


def _bands(s: _Scene, up: bool) -> _Wave:
    x = s.ramp(s.tempo(1.4, 2.0))
    return s.carrier(3.0 ** ((x if up else 1 - x) - 0.5), material="noise")


def _strikes(s: _Scene, shape: str) -> _Wave:
    step_s = 1 / s.tempo(2.6, 4.0)
    return s.struck(s.beats([step_s]), s.bump(0.95 * step_s, shape))


def _pulses(s: _Scene, pattern: list[float]) -> _Wave:
    unit_s = 1 / s.tempo(5.0, 6.5)
    return s.struck(s.beats([unit_s * step for step in pattern]), s.bump(0.05, "pulse"))


def _irregular(s: _Scene) -> _Wave:
    count = max(4, round(s.tempo(5.0, 6.5) * s.seconds))
    return s.struck(np.sort(s.rng.uniform(0, s.seconds, count)), s.bump(0.05, "pulse"))


def _flutter(s: _Scene) -> _Wave:
    depth = 0.5 - 0.5 * np.cos(2 * np.pi * s.ramp(s.tempo(11, 15)))
    return (0.05 + 0.95 * depth**2) * s.carrier()


def _wobble(s: _Scene, low_hz: float, high_hz: float, octaves: float) -> _Wave:
    return s.carrier(2.0 ** (octaves * np.sin(2 * np.pi * s.ramp(s.tempo(low_hz, high_hz)))))


def _two_tones(s: _Scene) -> _Wave:
    return s.carrier(np.where(s.ramp(s.tempo(1.5, 2.2)) < 0.5, 2**-0.25, 2**0.25))


_QUICKER = [0.36, 0.28, 0.21, 0.16, 0.12, 0.09, 0.07, 0.05]  # of a run, a bouncing ball

_GENERATORS: tuple[tuple[str, Callable[[_Scene], _Wave]], ...] = (
    ("rising_chirps", lambda s: _chirps(s, True)),
    ("falling_chirps", lambda s: _chirps(s, False)),
    ("decaying_strikes", lambda s: _strikes(s, "decay")),
    ("swelling_strikes", lambda s: _strikes(s, "swell")),
    ("even_pulses", lambda s: _pulses(s, [1.0])),
    ("galloping_pulses", lambda s: _pulses(s, [0.5, 0.5, 2.0])),
    ("flutter", _flutter),
    ("vibrato", lambda s: _wobble(s, 5.5, 7.0, 0.12)),
    ("warble", lambda s: _wobble(s, 10, 12.5, 0.35)),
    ("two_tones", _two_tones),
    ("rising_bands", lambda s: _bands(s, True)),
    ("falling_bands", lambda s: _bands(s, False)),
    ("quickening_pulses", lambda s: _pulses(s, [4 * step for step in _QUICKER])),
    ("slowing_pulses", lambda s: _pulses(s, [4 * step for step in _QUICKER[::-1]])),
    ("irregular_pulses", _irregular),
    ("steady", lambda s: s.carrier()),
)


def _holds(out: Path, made: str) -> bool:
    """Return whether ``out`` is this very set; refuse a folder that holds anything else."""
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return False
        if (out / SYNTH_MARKER).is_file() and (out / SYNTH_MARKER).read_text("utf-8") == made:
            return True
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{out} cannot be read ({error})", wanted="a new or empty folder") from None
    raise StorageError(f"{out} holds something else", wanted="a new or empty folder for --out")


def _wav(samples: npt.NDArray[np.float32], rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _table(rows: list[_Row]) -> str:
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(ESC50_COLUMNS)
    for row in rows:
        name = _GENERATORS[row.target][0]
        table.writerow([f"{row.stem}.wav", row.fold, row.target, name, False, row.source, row.take])
    return text.getvalue()
