"""sources: every layout becomes one kind of data set, or an error that names all that is wrong (RELIABILITY 5.4)."""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from soundmark.dataset import ESC50_VARIABLE, Dataset
from soundmark.errors import EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, DatasetError
from soundmark.own_data import load_folder, load_table
from soundmark.sources import (
    ESC50_LABELS,
    US8K_COLUMNS,
    load_esc10,
    load_index,
    load_urbansound8k,
    open_dataset,
    write_index,
)
from synthetic import table_rows, write_table

REAL = os.environ.get(ESC50_VARIABLE)
Touch = Callable[..., Path]
SOME = dict(zip((0, 11, 22), sorted(ESC50_LABELS), strict=False))


def refused(load: Callable[[], object], *words: str, code: str = "bad_table") -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        load()
    error = caught.value
    assert (error.code, error.exit_status) == (code, EXIT_USAGE), error
    for word in words:
        assert word in str(error), (word, str(error))
    return error


def skipped(data: Dataset) -> list[tuple[str, str]]:
    return [(problem.where, problem.code) for problem in data.skipped]


def write_csv(path: Path, rows: list[list[object]], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def read_rows(root: Path) -> list[dict[str, str]]:
    with (root / "meta" / "esc50.csv").open() as file:
        return list(csv.DictReader(file))


# --- which layout it is ------------------------------------------------------------------------------------------


@pytest.fixture
def layouts(touch: Touch, tmp_path: Path) -> dict[str, Path]:
    """Return one small data set of every layout, by its name in `Dataset.layout`."""
    rows = table_rows(SOME, folds=2, sources=1, takes=1)
    esc50 = touch(*(f"audio/{row['filename']}" for row in rows), root="esc50")
    write_table(esc50, rows)
    names = [f"10{i}-{i % 2}-0-{i}.wav" for i in range(4)]
    us8k = touch(*(f"audio/fold{1 + i % 2}/{name}" for i, name in enumerate(names)), root="us8k")
    cells = [[name, f"10{i}", 1 + i % 2, i % 2, f"class{i % 2}", 0] for i, name in enumerate(names)]
    write_csv(us8k / "metadata" / "UrbanSound8K.csv", [[*US8K_COLUMNS, "salience"], *cells])
    table = touch("a.wav", "b.wav", "c.wav", root="table")
    write_csv(table / "clips.csv", [["filename", "label"], ["a.wav", "x"], ["b.wav", "y"], ["c.wav", "y"]])
    folder = touch("cat/a.wav", "cat/b.FLAC", "dog/c.ogg", "dog/notes.txt", "dog/._c.ogg", root="folder")
    return {"ESC-50": esc50, "UrbanSound8K": us8k, "table": table, "folder": folder}


@pytest.mark.parametrize("layout", ["ESC-50", "UrbanSound8K", "table", "folder"])
def test_info_tells_the_layout(layouts: dict[str, Path], layout: str, call: Callable[..., Any]) -> None:
    data = open_dataset(layouts[layout])
    assert data.layout == layout
    assert all(clip.path.is_file() for clip in data.clips)
    done = call("data", "info", layouts[layout], "--json")
    facts = json.loads(done.out)
    assert done.status == EXIT_OK
    assert facts["layout"] == layout
    assert facts["clips"] == len(data.clips) == sum(facts["labels"].values())
    assert facts["sources"] == len({clip.source for clip in data.clips})
    assert (facts["skipped"], facts["stamps"], facts["hours"]) == ([], [], 0)
    shown = call("data", "info", layouts[layout])
    assert f"layout        {layout}" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80


def test_names_claim_no_more_than_is_there(layouts: dict[str, Path], touch: Touch) -> None:
    """D26: a part is called one, and own data in ESC-50 layout is not ESC-50."""
    assert open_dataset(layouts["ESC-50"]).name == "ESC-50 (incomplete: 6 of 2000 clips)"
    assert open_dataset(layouts["UrbanSound8K"]).name == "UrbanSound8K (incomplete: 4 of 8732 clips)"
    assert open_dataset(layouts["table"]).name == "clips"
    assert open_dataset(layouts["folder"]).name == "folder"
    rows = table_rows({0: "doorbell"}, folds=1, sources=2, takes=1)
    other = touch(*(f"audio/{row['filename']}" for row in rows), root="bells")
    write_table(other, rows)
    assert open_dataset(other).name == "bells (ESC-50 layout)"
    ten = [{**row, "esc10": str(row["target"] == "11")} for row in read_rows(layouts["ESC-50"])]
    write_table(layouts["ESC-50"], ten)
    part = open_dataset(f"esc10:{layouts['ESC-50']}")
    assert part == load_esc10(layouts["ESC-50"])
    assert (part.name, part.labels) == ("ESC-10 (incomplete: 2 of 400 clips)", (SOME[11],))


@pytest.mark.parametrize(
    ("made", "code", "word"),
    [
        ([], "no_table", "does not exist"),
        (["x/"], "no_table", "meta/esc50.csv"),
        (["x/notes.txt"], "no_table", "meta/esc50.csv"),
        (["x/cat/notes.txt"], "no_audio", "no usable recordings"),
        (["x/train/a.wav", "x/test/b.wav"], "bad_dataset", "sides of a split"),
        (["x/a.csv", "x/b.csv"], "bad_dataset", "several tables: a.csv, b.csv"),
        (["x/a.wav", "x/cat/"], "no_audio", "lies in no folder that names its label"),
    ],
)
def test_what_is_no_data_set_is_said(tmp_path: Path, made: list[str], code: str, word: str) -> None:
    for name in made:
        path = tmp_path / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(b"")
    refused(lambda: open_dataset(tmp_path / "x"), word, code=code)


def test_a_pipe_in_the_place_of_a_table_does_not_hold_us_up(layouts: dict[str, Path]) -> None:
    tables = {
        "ESC-50": "meta/esc50.csv", "UrbanSound8K": "metadata/UrbanSound8K.csv"
    }  # fmt: skip
    for layout, name in tables.items():
        (layouts[layout] / name).unlink()
        os.mkfifo(layouts[layout] / name)
        refused(lambda root=layouts[layout]: open_dataset(root), "not a regular file", code="no_table")  # type: ignore[misc]


# --- UrbanSound8K ------------------------------------------------------------------------------------------------


def us8k_rows(root: Path) -> list[list[str]]:
    with (root / "metadata" / "UrbanSound8K.csv").open() as file:
        return list(csv.reader(file))


def test_urbansound8k_has_ten_folds_and_sources(layouts: dict[str, Path]) -> None:
    data = load_urbansound8k(layouts["UrbanSound8K"])
    assert data.labels == ("class0", "class1")
    assert [(c.fold, c.source) for c in data.clips] == [(1, "100"), (2, "101"), (1, "102"), (2, "103")]


def test_urbansound8k_names_all_missing_columns(layouts: dict[str, Path]) -> None:
    root = layouts["UrbanSound8K"]
    rows = us8k_rows(root)
    write_csv(root / "metadata" / "UrbanSound8K.csv", [[row[0], row[3]] for row in rows])
    refused(lambda: open_dataset(root), "lacks the columns fsID, fold, class")


@pytest.mark.parametrize(
    ("column", "value", "word"),
    [
        (2, "0", "fold '0' is not 1 to 10"),
        (2, "11", "fold '11'"),
        (2, "1.0", "fold '1.0'"),
        (3, "10", "classID '10' is not 0 to 9"),
        (3, "dog", "classID 'dog'"),
        (3, "1", "contradicts fsID or classID"),
        (1, "999", "contradicts fsID or classID"),
        (4, "other", "classID 0 is 'other' here, 'class0' above"),
        (0, "../102-0-0-2.wav", "is not FSID-CLASSID"),
        (0, "/etc/102-0-0-2.wav", "is not FSID-CLASSID"),
        (0, "100-0-0-0.wav", "contradicts"),
        (2, "2", "no audio file 102-0-0-2"),
    ],
)
def test_urbansound8k_rows_are_refused_with_their_line(
    layouts: dict[str, Path], column: int, value: str, word: str, call: Callable[..., Any]
) -> None:
    root = layouts["UrbanSound8K"]
    rows = us8k_rows(root)
    rows[3][column] = value
    write_csv(root / "metadata" / "UrbanSound8K.csv", rows)  # type: ignore[arg-type]
    refused(lambda: open_dataset(root), "line 4: ", word)
    lenient = open_dataset(root, strict=False)
    assert len(lenient.clips) == 3
    assert lenient.skipped[0].where.startswith("line 4")
    done = call("data", "info", root)
    assert done.status == EXIT_SOME_FAILED
    assert "left out" in done.out
    assert word.split("'")[0].split(" ")[0] in done.out


def test_urbansound8k_leaks_and_doubles_are_refused(layouts: dict[str, Path], touch: Touch) -> None:
    root = layouts["UrbanSound8K"]
    rows = us8k_rows(root)
    write_csv(root / "metadata" / "UrbanSound8K.csv", [*rows, rows[1]])  # type: ignore[list-item]
    refused(lambda: open_dataset(root), "100-0-0-0 stands in a row above")
    touch("audio/fold2/100-0-0-9.wav", root="us8k")
    more = [*rows, ["100-0-0-9.wav", "100", "2", "0", "class0", "0"]]
    write_csv(root / "metadata" / "UrbanSound8K.csv", more)  # type: ignore[arg-type]
    refused(lambda: open_dataset(root), "source 100 stands in more than one fold", code="leak")
    assert open_dataset(root, strict=False).stamps[0].startswith("LEAKY: ")


# --- tables ------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(touch: Touch) -> Callable[..., Path]:
    """Return a function: rows -> a table beside a.wav, b.wav and audio/c.wav."""
    root = touch("a.wav", "b.wav", "audio/c.wav")

    def made(*rows: list[object], header: str = "filename,label", name: str = "clips.csv") -> Path:
        return write_csv(root / name, [header.split(","), *rows], "\t" if name.endswith("tsv") else ",")

    return made


def test_a_table_with_all_columns(table: Callable[..., Path]) -> None:
    header = "time,remark,filename,label,source,fold"
    path = table(
        ["2024-05-01", "=1", "a.wav", "cat", "r1", 1],
        ["2024-05-02", "", "b.wav", "dog", "r2", 2],
        ["", "", "c.wav", "dog", "", 2],
        header=header,
    )
    data = load_table(path)
    assert [(c.name, c.label, c.fold, c.source, c.time) for c in data.clips] == [
        ("a.wav", "cat", 1, "r1", "2024-05-01"),
        ("b.wav", "dog", 2, "r2", "2024-05-02"),
        ("c.wav", "dog", 2, "c.wav", ""),
    ]
    assert data.clips[2].path == path.parent / "audio" / "c.wav"
    assert load_table(table(["a.wav", "x"], name="clips.tsv")).clips[0].label == "x"


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        ([["a.wav", "x"]], "file,label", ["lacks the columns filename"]),
        ([["a.wav", "x"]], "Filename,Label", ["lacks the columns filename, label"]),
        ([["a.wav", "x", "y"]], "filename,label,label", ["has the column label twice"]),
        ([["a.wav;x"]], "filename;label", ["separated by semicolons"]),
        ([["a.wav"], ["b.wav", "x", "y"]], "filename,label", ["line 2: 1 cells where 2", "line 3: 3 cells"]),
        ([["", "x"], ["a.wav", " "]], "filename,label", ["line 2: the file name", "line 3: the label is empty"]),
        ([["../a.wav", "x"]], "filename,label", ["line 2: file name '../a.wav' leads out of the folder"]),
        ([["/etc/passwd", "x"]], "filename,label", ["leads out"]),
        ([["audio\\c.wav", "x"]], "filename,label", ["leads out"]),
        ([["C:a.wav", "x"]], "filename,label", ["leads out"]),
        ([["a.wav", "x"], ["a.wav", "x"]], "filename,label", ["line 3: a.wav stands in line 2 already"]),
        ([["a.wav", "x"], ["./a.wav", "y"]], "filename,label", ["line 3: a.wav is 'y', 'x' in line 2"]),
        ([["a.wav", "x", 1], ["b.wav", "x", ""]], "filename,label,fold", ["line 3: fold ''"]),
        ([["a.wav", "x", 0]], "filename,label,fold", ["fold '0'"]),
        ([["a.wav", "x", "1.0"]], "filename,label,fold", ["fold '1.0'"]),
    ],
)  # fmt: skip
def test_a_table_that_is_wrong_is_refused_with_its_lines(
    table: Callable[..., Path], rows: list[list[object]], header: str, words: list[str]
) -> None:
    path = table(*rows, header=header)
    refused(lambda: load_table(path), *words)


def test_rows_that_lead_nowhere_are_left_out_or_refused(table: Callable[..., Path], tmp_path: Path) -> None:
    outside = tmp_path / "secret.wav"
    outside.write_bytes(b"x")
    path = table(
        ["a.wav", "x"],
        ["none.wav", "x"],
        ["link.wav", "x"],
        ["pipe.wav", "x"],
        ["loop.wav", "x"],
        ["audio", "x"],
    )
    root = path.parent
    (root / "link.wav").symlink_to(outside)
    (root / "loop.wav").symlink_to("loop.wav")
    os.mkfifo(root / "pipe.wav")
    data = load_table(path)
    assert [clip.name for clip in data.clips] == ["a.wav"]
    assert skipped(data) == [
        ("line 3 (none.wav)", "not_found"),
        ("line 4 (link.wav)", "outside_root"),
        ("line 5 (pipe.wav)", "not_regular_file"),
        ("line 6 (loop.wav)", "symlink_loop"),
        ("line 7 (audio)", "not_regular_file"),
    ]
    refused(lambda: load_table(path, strict=True), "line 3", "line 7")


def test_a_source_in_two_folds_of_a_table_is_a_leak(table: Callable[..., Path]) -> None:
    path = table(["a.wav", "x", 1, "r"], ["b.wav", "x", 2, "r"], header="filename,label,fold,source")
    refused(lambda: load_table(path), "source r stands in more than one fold", code="leak")
    assert load_table(path, strict=False).stamps == ("LEAKY: 1 sources stand in more than one fold (r)",)


def test_hard_links_are_one_file(table: Callable[..., Path]) -> None:
    path = table(["a.wav", "x"], ["again.wav", "y"])
    os.link(path.parent / "a.wav", path.parent / "again.wav")
    refused(lambda: load_table(path), "again.wav is 'y', 'x' in line 2")


def test_labels_are_kept_as_they_are_and_look_alikes_warned_of(
    table: Callable[..., Path], call: Callable[..., Any]
) -> None:
    """D12: any text is a label; what the terminal shows is harmless."""
    odd = [
        "h\u00fctte",
        unicodedata.normalize("NFD", "h\u00fctte"),
        "Dog",
        "dog",
        "=cmd()",
        "\x1b[2J",
        "\U0001f41d",
        "l" * 10_000,
    ]
    root = table().parent
    for i, _ in enumerate(odd):
        (root / f"{i}.wav").write_bytes(b"x")
    path = table(*([f"{i}.wav", label] for i, label in enumerate(odd)))
    data = load_table(path)
    assert [clip.label for clip in data.clips] == odd
    alike = [warning for warning in data.warnings if "look alike" in warning]
    assert len(alike) == 2
    done = call("data", "info", path)
    assert "\x1b" not in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert len(done.out) < 4000
    assert json.loads(call("data", "info", path, "--json").out)["labels"].keys() == set(odd)


# --- folders -----------------------------------------------------------------------------------------------------


def test_a_folder_per_label_and_per_recording(touch: Touch) -> None:
    root = touch("cat/a.wav", "cat/b.wav", "cat/may/1.wav", "cat/may/2.wav", "dog/may/3.wav", "dog/x/y/4.wav")
    data = load_folder(root)
    assert {clip.name: (clip.label, clip.source) for clip in data.clips} == {
        "cat/a.wav": ("cat", "cat/a"),
        "cat/b.wav": ("cat", "cat/b"),
        "cat/may/1.wav": ("cat", "may"),
        "cat/may/2.wav": ("cat", "may"),
        "dog/may/3.wav": ("dog", "may"),
        "dog/x/y/4.wav": ("dog", "x/y"),
    }
    assert not data.has_folds


def test_a_folder_with_bad_things_in_it(touch: Touch, tmp_path: Path, call: Callable[..., Any]) -> None:
    """D14: each is a row, nothing hangs, and the rest is a data set."""
    touch("x.wav", root="outside")
    root = touch("cat/a.wav", "cat/b.wav", "dog/c.wav", "stray.wav", ".git/d.wav", "__MACOSX/cat/a.wav")
    os.mkfifo(root / "cat" / "pipe.wav")
    (root / "cat" / "link.wav").symlink_to(tmp_path / "outside" / "x.wav")
    (root / "cat" / "gone.wav").symlink_to("nowhere.wav")
    (root / "dog" / "loop").symlink_to(root)
    (root / "dog" / "away").symlink_to(tmp_path / "outside")
    data = load_folder(root)
    assert sorted(clip.name for clip in data.clips) == ["cat/a.wav", "cat/b.wav", "dog/c.wav"]
    assert dict(skipped(data)) == {
        "cat/pipe.wav": "not_regular_file",
        "cat/link.wav": "outside_root",
        "cat/gone.wav": "not_found",
        "dog/away": "outside_root",
        "stray.wav": "no_label",
    }
    done = call("data", "info", root, "--json")
    assert done.status == EXIT_SOME_FAILED
    assert {row["code"] for row in json.loads(done.out)["skipped"]} == set(dict(skipped(data)).values())
    refused(lambda: load_folder(root, strict=True), "pipe.wav")


def test_names_that_are_not_utf8_are_left_out(touch: Touch) -> None:
    root = touch("cat/a.wav", "cat/b.wav")
    os.rename(root / "cat" / "b.wav", os.fsencode(root / "cat") + b"/\xff.wav")
    data = load_folder(root)
    assert skipped(data) == [("cat/\\udcff.wav", "bad_name")]


def test_a_folder_beside_a_table_of_something_else(touch: Touch) -> None:
    root = touch("cat/a.wav", "dog/b.wav")
    (root / "notes.csv").write_text("date,weather\n")
    data = open_dataset(root)
    assert data.layout == "folder"
    assert any("notes.csv is not a table of clips" in warning for warning in data.warnings)
    (root / "notes.csv").write_text("filename,label\ncat/a.wav,x\n")
    assert open_dataset(root).layout == "table"


def test_what_makes_a_score_doubtful_is_warned_of(touch: Touch) -> None:
    """D11."""
    root = touch("one/a.wav", *(f"many/{i}.wav" for i in range(11)))
    warnings = "\n".join(load_folder(root).warnings)
    assert "label with one source only" in warnings
    assert "unbalanced: 1 to 11 clips" in warnings
    assert "only one label" in "\n".join(load_folder(touch("one/a.wav", root="single")).warnings)


# --- our own index -----------------------------------------------------------------------------------------------


def test_an_index_gives_the_same_data_set_again(layouts: dict[str, Path], tmp_path: Path) -> None:
    data = open_dataset(layouts["UrbanSound8K"])
    write_index(data, data.root)
    again = open_dataset(data.root)
    assert again.name == data.name
    assert (again.labels, again.layout, again.stamps) == (data.labels, data.layout, data.stamps)
    assert [(c.path, c.label, c.fold, c.source) for c in again.clips] == [
        (c.path, c.label, c.fold, c.source) for c in data.clips
    ]
    (data.root / "soundmark.json").write_text("{}")
    refused(lambda: load_index(data.root), "missing or damaged", code="bad_dataset")
    refused(lambda: write_index(data, tmp_path / "other"), "does not lie below", code="bad_dataset")


def test_the_environment_names_the_default(
    layouts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any]
) -> None:
    done = call("data", "info")
    assert (done.status, done.out) == (EXIT_USAGE, "")
    assert ESC50_VARIABLE in done.err
    monkeypatch.setenv(ESC50_VARIABLE, str(layouts["ESC-50"]))
    assert open_dataset().root == layouts["ESC-50"]


@pytest.mark.data
def test_the_real_esc50_is_esc50_and_holds_esc10(call: Callable[..., Any]) -> None:
    if not (root := REAL):
        pytest.skip(f"{ESC50_VARIABLE} is not set")
    facts = json.loads(call("data", "info", root, "--json").out)
    assert (facts["data"], facts["clips"], len(facts["labels"])) == ("ESC-50", 2000, 50)
    assert facts["hours"] == pytest.approx(2000 * 5 / 3600, rel=0.01)
    ten = open_dataset(f"esc10:{root}")
    assert (ten.name, len(ten.clips), len(ten.labels)) == ("ESC-10", 400, 10)
    assert set(open_dataset(root).labels) == ESC50_LABELS
