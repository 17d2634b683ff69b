"""compare: differences by hand, other clips, table and page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from told import Shown, made, other

from soundmark import comparison
from soundmark.dataset import Dataset


def test_compare_by_hand(data: Dataset) -> None:
    one, two = made(data, other), made(data, lambda i, clip: clip.label)
    tree = comparison.compare(["one", "two"], [one, two])
    assert tree["same_clips"]
    first, second = tree["reports"]
    assert first["difference"] is None
    assert second["difference"] == pytest.approx(3 / 8)
    low, high = second["difference_interval_95"]
    assert 0 <= low < 3 / 8 < high <= 1
    assert (second["training_seconds"], second["ms_per_clip"]) == (90, 100.0)
    assert {row["label"]: row["recall"] for row in tree["recall"]} == {
        "dog": [0.75, 1.0],
        "rain": [0.5, 1.0],
    }
    assert comparison.compare(["a", "b"], [one, made(data, other)])["reports"][1][
        "difference_interval_95"
    ] == [
        0.0,
        0.0,
    ]
    lost = comparison.compare(["a", "b"], [two, made(data, lambda i, clip: clip.label, failed=4)])["reports"][
        1
    ]
    assert lost["difference"] == -0.5
    assert lost["difference_interval_95"][0] < -0.5 < lost["difference_interval_95"][1]


def test_compare_of_other_clips_has_no_difference(data: Dataset, call: Any, tmp_path: Path) -> None:
    half = Dataset("ESC-50", data.root, data.labels, data.clips[:4])
    made(data, other).write(tmp_path / "a" / "r.json")
    made(half, other).write(tmp_path / "b" / "r.json")
    status, out, _ = call("compare", tmp_path / "a" / "r.json", tmp_path / "b" / "r.json")
    assert status == 0
    assert "not about the same clips" in out
    status, out, _ = call("compare", "--json", tmp_path / "a" / "r.json", tmp_path / "b" / "r.json")
    assert [row["difference"] for row in json.loads(out)["reports"]] == [None, None]


def test_compare_prints_a_table_and_writes_the_page(
    call: Any, data: Dataset, file: Path, tmp_path: Path
) -> None:
    perfect, html = tmp_path / "perfect.json", tmp_path / "c.html"
    made(data, lambda i, clip: clip.label).write(perfect)
    status, out, _ = call("compare", file, perfect, "--html", html)
    assert status == 0
    assert max(map(len, out.splitlines()[:-1])) <= 80
    assert re.search(r"^told +62\.50%", out, re.MULTILINE)
    assert re.search(r"^perfect +100\.00%", out, re.MULTILINE)
    assert re.search(r"^perfect .*\+37\.50 \(", out, re.MULTILINE)
    tree = json.loads(html.with_suffix(".json").read_text("utf-8"))
    shown = Shown(html.read_bytes())
    shown.check(tree)
    assert {"reports.1.difference", "reports.0.worst_pairs.0.clips", "recall.1.recall.0"} <= {
        path for path, _, _ in shown.figures
    }
