"""features: the cache gives what the front end gives, feels every change, and heals."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from msgspec.structs import replace  # noqa: E402

import synthetic  # noqa: E402
from soundmark import audio  # noqa: E402
from soundmark.config import WindowConfig  # noqa: E402
from soundmark.dataset import Dataset, load_esc50  # noqa: E402
from soundmark.errors import AudioError, StorageError  # noqa: E402
from soundmark.frontend import Frontend  # noqa: E402
from soundmark.learn import features  # noqa: E402
from soundmark.learn.features import extract  # noqa: E402
from soundmark.storage import cache_dir  # noqa: E402

pytestmark = pytest.mark.train

PRESET = synthetic.tiny_preset()
FRONTEND, WINDOW = PRESET.frontend, PRESET.window


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _cache: None) -> Path:
    """Return an empty cache folder of this test alone."""
    monkeypatch.setenv("SOUNDMARK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def some(dataset: Dataset) -> Dataset:
    """Return a few clips."""
    return dataset.in_folds([1]).with_labels(["tone", "clicks"])


def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a clip was decoded")

    monkeypatch.setattr(audio, "load", never)


def test_the_cache_holds_what_the_front_end_gives(cache: Path, some: Dataset) -> None:
    seen: list[int] = []
    store = extract(some, FRONTEND, WINDOW, progress=seen.append)
    front = Frontend(FRONTEND)
    assert sum(seen) == len(some.clips) == len(store.linear)
    assert store.linear.dtype == np.float32
    assert store.clip_of.tolist() == list(range(len(some.clips)))
    for clip, linear in zip(some.clips, store.linear, strict=True):
        samples = audio.load(clip.path, sample_rate=FRONTEND.sample_rate).samples
        np.testing.assert_array_equal(linear, front.linear(samples))
        np.testing.assert_array_equal(store.frontend.finish(np.array(linear)), front(samples))


def test_windows_of_a_clip_point_back_to_it(cache: Path, some: Dataset) -> None:
    window = WindowConfig(window_s=0.5, hop_s=0.25)
    store = extract(some, FRONTEND, window)
    front = Frontend(FRONTEND)
    samples = audio.load(some.clips[2].path, sample_rate=FRONTEND.sample_rate).samples
    parts = audio.windows(samples, window_samples=8000, hop_samples=4000)
    assert (store.clip_of == 2).sum() == len(parts) > 1
    np.testing.assert_array_equal(store.linear[store.clip_of == 2], [front.linear(part) for part in parts])


def test_a_second_time_nothing_is_decoded(
    cache: Path, some: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extract(some, FRONTEND, WINDOW)
    undecoded(monkeypatch)
    seen: list[int] = []
    again = extract(some, FRONTEND, WINDOW, progress=seen.append)
    np.testing.assert_array_equal(again.linear, first.linear)
    np.testing.assert_array_equal(again.clip_of, first.clip_of)
    assert sum(seen) == len(some.clips)
    assert len(os.listdir(cache)) == 1


def test_the_key_feels_config_window_order_and_bytes(
    cache: Path, some: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(some, FRONTEND, WINDOW)
    moved = tmp_path / "elsewhere"
    shutil.copytree(some.root, moved)
    there = load_esc50(moved)
    path = there.clips[0].path
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    cases = [
        (some, replace(FRONTEND, fmin=41.0), WINDOW),
        (some, replace(FRONTEND, mean=1.0), WINDOW),
        (some, FRONTEND, WindowConfig(window_s=0.9, hop_s=0.9)),
        (some.with_labels(["clicks"]), FRONTEND, WINDOW),
        (there.in_folds([1]).with_labels(["tone", "clicks"]), FRONTEND, WINDOW),
    ]
    for count, (data_set, frontend, window) in enumerate(cases, 2):
        extract(data_set, frontend, window)
        assert len(os.listdir(cache)) == count
    monkeypatch.setattr(features, "fingerprint", lambda _: "another version of the code")
    extract(some, FRONTEND, WINDOW)
    assert len(os.listdir(cache)) == len(cases) + 2


def test_the_key_does_not_feel_the_place(
    cache: Path, some: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extract(some, FRONTEND, WINDOW)
    shutil.copytree(some.root, tmp_path / "elsewhere")
    undecoded(monkeypatch)
    there = load_esc50(tmp_path / "elsewhere").in_folds([1]).with_labels(["tone", "clicks"])
    np.testing.assert_array_equal(extract(there, FRONTEND, WINDOW).linear, first.linear)


def _pickle(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


DAMAGE = {
    "empty": lambda p: p.write_bytes(b""),
    "cut": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "header cut": lambda p: p.write_bytes(p.read_bytes()[:40]),
    "gone": lambda p: p.unlink(),
    "text": lambda p: p.write_bytes(b"<html>" * 1000),
    "pickle": _pickle,
    "other type": lambda p: np.save(p, np.load(p).astype(np.float64)),
    "fewer": lambda p: np.save(p, np.load(p)[:-1]),
    "unbalanced header": lambda p: p.write_bytes(p.read_bytes()[:10] + b"(" + p.read_bytes()[11:]),
}


@pytest.mark.parametrize("file", ["linear.npy", "clip_of.npy"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_built_again(cache: Path, some: Dataset, file: str, damage: str) -> None:
    first = np.array(extract(some, FRONTEND, WINDOW).linear)
    (home,) = cache.iterdir()
    DAMAGE[damage](home / file)
    again = extract(some, FRONTEND, WINDOW)
    np.testing.assert_array_equal(again.linear, first)
    assert [entry.name for entry in cache.iterdir()] == [home.name]
    assert sorted(os.listdir(home)) == ["clip_of.npy", "linear.npy"]


def test_every_flipped_byte_of_a_header_is_survived(cache: Path, some: Dataset) -> None:
    extract(some, FRONTEND, WINDOW)
    (home,) = cache.iterdir()
    front, whole = Frontend(FRONTEND), (home / "linear.npy").read_bytes()
    for at in range(128):
        for bit in (0, 1, 3, 6):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            (home / "linear.npy").write_bytes(data)
            store = features._open(home, len(some.clips), front)
            assert store is None or store.linear.dtype == np.float32


def test_two_builders_at_once_give_one_valid_result(cache: Path, data_root: Path, dataset: Dataset) -> None:
    script = f"""
import synthetic
from soundmark.dataset import load_esc50
from soundmark.learn.features import extract
preset = synthetic.tiny_preset()
store = extract(load_esc50({str(data_root)!r}), preset.frontend, preset.window)
print(store.linear.shape, float(store.linear.sum(dtype="f8")))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    children = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env)
        for _ in range(2)
    ]
    outputs = [child.communicate(timeout=300)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert outputs[0] == outputs[1] != ""
    (home,) = cache.iterdir()
    assert features._open(home, len(dataset.clips), Frontend(FRONTEND)) is not None


def test_a_builder_that_was_overtaken_uses_what_is_there(
    cache: Path, some: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, nested = audio.load, []

    def load(*args: object, **kwargs: object) -> object:
        if not nested:  # another process builds the same cache in the meantime
            nested.append(1)
            nested.append(extract(some, FRONTEND, WINDOW))
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(audio, "load", load)
    store = extract(some, FRONTEND, WINDOW)
    np.testing.assert_array_equal(store.linear, nested[1].linear)  # the other's mapping lives on as well
    assert len(os.listdir(cache)) == 1


def test_a_clip_that_cannot_be_read_stops_and_leaves_no_cache(
    cache: Path, some: Dataset, tmp_path: Path
) -> None:
    shutil.copytree(some.root, tmp_path / "copy")
    data = load_esc50(tmp_path / "copy").in_folds([1])
    data.clips[3].path.write_bytes(b"RIFF and nothing else")
    with pytest.raises(AudioError, match=data.clips[3].name):
        extract(data, FRONTEND, WINDOW)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_names_the_variable(
    tmp_path: Path, some: Dataset, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SOUNDMARK_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="SOUNDMARK_CACHE"):
        extract(some, FRONTEND, WINDOW)
    monkeypatch.setenv("SOUNDMARK_CACHE", str(tmp_path / "cache"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StorageError, match="SOUNDMARK_CACHE"):
            extract(some, FRONTEND, WINDOW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(cache.iterdir()) == []


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOUNDMARK_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.setenv("SOUNDMARK_CACHE", "~/x")
    assert cache_dir() == Path.home() / "x"
    monkeypatch.delenv("SOUNDMARK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "soundmark"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "soundmark"
