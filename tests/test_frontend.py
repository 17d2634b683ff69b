"""The front end against theory, a float64 reference written here, librosa, YAMNet's own graph, and itself in chunks."""

# ruff: noqa: TID251 - numpy.fft and librosa are the oracles here

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soundmark.config import FrontendConfig, from_dict
from soundmark.errors import AudioError, ConfigError
from soundmark.frontend import Frontend, FrontendStream, fingerprint, mel_filters

YAMNET: dict[str, Any] = {  # Plakal and Ellis, tensorflow/models/research/audioset/yamnet/params.py
    "kind": "logmel",
    "sample_rate": 16_000,
    "win_length": 400,
    "hop_length": 160,
    "n_fft": 512,
    "n_mels": 64,
    "fmin": 125.0,
    "fmax": 7500.0,
    "power": 1,
    "scale": "ln",
    "offset": 0.001,
    "center": False,
}
AISFX: dict[str, Any] = {  # Ma and Lerch, ISMIR 2022; figures from ANCHORS.md
    "kind": "logmel",
    "sample_rate": 44_100,
    "level": "peak",
    "n_fft": 2048,
    "hop_length": 1024,
    "n_mels": 96,
    "mel_norm": "sum",
    "scale": "log10",
    "gain": 1e4,
    "std": 9.4578,
}
LINEAR = {"kind": "spectrogram", "scale": "linear", "center": False}


def front(**config: Any) -> Frontend:
    return Frontend(from_dict(config, FrontendConfig))


def tone(hz: float, *, rate: int = 44_100, seconds: float = 0.25, amplitude: float = 1.0) -> np.ndarray:
    n = np.arange(round(rate * seconds))
    return (amplitude * np.sin(2 * np.pi * hz * n / rate)).astype(np.float32)


def noise(n: int, *, seed: int = 0, amplitude: float = 0.3) -> np.ndarray:
    return (amplitude * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


# --- an independent definition in float64 ---------------------------------------------------------------------------


def mel_functions(scale: str) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """Hz to mel and back, from the formulas in words."""
    if scale == "htk":
        return lambda f: 2595 * np.log10(1 + f / 700), lambda m: 700 * (10 ** (m / 2595) - 1)
    return (
        lambda f: 3 * f / 200 if f < 1000 else 15 + 27 * np.log(f / 1000) / np.log(6.4),
        lambda m: 200 * m / 3 if m < 15 else 1000 * 6.4 ** ((m - 15) / 27),
    )


def reference_mel(c: FrontendConfig) -> np.ndarray:
    """Triangles, one band and one bin at a time."""
    top = c.fmax if c.fmax is not None else c.sample_rate / 2
    to_mel, to_hz = mel_functions(c.mel_scale)
    step = (to_mel(top) - to_mel(c.fmin)) / (c.n_mels + 1)
    edges = [to_hz(to_mel(c.fmin) + i * step) for i in range(c.n_mels + 2)]
    bands = np.zeros((c.n_mels, c.n_fft // 2 + 1))
    for band in range(c.n_mels):
        low, peak, high = edges[band : band + 3]
        for k in range(c.n_fft // 2 + 1):
            f = k * c.sample_rate / c.n_fft
            if low < f <= peak:
                bands[band, k] = (f - low) / (peak - low)
            elif peak < f < high:
                bands[band, k] = (high - f) / (high - peak)
        if c.mel_norm == "slaney":
            bands[band] *= 2 / (high - low)
        elif c.mel_norm == "sum":
            bands[band] /= bands[band].sum()
    return bands


def reference(c: FrontendConfig, samples: np.ndarray) -> np.ndarray:
    """Features in float64 with `numpy.fft`, frame by frame."""
    x = samples.astype(np.float64)
    if c.level == "peak" and np.abs(x).max() > 0:
        x = x / np.abs(x).max()
    mean, std = (np.reshape(np.asarray(v, dtype=np.float64), (-1, 1)) for v in (c.mean, c.std))
    if c.kind == "wave":
        return (c.gain * x[None, :] - mean) / std
    win = c.win_length or c.n_fft
    if c.center:
        x = np.concatenate([np.zeros(win // 2), x, np.zeros(win // 2)])
    a = {"hann": (0.5, 0.5), "hamming": (0.54, 0.46), "ones": (1.0, 0.0)}[c.window]
    w = a[0] - a[1] * np.cos(2 * np.pi * np.arange(win) / win)
    times = -(-win // c.n_fft)  # a longer window: some of the bins of a longer transform
    columns = [
        np.fft.rfft(x[i : i + win] * w, times * c.n_fft)[::times]
        for i in range(0, len(x) - win + 1, c.hop_length)
    ]
    y = np.abs(np.array(columns).T) ** c.power
    if c.kind != "spectrogram":
        y = reference_mel(c) @ y
    if c.scale == "db":
        y = (20 / c.power) * np.log10(np.maximum(y, c.offset))
    elif c.scale == "ln":
        y = np.log(y + c.offset)
    elif c.scale == "log10":
        y = np.log10(1 + c.gain * y)
    if c.kind == "mfcc":
        n = np.arange(c.n_mels)
        rows = [
            np.cos(np.pi * k * (n + 0.5) / c.n_mels) * np.sqrt((1 if k == 0 else 2) / c.n_mels)
            for k in range(c.n_mfcc)
        ]
        y = np.array(rows) @ y
    return (y - mean) / std


# --- theory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("band", [1, 5, 12, 20, 31, 38])
@pytest.mark.parametrize("mel_scale", ["htk", "slaney"])
def test_a_tone_lands_in_its_band(rate: int, band: int, mel_scale: str) -> None:
    """A tone at the middle of a band (equal steps on the mel scale) is loudest there, in every frame."""
    f = front(sample_rate=rate, n_mels=40, n_fft=2048, hop_length=512, mel_scale=mel_scale, center=False)
    to_mel, to_hz = mel_functions(mel_scale)
    middle = to_hz((band + 1) * to_mel(rate / 2) / 41)
    assert np.all(f(tone(middle, rate=rate, seconds=0.6)).argmax(axis=0) == band)


@pytest.mark.parametrize("k", [2, 5, 100, 255, 510])
@pytest.mark.parametrize("window", ["hann", "hamming", "ones"])
@pytest.mark.parametrize("amplitude", [1.0, 0.125])
def test_power_of_a_sine_equals_theory(k: int, window: str, amplitude: float) -> None:
    f = front(**LINEAR, n_fft=1024, hop_length=1024, window=window)
    power = f(tone(k * 44_100 / 1024, seconds=0.1, amplitude=amplitude))
    theory = amplitude**2 * f.window.astype(np.float64).sum() ** 2 / 4
    np.testing.assert_allclose(power[k], theory, rtol=2e-5)
    assert np.all(power.argmax(axis=0) == k)


def test_magnitude_is_the_root_of_power() -> None:
    x = noise(5000)
    np.testing.assert_array_equal(front(**LINEAR, power=1)(x), np.sqrt(front(**LINEAR, power=2)(x)))


@pytest.mark.parametrize("n_fft", [2, 4, 6, 16, 30, 256, 441 * 2, 1000, 1024, 2048, 4096, 8192])
@pytest.mark.parametrize("window", ["hann", "ones"])
def test_parseval(n_fft: int, window: str) -> None:
    f = front(**LINEAR, n_fft=n_fft, hop_length=n_fft, window=window)
    x = noise(5 * n_fft)
    power = f(x).astype(np.float64)
    both_sides = power[0] + power[-1] + 2 * power[1:-1].sum(axis=0)
    in_time = ((x.reshape(5, n_fft) * f.window).astype(np.float64) ** 2).sum(axis=1)
    np.testing.assert_allclose(both_sides / n_fft, in_time, rtol=1e-5)


def test_a_constant_is_in_the_dc_bin_alone() -> None:
    x = np.full(4096, 0.5, dtype=np.float32)
    ones = front(**LINEAR, window="ones")(x)
    np.testing.assert_allclose(ones[0], (0.5 * 1024) ** 2, rtol=1e-6)
    assert ones[1:].max() < 1e-10 * ones[0].min()
    hann = front(**LINEAR, window="hann")(x)  # its own transform: bins 0 and 1 (6 dB below), nothing else
    np.testing.assert_allclose(hann[1], hann[0] / 4, rtol=1e-5)
    assert hann[2:].max() < 1e-10 * hann[0].min()


@pytest.mark.parametrize("at", [0, 1, 300, 1023])
def test_an_impulse_is_flat(at: int) -> None:
    x = np.zeros(1024, dtype=np.float32)
    x[at] = 1.0
    np.testing.assert_allclose(front(**LINEAR, window="ones")(x), 1.0, rtol=1e-5)
    f = front(**LINEAR, window="hamming")
    np.testing.assert_allclose(f(x), float(f.window[at]) ** 2, rtol=1e-5)


@pytest.mark.parametrize("n", [2, 16, 400, 401, 1024])
def test_windows_are_periodic(n: int) -> None:
    for name, total in (("hann", n / 2), ("hamming", 0.54 * n), ("ones", n)):
        w = front(kind="spectrogram", n_fft=1024, hop_length=1, win_length=n, window=name).window.astype(
            np.float64
        )
        assert w.shape == (n,)
        np.testing.assert_allclose(w.sum(), total, rtol=1e-6)  # of a whole period, not of a symmetric window
        np.testing.assert_allclose(w[1:], w[:0:-1], atol=1e-6)
        np.testing.assert_allclose(w.max(), 1.0 if n % 2 == 0 or name == "ones" else w[n // 2], rtol=1e-6)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("kind", ["logmel", "spectrogram"])
def test_six_db_more_is_six_db_more(kind: str, power: int) -> None:
    f, x = front(kind=kind, power=power), noise(8000)
    np.testing.assert_allclose(f(2 * x) - f(x), 20 * np.log10(2), atol=2e-5)


@pytest.mark.parametrize(
    ("scale", "floor"),
    [
        ({"scale": "db", "offset": 1e-10, "power": 2}, -100.0),
        ({"scale": "db", "offset": 1e-5, "power": 1}, -100.0),
        ({"scale": "ln", "offset": 0.001}, np.log(0.001)),
        ({"scale": "log10", "gain": 1e4}, 0.0),
        ({"scale": "linear"}, 0.0),
    ],
)
@pytest.mark.parametrize("kind", ["logmel", "spectrogram"])
def test_silence_is_the_floor_exactly(kind: str, scale: dict[str, Any], floor: float) -> None:
    y = front(kind=kind, **scale)(np.zeros(6000, dtype=np.float32))
    assert np.all(y == y.flat[0])
    assert y.flat[0] == pytest.approx(floor, rel=1e-6)


EXTREMES = {
    "silence": np.zeros(5000, np.float32),
    "click": np.eye(1, 5000, 2500, dtype=np.float32)[0],
    "square": np.sign(np.sin(np.arange(5000) * 0.1)).astype(np.float32),
    "1e4": 1e4 * noise(5000),
    "denormal": np.full(5000, 1e-42, np.float32),
    "tiny": noise(5000, amplitude=1e-30),
    "nyquist": np.tile(np.float32([1, -1]), 2500),
    "empty": np.zeros(0, np.float32),
    "one sample": np.ones(1, np.float32),
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("kind", ["logmel", "mfcc", "spectrogram", "wave"])
@pytest.mark.parametrize("level", ["none", "peak"])
@pytest.mark.filterwarnings("error")
def test_extremes_are_finite(name: str, kind: str, level: str) -> None:
    f = front(kind=kind, level=level)
    y = f(EXTREMES[name])
    assert y.shape == f.shape(EXTREMES[name].size)
    assert y.dtype == np.float32
    assert np.isfinite(y).all()


def test_nan_is_never_repaired() -> None:
    x = noise(44_100)
    x[22_050] = np.nan
    bad = np.isnan(front(center=False)(x)).all(axis=0)
    touched = [i for i in range(bad.size) if i * 441 <= 22_050 < i * 441 + 1024]
    assert np.flatnonzero(bad).tolist() == touched


def test_dft_keeps_a_tone_80_db_below_a_full_scale_one() -> None:
    """Stated: bins within 0.02 dB of float64 where they are above -80 dB, an error floor below -125 dB elsewhere."""
    n = 1024
    x = tone(100 * 44_100 / n, seconds=1) + tone(300 * 44_100 / n, seconds=1, amplitude=1e-4)
    f = front(**LINEAR)
    got, want = f(x).astype(np.float64), reference(f.config, x)
    full = want.max()
    weak = got[300]
    np.testing.assert_allclose(10 * np.log10(weak / full), -80.0, atol=0.05)
    loud = want > full * 1e-8
    assert np.abs(10 * np.log10(got[loud] / want[loud])).max() < 0.02
    amplitude_error = np.abs(np.sqrt(got) - np.sqrt(want)).max() / np.sqrt(full)
    assert 20 * np.log10(amplitude_error) < -125


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(
    ("n_fft", "win", "hop"), [(1024, None, 441), (512, 400, 160), (512, 401, 401), (64, 2, 1), (64, 199, 180)]
)
@pytest.mark.parametrize("n", [0, 1, 63, 399, 400, 401, 1023, 1024, 1025, 5000, 44_100])
def test_n_frames(n: int, n_fft: int, win: int | None, hop: int, center: bool) -> None:
    f = front(kind="spectrogram", n_fft=n_fft, win_length=win, hop_length=hop, center=center)
    width = win or n_fft
    whole = n + 2 * (width // 2) * center
    want = len(range(0, whole - width + 1, hop))
    assert f.n_frames(n) == want == f(noise(n)).shape[1]
    if center and width % 2 == 0:
        assert want == 1 + n // hop


@pytest.mark.parametrize(("n_fft", "win"), [(1024, None), (1024, 800)])
def test_frame_i_is_centred_on_i_hops(n_fft: int, win: int | None) -> None:
    f = front(kind="spectrogram", scale="linear", n_fft=n_fft, win_length=win, hop_length=100, center=True)
    for i in (0, 3, 10, 40):
        x = np.zeros(4001, dtype=np.float32)
        x[i * 100] = 1.0
        energy = f(x).mean(axis=0)
        assert energy.argmax() == i
        assert energy[i] == pytest.approx(1.0, rel=1e-5)  # the top of a Hann window
        if 0 < i < 40:
            assert energy[i - 1] == pytest.approx(energy[i + 1], rel=1e-4)


def test_without_center_frame_i_starts_at_i_hops() -> None:
    f = front(**LINEAR, n_fft=512, win_length=400, hop_length=160, window="ones")
    for i in range(3):
        x = np.zeros(1000, dtype=np.float32)
        x[i * 160] = 1.0
        assert np.flatnonzero(f(x).mean(axis=0) > 0.5).tolist() == [
            j for j in range(4) if 0 <= i * 160 - j * 160 < 400
        ]


def test_the_window_is_padded_at_its_end_only_in_phase() -> None:
    """Where the zeros stand changes the phase of a frame, never its power."""
    x = noise(400)
    f = front(**LINEAR, n_fft=512, win_length=400, hop_length=400)
    w = f.window.astype(np.float64)
    middle = np.abs(np.fft.rfft(np.pad(x * w, 56))) ** 2
    np.testing.assert_allclose(f(x)[:, 0], middle, rtol=1e-3, atol=1e-5 * middle.max())


CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "mfcc": {"kind": "mfcc", "n_mels": 40, "n_fft": 2048, "hop_length": 512},
    "mfcc ln": {"kind": "mfcc", "n_mels": 40, "n_mfcc": 40, "scale": "ln", "offset": 1e-6},
    "mfcc log10": {"kind": "mfcc", "n_mels": 32, "n_mfcc": 1, "scale": "log10", "gain": 100.0},
    "spectrogram": {"kind": "spectrogram", "n_fft": 512, "hop_length": 128},
    "spectrogram 1000": {"kind": "spectrogram", "n_fft": 1000, "hop_length": 1000, "scale": "linear"},
    "spectrogram 882": {"kind": "spectrogram", "n_fft": 882, "hop_length": 333, "power": 1, "scale": "ln"},
    "wave": {"kind": "wave", "gain": 2.0, "mean": 0.1, "std": 0.5},
    "wave row": {"kind": "wave", "mean": [0.1], "std": [0.5]},
    "wave peak": {"kind": "wave", "level": "peak"},
    "one band": {"n_mels": 1},
    "n_fft 4096": {"n_fft": 4096, "hop_length": 1024, "n_mels": 128},
    "rows": {"n_mels": 3, "mean": [-20.0, -10.0, 0.0], "std": [1.0, 2.0, 3.0]},
    "short hop": {"n_fft": 64, "hop_length": 1, "n_mels": 4},
    "folded window": {
        "n_fft": 512,
        "win_length": 1300,
        "hop_length": 800,
        "n_mels": 20,
        "power": 1,
        "center": False,
    },
    "window folded twice": {"kind": "spectrogram", "n_fft": 512, "win_length": 1536, "hop_length": 1000},
    "odd window": {"n_fft": 512, "win_length": 401, "hop_length": 100, "n_mels": 20, "window": "hamming"},
    "no overlap": {"n_fft": 256, "hop_length": 256, "n_mels": 10, "center": False, "window": "ones"},
    "yamnet": YAMNET,
    "aisfx": AISFX,
}
for _scale in ("linear", "db", "ln", "log10"):
    for _power in (1, 2):
        for _mel in ("htk", "slaney"):
            for _norm in ("none", "slaney", "sum"):
                CONFIGS[f"{_scale} {_power} {_mel} {_norm}"] = {
                    "scale": _scale, "power": _power, "mel_scale": _mel, "mel_norm": _norm, "n_mels": 32,
                    "fmin": 60.0, "fmax": 16_000.0, "mean": -3.0, "std": 2.0,
                }  # fmt: skip
STREAMED = [name for name, config in CONFIGS.items() if "level" not in config]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_equals_the_float64_reference(name: str) -> None:
    """Stated tolerance: 1e-5 of a linear value, 5e-4 of a compressed one (dB, nepers or decades)."""
    f = front(**CONFIGS[name])
    x = noise(6000, seed=3) + tone(3000.0, rate=f.config.sample_rate, seconds=6000 / f.config.sample_rate)
    got, want = f(x), reference(f.config, x)
    assert got.shape == want.shape
    assert got.dtype == np.float32
    if f.config.scale == "linear" or f.config.kind == "wave":
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 * np.abs(want).max())
    else:
        np.testing.assert_allclose(got, want, rtol=0, atol=5e-4)


def test_yamnet_shape() -> None:
    assert front(**YAMNET).shape(15_600) == (64, 96)


def test_yamnet_equals_the_graph_google_ships() -> None:
    """The tensor ``log_mel_spectrogram`` of the TFLite file in the folder that SOUNDMARK_YAMNET names.

    `tf.signal.linear_to_mel_weight_matrix` draws triangles that are straight over mel, librosa and we over Hz. With
    TensorFlow's triangles on our spectrum the two agree to 1e-4; with ours the logarithm differs by 0.02 at most.
    """
    litert = pytest.importorskip(
        "ai_edge_litert.interpreter", reason="needs the extra 'bench' (ai-edge-litert)"
    )
    path = Path(os.environ.get("SOUNDMARK_YAMNET", "")) / "yamnet_classification.tflite"
    if not os.environ.get("SOUNDMARK_YAMNET") or not path.is_file():
        pytest.skip("SOUNDMARK_YAMNET does not name the folder of yamnet_classification.tflite")
    net = litert.Interpreter(
        str(path),
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    net.allocate_tensors()
    index = {t["name"]: t["index"] for t in net.get_tensor_details()}["log_mel_spectrogram"]
    x = noise(15_600, seed=5, amplitude=0.1) + tone(440.0, rate=16_000, seconds=0.975, amplitude=0.5)
    net.set_tensor(net.get_input_details()[0]["index"], x)
    net.invoke()
    theirs = net.get_tensor(index).T  # (64, 96)

    to_mel, _ = mel_functions("htk")
    edges = np.linspace(to_mel(125.0), to_mel(7500.0), 66)
    mel = np.array([to_mel(k * 16_000 / 512) for k in range(257)])
    rising = (mel - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - mel) / np.diff(edges)[1:, None]
    over_mel = np.maximum(0, np.minimum(rising, falling))
    magnitude = front(**{**YAMNET, "kind": "spectrogram", "scale": "linear"})(x)
    np.testing.assert_allclose(np.log(over_mel @ magnitude + 0.001), theirs, rtol=0, atol=1e-4)
    np.testing.assert_allclose(front(**YAMNET)(x), theirs, rtol=0, atol=0.02)


def test_aisfx_shape_and_level() -> None:
    f = front(**AISFX)
    assert f.shape(5 * 44_100) == (96, 216)
    x = noise(20_000)
    for gain in (0.01, 1e-25):
        np.testing.assert_allclose(f(np.float32(gain) * x), f(x), atol=1e-5)  # peak-normalised
    np.testing.assert_allclose(f.filters.sum(axis=1), 1.0, rtol=1e-6)


# --- linear and finish ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_call_is_finish_of_linear_whatever_the_memory_layout(name: str) -> None:
    f, x = front(**CONFIGS[name]), noise(6000)
    linear = f.linear(x)
    for layout in (np.ascontiguousarray(linear), np.asfortranarray(linear), linear[:, ::-1].copy()[:, ::-1]):
        np.testing.assert_array_equal(f.finish(layout), f(x))
    batch = np.stack([linear, 0 * linear])
    np.testing.assert_array_equal(f.finish(batch)[0], f(x))


@pytest.mark.parametrize("name", CONFIGS)
def test_finish_is_the_same_in_torch(name: str) -> None:
    """Stated tolerance: 2e-5 of the value, 1e-5 absolute (their logarithms round differently)."""
    torch = pytest.importorskip("torch", reason="needs the extra 'train' (torch)")
    f = front(**CONFIGS[name])
    linear = np.ascontiguousarray(f.linear(noise(6000)))
    ours = f.finish(linear)
    theirs = f.finish(torch.from_numpy(linear), torch)
    assert theirs.dtype == torch.float32
    np.testing.assert_allclose(theirs.numpy(), ours, rtol=2e-5, atol=1e-5)


def test_power_of_independent_sounds_adds_up() -> None:
    """Why training may mix `linear` values: the power of a sum is the sum of powers, on average over frames."""
    f = front(scale="linear")
    a, b = noise(88_200, seed=1), noise(88_200, seed=2, amplitude=0.1)
    np.testing.assert_allclose((f(a) + f(b)).mean(), f(a + b).mean(), rtol=0.02)


def test_input_is_not_written_to() -> None:
    x = noise(5000)
    x.setflags(write=False)
    for config in CONFIGS.values():
        front(**config)(x)


@pytest.mark.parametrize("bad", [np.zeros((2, 3000), np.float32), np.zeros(3000, np.int16), np.float32(1)])
def test_samples_that_are_not_mono_floats_are_refused(bad: np.ndarray) -> None:
    f = front()
    with pytest.raises(AudioError, match="samples of shape"):
        f(np.asarray(bad))
    with pytest.raises(AudioError, match="samples of shape"):
        f.stream().push(np.asarray(bad))


def test_float64_and_strided_samples_give_the_same_features() -> None:
    f, x = front(), noise(6000)
    want = f(x)
    np.testing.assert_array_equal(f(x.astype(np.float64)), want)
    np.testing.assert_array_equal(f(np.repeat(x, 2)[::2]), want)


# --- what the configuration cannot know -----------------------------------------------------------------------------


def test_a_band_without_a_bin_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mel band 0 of 128 .* holds no FFT bin"):
        front(n_mels=128, n_fft=512)


@pytest.mark.parametrize("n_fft", [2 * 509, 2 * 16_381])
def test_n_fft_with_a_large_prime_factor_is_refused(n_fft: int) -> None:
    with pytest.raises(ConfigError, match="only splits into"):
        front(kind="spectrogram", n_fft=n_fft)


def test_fingerprint_follows_the_values() -> None:
    assert fingerprint(FrontendConfig(fmin=125, mean=0)) == fingerprint(FrontendConfig(fmin=125.0))
    assert front().fingerprint == fingerprint(FrontendConfig())
    others = [front(**config).fingerprint for config in CONFIGS.values()]
    assert len({*others}) == len(others)


# --- librosa as an oracle -------------------------------------------------------------------------------------------

SLANEY = {"mel_scale": "slaney", "mel_norm": "slaney"}
ORACLE: list[dict[str, Any]] = [
    {"sample_rate": 22_050, "n_fft": 2048, "hop_length": 512, "n_mels": 128, **SLANEY},
    {"sample_rate": 44_100, "n_fft": 1024, "hop_length": 441, "n_mels": 64, "mel_scale": "htk", "mel_norm": "none"},
    {"sample_rate": 44_100, "n_fft": 2048, "hop_length": 1024, "n_mels": 96, "mel_norm": "sum", "power": 1},
    {"sample_rate": 16_000, "n_fft": 512, "hop_length": 160, "win_length": 400, "fmin": 125.0, "fmax": 7500.0},
    {"sample_rate": 32_000, "n_fft": 1024, "hop_length": 320, "win_length": 800, "window": "hamming", "fmax": 14_000.0},
    {"sample_rate": 8_000, "n_fft": 256, "hop_length": 80, "win_length": 200, "n_mels": 20, "window": "ones"},
]  # fmt: skip


@pytest.fixture(scope="module")
def librosa() -> Any:
    return pytest.importorskip("librosa", reason="the oracle librosa is not installed (extra 'dev')")


def oracle_mel(librosa: Any, c: FrontendConfig) -> np.ndarray:
    norm = {"none": None, "slaney": "slaney", "sum": 1}[c.mel_norm]
    return librosa.filters.mel(
        sr=c.sample_rate, n_fft=c.n_fft, n_mels=c.n_mels, fmin=c.fmin, fmax=c.fmax,
        htk=c.mel_scale == "htk", norm=norm, dtype=np.float64,
    )  # fmt: skip


@pytest.mark.parametrize("config", ORACLE)
@pytest.mark.parametrize("mel_scale", ["htk", "slaney"])
@pytest.mark.parametrize("mel_norm", ["none", "slaney", "sum"])
def test_mel_filters_equal_librosa(
    librosa: Any, config: dict[str, Any], mel_scale: str, mel_norm: str
) -> None:
    c = from_dict({**config, "n_mels": 20, "mel_scale": mel_scale, "mel_norm": mel_norm}, FrontendConfig)
    ours, theirs = mel_filters(c), oracle_mel(librosa, c)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * theirs.max())


@pytest.mark.parametrize("config", ORACLE)
@pytest.mark.parametrize("center", [True, False])
def test_features_equal_librosa(librosa: Any, config: dict[str, Any], center: bool) -> None:
    """Stated tolerance: 2e-5 of the largest band power, 1e-3 dB, 1e-2 for a cepstral coefficient (a sum of dB).

    librosa puts a short window in the middle of ``n_fft`` samples; ours stands at their beginning. With ``center`` both
    come out centred; without it librosa is ``(n_fft - win_length) // 2`` samples later, which the padding undoes here.
    """
    c = from_dict({**config, "scale": "linear", "center": center}, FrontendConfig)
    x = noise(c.sample_rate // 2) + tone(1000.0, rate=c.sample_rate, seconds=0.5)[: c.sample_rate // 2]
    shift = 0 if center else (c.n_fft - c.window_length) // 2
    stft = librosa.stft(
        np.pad(x.astype(np.float64), (shift, c.n_fft)) if not center else x.astype(np.float64),
        n_fft=c.n_fft, hop_length=c.hop_length, win_length=c.window_length,
        window={"ones": "boxcar"}.get(c.window, c.window), center=center, pad_mode="constant",
    )  # fmt: skip
    n_frames = Frontend(c).n_frames(x.size)
    mel = oracle_mel(librosa, c) @ (np.abs(stft[:, :n_frames]) ** c.power)
    np.testing.assert_allclose(Frontend(c)(x), mel, rtol=2e-5, atol=1e-6 * mel.max())

    if c.power == 2:
        mel_db = librosa.power_to_db(mel, ref=1.0, amin=1e-10, top_db=None)
    else:
        mel_db = librosa.amplitude_to_db(mel, ref=1.0, amin=1e-10, top_db=None)
    np.testing.assert_allclose(front(**config, center=center)(x), mel_db, rtol=0, atol=1e-3)
    mfcc = librosa.feature.mfcc(S=mel_db, n_mfcc=13, dct_type=2, norm="ortho")
    np.testing.assert_allclose(front(**config, center=center, kind="mfcc")(x), mfcc, rtol=0, atol=1e-2)


def test_melspectrogram_equals_librosa_with_its_own_defaults(librosa: Any) -> None:
    x = noise(22_050)
    theirs = librosa.feature.melspectrogram(y=x, sr=22_050, pad_mode="constant")
    ours = front(**ORACLE[0], scale="linear")(x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6 * theirs.max())


# --- exactness: any chunking, any position --------------------------------------------------------------------------


def in_chunks(f: Frontend, x: np.ndarray, sizes: list[int]) -> np.ndarray:
    stream, columns, at = f.stream(), [], 0
    for size in sizes:
        columns.append(stream.push(x[at : at + size]))
        at += size
    columns.append(stream.push(x[at:]))
    columns.append(stream.flush())
    return np.concatenate(columns, axis=1)


@pytest.mark.parametrize("name", STREAMED)
def test_chunks_of_every_awkward_size_equal_the_whole(name: str) -> None:
    f = front(**CONFIGS[name])
    hop, width = f.config.hop_length, f.config.window_length
    x = noise(3 * width + 70 * hop, seed=9)[:12_000]
    whole = f(x)
    for size in {hop - 1, hop, hop + 1, width - 1, width, width + 1, 64 * hop, 1000, x.size} - {0}:
        chunks = in_chunks(f, x, [size] * (x.size // size))
        assert np.array_equal(chunks, whole), size


@pytest.mark.parametrize("name", ["default", "mfcc", "spectrogram", "wave", "yamnet", "odd window"])
def test_single_samples_equal_the_whole(name: str) -> None:
    f, x = front(**CONFIGS[name]), noise(2600, seed=1)
    assert np.array_equal(in_chunks(f, x, [1] * x.size), f(x))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(STREAMED),
    n=st.integers(0, 9000),
    sizes=st.lists(st.one_of(st.integers(0, 5), st.integers(0, 3000)), max_size=30),
    seed=st.integers(0, 3),
)
def test_any_chunking_equals_the_whole(name: str, n: int, sizes: list[int], seed: int) -> None:
    f, x = front(**CONFIGS[name]), noise(n, seed=seed)
    assert np.array_equal(in_chunks(f, x, sizes), f(x))


@pytest.mark.parametrize("name", [n for n in STREAMED if not n.startswith("wave")])
def test_a_frame_hardly_depends_on_where_it_stands_in_a_block(name: str) -> None:
    """Stated: to 1e-6 of the largest value. Bit for bit it does not hold everywhere: OpenBLAS' AVX2 kernels round
    differently in other rows, which is why frame i of a recording keeps its row, in chunks or whole."""
    f = front(**{**CONFIGS[name], "center": False})
    hop, width = f.config.hop_length, f.config.window_length
    x = noise(width + 69 * hop, seed=4)
    whole = f.linear(x)
    assert whole.shape[1] == 70  # crosses the block of 64 frames
    alone = np.concatenate([f.linear(x[i * hop : i * hop + width]) for i in range(70)], axis=1)
    np.testing.assert_allclose(alone, whole, rtol=0, atol=1e-6 * whole.max())


@pytest.mark.parametrize("core", ["Prescott", "Nehalem", "Sandybridge", "Haswell"])
def test_chunks_equal_the_whole_with_the_kernels_of_other_processors(core: str) -> None:
    """OpenBLAS picks its kernels by processor; `OPENBLAS_CORETYPE` picks those of an older one in a new process."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if " avx2 " not in flags or " fma " not in flags:
        pytest.skip("this processor has no AVX2, so it cannot run the kernels of another one")
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import numpy as np, test_frontend as t\n"
        "for name in t.STREAMED:\n"
        "    f = t.front(**t.CONFIGS[name])\n"
        "    x = t.noise(f.config.window_length + 70 * f.config.hop_length)[:12_000]\n"
        "    for size in (f.config.hop_length, 1000):\n"
        "        chunks = t.in_chunks(f, x, [size] * (x.size // size))\n"
        "        assert np.array_equal(chunks, f(x)), (name, size)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *sys.path, str(Path(__file__).parent)],
        env={**os.environ, "OPENBLAS_CORETYPE": core},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_stream_keeps_no_more_than_a_window() -> None:
    f = front()
    stream = f.stream()
    for _ in range(50):
        stream.push(noise(777))
        assert stream._tail.size < f.config.window_length
        assert stream._tail.base is None  # no view that keeps a chunk alive


def test_streams_do_not_share_state() -> None:
    f, x = front(), noise(5000)
    a, b = f.stream(), f.stream()
    a.push(noise(3000, seed=8))
    got = np.concatenate([b.push(x), b.flush()], axis=1)
    assert np.array_equal(got, f(x))


def test_peak_level_is_refused_for_a_stream() -> None:
    with pytest.raises(ConfigError, match="`level` peak"):
        FrontendStream(front(level="peak"))
