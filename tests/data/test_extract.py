"""extract: files that hold what the front end gives, survive kill -9, and are read without being loaded."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import tomllib
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundmark import audio, cli, dataset
from soundmark.config import FrontendConfig
from soundmark.data import extract as module
from soundmark.data.extract import COLUMNS, extract
from soundmark.dataset import Dataset, load_features
from soundmark.errors import ConfigError, DatasetError, StorageError
from soundmark.feature_files import read_clip
from soundmark.frontend import Frontend
from soundmark.sources import open_dataset
from synthetic import RATE, sound, write_esc50

SMALL = FrontendConfig(kind="mfcc", sample_rate=RATE, n_fft=512, hop_length=320, n_mels=32)
LIBROSA = FrontendConfig(
    kind="mfcc", sample_rate=RATE, n_fft=2048, hop_length=512, n_mels=128, mel_scale="slaney", mel_norm="slaney"
)  # fmt: skip
"""What `librosa.feature.mfcc(y=y, sr=sr, n_mfcc=13)` computes, but for its limit to 80 dB."""


@pytest.fixture(scope="module")
def esc50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_esc50(tmp_path_factory.mktemp("esc50"), sources=1, takes=1, seconds=0.5)  # 25 clips


@pytest.fixture(scope="module")
def clips(esc50: Path) -> Dataset:
    return open_dataset(esc50)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder per label whose clips have other lengths."""
    for label, name, seconds in (("a", "x", 0.3), ("a", "y", 0.5), ("b", "x", 0.8)):
        path = tmp_path / "data" / label / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sound("tone", 1, ord(name), seconds=seconds), RATE)
    return tmp_path / "data"


def index(out: Path) -> list[dict[str, str]]:
    with (out / "index.csv").open(newline="") as file:
        return list(csv.DictReader(file))


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


def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a clip was decoded")

    monkeypatch.setattr(audio, "load", never)


@pytest.mark.parametrize(
    ("kind", "ending", "rows"), [("mfcc", "mfcc", 13), ("logmel", "logmel", 32), ("spectrogram", "spec", 257)]
)
def test_files_hold_what_the_front_end_gives(
    clips: Dataset, tmp_path: Path, kind: str, ending: str, rows: int
) -> None:
    config = FrontendConfig(kind=kind, sample_rate=RATE, n_fft=512, hop_length=320, n_mels=32)  # type: ignore[arg-type]
    seen: list[int] = []
    report = extract(clips, tmp_path / "out", config, on_clip=seen.append)
    assert sum(seen) == report.computed == len(clips.clips) == 25
    front, out = Frontend(config), tmp_path / "out"
    x, y, groups, folds = load_features(out)
    assert isinstance(x, np.memmap)
    assert (x.shape, x.dtype) == ((25, rows, 26), np.float32)
    assert not x.flags.writeable
    for i, clip in enumerate(clips.clips):
        values = front(audio.load(clip.path, sample_rate=RATE).samples)
        stored = np.load(
            out / "clips" / f"{clip.name}_{ending}.npy"
        )  # what comes behind is no trouble to numpy
        np.testing.assert_array_equal(stored, values)
        np.testing.assert_array_equal(x[i], values)
    assert (out / f"all_{ending}.npy").is_file()
    assert y.tolist() == clips.targets == np.load(out / "labels.npy").tolist()
    assert groups.tolist() == [clip.source for clip in clips.clips]
    assert folds.tolist() == [clip.fold for clip in clips.clips]
    lines = index(out)
    assert tuple(lines[0]) == COLUMNS
    assert [line["name"] for line in lines] == [clip.name for clip in clips.clips]
    assert {line["n_frames"] for line in lines} == {"26"}
    about = tomllib.loads((out / "features.toml").read_text())
    assert about["fingerprint"] == front.fingerprint
    assert about["frontend"]["kind"] == kind
    assert about["labels"] == list(clips.labels)
    assert dataset.load_features is load_features


def test_mfccs_equal_those_of_librosa(tmp_path: Path) -> None:
    librosa = pytest.importorskip("librosa")
    data = open_dataset(write_esc50(tmp_path / "data", folds=2, sources=1, takes=2, seconds=1.0))
    assert len(data.clips) == 20
    extract(data, tmp_path / "out", LIBROSA)
    x = load_features(tmp_path / "out").X
    for row, clip in zip(x, data.clips, strict=True):
        y, sr = librosa.load(clip.path, sr=RATE)
        mel = librosa.feature.melspectrogram(y=y, sr=sr)
        theirs = librosa.feature.mfcc(S=librosa.power_to_db(mel, top_db=None), n_mfcc=13)
        # relative to the largest coefficient: single ones go through zero
        assert np.abs(row - theirs).max() < 1e-3 * np.abs(theirs).max()


def test_thirteen_coefficients_at_44_1_khz_are_the_default(
    esc50: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as left:
        cli.main(["features", "extract", str(esc50), "--out", str(out)])
    assert left.value.code == 0
    assert "mfcc at 44100 Hz, 25 computed, 0 kept" in capsys.readouterr().out
    assert load_features(out).X.shape == (25, 13, 51)  # 0.5 s, a frame every 10 ms, the first at 0


def test_a_second_run_does_nothing(clips: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(clips, tmp_path, SMALL)
    before = tree(tmp_path)
    undecoded(monkeypatch)
    report = extract(clips, tmp_path, SMALL)
    assert (report.computed, report.kept) == (0, 25)
    assert tree(tmp_path) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from soundmark.config import FrontendConfig
from soundmark.data.{verb} import {verb}
from soundmark.sources import open_dataset
done = 0
def on_clip(n):
    global done
    done += n
    if done == 10:
        os.kill(os.getpid(), signal.SIGKILL)
{verb}(open_dataset(sys.argv[1]), Path(sys.argv[2]), {config}, on_clip=on_clip)
"""


def test_after_kill_9_what_is_done_is_not_done_again(
    esc50: Path, clips: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = "FrontendConfig(kind='mfcc', sample_rate=16000, n_fft=512, hop_length=320, n_mels=32)"
    code = KILLED.format(verb="extract", config=config)
    killed = subprocess.run([sys.executable, "-c", code, esc50, tmp_path / "out"], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(DatasetError, match="no finished features"):
        load_features(tmp_path / "out")
    there = sorted((tmp_path / "out" / "clips").glob("[!.]*.npy"))
    assert 10 <= len(there) < 25
    (tmp_path / "out" / "clips" / ".x_mfcc.npy.abcdefgh").write_bytes(
        b"half"
    )  # as a kill in mid-write leaves it
    before = tree(tmp_path / "out" / "clips")
    loaded: list[Path] = []
    load = audio.load
    monkeypatch.setattr(
        audio, "load", lambda path, **options: (loaded.append(path), load(path, **options))[1]
    )
    report = extract(clips, tmp_path / "out", SMALL)
    assert (report.kept, report.computed) == (len(there), 25 - len(there))
    assert len(loaded) == report.computed
    after = tree(tmp_path / "out" / "clips")
    assert {name: after[name] for name in before if not name.startswith(".")} == {
        name: state for name, state in before.items() if not name.startswith(".")
    }
    assert not [name for name in after if name.startswith(".")]
    monkeypatch.undo()
    extract(clips, tmp_path / "whole", SMALL)
    contents = [
        {n: s[1] for n, s in tree(tmp_path / one).items() if n != ".lock"} for one in ("out", "whole")
    ]
    assert contents[0] == contents[1]


def test_what_is_stale_or_damaged_is_computed_again(tmp_path: Path) -> None:
    data = open_dataset(write_esc50(tmp_path / "data", folds=2, sources=1, takes=1, seconds=0.3))
    out = tmp_path / "out"
    extract(data, out, SMALL)
    before = load_features(out).X.copy()
    first, second, third, *_ = data.clips
    soundfile.write(first.path, sound("hum", 9, 9, seconds=0.3), RATE)
    path = out / "clips" / f"{second.name}_mfcc.npy"
    damaged = bytearray(path.read_bytes())
    damaged[200] ^= 1
    path.write_bytes(damaged)
    (out / "clips" / f"{third.name}_mfcc.npy").write_bytes(b"")  # what a power cut may leave
    assert extract(data, out, SMALL).computed == 3
    after = load_features(out).X
    assert [i for i in range(len(before)) if not np.array_equal(before[i], after[i])] == [0]


def test_other_values_for_the_same_recording_reach_the_array_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_dataset(write_esc50(tmp_path / "data", folds=1, sources=1, takes=1, seconds=0.3))
    extract(data, tmp_path / "out", SMALL)
    before = load_features(tmp_path / "out").X.copy()
    load = audio.load

    def louder(path: Path, **options: object) -> audio.Audio:
        heard = load(path, **options)  # type: ignore[arg-type]
        return replace(heard, samples=heard.samples * np.float32(0.5))

    monkeypatch.setattr(module, "_LIBRARIES", "another decoder")
    monkeypatch.setattr(audio, "load", louder)
    assert extract(data, tmp_path / "out", SMALL).computed == len(data.clips)
    assert not np.allclose(load_features(tmp_path / "out").X, before)


def test_shorter_clips_are_padded_with_what_silence_gives(folder: Path, tmp_path: Path) -> None:
    data, out = open_dataset(folder), tmp_path / "out"
    report = extract(data, out, SMALL)
    assert (report.shape, report.padded, report.cut) == ((3, 13, 41), 2, 0)
    x, silence = load_features(out).X, Frontend(SMALL)(np.zeros(4000, dtype=np.float32))[:, :1]
    for row, line in zip(x, index(out), strict=True):
        n_frames = int(line["n_frames"])
        assert n_frames == 1 + round(float(line["duration_s"]) * RATE) // 320
        np.testing.assert_array_equal(row[:, n_frames:], np.broadcast_to(silence, (13, 41 - n_frames)))
    assert report.padding == pytest.approx(1 - (16 + 26 + 41) / (3 * 41))
    again = extract(data, out, SMALL, seconds=0.5)  # another length of rows needs no decoding
    assert (again.shape, again.padded, again.cut, again.computed) == ((3, 13, 26), 1, 1, 0)
    np.testing.assert_array_equal(load_features(out).X, x[:, :, :26])
    assert read_clip(out / "clips" / "b" / "x_mfcc.npy")[0].shape == (13, 41)


def test_one_stray_length_in_a_hundred_is_cut() -> None:
    assert module._row_frames([431] * 99 + [9000]) == 431
    assert module._row_frames([431] * 98 + [9000]) == 9000
    assert module._row_frames([3]) == 3


def test_a_bad_clip_is_left_out_and_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a" / "y.wav").write_bytes(b"RIFF....WAVE and then nothing")
    with pytest.raises(SystemExit) as left:
        cli.main(["features", "extract", str(folder), "--out", str(tmp_path / "out"), "--json"])
    assert left.value.code == 3
    report = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in report["failures"]] == ["a/y.wav"]
    assert report["shape"][0] == 2
    assert [line["name"] for line in index(tmp_path / "out")] == ["a/x.wav", "b/x.wav"]
    assert "a/y.wav,corrupt_header" in (tmp_path / "out" / "failed.csv").read_text()
    soundfile.write(folder / "a" / "y.wav", sound("tone", 1, 1, seconds=0.5), RATE)
    with pytest.raises(SystemExit) as left:
        cli.main(["features", "extract", str(folder), "--out", str(tmp_path / "out")])
    assert left.value.code == 0
    assert not (tmp_path / "out" / "failed.csv").exists()
    assert len(load_features(tmp_path / "out").y) == 3


def test_nothing_readable_is_an_error(folder: Path, tmp_path: Path) -> None:
    for path in folder.rglob("*.wav"):
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match="none of the 3 clips"):
        extract(open_dataset(folder), tmp_path / "out", SMALL)


def test_places_and_configs_that_are_refused(clips: Dataset, esc50: Path, tmp_path: Path) -> None:
    extract(clips, tmp_path / "out", SMALL)
    other = FrontendConfig(kind="mfcc", sample_rate=RATE, n_fft=512, hop_length=320, n_mels=40)
    with pytest.raises(DatasetError, match="another config") as refused:
        extract(clips, tmp_path / "out", other)
    assert refused.value.code == "other_features"
    for place in (esc50, esc50 / "features", esc50.parent):
        with pytest.raises(DatasetError, match="lies around"):
            extract(clips, place, SMALL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DatasetError, match="holds something else"):
        extract(clips, tmp_path / "mine", SMALL)
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    with pytest.raises(ConfigError, match="kind wave"):
        extract(clips, tmp_path / "wave", FrontendConfig(kind="wave"))
    with (tmp_path / "out" / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="in use"):
            extract(clips, tmp_path / "out", SMALL)


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path: Path) -> None:
    data = open_dataset(write_esc50(tmp_path / "data", folds=5, sources=2, takes=1, seconds=2.0))
    config = FrontendConfig(kind="spectrogram", sample_rate=RATE, n_fft=1024, hop_length=64)
    tracemalloc.start()
    try:
        report = extract(data, tmp_path / "out", config)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size = (tmp_path / "out" / "all_spec.npy").stat().st_size
    assert size > 4 * int(np.prod(report.shape)) > 50e6
    assert peak < size / 2


@pytest.mark.parametrize("name", ["features.toml", "index.csv", "labels.npy", "all_mfcc.npy"])
def test_load_features_refuses_what_is_not_whole(clips: Dataset, tmp_path: Path, name: str) -> None:
    few = replace(clips, clips=clips.clips[:3])
    extract(few, tmp_path / "out", SMALL)
    path = tmp_path / "out" / name
    whole = path.read_bytes()
    for data in (b"", whole[: len(whole) // 2], b"\xff" * 100):
        path.write_bytes(data)
        with pytest.raises(DatasetError, match="extract"):
            load_features(tmp_path / "out")
    path.unlink()
    with pytest.raises(DatasetError, match="again"):
        load_features(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--n-mels", "many"], "n_mels"),
        (["--fmax", "99999"], "fmax"),
        (["--seconds", "0"], "seconds"),
        (["--kind", "wave"], "kind"),
        (["--n-mfcc", "200"], "n_mfcc"),
    ],
)
def test_a_mistake_is_one_line(
    esc50: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["features", "extract", str(esc50), "--out", str(tmp_path / "out"), *options])
    err = capsys.readouterr().err
    assert left.value.code == 2
    assert told in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_preset_is_a_start(esc50: Path, tmp_path: Path) -> None:
    args = ["--preset", "edge", "--kind", "logmel", "--n-mels", "20", "--mean", "0", "--std", "1"]
    with pytest.raises(SystemExit) as left:
        cli.main(["features", "extract", str(esc50), "--out", str(tmp_path), *args])
    assert left.value.code == 0
    from soundmark.preset import load_preset

    about = tomllib.loads((tmp_path / "features.toml").read_text())["frontend"]
    edge = load_preset("edge").frontend
    assert (about["n_mels"], about["hop_length"], about["fmin"]) == (20, edge.hop_length, edge.fmin)


@pytest.mark.data
def test_the_real_esc50(tmp_path: Path) -> None:
    root = os.environ.get(dataset.ESC50_VARIABLE)
    if not root:
        pytest.skip(f"{dataset.ESC50_VARIABLE} is not set")
    librosa = pytest.importorskip("librosa")
    data = open_dataset(root)
    few = replace(data, clips=data.clips[::100])
    config = FrontendConfig(
        kind="mfcc", n_fft=2048, hop_length=512, n_mels=128, mel_scale="slaney", mel_norm="slaney"
    )
    extract(few, tmp_path, config)
    x = load_features(tmp_path).X
    for row, clip, line in zip(x, few.clips, index(tmp_path), strict=True):
        y, sr = librosa.load(clip.path, sr=44_100)
        mel = librosa.feature.melspectrogram(y=y, sr=sr)
        theirs = librosa.feature.mfcc(S=librosa.power_to_db(mel, top_db=None), n_mfcc=13)
        ours = row[:, : int(line["n_frames"])]
        assert np.abs(ours - theirs[:, : ours.shape[1]]).max() < 1e-3 * np.abs(theirs).max()
