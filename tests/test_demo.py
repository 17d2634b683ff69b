"""The demo sounds: deterministic, well-formed at every rate, and physically what their labels say."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pytest

from soundmark.demo import demo_clips
from soundmark.errors import ConfigError
from soundmark.scene import FADE_S, PEAK, DemoClip

_NAMES = (
    "airplane breathing brushing_teeth can_opening car_horn cat chainsaw chirping_birds church_bells "
    "clapping clock_alarm clock_tick coughing cow crackling_fire crickets crow crying_baby dog "
    "door_wood_creaks door_wood_knock drinking_sipping engine fireworks footsteps frog "
    "glass_breaking hand_saw helicopter hen insects keyboard_typing laughing mouse_click pig "
    "pouring_water rain rooster sea_waves sheep siren sneezing snoring thunderstorm toilet_flush "
    "train vacuum_cleaner washing_machine water_drops wind "
)
ESC50 = frozenset(_NAMES.split())
RATE = 44_100


@pytest.fixture(scope="module")
def clips() -> dict[str, DemoClip]:
    return {clip.label: clip for clip in demo_clips()}


def spectrum(samples: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Frequencies in Hz and magnitudes of a whole clip."""
    hz = np.fft.rfftfreq(samples.size, 1 / RATE)  # noqa: TID251 - an oracle, not a front end
    return hz, np.abs(np.fft.rfft(samples.astype(np.float64)))  # noqa: TID251


def power(samples: npt.NDArray[np.float32], low_hz: float, high_hz: float) -> float:
    """Share of the energy between two frequencies."""
    hz, magnitude = spectrum(samples)
    return float((magnitude[(hz >= low_hz) & (hz < high_hz)] ** 2).sum() / (magnitude**2).sum())


def envelope_period_s(samples: npt.NDArray[np.float32], low_s: float, high_s: float) -> float:
    """Lag of the highest autocorrelation of the 200 Hz energy envelope."""
    hop = RATE // 200
    energy = np.square(samples[: samples.size // hop * hop].astype(np.float64)).reshape(-1, hop).mean(axis=1)
    energy = np.sqrt(energy) - np.sqrt(energy).mean()
    lags = np.arange(round(low_s * 200), round(high_s * 200) + 1)
    return float(lags[np.argmax([np.mean(energy[k:] * energy[:-k]) for k in lags])] / 200)


def test_fifty_names() -> None:
    assert len(ESC50) == 50


def test_labels_and_names(clips: dict[str, DemoClip]) -> None:
    listed = demo_clips(sample_rate=8_000, seconds=1.0)
    assert len(listed) >= 12
    assert {clip.label for clip in listed} <= ESC50
    assert len({clip.label for clip in listed}) == len({clip.name for clip in listed}) == len(listed)
    assert all(re.fullmatch(r"[a-z0-9_]+", clip.name) for clip in listed)


def test_same_seed_same_samples_other_seed_other_samples() -> None:
    first, again, other = (demo_clips(sample_rate=16_000, seconds=2.0, seed=seed) for seed in (3, 3, 4))
    for a, b, c in zip(first, again, other, strict=True):
        assert a.name == b.name == c.name
        np.testing.assert_array_equal(a.samples, b.samples)
        assert not np.array_equal(a.samples, c.samples)


@pytest.mark.parametrize(
    ("sample_rate", "seconds"), [(8_000, 1.0), (16_000, 5.0), (22_050, 2.5), (48_000, 1.37), (96_000, 1.0)]
)
def test_well_formed_at_every_rate(sample_rate: int, seconds: float) -> None:
    fade = round(FADE_S * sample_rate)
    for clip in demo_clips(sample_rate=sample_rate, seconds=seconds, seed=1):
        assert clip.samples.dtype == np.float32
        assert clip.samples.shape == (round(seconds * sample_rate),), clip.name
        assert np.isfinite(clip.samples).all(), clip.name
        assert np.abs(clip.samples).max() == pytest.approx(PEAK, abs=1e-6), clip.name
        assert np.abs(clip.samples[[0, -1]]).max() < 1e-3, clip.name
        assert np.abs(clip.samples[: fade // 8]).max() < 0.1, clip.name
        assert abs(float(clip.samples.mean())) < 1e-2, clip.name


def test_long_clips_stay_alive() -> None:
    for clip in demo_clips(sample_rate=8_000, seconds=20.0):
        loudness = np.square(clip.samples.reshape(4, -1)).mean(axis=1)
        assert loudness.min() > 0.02 * loudness.max(), clip.name


@pytest.mark.parametrize(
    ("label", "low_hz", "high_hz", "share"),
    [
        ("siren", 500, 3_000, 0.85),
        ("crickets", 3_000, 6_000, 0.95),
        ("chirping_birds", 2_000, 8_000, 0.95),
        ("clock_tick", 1_000, 10_000, 0.8),
        ("clock_alarm", 1_900, 11_000, 0.95),
        ("car_horn", 350, 6_000, 0.9),
        ("church_bells", 140, 3_000, 0.9),
        ("door_wood_knock", 40, 1_500, 0.85),
        ("helicopter", 20, 700, 0.85),
        ("wind", 20, 1_500, 0.9),
        ("thunderstorm", 20, 1_000, 0.8),
        ("engine", 40, 2_000, 0.85),
        ("rain", 1_000, 16_000, 0.85),
    ],
)
def test_energy_lies_where_theory_puts_it(
    clips: dict[str, DemoClip], label: str, low_hz: float, high_hz: float, share: float
) -> None:
    assert power(clips[label].samples, low_hz, high_hz) > share


def test_clock_ticks_four_times_a_second(clips: dict[str, DemoClip]) -> None:
    assert envelope_period_s(clips["clock_tick"].samples, 0.15, 0.4) == pytest.approx(0.25, abs=0.011)


def test_alarm_repeats_every_second(clips: dict[str, DemoClip]) -> None:
    assert envelope_period_s(clips["clock_alarm"].samples, 0.6, 1.4) == pytest.approx(1.0, abs=0.011)


def test_rotor_beats_about_twelve_times_a_second(clips: dict[str, DemoClip]) -> None:
    assert 1 / 13.5 <= envelope_period_s(clips["helicopter"].samples, 0.06, 0.12) <= 1 / 10.5


def test_rain_is_steady_and_knocks_are_not(clips: dict[str, DemoClip]) -> None:
    def crest(label: str) -> float:
        samples = clips[label].samples.astype(np.float64)
        return float(np.abs(samples).max() / np.sqrt(np.mean(samples**2)))

    assert crest("rain") < crest("door_wood_knock")


def test_bell_has_the_five_partials_of_a_cast_bell(clips: dict[str, DemoClip]) -> None:
    """Hum, prime, tierce (a minor third: no harmonic is), quint and nominal stand out for one prime."""
    hz, magnitude = spectrum(clips["church_bells"].samples)
    floor = np.median(magnitude[(hz > 150) & (hz < 900)])

    def weakest(prime_hz: float, ratios: tuple[float, ...]) -> float:
        return min(float(magnitude[np.abs(hz - r * prime_hz) < 1.0].max() / floor) for r in ratios)

    primes_hz = np.arange(345.0, 405.0, 0.5)
    bell = max(weakest(p, (0.5, 1.0, 1.19, 1.5, 2.0)) for p in primes_hz)
    major = max(weakest(p, (0.5, 1.0, 1.25, 1.5, 2.0)) for p in primes_hz)
    assert bell > 8
    assert bell > 2 * major


@pytest.mark.parametrize(
    "bad",
    [
        {"sample_rate": 4_000},
        {"sample_rate": 400_000},
        {"seconds": 0.5},
        {"seconds": float("nan")},
        {"seed": -1},
    ],
)
def test_arguments_out_of_range(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        demo_clips(**bad)
