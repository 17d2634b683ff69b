"""pattern: level less distance against the formula written out, and texts that are none."""

from __future__ import annotations

import base64
from collections.abc import Callable

import numpy as np
import pytest

from soundmark import pattern
from soundmark.bundle import Bundle
from soundmark.config import DecisionConfig
from soundmark.errors import ConfigError
from soundmark.postprocess import unknown_score

Clips = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def clips(rng: np.random.Generator) -> Clips:
    """Return logits of three labels, (60, 3), around 5 at the label's own place, and the labels."""
    targets = np.repeat(np.arange(3), 20)
    return 5 * np.eye(3)[targets] + rng.normal(0, [0.5, 1, 2], (60, 3)), targets


def test_the_score_is_the_level_less_the_distance(clips: Clips, rng: np.random.Generator) -> None:
    x, y = clips
    text = pattern.fit(x, y)
    pooled = np.mean([x[y == k].var(axis=0) for k in range(3)], axis=0)

    def distance(one: np.ndarray) -> float:
        return min(
            float(
                ((one - x[y == k].mean(axis=0)) ** 2 / ((20 * x[y == k].var(axis=0) + 4 * pooled) / 24)).sum()
            )
            for k in range(3)
        )

    weight = np.std(x.max(axis=1)) / np.std([distance(one) for one in x]) / 3
    for one in (*x[::10], *rng.normal(0, 10, (5, 3))):
        wanted = one.max() - weight * distance(one)
        assert pattern.score(one, text) == pytest.approx(wanted, rel=5e-3, abs=0.02)  # float16


def test_a_text_without_a_share_of_the_next_logit_is_of_before_and_takes_half(clips: Clips) -> None:
    numbers = base64.b64decode(pattern.fit(*clips))
    before = base64.b64encode(numbers[:-2]).decode()
    now = base64.b64encode(numbers).decode()
    assert pattern.score([9.0, 4, 0], now) - pattern.score([9.0, 4, 0], before) == pytest.approx(2.0)
    for other in (numbers[:-4], numbers + b"00"):
        with pytest.raises(ValueError, match=r"2 x 3 x 3 \+ 2"):
            pattern.read(base64.b64encode(other).decode(), 3)


def test_a_decision_pools_windows_and_scores_by_pattern(clips: Clips) -> None:
    text = pattern.fit(*clips)
    decision = DecisionConfig(unknown_score="pattern", patterns=text)
    windows = np.array([[5.0, 0, 0], [3.0, 2, 0]])
    assert unknown_score(windows, decision) == pattern.score([4.0, 1, 0], text)
    assert unknown_score([[5.0, 0, 0]], decision) > unknown_score(
        [[9.0, 9, 9]], decision
    )  # louder is not nearer
    with pytest.raises(ValueError, match="go together"):
        DecisionConfig(unknown_score="pattern")
    with pytest.raises(ValueError, match="go together"):
        DecisionConfig(patterns=text)


def test_a_bundle_checks_them(make_bundle: Callable[..., Bundle], clips: Clips) -> None:
    with pytest.raises(ValueError, match="patterns"):  # three labels, and the bundle has four
        make_bundle(decision=DecisionConfig(unknown_score="pattern", patterns=pattern.fit(*clips)))


def test_labels_of_few_and_of_equal_clips(clips: Clips) -> None:
    x, y = clips
    with pytest.raises(ConfigError, match="label 2 has no clip"):
        pattern.fit(x[:40], y[:40])
    alone = pattern.fit(x[:41], y[:41])
    assert pattern.score(x[40], alone) > pattern.score(x[40] - 3, alone)
    same = pattern.fit(np.repeat(np.eye(3), 2, axis=0), np.repeat(np.arange(3), 2))  # no variance at all
    assert np.isfinite(pattern.score([1, 0, 0], same))
    single = pattern.fit([[3.0], [4.0], [5.0]], [0, 0, 0])
    assert pattern.score([4.0], single) == pytest.approx(4.0)


def test_what_fit_did_not_write_is_refused(clips: Clips) -> None:
    text = pattern.fit(*clips)
    infinite = base64.b64encode(np.full(19, np.inf, "<f2").tobytes()).decode()
    flat = base64.b64encode(np.zeros(19, "<f2").tobytes()).decode()
    for odd, labels in ((text, 4), (text[:-4], 3), ("ä", 3), ("abc", 3), (infinite, 3), (flat, 3)):
        with pytest.raises(ValueError, match="patterns"):
            pattern.read(odd, labels)
