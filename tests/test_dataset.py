"""dataset: the official table or an error that names every line; folds that do not leak; digests that mean it."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from soundmark.dataset import (
    ESC50_COLUMNS,
    ESC50_SHARED_SOURCES,
    ESC50_VARIABLE,
    Dataset,
    find_esc50,
    load_esc50,
    sources_across_folds,
)
from soundmark.errors import EXIT_USAGE, DatasetError
from synthetic import CLASSES, COLUMNS, table_rows, write_esc50, write_table

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small good data set; shared, do not change it."""
    return write_esc50(tmp_path_factory.mktemp("esc"), sources=1, seconds=0.05)


@pytest.fixture
def root(tmp_path: Path, good: Path) -> Path:
    """Return a copy that a test may change."""
    shutil.copytree(good, tmp_path / "esc")
    return tmp_path / "esc"


def rows() -> Rows:
    return table_rows(sources=1)


def refused(root: Path, *parts: str, code: str = "bad_table") -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        load_esc50(root)
    error = caught.value
    assert (error.code, error.exit_status) == (code, EXIT_USAGE)
    for part in parts:
        assert part in str(error), (part, str(error))
    return error


def named(
    fold: str, source: str, take: str, target: str, category: str, root: Path | None = None
) -> dict[str, str]:
    """Return a row whose name agrees with it; with ``root``, also make its audio file."""
    name = f"{fold}-{source}-{take}-{target}.wav"
    if root:
        (root / "audio" / name).write_bytes(b"x")
    return dict(zip(COLUMNS, (name, fold, target, category, "False", source, take), strict=True))


def test_a_good_table_is_an_index_in_file_order(good: Path) -> None:
    data = load_esc50(good)
    assert data.name == "ESC-50"
    assert data.labels == tuple(CLASSES.values())
    assert data.folds == (1, 2, 3, 4, 5)
    assert [clip.name for clip in data.clips] == [row["filename"].removesuffix(".wav") for row in rows()]
    assert all(clip.path.is_file() and clip.path.parent == good / "audio" for clip in data.clips)
    assert [data.labels[i] for i in data.targets] == [clip.label for clip in data.clips]
    assert sources_across_folds(data) == {}


def test_labels_follow_the_target_and_not_the_order_of_rows(root: Path) -> None:
    write_table(root, rows()[::-1])
    assert load_esc50(root).labels == tuple(CLASSES.values())


# D1


@pytest.mark.parametrize("how", ["folder is missing", "table is missing", "table is a folder"])
def test_no_table_is_one_error_that_names_the_path(root: Path, how: str) -> None:
    table = root / "meta" / "esc50.csv"
    if how == "folder is missing":
        shutil.rmtree(root)
    else:
        table.unlink()
    if how == "table is a folder":
        table.mkdir()
    refused(root, str(table), "meta/esc50.csv", code="no_table")


def test_an_empty_table_lacks_every_column(root: Path) -> None:
    (root / "meta" / "esc50.csv").write_bytes(b"")
    refused(root, *ESC50_COLUMNS)


def test_a_table_of_a_header_alone_has_no_rows(root: Path) -> None:
    write_table(root, [])
    refused(root, "no rows", code="bad_dataset")


def test_no_audio_folder_is_an_error(root: Path) -> None:
    shutil.rmtree(root / "audio")
    refused(root, str(root / "audio"), code="no_audio")


def test_the_folder_comes_from_the_argument_or_the_variable(
    monkeypatch: pytest.MonkeyPatch, good: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv(ESC50_VARIABLE, str(good))
    assert find_esc50() == good
    assert find_esc50(tmp_path) == tmp_path
    assert load_esc50().root == good
    monkeypatch.delenv(ESC50_VARIABLE)
    with pytest.raises(DatasetError, match=ESC50_VARIABLE) as caught:
        load_esc50()
    assert caught.value.code == "no_dataset"


# D2


def test_missing_columns_are_named_at_once_and_extra_ones_ignored(root: Path) -> None:
    write_table(root, rows(), tuple(c for c in COLUMNS if c not in ("fold", "src_file", "take")))
    error = refused(root, "fold, src_file, take")
    assert "category" not in error.saw
    write_table(root, [{**row, "note": "="} for row in rows()], ("note", *COLUMNS))
    assert len(load_esc50(root).clips) == len(rows())


def test_columns_in_another_case_are_missing(root: Path) -> None:
    table = root / "meta" / "esc50.csv"
    table.write_text(table.read_text().replace("fold", "Fold", 1))
    refused(root, "lacks the columns fold")


# D3


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"\n", b"\r"),
        lambda text: text + b"\n\n\r\n",
        lambda text: b"\n".join(
            b",".join(b'"%s"' % cell for cell in line.split(b",")) for line in text.split()
        ),
    ],
    ids=["BOM", "CRLF", "CR", "blank lines", "quotes"],
)
def test_dialects_that_change_nothing(root: Path, good: Path, change: Callable[[bytes], bytes]) -> None:
    table = root / "meta" / "esc50.csv"
    table.write_bytes(change(table.read_bytes()))
    assert [c.name for c in load_esc50(root).clips] == [c.name for c in load_esc50(good).clips]


def test_dialects_that_are_refused(root: Path) -> None:
    table = root / "meta" / "esc50.csv"
    text = table.read_text()
    table.write_text(text.replace(",", ";"))
    refused(root, "lacks the columns filename")
    table.write_text(text, "utf-16")
    refused(root, "not UTF-8", code="no_table")
    lines = text.splitlines()
    table.write_text("\n".join([*lines[:3], lines[3] + ",more", *lines[4:6], "1,2", *lines[6:]]))
    refused(root, "line 4", "line 7")
    table.write_text(text + '"never closed')
    refused(root, "unexpected end of data")
    table.write_text(text + "x" * 200_000 + ",1,1,1,1,1,1\n")
    refused(root, "line 5", "field larger")


def test_a_newline_in_quotes_and_odd_characters_are_kept(root: Path) -> None:
    odd = {"tone": "to\nne", "chirp": "\u2028=cmd()", "hum": "h\u00fcm \U0001f41d"}
    write_table(root, [{**row, "category": odd.get(row["category"], row["category"])} for row in rows()])
    data = load_esc50(root)
    assert data.labels == ("to\nne", "\u2028=cmd()", "noise_band", "clicks", "h\u00fcm \U0001f41d")
    assert len(data.clips) == len(rows())


# D7


@pytest.mark.parametrize(
    ("column", "value"),
    [("target", v) for v in ("50", "-1", "1.5", "dog", "", "NaN", "\u0663", "1" * 5000, " 1", "+1", "001")]
    + [("fold", v) for v in ("0", "6", "1.0", "", "-1", "\u0661", "9" * 5000, "01")],
)
def test_a_fold_or_target_out_of_range_is_refused_with_its_line(root: Path, column: str, value: str) -> None:
    table = rows()
    table[4][column] = value
    table[9][column] = value
    write_table(root, table)
    error = refused(root, "line 6: " + column, "line 11: " + column)
    assert len(str(error)) < 500


def test_at_most_ten_problems_are_spelled_out(root: Path) -> None:
    write_table(root, [{**row, "fold": "7"} for row in rows()])
    assert str(refused(root, f"and {len(rows()) - 10} more")).count("line ") == 10


# D6, D8, D9


@pytest.mark.parametrize("column", ["fold", "src_file", "take", "target"])
def test_a_name_that_contradicts_its_row_is_refused(root: Path, column: str) -> None:
    table = rows()
    table[2][column] = {"fold": "3", "src_file": "1", "take": "Z", "target": "7"}[column]
    write_table(root, table)
    refused(root, "line 4", "contradicts", table[2]["filename"])


def test_a_target_with_two_names_and_a_name_with_two_targets_are_refused(root: Path) -> None:
    table = rows()
    table[1]["category"] = "dog"
    write_table(root, table)
    refused(root, "line 3", "'dog'", "'tone'")
    write_table(root, [{**row, "category": "same"} for row in rows()])
    refused(root, "two targets share", code="bad_dataset")


def test_rows_without_audio_are_all_named(root: Path) -> None:
    for index in (3, 7):
        (root / "audio" / rows()[index]["filename"]).unlink()
    refused(root, "line 5", "line 9", "no audio file")


def test_what_is_not_a_regular_file_is_no_audio(root: Path) -> None:
    names = [root / "audio" / row["filename"] for row in rows()[:3]]
    for name in names:
        name.unlink()
    os.mkfifo(names[0])
    names[1].mkdir()
    names[2].symlink_to(names[2].name)
    start = time.monotonic()
    refused(root, "line 2", "line 3", "line 4", "no audio file")
    assert time.monotonic() - start < 30


def test_duplicate_rows_are_refused(root: Path) -> None:
    write_table(root, [*rows(), rows()[0]])
    refused(root, "stands in 2 rows", rows()[0]["filename"].removesuffix(".wav"))


# D10


def test_a_source_in_two_folds_is_a_leak(root: Path) -> None:
    write_table(
        root, [*rows(), named("1", "777", "A", "0", "tone", root), named("2", "777", "B", "0", "tone", root)]
    )
    refused(root, "source 777", "more than one fold", code="leak")


def test_the_four_known_sources_are_allowed(root: Path) -> None:
    more = [
        named(fold, source, take, target, category, root)
        for source in sorted(ESC50_SHARED_SOURCES)
        for fold, take, target, category in (("1", "A", "0", "tone"), ("2", "B", "3", "chirp"))
    ]
    write_table(root, [*rows(), *more])
    assert sources_across_folds(load_esc50(root)) == dict.fromkeys(sorted(ESC50_SHARED_SOURCES), (1, 2))


# D13


@pytest.mark.parametrize(
    "before",
    ["../", "../../etc/", "/", "/etc/", "..\\", "audio/", "./", "\0", "C:"],
)
def test_names_that_lead_elsewhere_are_refused(root: Path, before: str) -> None:
    table = rows()
    table[3]["filename"] = before + table[3]["filename"]
    write_table(root, table)
    refused(root, "line 5: file name")


@pytest.mark.parametrize("name", ["", ".", "..", "x.wav", "1-1-A-0.wav\0", "1-1-a-0.wav", "1-1-A-0.wav/"])
def test_names_of_another_pattern_are_refused(root: Path, name: str) -> None:
    write_table(root, [*rows(), {**rows()[0], "filename": name}])
    refused(root, f"line {len(rows()) + 2}: file name")


# audio by stem


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".WAV", ".mp3"])
def test_audio_is_found_by_stem(root: Path, suffix: str) -> None:
    for path in list((root / "audio").iterdir()):
        path.rename(path.with_suffix(suffix))
    (root / "audio" / "README.txt").write_text("not audio")
    data = load_esc50(root)
    assert {clip.path.suffix for clip in data.clips} == {suffix}
    assert len(data.clips) == len(rows())


# choices


def test_in_folds_keeps_labels_and_refuses_unknown_folds(good: Path) -> None:
    data = load_esc50(good)
    part = data.in_folds([2, 4, 4])
    assert part.labels == data.labels
    assert part.folds == (2, 4)
    assert part.clips == tuple(clip for clip in data.clips if clip.fold in (2, 4))
    for folds in ([1, 6, 9], []):
        with pytest.raises(DatasetError) as caught:
            data.in_folds(folds)
        assert caught.value.code == "unknown_fold"
    with pytest.raises(DatasetError, match="fold 6, 9"):
        data.in_folds([1, 6, 9])


def test_with_labels_gives_those_labels_in_that_order_and_another_name(good: Path) -> None:
    data = load_esc50(good)
    part = data.with_labels(["hum", "tone"])
    assert part.labels == ("hum", "tone")
    assert Counter(clip.label for clip in part.clips) == {"hum": 10, "tone": 10}
    assert [part.labels[i] for i in part.targets] == [clip.label for clip in part.clips]
    assert part.name == "ESC-50 (2 classes)"
    with pytest.raises(DatasetError, match="no label cat, dog"):
        data.with_labels(["tone", "dog", "cat"])
    for labels in ([], ["tone", "tone"]):
        with pytest.raises(DatasetError, match="each once"):
            data.with_labels(labels)


# digests


def test_digests_are_stable_and_do_not_depend_on_the_place_or_the_order(root: Path, good: Path) -> None:
    digest = load_esc50(good).digest()
    assert len(digest) == 64
    assert load_esc50(root).digest() == digest
    write_table(root, rows()[::-1])
    assert load_esc50(root).digest() == digest
    data = load_esc50(good)
    assert data.digest(data.hashes()) == digest


def test_digests_feel_bytes_labels_folds_sources_and_the_order_of_labels(root: Path, good: Path) -> None:
    data = load_esc50(good)
    hashes = data.hashes()

    def changed(**values: object) -> str:
        return replace(data, clips=(replace(data.clips[0], **values), *data.clips[1:])).digest(hashes)  # type: ignore[arg-type]

    path = load_esc50(root).clips[0].path
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    digests = [
        data.digest(hashes),
        load_esc50(root).digest(),
        changed(label="hum"),
        changed(fold=2),
        changed(source="1"),
        replace(data, labels=data.labels[::-1]).digest(hashes),
        replace(data, clips=data.clips[1:]).digest(hashes),
        data.in_folds([1]).digest(),
    ]
    assert len(set(digests)) == len(digests)


def test_hashing_reports_progress_and_names_a_clip_that_went_away(root: Path) -> None:
    data = load_esc50(root)
    seen: list[int] = []
    assert len(data.hashes(seen.append)) == len(data.clips) == sum(seen)
    data.clips[5].path.unlink()
    with pytest.raises(DatasetError, match=data.clips[5].name) as caught:
        data.digest()
    assert caught.value.code == "unreadable_clip"


# the real one


@pytest.mark.data
def test_the_real_esc50_is_whole_and_has_exactly_the_four_shared_sources() -> None:
    if not os.environ.get(ESC50_VARIABLE):
        pytest.skip(f"{ESC50_VARIABLE} is not set: the real ESC-50 was not checked")
    data: Dataset = load_esc50()
    assert len(data.clips) == 2000
    assert len(data.labels) == 50
    assert data.labels[:2] == ("dog", "rooster")
    assert set(Counter(clip.label for clip in data.clips).values()) == {40}
    assert Counter(clip.fold for clip in data.clips) == dict.fromkeys(range(1, 6), 400)
    shared = sources_across_folds(data)
    assert set(shared) == ESC50_SHARED_SOURCES
    clips = [clip for clip in data.clips if clip.source in shared]
    assert len(clips) == 9
    for source in shared:  # each time under another label
        by_fold = {(clip.fold, clip.label) for clip in clips if clip.source == source}
        labels = [label for _, label in by_fold]
        assert len(labels) == len(set(labels))
