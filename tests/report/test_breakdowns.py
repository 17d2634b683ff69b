"""breakdowns: calibration, coverage, groups and ranges against hand-made answers and known theory."""

from __future__ import annotations

import numpy as np
import pytest

from soundmark import breakdowns
from soundmark.breakdowns import calibration, coverage
from soundmark.dataset import ESC50_GROUPS
from soundmark.evaluate import Answer


def answer(score: float, right: bool, *, label: str = "dog", name: str = "n", source: str = "s") -> Answer:
    return Answer(name, 1, source, label, label if right else "other", score, int(not right), ())


def test_a_calibrated_model_has_no_error_and_a_boastful_one_has() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.02, 1, 20_000)
    honest = [answer(float(s), bool(rng.random() < s)) for s in scores]
    boastful = [answer(float(s), bool(rng.random() < s / 2)) for s in scores]
    assert calibration(honest)["ece"] < 0.015
    assert calibration(boastful)["ece"] == pytest.approx(scores.mean() / 2, abs=0.015)


def test_calibration_by_hand() -> None:
    got = calibration([answer(0.9, True), answer(0.9, False), answer(1 / 15, True), answer(0.0, False)])
    assert len(got["bins"]) == breakdowns.ECE_BINS == 15
    assert [row["clips"] for row in got["bins"]] == [2, *[0] * 12, 2, 0]  # closed above: 1/15 is in the first
    assert got["bins"][13] == {
        "above": 0.866667,
        "up_to": 0.933333,
        "clips": 2,
        "score": 0.9,
        "accuracy": 0.5,
    }
    assert got["ece"] == pytest.approx((2 * 0.4 + 2 * abs(0.5 - 1 / 30)) / 4, abs=1e-6)
    assert calibration([])["ece"] == 0.0
    assert calibration([answer(1.0, True)])["bins"][14]["clips"] == 1


def test_coverage_keeps_the_most_confident_and_all_of_a_tie() -> None:
    clips = [answer(s, r) for s, r in ((0.9, True), (0.8, True), (0.5, False), (0.5, True), (0.1, False))]
    rows = coverage(clips)
    assert [row["coverage"] for row in rows][-1] == 1.0
    assert rows[-1] == {"coverage": 1.0, "threshold": 0.1, "clips": 5, "accuracy": 0.6}
    half = rows[breakdowns.COVERAGES.index(0.6)]
    assert half == {"coverage": 0.8, "threshold": 0.5, "clips": 4, "accuracy": 0.75}
    assert rows[0]["accuracy"] == 1.0
    assert coverage([]) == []


def test_groups_are_those_of_esc50_and_only_there() -> None:
    labels = [label for group in ESC50_GROUPS.values() for label in group.split()]
    assert len(labels) == len(set(labels)) == 50
    assert (labels[0], labels[14], labels[29], labels[49]) == (
        "dog",
        "chirping_birds",
        "drinking_sipping",
        "hand_saw",
    )
    clips = [answer(0.5, True, source="a"), answer(0.5, False, source="b"), answer(0.5, True, label="rain")]
    rows = breakdowns.by_group(clips, ["dog", "rain"])
    assert [(r["name"], r["clips"], r["accuracy"]) for r in rows] == [
        ("animals", 2, 0.5),
        ("natural", 1, 1.0),
    ]
    assert rows[0]["interval_95"] == [0.0, 1.0]
    assert breakdowns.by_group(clips, ["dog", "rain", "violin"]) == []


def test_ranges_hold_every_clip_once() -> None:
    values = {"a": -60.0, "b": -50.0, "c": -25.0, "d": 0.0}
    clips = [answer(0.5, name != "c", name=name) for name in (*values, "lost")]
    rows = breakdowns.by_loudness(clips, values)
    assert [row["clips"] for row in rows] == [1, 1, 0, 1, 1, 1]
    assert [row["name"] for row in rows][::5] == ["below -50 LUFS", breakdowns.NOT_MEASURED]
    assert [row["accuracy"] for row in rows] == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    rows = breakdowns.by_silence(clips[:4], {"a": 0.0, "b": 1e-3, "c": 0.25, "d": 1.0})
    assert {row["name"]: row["clips"] for row in rows} == {
        "no silence": 1,
        "below 25%": 1,
        "25% to 50%": 1,
        "50% to 75%": 0,
        "75% and more": 1,
    }


def test_worst_pairs() -> None:
    assert breakdowns.worst_pairs([[5, 1, 0], [3, 2, 0], [0, 0, 0]], 9) == [(1, 0, 3), (0, 1, 1)]
    assert breakdowns.worst_pairs([[5, 1], [3, 2]], 1) == [(1, 0, 3)]
