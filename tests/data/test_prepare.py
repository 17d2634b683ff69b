"""prepare: copies that are what was asked for, originals that stay as they were, and nothing done twice."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundmark import audio, cli
from soundmark.config import PrepareConfig
from soundmark.data.loudness import loudness, spectrum
from soundmark.data.prepare import prepare
from soundmark.data.prepared_clip import FULL_SCALE, gain_of, trimmed
from soundmark.dataset import Dataset
from soundmark.errors import DatasetError
from soundmark.sources import open_dataset
from synthetic import RATE, sound, write_esc50

FAST = PrepareConfig(sample_rate=RATE)


@pytest.fixture(scope="module")
def esc50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_esc50(tmp_path_factory.mktemp("esc50"), sources=1, takes=1, seconds=0.4)  # 25 clips
    (root / "LICENSE").write_text("CC BY-NC")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder per label: a tone between silences, silence, stereo at another rate, and no sound at all."""
    root = tmp_path / "data"
    tone = np.concatenate([np.zeros(1600), 0.25 * sine(440, 0.5), np.zeros(3200)])
    write(root / "dog" / "tone.wav", tone)
    write(root / "dog" / "silent.wav", np.full(RATE, 1, dtype=np.int16))
    stereo = np.stack([0.5 * sine(300, 1.0, 44_100), 0.1 * sine(300, 1.0, 44_100)], axis=1)
    write(root / "cat" / "stereo.flac", stereo, 44_100)
    write(root / "cat" / "other.ogg", 0.4 * sine(700, 0.6))
    (root / "cat" / "broken.wav").write_bytes(b"RIFF....WAVE and no more")
    return root


def sine(hz: float, seconds: float, rate: int = RATE) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def write(path: Path, samples: np.ndarray, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)


def tree(folder: Path) -> dict[str, tuple[int, str]]:
    """Return file -> time of its last change and hash of its bytes."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def contents(folder: Path) -> dict[str, str]:
    return {name: state[1] for name, state in tree(folder).items() if name not in (".lock", "prepare.jsonl")}


def who(dataset: Dataset) -> list[tuple[str, ...]]:
    return [(Path(c.name).stem, c.label, str(c.fold), c.source, c.time) for c in dataset.clips]


def call(*args: object) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main([str(arg) for arg in args])
    return int(left.value.code or 0)


def test_the_copy_is_the_same_data_set(esc50: Path, tmp_path: Path) -> None:
    data = open_dataset(esc50)
    before = tree(esc50)
    report = prepare(data, tmp_path / "out")
    assert tree(esc50) == before
    assert (report.written, report.kept, report.failures, report.silent) == (25, 0, (), ())
    copy = open_dataset(tmp_path / "out")
    assert who(copy) == who(data)
    assert (copy.labels, copy.name, copy.layout) == (data.labels, data.name, data.layout)
    assert (tmp_path / "out" / "LICENSE").read_text() == "CC BY-NC"
    for clip in copy.clips:
        with soundfile.SoundFile(clip.path) as file:
            assert (file.samplerate, file.channels, file.subtype, file.format) == (44_100, 1, "PCM_16", "WAV")
            assert (file.title, file.genre) == (Path(clip.name).stem, clip.label)
            assert np.abs(file.read()).max() == pytest.approx(FULL_SCALE, abs=1 / 32768)


def test_every_layout_comes_back(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        write(tmp_path / "t" / "audio" / f"{name}.wav", sound("tone", 1, 2, seconds=0.2))
    (tmp_path / "t" / "clips.csv").write_text(
        "filename,label,fold,source,time\n"
        "one.wav,dog,1,yard,2024-05-01\ntwo.wav,dog,2,street,2024-05-02\nthree.wav,cat,2,street,2024-05-03\n"
    )
    write(tmp_path / "f" / "dog" / "monday" / "1.wav", sound("tone", 1, 2, seconds=0.2))
    write(tmp_path / "f" / "cat" / "monday" / "1.wav", sound("hum", 1, 2, seconds=0.2))
    stem = "7-3-0-1"
    write(tmp_path / "u" / "audio" / "fold4" / f"{stem}.wav", sound("tone", 1, 2, seconds=0.2))
    (tmp_path / "u" / "metadata").mkdir()
    (tmp_path / "u" / "metadata" / "UrbanSound8K.csv").write_text(
        f"slice_file_name,fsID,fold,classID,class\n{stem}.wav,7,4,3,dog_bark\n"
    )
    for name in "tfu":
        data = open_dataset(tmp_path / name)
        prepare(data, tmp_path / f"{name}-copy", FAST)
        copy = open_dataset(tmp_path / f"{name}-copy")
        assert who(copy) == who(data)
        assert (copy.labels, copy.layout) == (data.labels, data.layout)


def test_before_and_after(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = prepare(open_dataset(folder), out, FAST)
    rows = {row.name: row for row in report.rows}
    tone = rows["dog/tone.wav"]
    assert (tone.before_s, tone.after_s) == (0.8, pytest.approx(0.5, abs=1e-3))
    assert tone.trimmed_start_s == pytest.approx(0.1, abs=1e-3)
    assert tone.trimmed_end_s == pytest.approx(0.2, abs=1e-3)
    assert tone.before_peak_db == pytest.approx(-12.04, abs=0.01)
    assert (tone.after_peak_db, tone.gain_db) == (pytest.approx(0, abs=0.01), pytest.approx(12.04, abs=0.01))
    assert tone.after_rms_db == pytest.approx(-3.01, abs=0.02)  # of a sine at full scale
    stereo = rows["cat/stereo.flac"]
    assert (stereo.rate_hz, stereo.channels, stereo.container) == (44_100, 2, "FLAC/PCM_16")
    assert stereo.before_peak_db == pytest.approx(20 * np.log10(0.3), abs=0.05)  # the mean of 0.5 and 0.1
    assert [(row.name, row.error) for row in report.failures] == [("cat/broken.wav", "corrupt_header")]
    assert not (out / "cat" / "broken.wav").exists()
    assert "cat/broken.wav" not in (out / "soundmark.csv").read_text()
    with (out / "prepare.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["file"] for line in table] == [row.file for row in report.rows]
    assert float(next(line for line in table if line["name"] == "dog/tone.wav")["after_s"]) == tone.after_s
    summary = json.loads((out / "prepare.json").read_text())
    assert summary["rows"] == [row.to_dict() for row in report.rows]


def test_a_silent_clip_is_kept_whole_and_flagged(folder: Path, tmp_path: Path) -> None:
    report = prepare(open_dataset(folder), tmp_path / "out", FAST)
    (row,) = report.silent
    assert (row.name, row.gain_db, row.trimmed_start_s, row.trimmed_end_s) == (
        "dog/silent.wav",
        0.0,
        0.0,
        0.0,
    )
    samples, _ = soundfile.read(tmp_path / "out" / "dog" / "silent.wav")
    np.testing.assert_array_equal(samples, np.full(RATE, 1 / 32768))
    assert "dog/silent.wav" in (tmp_path / "out" / "soundmark.csv").read_text()


def test_trimming_follows_its_threshold_and_never_empties() -> None:
    x = np.concatenate([np.full(100, 0.001), np.full(50, 1.0), np.full(100, 0.01)]).astype(np.float32)
    assert trimmed(x, trim_db=-20, keep=0) == (100, 150)
    assert trimmed(x, trim_db=-45, keep=0) == (100, 250)
    assert trimmed(x, trim_db=-80, keep=0) == (0, 250)
    for at in (0, 3, 120, 249):  # one click
        click = np.zeros(250, dtype=np.float32)
        click[at] = 1
        start, stop = trimmed(click, trim_db=-60, keep=40)
        assert stop - start == 40
        assert 0 <= start <= at < stop <= 250
        assert trimmed(click, trim_db=-60, keep=1000) == (0, 250)
    assert trimmed(np.zeros(9, dtype=np.float32), trim_db=-60, keep=4) == (0, 9)


def test_loudness_is_that_of_the_standard() -> None:
    for rate in (16_000, 44_100, 48_000):
        full = sine(997, 3.0, rate).astype(np.float32)
        assert loudness(spectrum(full, rate), rate) == pytest.approx(-3.01, abs=0.15)  # ITU-R BS.1770-4
        assert loudness(spectrum(0.1 * full, rate), rate) == pytest.approx(-23.01, abs=0.15)
    # the high-pass of the K-weighting (38.1 Hz, Q 0.5) leaves r^2 / (1 + r^2) of a tone at r times its frequency
    low, r = sine(30, 3.0, 48_000).astype(np.float32), 30 / 38.1
    theory = -3.01 - 0.69 + 20 * np.log10(r**2 / (1 + r**2))
    assert loudness(spectrum(low, 48_000), 48_000) == pytest.approx(theory, abs=1.0)  # bins are 23 Hz wide
    assert loudness(spectrum(np.zeros(48_000, dtype=np.float32), 48_000), 48_000) == -120


def test_gain() -> None:
    x = (0.2 * sine(997, 2.0)).astype(np.float32)
    assert gain_of(x, PrepareConfig(sample_rate=RATE, normalise="none")) == (1.0, False)
    assert gain_of(x, FAST)[0] == pytest.approx(FULL_SCALE / 0.2, rel=1e-4)
    loud = PrepareConfig(sample_rate=RATE, normalise="loudness", loudness_lufs=-23)
    gain, limited = gain_of(x, loud)
    assert not limited
    assert 20 * np.log10(0.2 * gain) == pytest.approx(-23 + 3.01, abs=0.2)
    spiky = x * np.float32(0.01)
    spiky[5] = 0.9
    gain, limited = gain_of(spiky, loud)
    assert limited
    assert gain == pytest.approx(FULL_SCALE / 0.9)
    assert gain_of(np.zeros(99, dtype=np.float32), FAST) == (1.0, False)


@pytest.mark.parametrize("form", ["wav", "flac"])
def test_a_second_run_does_nothing(
    esc50: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    config = PrepareConfig(sample_rate=RATE, format=form, normalise="loudness")  # type: ignore[arg-type]
    first = prepare(open_dataset(esc50), tmp_path, config)
    before = tree(tmp_path)
    assert len([name for name in before if name.endswith(f".{form}")]) == 25

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a clip was decoded")

    monkeypatch.setattr(audio, "load", never)
    again = prepare(open_dataset(esc50), tmp_path, config)
    assert (again.written, again.kept, again.rows) == (0, 25, first.rows)
    assert tree(tmp_path) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from soundmark.config import PrepareConfig
from soundmark.data.prepare import prepare
from soundmark.sources import open_dataset
done = 0
def on_clip(n):
    global done
    done += n
    if done == 10:
        os.kill(os.getpid(), signal.SIGKILL)
prepare(open_dataset(sys.argv[1]), Path(sys.argv[2]), PrepareConfig(sample_rate=16000), on_clip=on_clip)
"""


def test_after_kill_9_what_is_done_is_not_done_again(esc50: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED, esc50, out], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "soundmark.csv").exists()
    with (out / "prepare.jsonl").open("ab") as journal:
        journal.write(b'\n{"key": "torn')
    before = {name: state for name, state in tree(out).items() if name.endswith(".wav")}
    report = prepare(open_dataset(esc50), out, FAST)
    assert report.kept >= 10
    assert report.kept + report.written == 25
    kept = sum(tree(out)[name] == state for name, state in before.items())
    assert kept == report.kept
    prepare(open_dataset(esc50), tmp_path / "whole", FAST)
    assert contents(out) == contents(tmp_path / "whole")


def test_what_changed_is_written_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(open_dataset(folder), out, FAST)
    write(folder / "dog" / "tone.wav", 0.3 * sine(500, 0.4))
    (out / "cat" / "other.wav").write_bytes(b"damaged")
    (folder / "cat" / "stereo.flac").write_bytes(b"fLaC and no more")
    (folder / "dog" / "silent.wav").rename(folder / "dog" / "quiet.wav")
    report = prepare(open_dataset(folder), out, FAST)
    assert (report.written, report.kept, len(report.failures)) == (3, 0, 2)
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.wav"))
    assert names == ["cat/other.wav", "dog/quiet.wav", "dog/tone.wav"]  # nothing of what is gone
    assert [clip.name for clip in open_dataset(out).clips] == names
    assert soundfile.info(out / "dog" / "tone.wav").frames == pytest.approx(0.4 * RATE, abs=20)


def test_names_that_would_be_one(tmp_path: Path) -> None:
    write(tmp_path / "d" / "x" / "a.wav", 0.1 * sine(400, 0.2))
    write(tmp_path / "d" / "x" / "A.flac", 0.1 * sine(900, 0.2))
    write(tmp_path / "d" / "x" / "b.wav", 0.1 * sine(900, 0.2))
    prepare(open_dataset(tmp_path / "d"), tmp_path / "out", FAST)
    names = sorted(clip.name for clip in open_dataset(tmp_path / "out").clips)
    assert names == ["x/A.flac.wav", "x/a.wav.wav", "x/b.wav"]


def test_who_made_a_recording_travels_along(tmp_path: Path) -> None:
    path = tmp_path / "d" / "x" / "a.flac"
    path.parent.mkdir(parents=True)
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        file.artist, file.copyright, file.title = "Ada Ünal", "CC BY 4.0", "Gate"
        file.write(0.1 * sine(400, 0.2))
    for form in ("wav", "flac"):
        config = PrepareConfig(sample_rate=RATE, format=form)  # type: ignore[arg-type]
        prepare(open_dataset(tmp_path / "d"), tmp_path / form, config)
        with soundfile.SoundFile(tmp_path / form / "x" / f"a.{form}") as file:
            assert (file.artist, file.copyright, file.title) == ("Ada Ünal", "CC BY 4.0", "Gate")


def test_places_and_configs_that_are_refused(folder: Path, tmp_path: Path) -> None:
    data = open_dataset(folder)
    before = tree(folder)
    (tmp_path / "link").symlink_to(folder)
    for place in (folder, folder / "copy", folder.parent, tmp_path / "link" / "copy", folder / ".." / "data"):
        with pytest.raises(DatasetError, match="lies around"):
            prepare(data, place, FAST)
    assert tree(folder) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DatasetError, match="holds something else"):
        prepare(data, tmp_path / "mine", FAST)
    prepare(data, tmp_path / "out", FAST)
    with pytest.raises(DatasetError, match="another normalise, trim_db") as refused:
        prepare(data, tmp_path / "out", PrepareConfig(sample_rate=RATE, trim_db=-40, normalise="none"))
    assert refused.value.code == "other_features"


def test_links_in_the_copy_do_not_lead_to_the_originals(folder: Path, tmp_path: Path) -> None:
    data, before = open_dataset(folder), tree(folder)
    prepare(data, tmp_path / "out", FAST)
    for path in (tmp_path / "out" / "dog").iterdir():
        path.unlink()
    (tmp_path / "out" / "dog").rmdir()
    (tmp_path / "out" / "dog").symlink_to(folder / "dog")
    with pytest.raises(DatasetError, match="leads out of"):
        prepare(data, tmp_path / "out", FAST)
    assert tree(folder) == before


def test_the_verb(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    options = ("--sample-rate", 16_000, "--format", "flac", "--trim-db", -50)
    assert call("data", "prepare", folder, "--out", tmp_path / "out", *options) == 3
    out = capsys.readouterr().out
    text = [line for line in out.splitlines() if "prepare.csv" not in line and "failed" not in line]
    assert max(map(len, text)) <= 80
    assert "4 written, 0 kept, 1 failed" in out
    assert "1: dog/silent.wav" in out
    assert "corrupt_header" in out
    (folder / "cat" / "broken.wav").unlink()
    assert call("data", "prepare", folder, "--out", tmp_path / "out", *options, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["written"], report["kept"], report["silent"]) == (0, 4, ["dog/silent.wav"])
    assert call("data", "prepare", folder, "--out", tmp_path / "o2", "--trim-db", 3) == 2
    assert call("data", "prepare", folder, "--out", folder / "o2") == 2
    assert "originals stay untouched" in capsys.readouterr().err
    assert not (tmp_path / "o2").exists()


def test_a_formula_is_no_formula(tmp_path: Path) -> None:
    write(tmp_path / "d" / "=cmd()" / "a.wav", 0.1 * sine(400, 0.2))
    prepare(open_dataset(tmp_path / "d"), tmp_path / "out", FAST)
    assert "\n'=cmd()/a.wav,'=cmd()/a.wav," in (tmp_path / "out" / "prepare.csv").read_text()
    assert open_dataset(tmp_path / "out").labels == ("=cmd()",)


def test_an_unwritable_place_is_a_storage_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert call("data", "prepare", folder, "--out", tmp_path / "file" / "out") == 4
    assert os.listdir(tmp_path / "data") != []
