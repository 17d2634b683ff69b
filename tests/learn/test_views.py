"""views: pure functions of fold, config and seed, never mixed across folds, stored whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from msgspec.structs import replace  # noqa: E402

import synthetic  # noqa: E402
from soundmark import audio  # noqa: E402
from soundmark.config import DistillConfig, FrontendConfig, WaveConfig  # noqa: E402
from soundmark.dataset import Dataset, load_esc50  # noqa: E402
from soundmark.errors import ConfigError, StorageError  # noqa: E402
from soundmark.learn import recordings, views  # noqa: E402
from soundmark.learn.seen import Seen  # noqa: E402
from soundmark.preset import Preset, load_preset  # noqa: E402

pytestmark = pytest.mark.train

CHANGES = WaveConfig(roll=1.0, speed=1.1, stretch=1.1, pitch=1.0, noise=0.5, gain_db=6.0)


def preset(**distill: Any) -> Preset:
    return replace(
        synthetic.tiny_preset(),
        waves=CHANGES,
        distill=DistillConfig(**{"views": 3, "mix": 0.8, **distill}),
    )


def folds(dataset: Dataset, made: Preset | None = None) -> tuple[views.Fold, ...]:
    return views.folds_of(dataset, made or preset(), dataset.hashes())


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOUNDMARK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_plan_follows_from_the_fold_the_seed_and_the_view(dataset: Dataset) -> None:
    (one, two), made = folds(dataset)[:2], preset()

    def plan(fold: views.Fold, view: int) -> list[views.View]:
        return views.plan(fold, made.distill, made.waves, view)

    assert plan(one, 1) == plan(one, 1)
    assert len({str(plan(one, view)) for view in range(4)}) == 4
    assert plan(one, 1) != plan(two, 1)
    assert plan(one, 0) == [views.View(clip) for clip in range(20)]
    other = folds(dataset, preset(view_seed=1))[0]
    assert views.plan(other, made.distill, made.waves, 1) != plan(one, 1)
    mixed = [view.share < 1 for number in range(1, 40) for view in plan(one, number)]
    assert 0.7 < np.mean(mixed) < 0.8  # 0.8 of them, less those that drew themselves (1 of 20)
    assert all(view.partner != view.clip for view in plan(one, 1) if view.share < 1)


def test_views_depend_on_their_own_fold_alone(dataset: Dataset) -> None:
    """So the store serves every outer fold, and no view of a training clip holds anything of a test clip."""
    whole, without = folds(dataset), folds(dataset.in_folds([1, 2, 4]))
    assert {fold.number: fold.key for fold in without}.items() <= {f.number: f.key for f in whole}.items()
    for fold in whole:
        assert {clip.fold for clip in fold.clips} == {fold.number}
        for view in views.plan(fold, preset().distill, CHANGES, 1):
            assert 0 <= view.partner < len(fold.clips)


def test_soft_labels_are_the_shares(dataset: Dataset) -> None:
    some = [views.View(0), views.View(1, partner=2, share=0.25), views.View(1, partner=0, share=0.25)]
    told = views.soft_labels(some, [1, 1, 0], 3)
    np.testing.assert_allclose(told, [[0, 1, 0], [0.75, 0.25, 0], [0, 1, 0]])


def test_waves_are_mixed_at_equal_power(rng: np.random.Generator) -> None:
    a, b = (scale * rng.standard_normal(50_000).astype(np.float32) for scale in (0.1, 0.01))
    for share in (0.2, 0.5, 0.9):
        mixed = views.mix(a, b, share)
        assert np.mean(mixed**2) == pytest.approx(np.mean(a**2), rel=0.03)
        by_a, by_b = np.mean(mixed * a) / np.mean(a * a), np.mean(mixed * b) / np.mean(b * b) * 0.1
        assert by_a / by_b == pytest.approx(share / (1 - share), rel=0.1)
    assert np.isfinite(views.mix(np.zeros_like(a), b, 0.5)).all()


def test_a_rendered_view_is_the_same_at_every_call_and_another_than_the_clip(dataset: Dataset) -> None:
    fold = folds(dataset)[0]
    view = next(view for view in views.plan(fold, preset().distill, CHANGES, 1) if view.share < 0.9)
    wave = views.render(view, views.Recordings(fold.clips), 1.0)
    assert wave.shape == (44_100,)
    np.testing.assert_array_equal(wave, views.render(view, views.Recordings(fold.clips), 1.0))
    alone = views.render(replace_share(view), views.Recordings(fold.clips), 1.0)
    assert np.abs(wave - alone).max() > 0.01
    assert views.at(wave, 16_000, 1.0).shape == (16_000,)


def test_clips_are_decoded_once_as_long_as_there_is_room(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = audio.load
    monkeypatch.setattr(audio, "load", lambda path, **rate: opened.append(path) or real(path, **rate))
    clips = dataset.clips[:3]
    monkeypatch.setattr(
        recordings, "KEPT_SAMPLES", 70_000
    )  # one clip of a second at 44.1 kHz, and one at 16 kHz
    read = recordings.Recordings(clips)
    for _ in range(2):
        for clip in range(3):
            for rate in (44_100, 16_000):
                np.testing.assert_array_equal(
                    read(clip, rate), real(clips[clip].path, sample_rate=rate).samples
                )
    assert [opened.count(clip.path) for clip in clips] == [2, 4, 4]
    assert not read(0, 16_000).flags.writeable


def replace_share(view: views.View) -> views.View:
    return views.View(view.clip, view.change, view.partner, view.partner_change, 1.0)


def test_the_plain_view_is_the_clip_within_half_a_step(dataset: Dataset, own_cache: Path) -> None:
    made = preset()
    seen, (fold, *_) = Seen(made), folds(dataset)
    views.build([seen], [(fold, 0)], made)
    stored = views.open_block(seen, fold, 0)
    assert stored is not None
    assert stored.dtype == np.uint8
    features = seen.features(stored).numpy()
    for row, clip in enumerate(fold.clips):
        heard = audio.load(clip.path, sample_rate=16_000).samples
        np.testing.assert_allclose(features[row], seen._frontend(heard), atol=0.501 * seen.step)
    assert seen.step < 0.005 * 150  # of about 150 dB / 20
    assert stored.min() >= 0
    assert stored.max() < 255


def test_the_scale_needs_no_data_and_other_features_are_refused() -> None:
    yamnet = Seen(load_preset("edge"))
    assert yamnet.low == pytest.approx(np.log(1e-3), abs=1e-4)  # where YAMNet's own front end has it
    assert 3 < yamnet.low + 255 * yamnet.step < 6
    for front in (FrontendConfig(kind="mfcc"), FrontendConfig(scale="linear")):
        with pytest.raises(ConfigError, match="8 bits"):
            Seen(replace(synthetic.tiny_preset(), frontend=front))


class _Killed(BaseException):
    pass


def blocks(cache: Path) -> dict[str, bytes]:
    return {path.relative_to(cache).as_posix(): path.read_bytes() for path in sorted(cache.rglob("*.npy"))}


def test_an_interrupted_build_goes_on_and_equals_the_whole_one(
    dataset: Dataset, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, some = preset(views=2), dataset.in_folds([1, 2])
    seen, both = Seen(made), folds(some)
    views.build([seen], views.missing([seen], both, 2), made)
    whole = blocks(own_cache)
    assert len(whole) == 4
    shutil.rmtree(own_cache)
    done = [0]

    def killed(n: int) -> None:
        done[0] += n
        if done[0] > 30:  # in the second block
            raise _Killed

    with pytest.raises(_Killed):
        views.build([seen], views.missing([seen], folds(some), 2), made, on_view=killed)
    assert 0 < len(blocks(own_cache)) < 4
    assert not list(own_cache.rglob(".0*"))  # nothing half-written
    left = views.missing([seen], both, 2)
    assert len(left) == 4 - len(blocks(own_cache))
    rendered = []
    real = views.render
    monkeypatch.setattr(views, "render", lambda *a: rendered.append(a) or real(*a))
    views.build([seen], left, made)
    assert len(rendered) == 20 * len(left)
    assert blocks(own_cache) == whole
    assert not views.missing([seen], both, 2)
    more = views.missing([seen], both, 3)
    assert [view for _, view in more] == [2, 2]  # more views are added, none made again


def test_a_damaged_block_is_made_again(dataset: Dataset, own_cache: Path) -> None:
    made, seen = preset(), Seen(preset())
    (fold,) = folds(dataset.in_folds([1]))
    views.build([seen], [(fold, 0)], made)
    path = views.block_path(seen, fold, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert views.missing([seen], [fold], 1) == [(fold, 0)]
    views.build([seen], [(fold, 0)], made)
    assert path.read_bytes() == whole


def test_another_config_or_clip_is_another_block(dataset: Dataset, tmp_path: Path) -> None:
    made, seen = preset(), Seen(preset())
    (fold,) = folds(dataset.in_folds([1]))
    paths = {views.block_path(seen, fold, 1)}
    for other in (
        replace(made, waves=replace(CHANGES, speed=1.2)),
        replace(made, distill=replace(made.distill, mix=0.5)),
        replace(made, window=replace(made.window, window_s=0.9, hop_s=0.9)),
    ):
        paths.add(views.block_path(seen, folds(dataset.in_folds([1]), other)[0], 1))
    shutil.copytree(dataset.root, tmp_path / "data")
    changed = load_esc50(tmp_path / "data").in_folds([1])
    shutil.copy(changed.clips[1].path, changed.clips[0].path)
    paths.add(views.block_path(seen, folds(changed)[0], 1))
    assert len(paths) == 5
    more = replace(made, distill=replace(made.distill, views=9, temperature=5.0, soft=0.1))
    assert views.block_path(seen, folds(dataset.in_folds([1]), more)[0], 1) in paths


def test_clips_that_cannot_be_read_are_left_out_and_named(tmp_path: Path, own_cache: Path) -> None:
    root = synthetic.write_esc50(tmp_path / "data", folds=1)
    some = load_esc50(root)
    some.clips[3].path.write_bytes(b"RIFF")
    (fold,) = folds(some)
    assert fold.skipped == {some.clips[3].name: "corrupt_header"}
    assert len(fold.clips) == len(some.clips) - 1 == len(fold.targets)
    assert folds(some)[0] == fold  # from the cache


def test_a_cache_that_cannot_be_written_is_said(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fold,) = folds(dataset.in_folds([1]))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SOUNDMARK_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="SOUNDMARK_CACHE"):
        views.build([Seen(preset())], [(fold, 0)], preset())
