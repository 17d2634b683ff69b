"""data page: one file, no network, no script, hostile names escaped, players bounded, plots of all values."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from soundmark.data import page as module
from soundmark.data.inspect import Inspection, inspect
from soundmark.data.page import page
from soundmark.plots import bars, escape, histogram, waveform
from soundmark.sources import open_dataset
from synthetic import RATE, sound

HOSTILE = "<script>alert('x')</script>\"&\x1b"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    root = tmp_path_factory.mktemp("set")
    rows = ["filename,label,fold,source"]
    for i in range(30):
        samples = sound("hum", i, 0)
        samples[: 12_000 if i % 3 == 0 else 0] = 0
        soundfile.write(root / f"{i} <b>.wav", samples, RATE)
        label = HOSTILE if i % 2 else "=1+1"
        quoted = label.replace('"', '""')
        rows.append(f'{i} <b>.wav,"{quoted}",{1 + i % 3},s{i // 2}<i>')
    (root / "bad <u>.wav").write_bytes(b"")
    rows.append("bad <u>.wav,cat,1,s99")
    (root / "clips.csv").write_text("\n".join(rows), "utf-8")
    return inspect(open_dataset(root, strict=False), processes=1)


class Tags(HTMLParser):
    """Collects tags, and links of any kind."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")
        ]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html(report: Inspection) -> str:
    return page(report).decode("utf-8")


def test_the_page_is_well_formed_and_needs_nothing_else(html: str) -> None:
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert not {"script", "link", "img", "iframe", "b>", "u", "i"} & {*tags.tags}
    assert tags.links
    assert all(link.startswith("data:audio/flac;base64,") for link in tags.links)
    assert "default-src 'none'" in html
    assert not re.search(r"url\(|@import|https?:", html)


def test_names_are_escaped_and_all_there(html: str, report: Inspection) -> None:
    assert "<script" not in html
    assert "\x1b" not in html
    assert "&lt;script&gt;" in html
    for finding in report.findings:
        assert escape(finding.clip) in html
    assert "bad &lt;u&gt;.wav" in html
    assert len(report.of("mostly_silence")) == 10
    assert report.of("empty_file")


def test_players_hold_the_sound(html: str, report: Inspection) -> None:
    data = re.findall(r"base64,([A-Za-z0-9+/=]+)", html)
    assert 3 <= len(data) <= module.MAX_PLAYERS
    first = report.of("leak")[0].others[0]
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(data[0])), dtype="float32")
    told = next(clip.path for clip in report.dataset.clips if clip.name == first)
    np.testing.assert_allclose(heard, soundfile.read(told, dtype="float32")[0], atol=1e-4)
    assert rate == RATE


def test_players_are_bounded(report: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_AUDIO_BYTES", 60_000)
    data = re.findall(r"base64,([A-Za-z0-9+/=]+)", page(report).decode("utf-8"))
    assert len(data) >= 1
    assert sum(len(base64.b64decode(one)) for one in data) <= 60_000
    monkeypatch.setattr(module, "MAX_PLAYERS", 2)
    assert page(report).count(b"<audio") <= 2


def test_the_same_report_is_the_same_page(report: Inspection, html: str) -> None:
    assert page(report).decode("utf-8") == html


def test_a_histogram_counts_every_clip() -> None:
    values = [*np.random.default_rng(0).normal(size=500), 1e6]
    counts = [int(n) for n in re.findall(r": (\d+)</title>", histogram(values, title="x"))]
    assert sum(counts) == 501
    assert re.findall(r": (\d+)</title>", histogram([0.0] * 7, title="x")) == ["7"]
    assert "nan" not in histogram([2.0], title="x", log=True)


def test_bars_and_waveforms() -> None:
    drawn = bars([("<a>", 0.0, "0 %"), ("b", 1.0, "100 %")], title="t", mark=0.5)
    assert "&lt;a&gt;" in drawn
    assert drawn.count("<rect") == 2
    assert waveform(np.zeros(3, np.float32)).count("V") == 3
    assert waveform(np.zeros(100_000, np.float32)).count("V") == 240
