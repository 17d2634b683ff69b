"""docs/augmentation.md names every field of the augmentations and has a picture of each, made by one command."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from soundmark.config import AugmentConfig, WaveConfig, fields  # noqa: E402

pytestmark = pytest.mark.train

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "augmentation.md"
LARGEST = 60_000
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(("section", "kind"), [("waves", WaveConfig), ("augment", AugmentConfig)])
def test_the_page_names_every_field_and_no_other(section: str, kind: type) -> None:
    named = set(re.findall(rf"`{section}\.(\w+)`", PAGE.read_text("utf-8")))
    assert named == set(fields(kind))


def test_every_section_has_a_picture_that_is_there_and_small() -> None:
    text = PAGE.read_text("utf-8")
    pictures = re.findall(r"!\[[^\]]+\]\(images/(augment-\w+\.svg)\)", text)
    assert len(pictures) == len(set(pictures)) == len(re.findall("^## ", text, re.MULTILINE))
    there = {path.name: path.read_bytes() for path in (ROOT / "docs" / "images").glob("augment-*.svg")}
    assert set(pictures) == set(there)
    for name, data in there.items():
        assert len(data) < LARGEST, name


def test_one_command_makes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["augment_plots.py", "--out", str(tmp_path)])
    runpy.run_path(str(ROOT / "benchmarks" / "augment_plots.py"), run_name="__main__")
    for path in sorted((ROOT / "docs" / "images").glob("augment-*.svg")):
        made, kept = (ElementTree.fromstring(p.read_bytes()) for p in (tmp_path / path.name, path))
        shapes = [[(node.tag, node.text) for node in tree.iter()] for tree in (made, kept)]
        assert shapes[0] == shapes[1], path.name  # numbers may differ a little between versions of libraries
        for node in made.iter(f"{SVG}image"):
            assert node.attrib["href"].startswith("data:image/png;base64,")  # nothing is loaded
        assert len(list(made.iter(f"{SVG}svg"))) > 2
    assert {path.name for path in tmp_path.iterdir()} == {
        path.name for path in (ROOT / "docs" / "images").glob("augment-*.svg")
    }
