"""inner: no source on both sides, every label keeps clips, and patience counts as it says."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from soundmark.dataset import Dataset  # noqa: E402
from soundmark.errors import DatasetError  # noqa: E402
from soundmark.learn.inner import Patience, inner_split  # noqa: E402

pytestmark = pytest.mark.train


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_sources_stay_together_and_labels_have_their_share(dataset: Dataset, share: float, seed: int) -> None:
    train_set = dataset.in_folds([1, 2, 3, 4])
    fit, held = inner_split(train_set, share, seed)
    assert {*fit.clips} | {*held.clips} == {*train_set.clips}
    assert not {*fit.clips} & {*held.clips}
    assert not {clip.source for clip in fit.clips} & {clip.source for clip in held.clips}
    assert fit.labels == held.labels == dataset.labels
    for label in dataset.labels:
        n = sum(clip.label == label for clip in held.clips)
        assert abs(n - share * 16) <= 1  # sources have two clips each
    assert (fit, held) == inner_split(train_set, share, seed)
    assert held != inner_split(train_set, share, seed + 10)[1]


def test_copies_of_a_file_go_with_it(dataset: Dataset) -> None:
    train_set = dataset.in_folds([1, 2])
    copies = tuple(replace(c, name=f"{c.name}x", source=f"{c.source}x") for c in train_set.clips)
    doubled = replace(train_set, clips=train_set.clips + copies)
    fit, _ = inner_split(doubled, 0.25, 0)
    inside = {clip.name for clip in fit.clips}
    assert all((clip.name in inside) == (f"{clip.name}x" in inside) for clip in train_set.clips)


def test_a_label_never_loses_its_only_source(dataset: Dataset) -> None:
    train_set = dataset.in_folds([1])
    one = {clip.label: clip.source for clip in train_set.clips}
    lonely = replace(train_set, clips=tuple(c for c in train_set.clips if one[c.label] == c.source))
    with pytest.raises(DatasetError, match="no source can be set aside"):
        inner_split(lonely, 0.5, 0)


def test_patience_keeps_the_best_and_ends_after_the_limit() -> None:
    patience = Patience(2)
    seen = [patience.see(epoch, loss) for epoch, loss in enumerate([3.0, 2.0, math.nan], 1)]
    assert seen == [True, True, False]
    assert (patience.epoch, patience.loss, patience.spent) == (2, 2.0, False)
    again = Patience(2)
    again.restore(patience.state())
    assert again == patience
    assert not again.see(4, 2.0)  # as good is not better
    assert again.spent
    fresh = Patience(0)
    fresh.restore(Patience(0).state())
    assert fresh == Patience(0)
    assert not fresh.spent
