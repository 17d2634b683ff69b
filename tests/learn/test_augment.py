"""augment: laws of every change: what is kept, what is bounded, and that the generator is the only chance."""

from __future__ import annotations

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from msgspec.structs import replace  # noqa: E402

from soundmark.config import AugmentConfig  # noqa: E402
from soundmark.learn import augment as module  # noqa: E402
from soundmark.learn.augment import (  # noqa: E402
    active,
    augment,
    mask,
    mix,
    mix_styles,
    random_curve_db,
    shift_bands,
    warp_time,
)

pytestmark = pytest.mark.train

OFF = AugmentConfig(
    mix_probability=0, gain_db=0, roll=0, tilt_db=0, stretch=1, shift_bands=0, time_masks=0, freq_masks=0
)
FULL = AugmentConfig(tilt_db=6.0, stretch=1.3, shift_bands=2)
N, ROWS, FRAMES = 6, 16, 50


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def linear() -> torch.Tensor:
    """Return positive features of very different loudness."""
    levels = torch.tensor([1e-4, 1e-3, 1e-2, 0.05, 0.5, 2.0])[:, None, None]
    return levels * torch.rand(N, ROWS, FRAMES, generator=seeded(1)) + 1e-9


@pytest.fixture
def targets() -> torch.Tensor:
    return torch.eye(N)


def test_everything_off_changes_nothing(linear: torch.Tensor, targets: torch.Tensor) -> None:
    for power in (1, 2):
        got, soft = augment(linear, targets, OFF, power=power, generator=seeded())
        assert torch.equal(got, linear)
        assert torch.equal(soft, targets)
    assert torch.equal(mask(linear, OFF, seeded()), linear)


@pytest.mark.parametrize("power", [1, 2])
def test_same_generator_same_result_other_generator_other_result(
    linear: torch.Tensor, targets: torch.Tensor, power: int
) -> None:
    def run(seed: int, global_seed: int) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(global_seed)
        generator = seeded(seed)
        got, soft = augment(linear, targets, FULL, power=power, generator=generator)
        return got, soft, mask(got, FULL, generator)

    state = torch.get_rng_state()
    first, again, other = run(3, 0), run(3, 99), run(4, 0)
    torch.set_rng_state(state)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_global_generator_is_not_even_advanced(linear: torch.Tensor, targets: torch.Tensor) -> None:
    before = torch.get_rng_state()
    augment(linear, targets, FULL, power=2, generator=seeded())
    mask(linear, FULL, seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_inputs_are_not_changed(linear: torch.Tensor, targets: torch.Tensor) -> None:
    kept, kept_targets = linear.clone(), targets.clone()
    for seed in range(5):
        got, _ = augment(linear, targets, FULL, power=2, generator=seeded(seed))
        before = got.clone()
        mask(got, FULL, seeded(seed))
        assert torch.equal(got, before)
    assert torch.equal(linear, kept)
    assert torch.equal(targets, kept_targets)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("value", [0.0, 1e-38, 1e30])
def test_silence_and_extremes_stay_finite(targets: torch.Tensor, power: int, value: float) -> None:
    value = min(value, 1e15) if power == 1 else value  # a magnitude is squared
    batch = torch.rand(N, ROWS, FRAMES, generator=seeded(2))
    batch[:3] = value
    for seed in range(5):
        got, soft = augment(batch, targets, FULL, power=power, generator=seeded(seed))
        assert torch.isfinite(got).all()
        assert (got >= 0).all()
        assert torch.isfinite(soft).all()
        assert torch.isfinite(mask(got, FULL, seeded(seed))).all()


def test_targets_stay_a_distribution(linear: torch.Tensor, targets: torch.Tensor) -> None:
    for seed in range(20):
        _, soft = augment(linear, targets, FULL, power=2, generator=seeded(seed))
        torch.testing.assert_close(soft.sum(dim=1), torch.ones(N))
        assert soft.min() >= 0


@pytest.mark.parametrize("power", [1, 2])
def test_mixing_is_by_amplitude_at_equal_loudness(
    linear: torch.Tensor, targets: torch.Tensor, power: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear = linear.clamp_min(1e-3 if power == 2 else 0.1)  # within the 30 dB that are levelled out
    share = torch.tensor([0.5, 0.7, 0.9, 0.3, 1.0, 0.1])
    monkeypatch.setattr(module, "_beta", lambda *_: share)
    config = replace(OFF, mix_probability=1.0)
    got, soft = mix(linear, targets, config, power, seeded(5))
    partner = torch.randperm(N, generator=seeded(5))
    amplitude = linear.pow(1 / power)
    rms = amplitude.pow(2).mean(dim=(1, 2)).sqrt()
    for i, j in enumerate(partner.tolist()):
        r = float(share[i])
        torch.testing.assert_close(soft[i], r * targets[i] + (1 - r) * targets[j])
        mine, theirs = r * amplitude[i], (1 - r) * amplitude[j] * rms[i] / rms[j]
        if power == 2:  # powers add
            expected = (mine**2 + theirs**2) / (r**2 + (1 - r) ** 2)
            torch.testing.assert_close(
                got[i].mean(), linear[i].mean(), rtol=1e-4, atol=0
            )  # as loud as before
        else:  # amplitudes add
            expected = (mine + theirs) / (r**2 + (1 - r) ** 2) ** 0.5
        torch.testing.assert_close(got[i], expected, rtol=1e-4, atol=1e-9)


def test_the_share_of_mixed_clips_is_the_probability(linear: torch.Tensor) -> None:
    many = linear[:1].expand(2000, ROWS, FRAMES)
    targets = torch.eye(2000)
    _, soft = mix(many, targets, replace(OFF, mix_probability=0.3, mix_alpha=1.0), 2, seeded())
    assert 0.25 < float((soft.diagonal() < 1).float().mean()) < 0.35


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_beta_has_the_moments_of_a_beta(alpha: float) -> None:
    draws = module._beta(alpha, 20_000, seeded())
    assert draws.min() >= 0
    assert draws.max() <= 1
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(draws.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_roll_keeps_every_frame_and_their_order(linear: torch.Tensor) -> None:
    got = warp_time(linear, 1.0, 1.0, seeded())
    shifts = set()
    for clip, rolled in zip(linear, got, strict=True):
        matches = [k for k in range(FRAMES) if torch.equal(torch.roll(clip, -k, dims=1), rolled)]
        assert len(matches) == 1
        shifts.add(matches[0])
    assert len(shifts) > 2
    assert torch.equal(warp_time(linear, 0.0, 1.0, seeded()), linear)


def test_roll_stays_within_its_share(linear: torch.Tensor) -> None:
    ramp = torch.arange(FRAMES).float().expand(500, 1, FRAMES)
    start = warp_time(ramp, 0.2, 1.0, seeded())[:, 0, 0]
    assert start.max() < 0.2 * FRAMES
    assert start.max() > 0.1 * FRAMES


def test_stretch_changes_the_speed_within_bounds() -> None:
    ramp = torch.arange(FRAMES).float().expand(500, 1, FRAMES)
    got = warp_time(ramp, 0.0, 1.5, seeded())[:, 0]
    assert (got[:, 0] == 0).all()
    reached = got[:, 20] / 20  # the speed of each clip
    assert 1 / 1.5 - 0.05 <= reached.min() < 0.8
    assert 1.2 < reached.max() <= 1.5
    assert got.shape == (500, FRAMES)


def test_shift_bands_moves_rows_by_at_most_the_bound_and_repeats_the_edge(linear: torch.Tensor) -> None:
    ramp = torch.arange(ROWS).float()[None, :, None].expand(300, ROWS, 3)
    got = shift_bands(ramp, 2, seeded())
    seen = set()
    for clip in got[:, :, 0]:
        shift = int(clip[8] - 8)
        seen.add(shift)
        assert torch.equal(clip, (torch.arange(ROWS) + shift).clamp(0, ROWS - 1).float())
    assert seen == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize("power", [1, 2])
def test_gain_is_one_factor_per_clip_within_its_decibels(targets: torch.Tensor, power: int) -> None:
    ones = torch.ones(400, ROWS, 4)
    got, _ = augment(ones, torch.ones(400, 1), replace(OFF, gain_db=6.0), power=power, generator=seeded())
    assert torch.equal(got, got[:, :1, :1].expand_as(got))
    gain_db = (20.0 / power) * torch.log10(got[:, 0, 0])
    assert gain_db.abs().max() <= 6.0001
    assert gain_db.min() < -5
    assert gain_db.max() > 5


def test_tilt_is_smooth_over_rows_constant_over_time_and_bounded(linear: torch.Tensor) -> None:
    curve = random_curve_db(linear, 6.0, seeded())
    assert curve.shape == (N, ROWS, 1)
    assert curve.abs().max() <= 6
    assert curve.diff(dim=1).abs().max() <= 12 / ((ROWS - 1) / 4) + 1e-4
    got, _ = augment(linear, torch.eye(N), replace(OFF, tilt_db=6.0), power=2, generator=seeded())
    change = 10 * torch.log10(got / linear)
    torch.testing.assert_close(change, change[:, :, :1].expand_as(change), atol=1e-3, rtol=0)
    assert change.abs().max() <= 6.001


def test_masks_hide_at_most_the_allowed_area_by_the_mean() -> None:
    config = replace(OFF, time_masks=2, time_mask_frames=8, freq_masks=1, freq_mask_rows=3)
    features = torch.randn(300, ROWS, FRAMES, generator=seeded(1))
    got = mask(features, config, seeded())
    hidden = got != features
    mean = features.mean(dim=(1, 2), keepdim=True).expand_as(features)
    assert torch.equal(got[hidden], mean[hidden])
    columns, rows = hidden.all(dim=1).sum(dim=1), hidden.all(dim=2).sum(dim=1)
    assert columns.max() <= 16
    assert columns.max() > 8
    assert rows.max() == 3
    area = hidden.sum(dim=(1, 2))
    assert torch.equal(area, columns * ROWS + rows * FRAMES - columns * rows)  # whole bands and nothing else


def test_a_mask_wider_than_the_features_is_cut_to_them() -> None:
    features = torch.randn(50, 4, 5, generator=seeded(1))
    got = mask(features, replace(OFF, time_masks=3, time_mask_frames=10**6), seeded())
    assert torch.isfinite(got).all()


def test_partners_have_another_label_where_there_is_one() -> None:
    targets = torch.eye(3)[torch.tensor([0, 0, 1, 1, 2])]
    label = targets.argmax(1)
    seen = torch.stack([module.partners(targets, "different", seeded(s)) for s in range(200)])
    assert (label[seen] != label).all()
    counts = torch.bincount(seen[:, 0], minlength=5)
    assert (counts[2:] > 40).all()  # all of the others, about as often
    alone = torch.eye(3)[torch.tensor([1, 1, 1])]
    assert module.partners(alone, "different", seeded()).shape == (3,)
    assert sorted(module.partners(targets, "any", seeded()).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("r", [0.1, 0.5, 0.8])
def test_a_wave_mix_is_that_of_the_paper(r: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokozume et al., ICLR 2018, equation 2: p = 1 / (1 + 10^((G1 - G2) / 20) (1 - r) / r)."""
    monkeypatch.setattr(module, "_beta", lambda *_: torch.full((2,), r))
    wave = torch.randn(2, 1, 500, generator=seeded(1)) * torch.tensor([1.0, 0.2])[:, None, None]
    gain_db = torch.tensor([-3.0, -14.0])  # of each, by any measure
    config = replace(OFF, mix_probability=1.0, mix_labels="different")
    got, soft = mix(wave, torch.eye(2), config, 1, seeded(), torch.pow(10.0, gain_db / 10))
    for i, j in ((0, 1), (1, 0)):
        p = 1 / (1 + 10 ** float((gain_db[i] - gain_db[j]) / 20) * (1 - r) / r)
        wanted = p * wave[i] + (1 - p) * wave[j]
        cosine = torch.nn.functional.cosine_similarity(got[i], wanted)
        assert float(cosine) == pytest.approx(1, abs=1e-5)  # the same mixture; ours is as loud as clip i
        assert float(soft[i, i]) == pytest.approx(r)


def test_random_bands_are_those_of_the_paper() -> None:
    """Nam et al., ICASSP 2022, linear type: 3 to 5 bands of 6 rows or more, limits per batch, gains per clip."""
    features = torch.zeros(200, 64, 1)
    counts, knees = set(), set()
    for seed in range(60):
        curve = random_curve_db(features, 6.0, seeded(seed), bands="random")
        assert curve.shape == (200, 64, 1)
        assert curve.abs().max() <= 6
        bend = curve[:, :, 0].diff(dim=1).diff(dim=1).abs().amax(dim=0)  # straight within a band
        limits = [0, *(int(i) + 1 for i in torch.nonzero(bend > 1e-4)[:, 0]), 63]
        counts.add(len(limits) - 1)
        knees.update(limits[1:-1])
        assert all(b - a >= 5 for a, b in pairwise(limits))
    assert counts == {3, 4, 5}
    assert len(knees) > 30  # anywhere
    one = random_curve_db(features, 6.0, seeded(1), bands="random")
    assert float(one[:, 0].std()) > 2  # clips differ
    for rows in (1, 2, 5, 13):
        assert torch.isfinite(random_curve_db(torch.zeros(3, rows, 4), 6.0, seeded(), bands="random")).all()


def test_random_bands_are_used_where_they_are_asked_for(linear: torch.Tensor) -> None:
    config = replace(OFF, tilt_db=6.0)
    even, free = (
        augment(linear, torch.eye(N), replace(config, tilt_bands=b), power=2, generator=seeded())[0]
        for b in ("even", "random")
    )
    assert not torch.equal(even, free)


STYLE = replace(OFF, style_probability=1.0)


@pytest.mark.parametrize("kept", [0.0, 0.3, 1.0])
def test_freq_mix_style_mixes_mean_and_deviation_of_rows_and_keeps_the_shape_in_time(
    kept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_beta", lambda *_: torch.full((N,), kept))
    levels = torch.linspace(-3, 2, N)[:, None, None] + torch.linspace(0, 1, ROWS)[:, None]
    x = levels + torch.linspace(0.2, 3, N)[:, None, None] * torch.randn(N, ROWS, FRAMES, generator=seeded(1))
    got = mix_styles(x, STYLE, seeded(3))
    order = seeded(3)
    torch.rand((), generator=order)
    partner = torch.randperm(N, generator=order)
    assert (partner != torch.arange(N)).sum() >= 3
    for statistic in (torch.mean, torch.std):
        own = statistic(x, dim=2)
        torch.testing.assert_close(
            statistic(got, dim=2), kept * own + (1 - kept) * own[partner], atol=1e-4, rtol=1e-4
        )

    def shape(y: torch.Tensor) -> torch.Tensor:
        return (y - y.mean(dim=2, keepdim=True)) / y.std(dim=2, keepdim=True)

    torch.testing.assert_close(shape(got), shape(x), atol=1e-3, rtol=1e-3)
    if kept == 1.0:
        torch.testing.assert_close(got, x, atol=1e-5, rtol=1e-5)


def test_freq_mix_style_is_on_in_its_share_of_batches_and_draws_nothing_when_off(
    linear: torch.Tensor,
) -> None:
    generator = seeded()
    before = generator.get_state()
    assert mix_styles(linear, OFF, generator) is linear
    assert torch.equal(generator.get_state(), before)
    on = sum(
        mix_styles(linear, replace(STYLE, style_probability=0.4), seeded(s)) is not linear for s in range(500)
    )
    assert on / 500 == pytest.approx(0.4, abs=0.07)
    assert active(STYLE)
    assert not active(OFF)


def test_freq_mix_style_keeps_rows_that_stand_still_finite_and_still(linear: torch.Tensor) -> None:
    still = linear.clone()
    still[:3] = -1.8
    got = mix_styles(still, STYLE, seeded(2))
    assert torch.isfinite(got).all()
    assert got[:3].diff(dim=2).abs().max() < 1e-3
