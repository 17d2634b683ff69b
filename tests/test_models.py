"""models/: the bundles behind the published five-fold figures are those that the reports are about, and small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from soundmark.bundle import read
from soundmark.cross_validation import find_bundles

ROOT = Path(__file__).resolve().parents[1]
LIMIT = {"edge": 1_000_000, "tiny": 150_000}
"""Tier -> bytes that its file may have."""
FOLDS = [1, 2, 3, 4, 5]


@pytest.mark.parametrize("tier", LIMIT)
def test_a_published_figure_is_about_these_files(tier: str) -> None:
    report = json.loads((ROOT / "docs" / "results" / f"{tier}-5folds.json").read_text())
    assert (report["folds"], report["n_clips"], report["stamps"]) == (FOLDS, 2000, [])
    digests = {member["fold"]: member["model_digest"] for member in report["members"]}
    for fold, path in find_bundles(ROOT / "models" / tier, FOLDS).items():
        found = read(path)
        training = found.manifest.provenance["training"]
        others = [one for one in FOLDS if one != fold]
        assert found.digest == digests[fold]
        assert found.manifest.provenance["export"]["arithmetic"] == "int8"
        assert len(found.model) <= LIMIT[tier]
        assert (training["test_fold"], training["train_folds"]) == (fold, others)
        assert all(set(one["train_folds"]) <= {*others} for one in training.get("teachers", []))
