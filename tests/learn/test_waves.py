"""waves: every change keeps its law, and the generator that is passed in is the only chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from soundmark.config import WaveConfig  # noqa: E402
from soundmark.learn.loudness import Loudness, a_weighting  # noqa: E402
from soundmark.learn.waves import WaveChange, active, apply, decide, noise, stretched  # noqa: E402

pytestmark = pytest.mark.train

RATE = 16_000
FULL = WaveConfig(
    clip_s=2.0, roll=1.0, speed=1.25, stretch=1.2, pitch=2.0, noise=0.5, gain_db=6.0, polarity=0.5
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tone(hz: float = 440.0, seconds: float = 2.0) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE).astype(np.float32)


def changed(samples: np.ndarray, *, window: int | None = None, **change: object) -> np.ndarray:
    return apply(
        samples,
        WaveChange(**change),  # type: ignore[arg-type]
        window_samples=len(samples) if window is None else window,
        sample_rate=RATE,
    )


def pitch_of(samples: np.ndarray) -> float:
    """Hz, from the zero crossings of the middle half."""
    middle = samples[len(samples) // 4 : 3 * len(samples) // 4]
    rising = np.flatnonzero((middle[:-1] < 0) & (middle[1:] >= 0))
    return (len(rising) - 1) * RATE / (rising[-1] - rising[0])


def test_nothing_is_drawn_into_a_preset_that_asks_for_nothing() -> None:
    assert not active(WaveConfig())
    assert active(WaveConfig(roll=0.1))
    assert decide(WaveConfig(), 5, seeded()) == [
        WaveChange(noise_seed=c.noise_seed) for c in decide(FULL, 5, seeded())
    ]
    x = tone()
    np.testing.assert_array_equal(changed(x), x)


def test_decisions_follow_from_the_generator_alone_and_stay_in_their_bounds() -> None:
    state = torch.get_rng_state()
    first, again, other = (decide(FULL, 2000, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again != other
    for name, low, high in (
        ("crop", 0, 1),
        ("roll", 0, 1),
        ("speed", 1 / 1.25, 1.25),
        ("stretch", 1 / 1.2, 1.2),
        ("pitch", -2, 2),
        ("gain_db", -6, 6),
    ):
        values = np.array([getattr(change, name) for change in first])
        assert low <= values.min() < low + 0.05 * (high - low), name
        assert high - 0.05 * (high - low) < values.max() <= high, name
    ratios = [change.snr_db for change in first if change.snr_db is not None]
    assert len(ratios) / 2000 == pytest.approx(0.5, abs=0.04)
    assert 10 <= min(ratios) < 11.5 < 38.5 < max(ratios) <= 40
    assert sum(change.flip for change in first) / 2000 == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("gain_db", [-6.0, 0.5, 6.0])
def test_gain_is_the_gain_asked_for(gain_db: float) -> None:
    ratio = np.sqrt(np.mean(changed(tone(), gain_db=gain_db) ** 2) / np.mean(tone() ** 2))
    assert 20 * np.log10(ratio) == pytest.approx(gain_db, abs=1e-4)


def test_polarity_turns_the_wave_over_and_does_nothing_else() -> None:
    np.testing.assert_array_equal(changed(tone(), flip=True), -tone())


def test_a_roll_is_circular(rng: np.random.Generator) -> None:
    x = rng.standard_normal(1000).astype(np.float32)
    np.testing.assert_array_equal(changed(x, roll=0.25), np.roll(x, 250))


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 10.0, 40.0])
@pytest.mark.parametrize("level", [1e-3, 1.0])
def test_the_signal_to_noise_ratio_is_the_one_asked_for(snr_db: float, level: float) -> None:
    x = level * tone()
    added = changed(x, snr_db=snr_db, noise_seed=5).astype(np.float64) - x
    assert 10 * np.log10(np.mean(x**2) / np.mean(added**2)) == pytest.approx(snr_db, abs=0.05)
    lags = [np.mean(added[k:] * added[:-k]) / np.mean(added**2) for k in (1, 2, 7)]
    assert np.abs(lags).max() < 0.03  # white: no sample knows another
    np.testing.assert_array_equal(noise(x, 10.0, 3), noise(x, 10.0, 3))


def test_silence_stays_silence() -> None:
    silent = np.zeros(RATE, np.float32)
    for change in decide(FULL, 20, seeded(3)):
        got = apply(silent, change, window_samples=RATE // 2, sample_rate=RATE)
        np.testing.assert_array_equal(got, np.zeros(RATE // 2))


def test_a_crop_is_a_piece_of_the_clip_anywhere_in_it(rng: np.random.Generator) -> None:
    ramp = np.arange(1000, dtype=np.float32)
    starts = [float(changed(ramp, window=300, crop=u)[0]) for u in (0.0, 0.5, 0.999999)]
    assert starts == [0, 350, 700]
    np.testing.assert_array_equal(changed(ramp, window=300, crop=0.5), ramp[350:650])
    np.testing.assert_array_equal(changed(ramp, window=1200, crop=0.5)[1000:], np.zeros(200))


@pytest.mark.parametrize("speed", [0.8, 1.25])
def test_tape_speed_changes_pitch_and_length_together(speed: float) -> None:
    got = changed(tone(), window=round(2 * RATE / speed), speed=speed)
    assert pitch_of(got) == pytest.approx(440 * speed, rel=2e-3)
    assert np.abs(got[-2000:]).max() > 0.9  # all of it is sound


@pytest.mark.parametrize("semitones", [-3.0, 0.7, 3.0])
def test_pitch_changes_by_the_semitones_asked_for_and_the_length_does_not(semitones: float) -> None:
    got = changed(tone(), pitch=semitones)
    assert pitch_of(got) == pytest.approx(440 * 2 ** (semitones / 12), rel=5e-3)
    assert len(got) == 2 * RATE
    assert np.sqrt(np.mean(got[-4000:-400] ** 2)) == pytest.approx(np.sqrt(0.5), rel=0.1)


@pytest.mark.parametrize("tempo", [0.8, 1.25])
def test_stretching_changes_the_tempo_and_not_the_pitch(tempo: float) -> None:
    got = stretched(tone(), tempo, RATE)
    assert len(got) == pytest.approx(2 * RATE / tempo, abs=1)
    assert pitch_of(got) == pytest.approx(440, rel=5e-3)
    clicks = np.zeros(4 * RATE, np.float32)
    for at in range(RATE // 2, 4 * RATE, RATE // 2):
        clicks[at : at + 200] = np.hanning(200)
    got = stretched(clicks, tempo, RATE)
    energy = np.add.reduceat(got**2, np.arange(0, len(got), 160))
    found = [
        i for i in range(1, len(energy) - 1) if energy[i] > 1 and energy[i] >= energy[i - 1 : i + 2].max()
    ]
    gaps = np.diff([a for a, b in zip(found, [-99, *found], strict=False) if a - b > 10]) / 100
    assert np.median(gaps) == pytest.approx(0.5 / tempo, abs=0.03)


def test_what_is_too_short_to_stretch_stays_as_it_is() -> None:
    x = tone(seconds=0.01)
    assert stretched(x, 1.2, RATE) is x


def test_inputs_are_not_changed_and_outputs_are_windows(rng: np.random.Generator) -> None:
    x = rng.standard_normal(2 * RATE).astype(np.float32)
    kept = x.copy()
    for change in decide(FULL, 10, seeded(9)):
        got = apply(x, change, window_samples=RATE, sample_rate=RATE)
        again = apply(x, change, window_samples=RATE, sample_rate=RATE)
        assert got.shape == (RATE,)
        assert got.dtype == np.float32
        assert np.isfinite(got).all()
        np.testing.assert_array_equal(got, again)
    np.testing.assert_array_equal(x, kept)


@pytest.mark.parametrize(
    ("hz", "db"),
    [(31.623, -39.4), (100, -19.1), (500, -3.2), (1000, 0.0), (2000, 1.2), (4000, 1.0), (8000, -1.1)],
)
def test_a_weighting_is_that_of_the_standard(hz: float, db: float) -> None:
    """Nominal values of IEC 61672-1, table 3."""
    assert 10 * np.log10(a_weighting(np.array([hz]))[0]) == pytest.approx(db, abs=0.11)


def test_loudness_is_of_the_loudest_moment_and_hears_as_the_ear_does() -> None:
    loudness = Loudness(RATE)
    assert loudness(np.zeros(RATE, np.float32)) == 0
    whole = loudness(tone(1000))
    assert loudness(0.5 * tone(1000)) == pytest.approx(whole / 4, rel=1e-3)
    part = tone(1000).copy()
    part[:RATE] = 0
    assert loudness(part) == pytest.approx(whole, rel=0.02)
    assert 10 * np.log10(loudness(tone(100)) / whole) == pytest.approx(-19.1, abs=0.7)


BEHIND = WaveConfig(background_share=0.5, background_snr_db=(3.0, 12.0))


def test_backgrounds_are_drawn_after_all_else_so_that_no_other_preset_changes() -> None:
    plain, generator = WaveConfig(roll=1.0, noise=0.5, gain_db=6.0), seeded(4)
    changes = decide(plain, 7, generator)
    after = seeded(4)
    draws = torch.rand((7, 9), generator=after, dtype=torch.float64)
    assert torch.equal(generator.get_state(), after.get_state())  # nine numbers per window and no more
    assert [change.roll for change in changes] == draws[:, 1].tolist()
    more = decide(WaveConfig(roll=1.0, noise=0.5, gain_db=6.0, background_share=1.0), 7, seeded(4))
    assert [replace(c, behind=None, behind_at=0.0, behind_db=0.0) for c in more] == changes


def test_backgrounds_stay_in_their_bounds() -> None:
    changes = decide(BEHIND, 2000, seeded(5))
    on = [change for change in changes if change.behind is not None]
    assert len(on) / 2000 == pytest.approx(0.5, abs=0.04)
    ratios, which = [c.behind_db for c in on], [c.behind for c in on]
    assert 3 <= min(ratios) < 3.2 < 11.8 < max(ratios) <= 12
    assert min(which) < 0.01
    assert max(which) > 0.99
    assert abs(np.corrcoef(ratios, which)[0, 1]) < 0.1


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 12.0])
@pytest.mark.parametrize("level", [1e-3, 1.0])
def test_a_background_is_as_far_below_as_asked_for(
    snr_db: float, level: float, rng: np.random.Generator
) -> None:
    x, other = level * tone(), rng.standard_normal(3 * RATE).astype(np.float32)
    change = WaveChange(behind=0.3, behind_at=0.5, behind_db=snr_db)
    got = apply(x, change, window_samples=len(x), sample_rate=RATE, behind=other)
    added = got.astype(np.float64) - x
    assert 10 * np.log10(np.mean(x**2) / np.mean(added**2)) == pytest.approx(snr_db, abs=0.05)
    start = int(0.5 * (RATE + 1))
    assert np.corrcoef(added, other[start : start + len(x)])[0, 1] > 0.999  # a piece of it, as it is


def test_silence_gets_no_background_and_is_none() -> None:
    silent, x = np.zeros(RATE, np.float32), tone(seconds=1.0)
    change = WaveChange(behind=0.0, behind_db=5.0)
    for quiet in (silent, silent + 1e-5):
        np.testing.assert_array_equal(
            apply(x, change, window_samples=RATE, sample_rate=RATE, behind=quiet), x
        )
    np.testing.assert_array_equal(
        apply(silent, change, window_samples=RATE, sample_rate=RATE, behind=x), silent
    )


def test_a_background_that_no_window_gets_is_refused() -> None:
    with pytest.raises(ValueError, match="background_share"):
        WaveConfig(background="street")
    with pytest.raises(ValueError, match="background_snr_db"):
        WaveConfig(background_share=0.5, background_snr_db=(9.0, 1.0))
