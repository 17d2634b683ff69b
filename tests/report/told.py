"""Reports made by hand on eight clips, and what a page shows."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from soundmark.dataset import Clip, Dataset
from soundmark.evaluate import Answer, Report, figures
from soundmark.pages import Figures
from soundmark.postprocess import Failure

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "results" / "resnet-mel-fold5.json"
HOSTILE = "<script>alert(1)</script>"


def made(
    data: Dataset, heard: Callable[[int, Clip], str], *, stamps: tuple[str, ...] = (), failed: int = 0
) -> Report:
    """Return a report on ``data``: what ``heard`` says of clip i; the last ``failed`` have no answer."""
    kept = data.clips[: len(data.clips) - failed]
    answers = tuple(
        Answer(
            c.name, c.fold, c.source, c.label, heard(i, c), 0.3 + 0.08 * i, int(heard(i, c) != c.label), ()
        )
        for i, c in enumerate(kept)
    )
    lost = data.clips[len(kept) :]
    provenance = {
        "report": "soundmark evaluate",
        "soundmark": "0.1.0",
        "model": "told",
        "model_digest": "0" * 64,
        "model_bytes": 1234,
        "temperature": 1.0,
        "data": data.name,
        "data_digest": data.digest(),
        "split": "",
        "folds": list(data.folds),
        "n_clips": len(data.clips),
        "stamps": list(stamps),
        "training": {"train_folds": [3, 4], "data": "ESC-50", "seed": 7, "seconds": 90},
        "seconds": 0.8,
        "machine": "x",
        "onnxruntime": "1",
        "command": "soundmark evaluate",
    }
    failures = tuple(Failure(str(c.path), "corrupt_audio", "broken") for c in lost)
    return Report(figures(answers, lost, data.labels), provenance, answers, failures)


def other(i: int, clip: Clip) -> str:
    """Hear a third of the clips as the other label."""
    return clip.label if i % 3 else {"dog": "rain", "rain": "dog"}[clip.label]


class Shown(HTMLParser):
    """Collects every figure of a page: path, format and text; and every link and tag."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.figures: list[tuple[str, str, str]] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self._now: list[str] | None = None
        self.feed(page.decode("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "data")]
        assert not [name for name in given if name.startswith("on")]
        if "data-of" in given:
            self._now = [given["data-of"] or "", given["data-as"] or "", ""]

    def handle_data(self, data: str) -> None:
        if self._now:
            self._now[2] += data

    def handle_endtag(self, tag: str) -> None:
        if self._now and tag == "span":
            self.figures.append((self._now[0], self._now[1], self._now[2]))
            self._now = None

    def check(self, tree: dict[str, Any]) -> None:
        for path, spec, text in self.figures:
            assert text == format(Figures(tree).at(path), spec), path
        assert {"script", "link", "iframe"}.isdisjoint(self.tags)
        assert all(
            link.startswith(("data:audio/flac;base64,", "data:image/png;base64,")) for link in self.links
        )
