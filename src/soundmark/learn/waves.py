"""What training does to samples before the front end: `decide` draws the numbers, `apply` is a pure function of them.

Sources: EnvNet-v2 (Tokozume et al., ICLR 2018) for crops and tape speed; SOLA (Roucos and Wilgus, ICASSP 1985) for
tempo without pitch; soxr for resampling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import soxr
import torch

from soundmark.config import WaveConfig
from soundmark.quality import SILENT_PEAK

Array = npt.NDArray[np.float32]

_GRAIN_S, _SEARCH_S = 0.06, 0.012
"""SOLA: length of a grain, and how far its start may move to fit what stands before it."""
_THIN = 4  # the fit is looked for on every 4th sample


@dataclass(frozen=True, slots=True)
class WaveChange:
    """The numbers of one window; the defaults change nothing."""

    crop: float = 0.0  # where the window begins, 0 ... 1 of what is free
    roll: float = 0.0  # circular shift, as a share of the window
    speed: float = 1.0  # above 1: faster and higher
    stretch: float = 1.0  # above 1: faster, pitch kept
    pitch: float = 0.0  # semitones up
    snr_db: float | None = None  # white noise at this ratio
    noise_seed: int = 0
    behind: float | None = None  # which of the other recordings is laid behind it, 0 ... 1
    behind_at: float = 0.0  # where that one begins, 0 ... 1 of what is free
    behind_db: float = 0.0  # this far below the window
    gain_db: float = 0.0
    flip: bool = False  # polarity


def active(config: WaveConfig) -> bool:
    """Return whether ``config`` changes anything."""
    return config != WaveConfig()


def decide(config: WaveConfig, n: int, generator: torch.Generator) -> list[WaveChange]:
    """Return the changes of ``n`` windows, drawn from ``generator`` alone.

    Always nine numbers per window, then three more where there are backgrounds: the other changes of a preset, and so
    its runs, stay what they are.
    """
    draws = torch.rand((n, 9), generator=generator, dtype=torch.float64).tolist()
    changes = [_change(config, *row) for row in draws]
    if not config.background_share:
        return changes
    more = torch.rand((n, 3), generator=generator, dtype=torch.float64).tolist()
    return [_with_background(config, change, *row) for change, row in zip(changes, more, strict=True)]


def _with_background(
    config: WaveConfig, change: WaveChange, chance: float, which: float, at: float
) -> WaveChange:
    if chance >= config.background_share:
        return change
    low, high = config.background_snr_db
    ratio = low + (high - low) * (chance / config.background_share)  # uniform below the share
    return replace(change, behind=which, behind_at=at, behind_db=ratio)


def _change(config: WaveConfig, *u: float) -> WaveChange:
    low, high = config.snr_db
    noisy = u[5] < config.noise
    return WaveChange(
        crop=u[0] if config.clip_s else 0.0,
        roll=u[1] * config.roll,
        speed=config.speed ** (2 * u[2] - 1),
        stretch=config.stretch ** (2 * u[3] - 1),
        pitch=config.pitch * (2 * u[4] - 1),
        snr_db=low + (high - low) * (u[5] / config.noise) if noisy else None,  # uniform below the share
        noise_seed=int(u[6] * 2**53),
        gain_db=config.gain_db * (2 * u[7] - 1),
        flip=u[8] < config.polarity,
    )


def apply(
    samples: Array,
    change: WaveChange,
    *,
    window_samples: int,
    sample_rate: int,
    behind: Array | None = None,
) -> Array:
    """Return a window of ``window_samples``, cut from ``samples`` (n,) and changed; what is too short gets zeros.

    ``behind`` (n,) is the recording that ``change.behind`` means, at least a window long.
    """
    x = samples
    tempo = change.stretch * 2.0 ** (
        -change.pitch / 12
    )  # a pitch shift: slower by SOLA, then faster as a tape
    speed = change.speed * 2.0 ** (change.pitch / 12)
    if tempo != 1.0:
        x = stretched(x, tempo, sample_rate)
    if speed != 1.0:
        x = np.asarray(soxr.resample(x, speed, 1.0, quality="LQ"), dtype=np.float32)
    free = max(0, len(x) - window_samples)
    start = int(change.crop * (free + 1)) if change.crop else 0
    x = np.array(x[start : start + window_samples], dtype=np.float32)
    x = np.pad(x, (0, window_samples - len(x)))
    if change.roll:
        x = np.roll(x, int(change.roll * window_samples))
    if behind is not None:
        start = int(change.behind_at * (len(behind) - window_samples + 1))
        x = x + below(behind[start : start + window_samples], x, change.behind_db)
    if change.snr_db is not None:
        x = x + noise(x, change.snr_db, change.noise_seed)
    gain = 10.0 ** (change.gain_db / 20) * (-1.0 if change.flip else 1.0)
    return x if gain == 1.0 else (x * np.float32(gain)).astype(np.float32)


def noise(samples: Array, snr_db: float, seed: int) -> Array:
    """Return white noise whose power is ``snr_db`` below that of ``samples`` (n,); none for silence."""
    drawn = np.random.default_rng(seed).standard_normal(len(samples), dtype=np.float32)
    return below(drawn, samples, snr_db)


def below(sound: Array, samples: Array, snr_db: float) -> Array:
    """Return ``sound`` (n,) at a power that is ``snr_db`` below that of ``samples`` (n,); nothing of a silent one."""
    power, its = float(np.mean(np.square(samples))), float(np.mean(np.square(sound)))
    if its < SILENT_PEAK**2:  # what lies under -80 dBFS is the noise of a converter, not a sound
        return np.zeros_like(sound)
    return sound * np.float32(np.sqrt(power / its / 10 ** (snr_db / 10)))


def stretched(samples: Array, tempo: float, sample_rate: int) -> Array:
    """Return ``samples`` (n,) played ``tempo`` times as fast at the same pitch, about ``n / tempo`` samples.

    Grains are laid half over one another; each is taken from where it fits best to what the last one would have gone
    on with (largest normalised correlation).
    """
    half = max(8, round(_GRAIN_S * sample_rate / 2))
    search = max(_THIN, round(_SEARCH_S * sample_rate) // _THIN * _THIN)
    wanted = round(len(samples) / tempo)
    if wanted < 2 * half or len(samples) < 4 * half:
        return samples
    source = np.pad(samples, (search, 2 * half + 2 * search))
    out = np.zeros((wanted // half + 2) * half, dtype=np.float32)
    rise = (0.5 - 0.5 * np.cos(np.pi * (np.arange(half) + 0.5) / half)).astype(np.float32)
    out[:half] = source[search : search + half]
    follow = search + half  # where the last grain would go on, in `source`
    for place in range(half, wanted, half):
        ideal = min(round(place * tempo), len(samples) - 1)  # in `samples`: `search` earlier in `source`
        region = source[ideal : ideal + half + 2 * search : _THIN]
        target = source[follow : follow + half : _THIN]
        fit = np.correlate(region, target, "valid")
        energy = np.cumsum(np.concatenate([[0.0], np.square(region, dtype=np.float64)]))
        fit = fit / np.sqrt(energy[len(target) :] - energy[: -len(target)] + 1e-9)
        start = ideal + _THIN * int(fit.argmax())
        out[place : place + half] = (1 - rise) * source[follow : follow + half] + rise * source[
            start : start + half
        ]
        follow = min(start + half, len(source) - half)
    return out[:wanted]
