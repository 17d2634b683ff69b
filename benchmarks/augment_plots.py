"""The pictures of docs/augmentation.md: what every augmentation does to sounds made in code, before and after.

python benchmarks/augment_plots.py [--out docs/images]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from soundmark import storage
from soundmark.config import AugmentConfig, FrontendConfig
from soundmark.demo import demo_clips
from soundmark.frontend import Frontend
from soundmark.learn import augment, waves
from soundmark.plots import heat, side_by_side, waveform

ROOT = Path(__file__).resolve().parents[1]
RATE, SECONDS = 16_000, 2.0
FRONT = Frontend(
    FrontendConfig(sample_rate=RATE, n_fft=512, hop_length=320, n_mels=64, fmin=50.0, offset=1e-8)
)
RANGE_DB = 70.0
"""What the colours span, from the loudest point of a figure down."""

Array = np.ndarray
Part = tuple[str, Array]
SOUNDS = {clip.name: 0.5 * clip.samples for clip in demo_clips(sample_rate=RATE, seconds=2 * SECONDS, seed=3)}
N = round(RATE * SECONDS)


def sound(name: str, *, start_s: float = 0.0) -> Array:
    """Return `SECONDS` of a demo sound: (n_samples,)."""
    return SOUNDS[name][round(start_s * RATE) :][:N]


def changed(samples: Array, other: Array | None = None, *, size: int = N, **change: object) -> Array:
    """Return ``samples`` after one change of the wave."""
    numbers = waves.WaveChange(**change)  # type: ignore[arg-type]
    return waves.apply(samples, numbers, window_samples=size, sample_rate=RATE, behind=other)


def batch(*sounds: Array) -> torch.Tensor:
    """Return linear features of sounds: (batch, n_rows, n_frames)."""
    return torch.from_numpy(np.stack([FRONT.linear(one) for one in sounds]))


def finished(linear: torch.Tensor) -> Array:
    """Return features in dB: (batch, n_rows, n_frames)."""
    return np.asarray(FRONT.finish(linear, torch))


def spectra(*parts: Part, title: str) -> str:
    """Return features side by side in one scale of colours."""
    top = max(float(values.max()) for _, values in parts)
    return side_by_side(
        [(name, heat(values, low=top - RANGE_DB, high=top)) for name, values in parts], title=title
    )


def heard(title: str, *parts: Part) -> str:
    """Return the spectrograms of waves side by side."""
    return spectra(*((name, FRONT(samples)) for name, samples in parts), title=title)


def envelopes(title: str, *parts: Part) -> str:
    """Return waves side by side."""
    return side_by_side([(name, waveform(samples)) for name, samples in parts], title=title)


def seeded(seed: int) -> torch.Generator:
    """Return the only source of chance of a figure."""
    return torch.Generator().manual_seed(seed)


def crop() -> str:
    """Return a clip and windows cut from it."""
    clip = SOUNDS["knock_at_the_door"]
    parts = [
        (f"1.5 s from it, crop {u:g}", changed(clip, size=round(1.5 * RATE), crop=u)) for u in (0.2, 0.8)
    ]
    return envelopes("crops", ("4 s", clip), *parts)


def roll() -> str:
    """Return a window and the same turned in a circle."""
    x = sound("two_bells")
    return envelopes("circular shift", ("before", x), ("shifted by 40 %", changed(x, roll=0.4)))


def speed() -> str:
    """Return a sound at two other tape speeds."""
    x, longer = sound("morning_birds"), SOUNDS["morning_birds"]
    return heard(
        "tape speed",
        ("before", x),
        ("1.25 times as fast", changed(longer, speed=1.25)),
        ("0.8 times", changed(longer, speed=0.8)),
    )


def tempo() -> str:
    """Return a sound at another tempo, of the wave and of frames."""
    x, longer = sound("morning_birds"), SOUNDS["morning_birds"]
    linear = augment.warp_time(batch(x, x), 0.0, 1.5, seeded(0))
    return spectra(
        ("before", FRONT(x)),
        ("waves.stretch: 1.25 times as fast", FRONT(changed(longer, stretch=1.25))),
        ("augment.stretch: on frames", finished(linear)[0]),
        title="tempo",
    )


def pitch() -> str:
    """Return a sound at another pitch, of the wave and of rows."""
    x = sound("car_horn")
    linear = augment.shift_bands(batch(x, x, x, x), 4, seeded(1))
    return spectra(
        ("before", FRONT(x)),
        ("waves.pitch: 4 semitones up", FRONT(changed(x, pitch=4.0))),
        ("augment.shift_bands: rows moved", finished(linear)[2]),
        title="pitch",
    )


def noise() -> str:
    """Return a sound in white noise at two ratios."""
    x = sound("car_horn")
    parts = [
        (f"{ratio:g} dB above white noise", changed(x, snr_db=ratio, noise_seed=1)) for ratio in (20.0, 5.0)
    ]
    return heard("noise", ("before", x), *parts)


def background() -> str:
    """Return a sound, another one, and the first with the second behind it."""
    x, rain = sound("two_bells"), sound("steady_rain")
    both = changed(x, rain, behind=0.0, behind_db=10.0)
    return heard("background", ("a window", x), ("another recording", rain), ("behind it, 10 dB below", both))


def gain() -> str:
    """Return a wave louder and softer."""
    x = sound("knock_at_the_door")
    parts = [(f"{db:+g} dB", changed(x, gain_db=db)) for db in (6.0, -6.0)]
    return envelopes("gain", ("before", x), *parts)


def polarity() -> str:
    """Return a few milliseconds and the same upside down."""
    x = 2 * sound("knock_at_the_door")
    first = int(np.abs(x).argmax()) - RATE // 500
    part = slice(first, first + round(0.03 * RATE))
    return envelopes("polarity", ("30 ms", x[part]), ("turned over", changed(x, flip=True)[part]))


def mixing() -> str:
    """Return two sounds and their mixture at equal loudness."""
    linear = batch(sound("two_bells"), sound("night_crickets"))
    config = AugmentConfig(mix_probability=1.0, mix_alpha=4.0, mix_labels="different")
    mixed, soft = augment.mix(linear, torch.eye(2), config, 2, seeded(5))
    share = float(soft[0, 0])
    own = finished(linear)
    return spectra(
        ("church bells", own[0]),
        ("crickets", own[1]),
        (f"mixed: {share:.0%} bells, {1 - share:.0%} crickets", finished(mixed)[0]),
        title="mixing",
    )


def filters() -> str:
    """Return a sound through two random equalisers."""
    linear = batch(sound("steady_rain"), sound("steady_rain"))
    parts = []
    for bands in ("even", "random"):
        curve = augment.random_curve_db(linear, 12.0, seeded(4), bands=bands)
        parts.append((f"{bands} bands, at most 12 dB", finished(linear * 10 ** (curve / 10))[0]))
    return spectra(("before", finished(linear)[0]), *parts, title="filter augmentation")


def style() -> str:
    """Return a sound with the mean and deviation of the rows of another."""
    features = torch.from_numpy(finished(batch(sound("morning_birds"), sound("running_engine"))))
    config = AugmentConfig(style_probability=1.0, style_alpha=0.1)
    for seed in range(200):  # the first draw that changes partners and keeps next to nothing of its own
        got = augment.mix_styles(features, config, seeded(seed))
        if float((got[0].mean(dim=1) - features[1].mean(dim=1)).abs().max()) < 1:
            break
    own = features.numpy()
    return spectra(
        ("birds", own[0]),
        ("an engine", own[1]),
        ("birds in the style of the engine", got[0].numpy()),
        title="freq-mix-style",
    )


def masks() -> str:
    """Return features with masks over time and rows."""
    features = torch.from_numpy(finished(batch(sound("morning_birds"))))
    config = AugmentConfig(time_masks=2, time_mask_frames=20, freq_masks=2, freq_mask_rows=12)
    return spectra(
        ("before", features[0].numpy()),
        ("two masks over time, two over rows", augment.mask(features, config, seeded(8))[0].numpy()),
        title="masks",
    )


FIGURES: dict[str, Callable[[], str]] = {
    "crop": crop,
    "roll": roll,
    "speed": speed,
    "tempo": tempo,
    "pitch": pitch,
    "noise": noise,
    "background": background,
    "gain": gain,
    "polarity": polarity,
    "mixing": mixing,
    "filter": filters,
    "style": style,
    "masks": masks,
}


def main() -> None:
    """Write one SVG file per augmentation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    out = parser.parse_args().out
    for name, figure in FIGURES.items():
        storage.write_bytes(out / f"augment-{name}.svg", figure().encode())


if __name__ == "__main__":
    main()
