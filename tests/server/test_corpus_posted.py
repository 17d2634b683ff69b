"""Every file of the odd-audio corpus posted: the code of its manifest, and the service lives on (F6, H15)."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from serving import ROOT, Served

from soundmark.errors import AUDIO_CODES
from soundmark.server.problems import STATUS

sys.path.insert(0, str(ROOT / "tests" / "corpus"))
from make_corpus import make


def test_every_file_gets_the_outcome_of_its_manifest(served: Served, tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    workers = served.workers()
    for row in make(tmp_path):
        path = tmp_path / row["name"]
        if row["group"] == "not a file" or not path.is_file():
            continue  # the way to a file is the client's business
        response = served.post(path.read_bytes())
        tree = response.json()
        code = tree.get("code", "ok")
        seen[code] += 1
        wanted = {*row["expect"]}
        assert code in wanted, (row["name"], tree)
        assert response.status_code == (200 if code == "ok" else STATUS.get(code, 422))
        if code == "ok":
            flags = {*tree["flags"]} - {"short"}
            assert {*row["flags"]} - {"extension_mismatch"} <= flags | {"short"}, row["name"]
            assert flags <= {*row["flags"], *row["maybe"]}, row["name"]
    assert seen["ok"] > 50
    assert {*seen} <= AUDIO_CODES | {"ok"}
    assert len(seen) > 8
    assert served.workers() == workers, "no file ended a worker"
    assert served.get("/health/ready").status_code == 200


@pytest.mark.data
def test_real_clips_get_the_answers_of_classify(served: Served) -> None:
    """F2 is benchmarks/serve.py; here only that real files go through."""
    import os

    root = os.environ.get("SOUNDMARK_ESC50")
    if not root:
        pytest.skip("needs the real ESC-50 (SOUNDMARK_ESC50)")
    for path in sorted((Path(root) / "audio").iterdir())[:5]:
        assert served.post(path.read_bytes()).status_code == 200
