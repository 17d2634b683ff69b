"""data measure: every figure against what the signal was made to have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from soundmark.data import measure as module
from soundmark.data.loudness import FLOOR_DB, loudness, spectrum
from soundmark.data.measure import (
    bandwidth,
    clipped_share,
    measure,
    noise,
    silent_runs,
)
from soundmark.errors import AudioError

RATE = 16_000


def written(path: Path, samples: np.ndarray, rate: int = RATE, subtype: str = "PCM_16") -> module.Measures:
    soundfile.write(path, samples, rate, subtype=subtype)
    return measure(path)


def tone(hz: float, seconds: float = 1.0, rate: int = RATE, peak: float = 1.0) -> np.ndarray:
    return (peak * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noisy(n: int, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


def test_silence_is_found_to_the_sample(tmp_path: Path) -> None:
    x = noisy(2 * RATE)
    x[:3200] = x[8000:9600] = x[12_000:12_100] = x[-6400:] = 0  # the third is shorter than 10 ms
    one = written(tmp_path / "a.wav", x)
    step = 1 / RATE  # a sample beside a run may be 0 in 16 bits by chance
    assert one.leading_silence_s == pytest.approx(0.2, abs=3 * step)
    assert one.inner_silence_s == pytest.approx(0.1, abs=3 * step)
    assert one.trailing_silence_s == pytest.approx(0.4, abs=3 * step)
    assert one.longest_silence_s == one.trailing_silence_s
    assert one.silent_share == pytest.approx(0.35, abs=1e-3)
    assert (one.duration_s, one.sample_rate, one.channels, one.container) == (2.0, RATE, 1, "WAV/PCM_16")


def test_all_zeros_are_leading_silence_alone(tmp_path: Path) -> None:
    one = written(tmp_path / "a.wav", np.zeros(RATE))
    assert (one.leading_silence_s, one.trailing_silence_s, one.inner_silence_s, one.silent_share) == (
        1.0,
        0,
        0,
        1.0,
    )
    assert (one.peak_dbfs, one.rms_dbfs, one.loudness_lufs, one.noise_floor_dbfs) == (FLOOR_DB,) * 4
    assert (one.bandwidth_hz, one.snr_db, one.clipped_share) == (0, 0, 0)
    assert "silent" in one.flags
    assert one.fingerprint.shape == (0, module.FINGERPRINT_BANDS)


def test_a_waveform_that_crosses_zero_is_no_silence() -> None:
    assert not len(silent_runs(tone(50, peak=0.01), RATE))
    assert not len(silent_runs(noisy(RATE, 1e-3), RATE))


def test_levels_of_a_sine(tmp_path: Path) -> None:
    one = written(tmp_path / "a.wav", tone(997, 3, 48_000, 0.5) + np.float32(0.1), 48_000, "FLOAT")
    assert one.peak_dbfs == pytest.approx(20 * np.log10(0.6), abs=0.01)
    assert one.rms_dbfs == pytest.approx(10 * np.log10(0.125 + 0.01), abs=0.01)
    assert one.dc == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000, 96_000])
def test_loudness_of_the_standard_tone(rate: int) -> None:
    """ITU-R BS.1770-4: a full-scale sine of 997 Hz is at -3.01 LUFS."""
    assert loudness(spectrum(tone(997, 3, rate), rate), rate) == pytest.approx(-3.01, abs=0.05)


def test_the_gate_leaves_pauses_out_of_loudness() -> None:
    sound = tone(997, 4, 48_000, 0.1)
    paused = np.concatenate([sound, np.zeros_like(sound)])
    assert loudness(spectrum(paused, 48_000), 48_000) == pytest.approx(-23.01, abs=0.3)


def test_the_spectrum_sums_to_the_mean_square() -> None:
    x = noisy(10 * RATE)
    assert spectrum(x, RATE).sum(axis=0).mean() == pytest.approx(np.mean(np.square(x)), rel=0.02)


@pytest.mark.parametrize("low_rate", [8000, 22_050, 32_000])
def test_bandwidth_of_what_was_recorded_at_a_lower_rate(low_rate: int) -> None:
    x = soxr.resample(noisy(5 * low_rate), low_rate, 44_100).astype(np.float32)
    x = np.rint(x * 32768) / np.float32(32768)
    found = bandwidth(spectrum(x.astype(np.float32), 44_100), 44_100)
    assert 0.9 * low_rate / 2 < found < 1.1 * low_rate / 2


def test_bandwidth_reaches_the_top_for_white_noise_and_ignores_rounding() -> None:
    assert bandwidth(spectrum(noisy(RATE), RATE), RATE) > 7900
    quiet = np.rint(noisy(RATE, 1e-3) * 128) / np.float32(128)  # nothing is left in 8 bits
    assert bandwidth(spectrum(quiet.astype(np.float32), RATE), RATE, bits=8) == 0


def test_noise_floor_and_snr() -> None:
    x = noisy(4 * RATE, 1e-3)
    x[RATE : 2 * RATE] += tone(500, peak=0.5)
    floor, snr = noise(x, RATE, silent_runs(x, RATE))
    assert floor == pytest.approx(-60, abs=0.5)
    assert snr == pytest.approx(60 - 9.03, abs=0.5)
    padded = np.concatenate([x, np.zeros(8 * RATE, np.float32)])
    assert noise(padded, RATE, silent_runs(padded, RATE)) == pytest.approx((floor, snr), abs=0.2)


def test_clipping() -> None:
    assert clipped_share(tone(100, peak=0.9)) < 0.02  # a slow sine dwells on its peak
    assert clipped_share(noisy(RATE)) == 0
    half = np.clip(tone(100) * 10, -0.5, 0.5)
    assert clipped_share(half) > 0.9
    assert clipped_share(np.zeros(RATE, np.float32)) == 0


def test_the_audio_hash_is_of_the_sound_and_the_file_hash_of_the_bytes(tmp_path: Path) -> None:
    x = np.int16(32768 * noisy(RATE))
    wav, flac = written(tmp_path / "a.wav", x), written(tmp_path / "a.flac", x)
    other = written(tmp_path / "b.wav", noisy(RATE, seed=1))
    assert wav.audio_hash == flac.audio_hash != other.audio_hash
    assert len({wav.file_hash, flac.file_hash, other.file_hash}) == 3
    slower = written(tmp_path / "c.wav", x, RATE // 2)
    assert slower.audio_hash != wav.audio_hash


def test_short_and_damaged_recordings(tmp_path: Path) -> None:
    one = written(tmp_path / "a.wav", noisy(200))  # shorter than any frame
    assert one.duration_s == 200 / RATE
    assert all(np.isfinite(v) for v in one.to_dict().values() if isinstance(v, float))
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    with pytest.raises(AudioError):
        measure(tmp_path / "b.wav")
    with pytest.raises(AudioError, match=r"nothing\.wav") as caught:
        measure(tmp_path / "nothing.wav")
    assert caught.value.code == "not_found"


def test_the_plain_form_has_every_measure_but_the_fingerprint(tmp_path: Path) -> None:
    plain = written(tmp_path / "a.wav", noisy(RATE)).to_dict()
    assert set(plain) == set(module.Measures.__slots__) - {"fingerprint"}
