"""What training does to a batch, in the feature domain: decide with a generator, apply to linear features.

Every function takes and returns float tensors ``(batch, n_rows, n_frames)``; power (or magnitude) is mixed *before*
the logarithm, as two sounds in one room would add up.

Sources: between-class mixing, Tokozume et al., ICLR 2018; SpecAugment, Park et al., Interspeech 2019;
filter augmentation (linear type), Nam et al., ICASSP 2022; freq-mix-style, Kim et al., Interspeech 2022, and Schmid et
al., DCASE 2022, after MixStyle, Zhou et al., ICLR 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soundmark.config import AugmentConfig

_NARROWEST = 6  # rows of a random band of `random_curve_db`


def augment(
    linear: Tensor,
    targets: Tensor,
    config: AugmentConfig,
    *,
    power: int,
    generator: torch.Generator,
    level: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return changed linear features and soft targets ``(batch, n_labels)``.

    Args:
        linear: ``(batch, n_rows, n_frames)``, before the logarithm.
        targets: ``(batch, n_labels)``, rows that sum to 1.
        config: strengths.
        power: 2 where ``linear`` is power, 1 where it is magnitude (or a wave).
        generator: the only source of randomness.
        level: ``(batch,)`` loudness as a power, made equal before mixing; None for the mean power.
    """
    if config.roll or config.stretch != 1:
        linear = warp_time(linear, config.roll, config.stretch, generator)
    if config.shift_bands:
        linear = shift_bands(linear, config.shift_bands, generator)
    if config.tilt_db:
        curve = random_curve_db(linear, config.tilt_db, generator, bands=config.tilt_bands)
        linear = linear * _gain(curve, power)
    if config.mix_probability:
        linear, targets = mix(linear, targets, config, power, generator, level)
    if config.gain_db:
        gain_db = _uniform((len(linear), 1, 1), -config.gain_db, config.gain_db, generator)
        linear = linear * _gain(gain_db, power)
    return linear, targets


def active(config: AugmentConfig) -> bool:
    """Return whether ``config`` changes anything by chance."""
    masks = (config.time_masks and config.time_mask_frames) or (config.freq_masks and config.freq_mask_rows)
    strengths = (config.mix_probability, config.gain_db, config.roll, config.tilt_db, config.shift_bands)
    return any((*strengths, config.style_probability, masks)) or config.stretch != 1


def mix(
    linear: Tensor,
    targets: Tensor,
    config: AugmentConfig,
    power: int,
    generator: torch.Generator,
    level: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mix clips with partners at equal loudness, by r in amplitude; the target share is r (between-class learning)."""
    n = len(linear)
    partner = partners(targets, config.mix_labels, generator)
    share = _beta(config.mix_alpha, n, generator)
    share = torch.where(torch.rand(n, generator=generator) < config.mix_probability, share, torch.ones(n))
    if level is None:
        level = linear.pow(2 / power).mean(dim=(1, 2))  # mean power of each clip
    level = level.clamp_min(1e-12)
    match = (level / level[partner]).clamp(1e-3, 1e3).pow(power / 2)[:, None, None]
    r = share[:, None, None]
    norm = (r**2 + (1 - r) ** 2).pow(power / 2)
    mixed = (r**power * linear + (1 - r) ** power * match * linear[partner]) / norm
    return mixed, share[:, None] * targets + (1 - share[:, None]) * targets[partner]


def partners(targets: Tensor, labels: str, generator: torch.Generator) -> Tensor:
    """Return ``(batch,)`` the clip that each one is mixed with: any, or one of another label where there is one."""
    if labels == "any":
        return torch.randperm(len(targets), generator=generator)
    label = targets.argmax(dim=1)
    other = (label[:, None] != label[None, :]).float()  # (batch, batch)
    other[other.sum(dim=1) == 0] = 1.0
    return torch.multinomial(other, 1, generator=generator)[:, 0]


def warp_time(linear: Tensor, roll: float, stretch: float, generator: torch.Generator) -> Tensor:
    """Shift every clip circularly by up to ``roll`` of its length and stretch its time axis by 1/s ... s."""
    n, _, frames = linear.shape
    start = _uniform((n, 1), 0.0, roll * frames, generator).floor()
    speed = stretch ** _uniform((n, 1), -1.0, 1.0, generator)
    index = ((torch.arange(frames)[None, :] * speed).floor() + start).long() % frames  # (batch, n_frames)
    return linear.gather(2, index[:, None, :].expand_as(linear))


def shift_bands(linear: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Move rows up or down by at most ``most`` (a pitch shift on a mel axis); the edge row fills the gap."""
    n, rows, _ = linear.shape
    shift = torch.randint(-most, most + 1, (n, 1), generator=generator)
    index = (torch.arange(rows)[None, :] + shift).clamp(0, rows - 1)  # (batch, n_rows)
    return linear.gather(1, index[:, :, None].expand_as(linear))


def random_curve_db(
    linear: Tensor, tilt_db: float, generator: torch.Generator, *, bands: str = "even"
) -> Tensor:
    """Return a random equaliser in dB, ``(batch, n_rows, 1)``: another microphone, another room.

    Gains are drawn where bands meet and joined by straight lines. ``even``: four equal bands. ``random``: as published,
    three to five bands whose limits are drawn once per batch, none narrower than `_NARROWEST` rows.
    """
    n, rows = len(linear), linear.shape[1]
    if bands == "even":
        heights = _uniform((n, 1, 5), -tilt_db, tilt_db, generator)
        curve = torch.nn.functional.interpolate(heights, size=rows, mode="linear", align_corners=True)
        return curve.transpose(1, 2)
    count = min(int(torch.randint(3, 6, (), generator=generator)), rows)
    narrowest = min(_NARROWEST, rows // count)
    free = torch.randint(0, rows - count * narrowest + 1, (count - 1,), generator=generator).sort().values
    inner = free + narrowest * torch.arange(1, count)
    limits = torch.cat([torch.tensor([0]), inner, torch.tensor([rows - 1])])
    heights = _uniform((n, count + 1), -tilt_db, tilt_db, generator)
    row = torch.arange(rows)
    band = torch.searchsorted(inner.contiguous(), row, right=True)  # (n_rows,)
    way = (row - limits[band]) / (limits[band + 1] - limits[band]).clamp_min(1)
    return torch.lerp(heights[:, band], heights[:, band + 1], way)[:, :, None]


def mix_styles(features: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Give every row of finished features a mean and a deviation over time between its own and a partner's.

    Which sound it is stays in how a row moves; what the row's mean and deviation say is mostly the recording device.
    """
    if not config.style_probability or float(torch.rand((), generator=generator)) >= config.style_probability:
        return features
    n = len(features)
    partner = torch.randperm(n, generator=generator)
    kept = _beta(config.style_alpha, n, generator)[:, None, None]
    mean = features.mean(dim=2, keepdim=True)  # (batch, n_rows, 1)
    deviation = (features.var(dim=2, keepdim=True, correction=0) + 1e-6).sqrt()
    shape = (features - mean) / deviation
    return shape * torch.lerp(deviation[partner], deviation, kept) + torch.lerp(mean[partner], mean, kept)


def mask(features: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Set random bands of time and rows to each clip's mean (SpecAugment), on finished features."""
    n, rows, frames = features.shape
    hidden = torch.zeros(n, rows, frames, dtype=torch.bool)
    for count, widest, size, axis in (
        (config.time_masks, config.time_mask_frames, frames, 2),
        (config.freq_masks, config.freq_mask_rows, rows, 1),
    ):
        for _ in range(count):
            width = torch.rand(n, 1, generator=generator) * min(widest, size)
            start = torch.rand(n, 1, generator=generator) * (size - width)
            position = torch.arange(size)[None, :]
            inside = (position >= start) & (position < start + width)  # (batch, size)
            hidden |= inside[:, None, :] if axis == 2 else inside[:, :, None]
    return torch.where(hidden, features.mean(dim=(1, 2), keepdim=True), features)


def _gain(gain_db: Tensor, power: int) -> Tensor:
    return torch.pow(torch.tensor(10.0), gain_db * (power / 20.0))


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _beta(alpha: float, n: int, generator: torch.Generator) -> Tensor:
    """Return ``n`` draws from Beta(alpha, alpha), as a ratio of gamma draws (torch's sampler takes a generator)."""
    draws = torch._standard_gamma(torch.full((2, n), alpha), generator=generator).clamp_min(1e-12)
    return draws[0] / draws.sum(dim=0)
