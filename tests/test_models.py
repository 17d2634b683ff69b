"""models/: the bundles behind the published five-fold figures are those that the reports are about, and small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from soundmark.bundle import find, read
from soundmark.cross_validation import find_bundles

ROOT = Path(__file__).resolve().parents[1]
LIMIT = {"edge": 1_000_000, "tiny": 150_000, "yamnet": 1_000_000}
"""First word of a name -> bytes that its file may have."""
BUILT_IN = ("edge", "tiny")
FOLDS = [1, 2, 3, 4, 5]
PUBLISHED = sorted(path.name for path in (ROOT / "models").iterdir())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_figure_is_about_these_files(name: str) -> None:
    tier = name.split("-")[0]
    report = json.loads((ROOT / "docs" / "results" / f"{name}-5folds.json").read_text())
    clips = 40 * len(report["figures"]["labels"])
    assert (report["folds"], report["n_clips"], report["stamps"]) == (FOLDS, clips, [])
    digests = {member["fold"]: member["model_digest"] for member in report["members"]}
    for fold, path in find_bundles(ROOT / "models" / name, FOLDS).items():
        found = read(path)
        training = found.manifest.provenance["training"]
        others = [one for one in FOLDS if one != fold]
        assert found.digest == digests[fold]
        assert found.manifest.provenance["export"]["arithmetic"] == "int8"
        assert len(found.model) <= LIMIT[tier]
        assert (training["test_fold"], training["train_folds"]) == (fold, others)
        assert all(set(one["train_folds"]) <= {*others} for one in training.get("teachers", []))
        outside = [training.get("pretrained"), training.get("start")]
        outside += [one["external"] for one in training.get("teachers", [])]
        assert any(outside) != name.endswith("-scratch")  # nothing but the training folds


@pytest.mark.parametrize("tier", BUILT_IN)
def test_the_wheel_carries_each_tier_trained_on_all_clips(tier: str) -> None:
    found = read(find(tier))
    provenance = found.manifest.provenance
    assert (provenance["training"]["train_folds"], provenance["training"].get("test_fold")) == (FOLDS, None)
    assert len(found.model) <= LIMIT[tier]
    report = json.loads((ROOT / "docs" / "results" / f"{tier}-5folds.json").read_text())
    assert provenance["folds"]["accuracy"] == report["figures"]["accuracy"]
    assert provenance["calibration"]["keep"] == 0.95
    judged = {one["digest"] for one in provenance["calibration"]["inner"]}
    assert judged == {
        member["model_digest"] for member in report["members"]
    }  # each on the fold it never heard
