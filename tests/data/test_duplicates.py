"""data duplicates: copies are found through gain, shift, rate and inversion; relatives are not copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from soundmark.data import duplicates
from soundmark.data.duplicates import exact_copies, findings_of, near_copies
from soundmark.data.measure import measure
from soundmark.dataset import Clip
from synthetic import RATE, sound


def rhythm(seed: int, seconds: float = 3.0) -> np.ndarray:
    """Return bursts of noise at times of their own: something to tell a copy by."""
    rng = np.random.default_rng(seed)
    x = 0.003 * rng.standard_normal(round(seconds * RATE))
    for start in rng.integers(0, x.size - 4000, 8):
        x[start : start + 4000] += 0.3 * rng.standard_normal(4000) * np.exp(-np.arange(4000) / 800)
    return x.astype(np.float32)


def clips(folder: Path, *recordings: np.ndarray | tuple[np.ndarray, int]) -> list[Clip]:
    made = []
    for i, one in enumerate(recordings):
        samples, rate = one if isinstance(one, tuple) else (one, RATE)
        path = folder / f"{i}.wav"
        soundfile.write(path, samples, rate, subtype="PCM_16")
        made.append(Clip(f"{i}", path, "label", 1 + i % 2, f"s{i}"))
    return made


def pairs(found: list[Clip]) -> list[tuple[int, ...]]:
    near, capped = near_copies(found, [measure(clip.path) for clip in found])
    assert capped == 0
    return sorted(tuple(sorted(one.clips)) for one in near)


@pytest.mark.parametrize(
    "copy",
    [
        pytest.param(lambda x: 0.2 * x, id="quieter"),
        pytest.param(lambda x: -x, id="inverted"),
        pytest.param(lambda x: np.concatenate([np.zeros(5000, np.float32), x[:-5000]]), id="shifted"),
        pytest.param(lambda x: x[4000:], id="cut"),
        pytest.param(lambda x: x + 0.003 * np.random.default_rng(9).standard_normal(x.size), id="noisier"),
        pytest.param(lambda x: (soxr.resample(x, RATE, 22_050), 22_050), id="resampled"),
    ],
)
def test_copies_are_found(tmp_path: Path, copy: object) -> None:
    x = rhythm(0)
    found = clips(tmp_path, x, rhythm(1), copy(x), rhythm(2))  # type: ignore[operator]
    assert pairs(found) == [(0, 2)]


def test_the_shift_is_said(tmp_path: Path) -> None:
    x = rhythm(0)
    found = clips(tmp_path, x, np.concatenate([np.zeros(4800, np.float32), x]))
    ((one,), _) = near_copies(found, [measure(clip.path) for clip in found])
    assert one.lag_s == pytest.approx(0.3, abs=1e-3)
    assert one.match > 0.99


def test_relatives_are_no_copies(tmp_path: Path) -> None:
    """Sounds of one kind: equal in spectrum, or in rhythm, but not the same recording."""
    alike = [
        sound(label, 7 + take, take) for label in ("noise_band", "tone", "clicks", "hum") for take in (1, 2)
    ]
    assert pairs(clips(tmp_path, *alike)) == []


def test_takes_that_belong_together_are_no_pair(tmp_path: Path) -> None:
    x = rhythm(0)
    one, other = clips(tmp_path, x, 0.5 * x)
    together = [Clip(c.name, c.path, "label", 1, "source") for c in (one, other)]
    assert pairs(together) == []
    assert pairs([together[0], Clip("1", other.path, "label", 2, "source")]) == [(0, 1)]


def test_exact_copies_are_by_sound_and_silence_is_none(tmp_path: Path) -> None:
    x = np.int16(32768 * rhythm(0))
    found = clips(tmp_path, x, x, rhythm(1), np.zeros(RATE), np.zeros(RATE), x)
    soundfile.write(tmp_path / "5.flac", x, RATE, subtype="PCM_16")
    found[5] = Clip("5", tmp_path / "5.flac", "other", 1, "s5")
    measures = [measure(clip.path) for clip in found]
    (group,) = exact_copies(measures)
    assert group.clips == (0, 1, 5)
    assert near_copies(found, measures)[0] == []
    said = {finding.code: finding for finding in findings_of([group], found)}
    assert said.keys() == {"duplicate_across_folds", "duplicate_labels"}
    assert said["duplicate_across_folds"].severity == "error"
    assert said["duplicate_labels"].others == ("1", "5")


def test_a_file_that_vanished_or_failed_is_left_out(tmp_path: Path) -> None:
    x = rhythm(0)
    found = clips(tmp_path, x, 0.5 * x)
    measures = [measure(clip.path) for clip in found]
    assert near_copies(found, [measures[0], None])[0] == []
    found[1].path.unlink()
    assert near_copies(found, measures)[0] == []


def test_what_is_not_followed_up_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAX_CANDIDATES", 1)
    x = rhythm(0)
    found = clips(tmp_path, x, 0.5 * x, 0.3 * x)
    near, capped = near_copies(found, [measure(clip.path) for clip in found])
    assert (len(near), capped) == (1, 2)


def test_the_correlation_in_pieces_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(10_000), rng.standard_normal(10_700)
    np.testing.assert_allclose(duplicates._correlation(y, x), np.correlate(y, x, "valid"), atol=1e-9)
