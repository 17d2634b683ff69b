"""batches: the cached road and the live one give the same features, and chance comes from the generator alone."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from msgspec.structs import replace  # noqa: E402

import synthetic  # noqa: E402
from soundmark import audio  # noqa: E402
from soundmark.config import AugmentConfig, FrontendConfig, WaveConfig, WindowConfig  # noqa: E402
from soundmark.dataset import Dataset  # noqa: E402
from soundmark.frontend import Frontend  # noqa: E402
from soundmark.learn.batches import Batches, Judge  # noqa: E402
from soundmark.preset import Preset  # noqa: E402

pytestmark = pytest.mark.train

OFF = AugmentConfig(mix_probability=0, gain_db=0, roll=0, time_masks=0, freq_masks=0)
PLAIN = replace(synthetic.tiny_preset(), augment=OFF)
WAVE = Preset(
    frontend=FrontendConfig(kind="wave", sample_rate=synthetic.RATE),
    window=WindowConfig(window_s=0.3, hop_s=0.2),
    waves=WaveConfig(clip_s=1.0),
    augment=OFF,
)
ROWS = torch.tensor([3, 0, 7])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def some(dataset: Dataset) -> Dataset:
    return dataset.in_folds([1, 2])


def test_cached_and_live_features_are_those_of_the_front_end(some: Dataset) -> None:
    live = replace(PLAIN, waves=WaveConfig(polarity=1.0))  # which no spectrum sees
    cached, computed = (Batches(preset, some)(ROWS, seeded()) for preset in (PLAIN, live))
    front = Frontend(PLAIN.frontend)
    wanted = [
        front(audio.load(some.clips[i].path, sample_rate=synthetic.RATE).samples) for i in ROWS.tolist()
    ]
    np.testing.assert_allclose(cached[0].numpy(), np.stack(wanted), atol=1e-5)  # torch's log is not numpy's
    torch.testing.assert_close(computed[0], cached[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(cached[1], computed[1])
    assert cached[1].argmax(1).tolist() == [some.targets[i] for i in ROWS.tolist()]


def test_mfcc_is_finished_after_mixing(some: Dataset) -> None:
    preset = replace(PLAIN, frontend=replace(PLAIN.frontend, kind="mfcc", mean=0.0, std=1.0))
    batches = Batches(preset, some)
    assert batches.shape == (13, 51)
    assert batches(ROWS, seeded())[0].shape == (3, 13, 51)


def test_crops_of_a_wave_are_pieces_of_the_clip_at_random(some: Dataset) -> None:
    batches = Batches(WAVE, some)
    assert len(batches) == len(some.clips)  # a row per clip, not per window
    assert batches.shape == (1, 4800)
    starts = set()
    whole = audio.load(some.clips[3].path, sample_rate=synthetic.RATE).samples
    for seed in range(5):
        crop = batches(ROWS, seeded(seed))[0][0, 0].numpy()
        views = np.lib.stride_tricks.sliding_window_view(whole, 4800)
        (at,) = np.flatnonzero((views[:, :3] == crop[:3]).all(axis=1))
        np.testing.assert_array_equal(crop, whole[at : at + 4800])
        starts.add(int(at))
    assert len(starts) == 5


@pytest.mark.parametrize("preset", [synthetic.tiny_preset(), WAVE], ids=["spectrum", "wave"])
def test_chance_is_the_generator_that_is_passed_in(some: Dataset, preset: Preset) -> None:
    waves = WaveConfig(roll=1.0, pitch=2.0, noise=1.0, gain_db=3.0, clip_s=preset.waves.clip_s)
    batches = Batches(replace(preset, waves=waves), some)
    state = torch.get_rng_state()
    first, again, other = (batches(ROWS, seeded(s))[0] for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_wave_is_mixed_at_equal_weighted_loudness(some: Dataset) -> None:
    augment = replace(
        OFF, mix_probability=1.0, mix_alpha=1.0, mix_loudness="a-weighted", mix_labels="different"
    )
    batches = Batches(replace(WAVE, augment=augment), some)
    rows = torch.arange(0, len(batches), 3)
    mixed, soft = batches(rows, seeded())
    plain, hard = Batches(WAVE, some)(rows, seeded())
    assert ((soft > 0).sum(dim=1) == 2).all()
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(len(rows)))
    assert torch.isfinite(mixed).all()
    assert not torch.equal(mixed, plain)
    assert (soft[hard.bool()] > 0).all()


def test_the_judge_is_the_mean_loss_over_windows_as_when_classifying(some: Dataset) -> None:
    judge = Judge(WAVE, some)

    class Sure(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            assert features.shape[1:] == (1, 4800)
            return torch.tensor([2.0, 0, 0, 0, 0]).expand(len(features), 5)

    judged = judge(Sure().train(), torch.device("cpu"))
    total = np.log(np.exp(2) + 4)
    heard = torch.zeros(5, 5, dtype=torch.int64)
    heard[:, 0] = len(some.clips)  # of each label a fifth of the clips, five windows of each clip
    assert torch.equal(judged.confusion, heard)
    assert judged.accuracy == pytest.approx(0.2)
    assert judged.loss == pytest.approx(total - 0.2 * 2, rel=1e-5)  # a fifth of the clips is the first label
    assert len(judge._targets) == 5 * len(some.clips)  # windows of 0.3 s every 0.2 s, the last one kept
