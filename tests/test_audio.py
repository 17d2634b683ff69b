"""The loader from theory: equal roads, exact lengths, level and pitch kept, window rules, scans, sources, limits."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from soundmark.audio import BLOCK_FRAMES, Audio, Reader, load, windows
from soundmark.config import AudioLimits
from soundmark.errors import FLAGS, ConfigError, SoundmarkError
from soundmark.scan import scan

few = settings(max_examples=25, deadline=None)
ANY_LENGTH = AudioLimits(min_seconds=0.0)
RATES = st.sampled_from([8000, 11_025, 16_000, 22_050, 32_000, 44_053, 44_100, 48_000])


def noise(n: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    shape = n if channels == 1 else (n, channels)
    return np.clip(0.2 * np.random.default_rng(seed).standard_normal(shape), -0.9, 0.9).astype(np.float32)


def encode(samples: np.ndarray, rate: int, container: str = "WAV", subtype: str | None = "FLOAT") -> bytes:
    out = io.BytesIO()
    sf.write(out, samples, rate, format=container, subtype=subtype)
    return out.getvalue()


def code(source: Any, **options: Any) -> str:
    with pytest.raises(SoundmarkError) as caught:
        load(source, **{"sample_rate": 16_000, **options})
    return caught.value.code


class Pipe(io.RawIOBase):
    """A binary stream that cannot seek and gives little at once."""

    def __init__(self, data: bytes) -> None:
        self.left = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = min(1000, len(buffer), len(self.left))
        buffer[:count], self.left = self.left[:count], self.left[count:]
        return count


# --- one road -------------------------------------------------------------------------------------------------


@few
@given(n=st.integers(1, 3 * BLOCK_FRAMES), channels=st.integers(1, 3), source=RATES, target=RATES)
def test_every_kind_of_source_gives_the_same_samples(
    tmp_path_factory: pytest.TempPathFactory, n: int, channels: int, source: int, target: int
) -> None:
    x = noise(n, channels, seed=n)
    data = encode(x, source)
    path = tmp_path_factory.getbasetemp() / "same.wav"
    path.write_bytes(data)
    options: dict[str, Any] = {"sample_rate": target, "limits": ANY_LENGTH}
    wanted = load(path, **options)
    assert len(wanted.samples) == round(Fraction(n * target, source))
    assert wanted.duration_s == n / source
    assert wanted.channels == channels
    sources = (str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), Pipe(data), (x, source))
    for one in sources:
        found = load(one, **options)
        np.testing.assert_array_equal(found.samples, wanted.samples)
        assert found.flags == wanted.flags
    with Reader(path, **options) as reader:
        blocks = list(reader)
    assert all(block.dtype == np.float32 and block.ndim == 1 and len(block) for block in blocks)
    np.testing.assert_array_equal(np.concatenate([np.zeros(0, np.float32), *blocks]), wanted.samples)
    assert reader.flags == wanted.flags


@pytest.mark.parametrize(
    ("dtype", "subtype"),
    [("int16", "PCM_16"), ("int32", "PCM_32"), ("uint8", "PCM_U8"), ("float64", "DOUBLE")],
)
def test_arrays_of_integers_are_scaled_like_files(dtype: str, subtype: str) -> None:
    kept = {"uint8": "int16"}.get(dtype, dtype)
    data = encode(noise(20_000), 16_000, subtype=subtype)
    raw, _ = sf.read(io.BytesIO(data), dtype=kept)
    array = (raw // 256 + 128).astype(np.uint8) if dtype == "uint8" else raw
    found = load((array, 16_000), sample_rate=16_000)
    np.testing.assert_array_equal(found.samples, load(data, sample_rate=16_000).samples)
    reference, _ = sf.read(io.BytesIO(data), dtype="float32")
    np.testing.assert_array_equal(found.samples, reference)


@pytest.mark.parametrize("container", ["FLAC", "OGG", "MP3", "AIFF"])
def test_containers_decode_like_soundfile(container: str) -> None:
    data = encode(noise(100_000), 16_000, container, None)
    reference, _ = sf.read(io.BytesIO(data), dtype="float32")
    found = load(data, sample_rate=16_000)
    np.testing.assert_allclose(found.samples, reference, atol=1e-6)
    assert found.flags == ()


def test_blocks_stay_valid_after_the_next_one_was_taken() -> None:
    data = encode(noise(3 * BLOCK_FRAMES), 16_000, subtype="PCM_16")
    blocks = Reader(data, sample_rate=16_000)
    kept, copies = [], []
    for block in blocks:
        kept.append(block)
        copies.append(block.copy())
    for one, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(one, copy)


def test_the_input_array_is_not_changed() -> None:
    x = noise(4000)
    x[::2] = 1e-41
    before = x.copy()
    load((x, 16_000), sample_rate=16_000)
    load((x[:, np.newaxis], 16_000), sample_rate=8000)
    np.testing.assert_array_equal(x, before)


def test_a_large_file_is_read_through_its_descriptor_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ogg"
    path.write_bytes(encode(noise(50_000), 16_000, "OGG", None))
    wanted = load(path, sample_rate=16_000)
    monkeypatch.setattr("soundmark.inputs.IN_MEMORY_BYTES", 100)
    np.testing.assert_array_equal(load(path, sample_rate=16_000).samples, wanted.samples)
    np.testing.assert_array_equal(load(Pipe(path.read_bytes()), sample_rate=16_000).samples, wanted.samples)


def test_threads_do_not_mix(tmp_path: Path) -> None:
    clips = [encode(noise(30_000, seed=i), 22_050, "OGG", None) for i in range(4)]
    wanted = [load(clip, sample_rate=16_000).samples for clip in clips]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(5):
            if not np.array_equal(load(clips[i], sample_rate=16_000).samples, wanted[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- resampling and mixing ------------------------------------------------------------------------------------


@few
@given(value=st.floats(-0.9, 0.9), source=RATES, target=RATES)
def test_a_constant_stays_constant(value: float, source: int, target: int) -> None:
    samples = load((np.full(source, value, np.float32), source), sample_rate=target).samples
    middle = samples[target // 10 : -target // 10]
    np.testing.assert_allclose(middle, np.float32(value), atol=2e-5)


@few
@given(hz=st.floats(50, 3500), source=RATES, target=RATES)
def test_a_tone_keeps_pitch_and_level(hz: float, source: int, target: int) -> None:
    n = 2 * source
    samples = load((0.5 * np.sin(2 * np.pi * hz * np.arange(n) / source), source), sample_rate=target).samples
    t = np.arange(len(samples)) / target
    middle = slice(len(samples) // 10, -len(samples) // 10)
    basis = np.stack([np.sin(2 * np.pi * hz * t), np.cos(2 * np.pi * hz * t)], 1)[middle]
    (sine, cosine), *_ = np.linalg.lstsq(basis, samples[middle].astype(float), rcond=None)
    assert abs(sine - 0.5) < 2e-3
    assert abs(cosine) < 2e-3
    assert np.abs(samples[middle] - basis @ (sine, cosine)).max() < 2e-3


def test_what_the_new_rate_cannot_hold_is_removed() -> None:
    tone = 0.5 * np.sin(2 * np.pi * 100_000 * np.arange(384_000) / 384_000)
    samples = load((tone, 384_000), sample_rate=44_100).samples[4000:-4000]
    assert np.sqrt(np.mean(samples**2)) < 10 ** (-70 / 20)


def test_channels_are_averaged() -> None:
    x = noise(5000, 5)
    np.testing.assert_allclose(load((x, 16_000), sample_rate=16_000).samples, x.mean(axis=1), atol=1e-7)


# --- values and flags -----------------------------------------------------------------------------------------


@few
@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=40),
    channels=st.sampled_from([1, 2]),
)
def test_any_floats_give_finite_samples_or_an_audio_error(values: list[float], channels: int) -> None:
    array = np.resize(np.array(values, np.float32), (240, channels))
    if not np.isfinite(array).all():
        assert code((array, 8000)) == "nonfinite_samples"
    elif np.abs(array).max() > 1e4:
        assert code((array, 8000)) == "sample_out_of_range"
    elif np.abs(array).max() < 999:
        found = load((array, 8000), sample_rate=16_000)
        assert np.isfinite(found.samples).all()
        assert set(found.flags) <= FLAGS


def test_clipping_is_seen_across_blocks_and_not_in_clean_tones() -> None:
    t = np.arange(4 * BLOCK_FRAMES) / 44_100
    for hz in (50, 440, 5000):
        clean = np.sin(2 * np.pi * hz * t)
        assert "clipped" not in load((clean, 44_100), sample_rate=44_100).flags
        assert "clipped" in load((np.clip(2 * clean, -1, 1), 44_100), sample_rate=44_100).flags


def test_limits_are_on_decoded_audio() -> None:
    limits = AudioLimits(max_seconds=1.0, min_seconds=0.5, max_channels=2, max_bytes=40_000)
    assert load((noise(16_000), 16_000), sample_rate=16_000, limits=limits).duration_s == 1.0
    assert code((noise(16_001), 16_000), limits=limits) == "too_long"
    assert code((noise(7_999), 16_000), limits=limits) == "too_short"
    assert code((noise(16_000, 3), 16_000), limits=limits) == "unsupported_channels"
    assert code((noise(16_000), 16_000, 1), limits=limits) == "bad_config"
    assert code(encode(noise(16_000), 16_000), limits=limits) == "file_too_large"
    assert code(Pipe(bytes(50_000)), limits=limits) == "file_too_large"
    assert code((noise(100), 999)) == "unsupported_sample_rate"


def test_strict_refuses_what_is_flagged() -> None:
    data = encode(noise(16_000), 16_000)[:-1000]
    assert load(data, sample_rate=16_000).flags == ("truncated",)
    assert code(data, strict=True) == "corrupt_audio"


# --- arguments and sources ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [5, None, [0.0], object(), (1, 2, 3), ([0.0], 16_000), np.zeros((2, 2, 2)), np.zeros(99), np.float32(1)]
    + [(np.zeros(999), rate) for rate in (None, "16000", True, 16_000.5, np.nan, np.inf)]
    + [(np.zeros(999, dtype), 16_000) for dtype in (np.int64, bool, complex, object, "U1")]
    + [io.StringIO("text")],
    ids=lambda source: re.sub(" at 0x[0-9a-f]+", "", repr(source)),
)
def test_wrong_arguments_are_config_errors(source: Any) -> None:
    assert code(source) == "bad_config"


def test_wrong_rates_are_config_errors_and_array_rate_is_used() -> None:
    for rate in (0, -1, 1.5, "16000", None, True):
        assert code((noise(999), 16_000), sample_rate=rate) == "bad_config"
    assert len(load(noise(800), sample_rate=16_000, array_rate=8000).samples) == 1600
    assert load((noise(800), np.int32(8000)), sample_rate=16_000).source_rate == 8000
    assert code(np.zeros(0, np.float32), array_rate=8000) == "no_audio"
    x = noise(800)
    swapped = load((x.astype(">f4"), 8000), sample_rate=8000).samples
    np.testing.assert_array_equal(swapped, x)


def test_stdin_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(noise(16_000), 16_000)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Pipe(data))))
    np.testing.assert_array_equal(
        load("-", sample_rate=16_000).samples, load(data, sample_rate=16_000).samples
    )


def test_closed_stdin_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert code("-") == "io_error"


def test_file_objects_are_read_from_their_position_and_left_open(tmp_path: Path) -> None:
    data = encode(noise(16_000), 16_000)
    (tmp_path / "a").write_bytes(b"preface" + data)
    with open(tmp_path / "a", "rb") as file:
        file.seek(7)
        assert len(load(file, sample_rate=16_000).samples) == 16_000
        assert not file.closed


def test_a_file_object_that_fails_is_an_io_error() -> None:
    class Broken(io.BytesIO):
        def read(self, count: int | None = -1) -> bytes:
            raise OSError("cable pulled")

    assert code(Broken(bytes(100))) == "io_error"


@pytest.mark.skipif(os.name != "posix", reason="elsewhere libsndfile reads through callbacks")
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_a_disk_that_fails_is_an_io_error(tmp_path: Path, subtype: str) -> None:
    (tmp_path / "a.wav").write_bytes(encode(noise(4 * BLOCK_FRAMES), 16_000, subtype=subtype))
    reader = Reader(tmp_path / "a.wav", sample_rate=16_000)
    blocks = iter(reader)
    next(blocks)
    folder = os.open(tmp_path, os.O_RDONLY)  # reading from one is refused
    os.dup2(folder, reader._input.descriptor())
    os.close(folder)
    with pytest.raises(SoundmarkError) as caught:
        list(blocks)
    assert caught.value.code == "io_error"


@pytest.mark.parametrize("count", [1, BLOCK_FRAMES - 1, 3 * BLOCK_FRAMES, 3 * BLOCK_FRAMES + 1])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_path_gives_the_samples_of_its_bytes(tmp_path: Path, count: int, channels: int) -> None:
    data = encode(noise(count, channels), 16_000, subtype="PCM_16")
    (tmp_path / "a.wav").write_bytes(data)
    from_path = load(tmp_path / "a.wav", sample_rate=16_000, limits=ANY_LENGTH)
    with Reader(data, sample_rate=16_000, limits=ANY_LENGTH) as reader:
        np.testing.assert_array_equal(from_path.samples, np.concatenate(list(reader)))


def test_a_file_cut_while_it_is_read_is_flagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soundmark.inputs.IN_MEMORY_BYTES", 0)
    path = tmp_path / "a.wav"
    path.write_bytes(encode(noise(4 * BLOCK_FRAMES), 16_000))
    with Reader(path, sample_rate=16_000) as reader:
        next(iter(reader))
        os.truncate(path, 500_000)
        rest = sum(map(len, reader))
    assert rest < 3 * BLOCK_FRAMES
    assert reader.flags == ("truncated",)


def test_memory_errors_have_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    data = encode(noise(16_000), 16_000, subtype="PCM_24")
    monkeypatch.setattr("soundmark.audio.Stream.buffer_read_into", full)
    assert code(data) == "file_too_large"
    monkeypatch.setattr("soundmark.audio.open_input", full)
    assert code(data) == "file_too_large"


def test_the_result_says_what_was_read() -> None:
    found = load(encode(noise(22_050, 2), 22_050, "OGG", "VORBIS"), sample_rate=16_000)
    assert isinstance(found, Audio)
    assert (found.sample_rate, found.source_rate, found.channels) == (16_000, 22_050, 2)
    assert (found.container, found.duration_s) == ("OGG/VORBIS", 1.0)


# --- windows --------------------------------------------------------------------------------------------------


@few
@given(n=st.integers(0, 400), window=st.integers(1, 120), hop=st.integers(1, 150))
def test_windows_follow_their_rule(n: int, window: int, hop: int) -> None:
    x = np.arange(1, n + 1, dtype=np.float32)
    cut = windows(x, window_samples=window, hop_samples=hop)
    starts = [0] + [k * hop for k in range(1, n + 1) if n - k * hop >= window / 2]
    assert cut.shape == (len(starts), window)
    for row, start in zip(cut, starts, strict=True):
        held = x[start : start + window]
        np.testing.assert_array_equal(row[: len(held)], held)
        assert not row[len(held) :].any()


def test_windows_copy_nothing_where_they_fit_and_refuse_nonsense() -> None:
    x = noise(1000)
    assert np.shares_memory(windows(x, window_samples=200, hop_samples=200), x)
    assert not windows(x, window_samples=200, hop_samples=100).flags.writeable
    for bad in ({"window_samples": 0, "hop_samples": 1}, {"window_samples": 1, "hop_samples": 0}):
        with pytest.raises(ConfigError):
            windows(x, **bad)
    with pytest.raises(ConfigError):
        windows(x[:, np.newaxis], window_samples=1, hop_samples=1)


# --- scan -----------------------------------------------------------------------------------------------------


def rows(*paths: Any, **options: Any) -> list[tuple[str, str]]:
    return [(found.path.name, found.error.code if found.error else "") for found in scan(paths, **options)]


def test_scan_finds_each_recording_once_and_ends(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    (inside / "sub").mkdir(parents=True)
    outside.mkdir()
    for name in ("b.wav", "a.FLAC", "sub/c.mp3", "notes.txt", "._b.wav", "new\nline.ogg"):
        (inside / name).write_bytes(b"x")
    (outside / "secret.wav").write_bytes(b"x")
    os.link(inside / "b.wav", inside / "z_hard_link.wav")
    links = {"sub/up": "..", "loop.wav": "loop.wav", "gone.wav": "nowhere", "leak.wav": "../out/secret.wav"}
    for name, target in (links | {"leak": "../out", "y_same.wav": "b.wav"}).items():
        os.symlink(target, inside / name)
    os.mkfifo(inside / "fifo.wav")
    assert rows(inside) == [
        ("a.FLAC", ""),
        ("b.wav", ""),
        ("fifo.wav", "not_regular_file"),
        ("gone.wav", "not_found"),
        ("leak", "outside_root"),
        ("leak.wav", "outside_root"),
        ("loop.wav", "symlink_loop"),
        ("new\nline.ogg", ""),
        ("c.mp3", ""),
    ]
    assert rows(inside / "b.wav", inside / "b.wav", inside / "z_hard_link.wav") == [("b.wav", "")]
    assert rows(str(inside / "*.wav"))[0] == ("b.wav", "")
    assert rows(inside / "nope.wav", str(inside / "*.nope")) == [("nope.wav", ""), ("*.nope", "")]
    assert rows(outside / "secret.wav", root=inside) == [("secret.wav", "outside_root")]
    assert rows(outside, root=inside) == [("out", "outside_root")]
    assert rows(inside, patterns=(".txt",)) == [("leak", "outside_root"), ("notes.txt", "")]


def test_scan_takes_names_with_pattern_characters_literally(tmp_path: Path) -> None:
    (tmp_path / "a[1].wav").write_bytes(b"x")
    assert rows(tmp_path / "a[1].wav") == [("a[1].wav", "")]
    assert rows("nul\0.wav") == [("nul\0.wav", "")]


def test_scan_survives_folders_nested_deeper_than_the_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [f"{tmp_path}/{'d/' * depth}" for depth in range(1, 1100)]
    for folder in folders:
        os.mkdir(folder)
    with open(folders[-1] + "deep.wav", "wb"):
        pass
    try:
        assert rows(tmp_path) == [("deep.wav", "")]
    finally:  # pytest's own clean-up recurses
        os.remove(folders[-1] + "deep.wav")
        for folder in reversed(folders):
            os.rmdir(folder)
