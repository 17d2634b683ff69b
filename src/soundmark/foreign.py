"""Sounds made in code that belong to no class of a data set of environmental sounds: speech-like, music-like, noise.

For measuring what a model says about them. Speech is a train of glottal pulses through the formants of vowels, in
syllables and phrases; music is chords of harmonic tones with onsets on a beat; noise is white, pink or brown and does
not change. They are likenesses: a model that rejects them may still take a real voice for a class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from soundmark.errors import ConfigError
from soundmark.scene import DemoClip, Scene, check, finished

FOREIGN_VERSION = 1
"""Raised when the same arguments give other samples."""

SOFTEST_DB = -24.0
"""Clips have a gain between this and 0 dB: no model may tell them by their level."""

_VOWELS_HZ = (
    (270, 2290, 3010),
    (390, 1990, 2550),
    (530, 1840, 2480),
    (660, 1720, 2410),
    (730, 1090, 2440),
    (570, 840, 2410),
    (440, 1020, 2240),
    (300, 870, 2240),
    (640, 1190, 2390),
    (490, 1350, 1690),
)
"""Formants 1 to 3 of ten vowels of men (Peterson & Barney 1952, "Control Methods Used in a Study of the Vowels")."""
_FORMANT_GAIN_FALL = ((1.0, 0.028), (0.45, 0.022), (0.2, 0.016), (0.08, 0.011))
"""Gain of each formant, and seconds in which it rings off by 60 dB: 2.2 / bandwidth."""
_SYLLABLES_S = (0.13, 0.3)
"""About 3 to 8 syllables a second, as in running speech."""
_MAJOR, _MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)

_Wave = npt.NDArray[np.float64]


def foreign_clips(
    *, each: int = 50, sample_rate: int = 44_100, seconds: float = 5.0, seed: int = 0
) -> Iterator[DemoClip]:
    """Yield ``each`` clips of every kind, ``label`` the kind; the same arguments give the same samples.

    Args:
        each: clips of each kind; a kind's first clips are the same whatever it is.
        sample_rate: 8000 to 96 000 Hz.
        seconds: length of each clip, 1 to 60 s.
        seed: another seed, other voices, other pieces, other noise.

    Raises:
        ConfigError: an argument is outside its range.
    """
    if each < 1:
        raise ConfigError(f"each {each}", wanted="1 or more clips of each kind")
    check(sample_rate, seconds, seed)
    for kind, play in _KINDS.items():
        for index in range(each):
            rng = np.random.default_rng([seed, index, *kind.encode()])
            scene = Scene(rng, sample_rate, round(seconds * sample_rate))
            play(scene, index)
            gain = np.float32(10 ** (rng.uniform(SOFTEST_DB, 0) / 20))
            yield DemoClip(f"{kind}_{index:03d}", kind, gain * finished(scene.out, sample_rate), sample_rate)


def _speech(s: Scene, _index: int) -> None:
    pitch_hz = s.rng.uniform(90, 260)
    tract = (
        0.85 + 0.4 * (pitch_hz - 90) / 170 + s.rng.uniform(-0.05, 0.05)
    )  # high voices come from short tracts
    at_s = s.rng.uniform(0, 0.3)
    while at_s < s.end_s:
        syllables = int(s.rng.integers(3, 9))
        for place in range(syllables):  # a phrase: its pitch falls to the end
            length_s = s.rng.uniform(*_SYLLABLES_S) * (1.4 if place == syllables - 1 else 1)
            _syllable(s, at_s, length_s, pitch_hz * (1.15 - 0.3 * place / syllables), tract)
            at_s += length_s
        at_s += s.rng.uniform(0.2, 0.6)
    s.room(0.15, 0.3)
    s.out += 0.003 * s.noise([(100, 0), (2000, -12)])


def _syllable(s: Scene, at_s: float, length_s: float, pitch_hz: float, tract: float) -> None:
    """Add a consonant or none, and a vowel that glides into another one."""
    kind = s.rng.integers(4)
    late_s = 0.0
    if kind == 0:  # a fricative: noise of the teeth
        late_s, low_hz = 0.3 * length_s, s.rng.uniform(2500, 5000)
        hiss = s.noise([(low_hz / 3, -40), (low_hz, 0), (2 * low_hz, -3), (16000, -20)], length_s=late_s)
        s.add(at_s, hiss * np.hanning(hiss.size), s.rng.uniform(0.05, 0.15))
    elif kind == 1:  # a plosive: silence, then a click
        late_s = 0.25 * length_s
        click = s.burst([(300, -12), (1500, 0), (4000, -6), (12000, -20)], 0.015)
        s.add(at_s + late_s - 0.01, click, s.rng.uniform(0.1, 0.3))
    first, last = (np.array(_VOWELS_HZ[k]) * tract for k in s.rng.integers(len(_VOWELS_HZ), size=2))
    grains = []
    for mix in (0.0, 0.5, 1.0):
        formants = [*(first + mix * (last - first)), 3500 * tract]
        modes = [(float(hz), g, fall_s) for hz, (g, fall_s) in zip(formants, _FORMANT_GAIN_FALL, strict=True)]
        grains.append(s.ring(modes, length_s=0.03))
    stress, now_s, end_s = s.rng.uniform(0.4, 1.0), late_s, length_s
    while now_s < end_s:
        x = (now_s - late_s) / (end_s - late_s)
        loud = stress * np.sin(np.pi * min(1, 0.1 + 0.9 * x)) ** 0.5
        s.add(at_s + now_s, grains[min(2, int(3 * x))], loud * s.rng.uniform(0.95, 1.05))
        now_s += s.rng.uniform(0.985, 1.015) / (pitch_hz * (1.05 - 0.1 * x))


def _music(s: Scene, _index: int) -> None:
    beat_s = 60 / s.rng.uniform(70, 150)
    scale = _MAJOR if s.rng.random() < 0.6 else _MINOR
    root_hz = 55 * 2 ** (s.rng.integers(12) / 12)
    plucked, bright = s.rng.random() < 0.5, s.rng.uniform(0.8, 1.8)
    drums = s.rng.random() < 0.5

    def hz(degree: int) -> float:
        return float(root_hz * 2 ** (degree // 7 + scale[degree % 7] / 12))

    chord = 0
    for beat, at_s in enumerate(s.times(beat_s, start_s=s.rng.uniform(0, beat_s))):
        if beat % 4 == 0:
            chord = int(s.rng.choice([0, 3, 4, 5])) if beat else 0
        if beat % 2 == 0:  # a triad of the scale, and its bass
            for degree in (chord + 14, chord + 16, chord + 18):
                s.add(at_s, _tone(s, hz(degree), 2 * beat_s, plucked, bright), 0.3)
            s.add(at_s, _tone(s, hz(chord), 1.5 * beat_s, True, bright), 0.6)
        for half in range(2):  # the tune
            if s.rng.random() < 0.7:
                note = chord + 21 + int(s.rng.choice([0, 1, 2, 4, 5, 7]))
                s.add(at_s + half * beat_s / 2, _tone(s, hz(note), beat_s, plucked, bright), 0.35)
        if drums:
            hit = s.burst([(4000, -20), (8000, 0), (14000, -6)], 0.05)
            s.add(at_s + beat_s / 2, hit, 0.15)
            s.add(at_s, s.ring([(55, 1.0, 0.25), (110, 0.4, 0.12)]), 0.6)
    s.room(0.2, 0.8)


def _tone(s: Scene, hz: float, length_s: float, plucked: bool, bright: float) -> _Wave:
    """Return a note of eight harmonics that rings off (plucked), or that is held and let go."""
    gains = [k**-bright for k in range(1, 9)]
    if plucked:
        return s.ring(
            [(k * hz, g, 1.8 * length_s / k**0.5) for k, g in enumerate(gains, 1)], length_s=length_s
        )
    t = np.arange(round(length_s * s.rate)) / s.rate
    swell = np.minimum(1, t / 0.03) * np.minimum(1, t[::-1] / 0.08)
    vibrato = 1 + 0.004 * np.sin(2 * np.pi * 5.5 * t)
    return swell * s.voice(hz * vibrato, gains)


def _noise(s: Scene, index: int) -> None:
    s.out += (_white, _pink, _brown)[index % 3](s.rng, s.n)


def _white(rng: np.random.Generator, n: int) -> _Wave:
    return rng.standard_normal(n)


def _pink(rng: np.random.Generator, n: int) -> _Wave:
    """Return noise that falls by 3 dB an octave: one random value per octave, held (Voss; Gardner 1978)."""
    wave = rng.standard_normal(n)
    for octave in range(1, 17):
        held = np.repeat(rng.standard_normal(n // 2**octave + 2), 2**octave)
        start = int(rng.integers(2**octave))
        wave += held[start : start + n]
    return wave


def _brown(rng: np.random.Generator, n: int) -> _Wave:
    """Return noise that falls by 6 dB an octave: a random walk less its running mean, which holds what nobody hears."""
    half = 1024
    walk = np.cumsum(rng.standard_normal(n + 2 * half + 1))
    total = np.concatenate([[0.0], np.cumsum(walk)])
    mean = (total[2 * half + 1 :] - total[: -2 * half - 1]) / (2 * half + 1)
    return walk[half : half + n] - mean[:n]  # type: ignore[no-any-return]


_KINDS: dict[str, Callable[[Scene, int], None]] = {"speech": _speech, "music": _music, "noise": _noise}
FOREIGN_KINDS = tuple(_KINDS)
"""Labels of `foreign_clips`, in their order."""
