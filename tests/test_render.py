"""render: lines fit, names stay recognisable, nothing from outside moves the cursor or is read as markup."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from soundmark import bundle, render, render_model
from soundmark.batch import visible
from soundmark.bundle import Bundle
from soundmark.postprocess import Failure, LabelScore
from test_batch import prediction

LABELS = ("dog", "rain", "crackling_fire")
HOSTILE = [
    "new\nline.wav",
    "\x1b[31mred\x1b]0;title\x07.wav",
    "[bold]markup[/].wav",
    "ünï-中文-🔊.wav",
    "raw-\udcff\udce9.wav",
    "-dash.wav",
    "=cmd.wav",
    "rtl-\u202egnp.wav",
]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    def show(rows: list[Any], width: int = 80, top_k: int = 3) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        paths = [row.source for row in rows]
        failed = render.show_rows(rows, "table", top_k=top_k, paths=paths, labels=LABELS)
        assert failed == sum(not row.ok for row in rows)
        return capsys.readouterr().out.splitlines()

    return show


@given(st.text(max_size=60).map(visible), st.integers(3, 40))
def test_elided_text_fits_and_keeps_both_ends(text: str, width: int) -> None:
    shown = render.elide(text, width)
    assert cell_len(shown) <= width
    if shown != text:
        assert "..." in shown


def test_elision_keeps_the_ending() -> None:
    assert render.elide("a/very/long/path/recording.wav", 17) == "a/very/...ing.wav"
    assert render.elide("short.wav", 9) == "short.wav"
    assert render.elide("中文中文中文中文.wav", 11) == "中文....wav"


def test_common_folder() -> None:
    assert render.common_folder(["/d/x/a.wav", "/d/y/b.wav", "-"]) == "/d/"
    assert render.common_folder(["d/a.wav", "d/b.wav"]) == "d/"
    assert render.common_folder(["/d/a.wav"]) == ""
    assert render.common_folder(["/a.wav", "/b.wav"]) == "/"
    assert render.common_folder(["a.wav", "/d/b.wav"]) == ""
    assert render.common_folder(["a.wav", "b.wav"]) == ""
    assert render.common_folder(["/data/a.wav", "/database/b.wav"]) == "/"


def test_a_table_at_80_columns(table: Callable[..., list[str]]) -> None:
    rows = [
        prediction("rec/dog.wav"),
        prediction("rec/rain.wav", label="rain", flags=("clipped", "short")),
        prediction("rec/quiet.wav", label=None, unknown=True, reason="silent", flags=("silent",)),
        prediction("rec/odd.wav", label=None, unknown=True, reason="below_threshold"),
        Failure("rec/bad.wav", "corrupt_header", "'rec/bad.wav': a damaged WAV header; wanted: WAV"),
    ]
    assert table(rows) == [
        "in rec/",
        "recording  sound           score  then",
        "dog.wav    dog              0.75  rain 0.25",
        "rain.wav   rain             0.75  rain 0.25  [clipped, short]",
        "quiet.wav  unknown          0.75  rain 0.25  [silent]",
        "odd.wav    unknown          0.75  rain 0.25  [below_threshold]",
        "bad.wav    failed",
        "    corrupt_header: a damaged WAV header; wanted: WAV",
        "5 recordings, 1 failed",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("top_k", [1, 3, 20])
def test_no_line_is_wider_than_the_terminal(table: Callable[..., list[str]], width: int, top_k: int) -> None:
    best = tuple(LabelScore(f"label_number_{i}", 0.05) for i in range(top_k))
    long = "/".join(["a_long_folder_name"] * 20) + "/recording.wav"
    rows = [
        prediction(long, labels=best, flags=("clipped", "header_length_wrong", "over_full_scale", "short")),
        Failure(long, "not_found", "words " * 60),
        *[prediction(name, labels=best) for name in HOSTILE],
    ]
    lines = table(rows, width, top_k)
    assert max(map(cell_len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "over_full_scale, short]" in text
    assert lines[1].startswith("a_long_")
    assert "ing.wav" in lines[1]
    if top_k == 20:
        assert "label_number_19 0.05" in text  # asked for, so shown


def test_names_are_text(table: Callable[..., list[str]]) -> None:
    lines = table([prediction(name) for name in HOSTILE])
    assert len(lines) == len(HOSTILE) + 2
    text = "\n".join(lines)
    assert all(line.isprintable() for line in lines)
    for shown in ("new\\nline.wav", "\\x1b[31mred", "[bold]markup[/].wav", "ünï-中文", "\\udcff", "=cmd.wav"):
        assert shown in text


def test_what_the_terminal_cannot_write_is_spelt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    paths = ["中.wav", "b.wav"]
    render.show_rows(map(prediction, paths), "table", top_k=3, paths=paths, labels=LABELS)
    sys.stdout.flush()
    lines = raw.getvalue().decode("ascii").splitlines()
    assert lines[1].startswith("\\u4e2d.wav  dog")
    assert lines[2].startswith("b.wav       dog")


def test_rows_are_printed_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def rows() -> Any:
        for name in ("a.wav", "b.wav"):
            yield prediction(name)
            seen.append(capsys.readouterr().out)

    render.show_rows(rows(), "table", top_k=3, paths=["a.wav", "b.wav"], labels=LABELS)
    assert "a.wav" in seen[0]
    assert "b.wav" in seen[1]


def test_info_of_a_hostile_bundle(
    make_bundle: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_bundle(licence="\x1b[2J[bold]free", created_by="me\nyou", provenance={"training": {}})
    render_model.print_bundle(bundle.read(made.path), as_json=False)
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    assert "\\x1b[2J[bold]free" in out
    assert "me\\nyou" in out
    assert "?, folds ?, fold ? kept aside" in " ".join(out.split())


def test_a_demo_says_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    clips: list[Any] = [SimpleNamespace(label=label) for label in ("dog", "crackling_fire", "rain")]
    rows = [prediction(), prediction(), Failure("x", "io_error", "gone")]
    assert render.print_demo(clips, rows, model="tiny", out=Path("here")) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "Sounds made in code, heard by tiny:",
        "meant to be     heard as          score  then",
        "dog             dog                0.75  rain 0.25",
        "crackling_fire  dog                0.75  rain 0.25",
        "rain            io_error",
        "    gone",
        "1 of 3 as meant. They are synthesised, not recorded: no measure of accuracy.",
        "Listen: here/*.wav",
    ]
