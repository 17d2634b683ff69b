"""batch: one row per recording in order, whatever the recordings are; writers that any program can read back."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundmark import batch
from soundmark.classifier import Classifier
from soundmark.demo import demo_clips
from soundmark.errors import AudioError, BundleError, StorageError
from soundmark.postprocess import Failure, LabelScore, Prediction

NAMES = st.text(st.characters(codec=None, exclude_characters="\0"), min_size=1, max_size=20)


def prediction(source: str = "a.wav", **changes: Any) -> Prediction:
    fields: dict[str, Any] = {
        "source": source,
        "label": "dog",
        "score": 0.75,
        "labels": (LabelScore("dog", 0.75), LabelScore("rain", 0.25)),
        "flags": (),
        "unknown": False,
        "reason": "",
        "duration_s": 1.0,
        "n_windows": 1,
        "timing_ms": {"total": 1.0},
        "model": "tiny",
        "model_digest": "0" * 64,
        "scores": np.zeros(2, np.float32),
        "logits": np.zeros((1, 2), np.float32),
    }
    return Prediction(**{**fields, **changes})


@pytest.fixture
def folder(tmp_path: Path, make_wav: Callable[..., bytes]) -> Path:
    here = tmp_path / "in"
    (here / "sub").mkdir(parents=True)
    noise = np.random.default_rng(0).standard_normal(8000) * 0.1
    for name in ("b.wav", "a.wav", "sub/c.wav"):
        (here / name).write_bytes(make_wav(noise))
    (here / "notes.txt").write_text("no audio")
    return here


def names(found: list[Any]) -> list[str]:
    return [Path(one.path).name for one in found]


def test_files_folders_and_patterns_in_order_each_once(folder: Path) -> None:
    assert names(batch.expand([folder])) == ["a.wav", "b.wav", "c.wav"]
    assert names(batch.expand([folder / "b.wav", folder, folder / "b.wav"])) == ["b.wav", "a.wav", "c.wav"]
    assert names(batch.expand([str(folder / "?.wav"), "nope.wav"])) == ["a.wav", "b.wav", "nope.wav"]
    os.symlink(folder / "b.wav", folder / "z.wav")
    assert names(batch.expand([folder])) == ["a.wav", "b.wav", "c.wav"]


def test_stdin_stands_where_it_was_named_and_once(folder: Path) -> None:
    found = batch.expand([folder / "b.wav", "-", folder / "a.wav", "-"])
    assert [os.fspath(one.path) for one in found] == [
        str(folder / "b.wav"),
        "-",
        str(folder / "a.wav"),
    ]
    assert found[1].path == "-"  # not Path("-"), which is a file of that name


def test_nothing_matched(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="nothing matched") as caught:
        batch.expand([tmp_path])
    assert (caught.value.code, caught.value.exit_status) == ("not_found", 3)


def test_bad_recordings_are_rows_in_order(tiny_classifier: Classifier, folder: Path) -> None:
    (folder / "aa.wav").touch()
    (folder / "link.wav").symlink_to("/etc/hostname")
    rows = list(tiny_classifier.classify_many(batch.expand([folder, "gone.wav"])))
    assert [Path(row.source).name for row in rows] == [
        "a.wav",
        "aa.wav",
        "b.wav",
        "link.wav",
        "c.wav",
        "gone.wav",
    ]
    codes = [row.code if isinstance(row, Failure) else "" for row in rows]
    assert codes == ["", "empty_file", "", "outside_root", "", "not_found"]


def test_a_fault_of_ours_is_a_row_and_a_model_fault_is_the_end(
    tiny_classifier: Classifier,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    original = Classifier.classify

    def broken(self: Classifier, source: Any, **options: Any) -> Prediction:
        if str(source).endswith("b.wav"):
            raise ZeroDivisionError("a bug")
        return original(self, source, **options)

    monkeypatch.setattr(Classifier, "classify", broken)
    rows = list(tiny_classifier.classify_many(batch.expand([folder])))
    assert [row.ok for row in rows] == [True, False, True]
    assert isinstance(rows[1], Failure)
    assert (rows[1].code, rows[1].message) == ("internal", "ZeroDivisionError: a bug")
    assert "ZeroDivisionError" in caplog.text

    def out_of_order(self: Classifier, source: Any, **options: Any) -> Prediction:
        raise BundleError("broken")

    monkeypatch.setattr(Classifier, "classify", out_of_order)
    with pytest.raises(BundleError):
        list(tiny_classifier.classify_many(batch.expand([folder])))


def test_rows_come_as_they_are_ready(tiny_classifier: Classifier, folder: Path) -> None:
    rows = tiny_classifier.classify_many(batch.expand([folder]))
    assert next(rows).ok
    for path in folder.rglob("*.wav"):
        path.unlink()
    assert [row.ok for row in rows] == [False, False]


@given(st.lists(NAMES, max_size=5))
def test_jsonl_and_json_give_every_name_back(sources: list[str]) -> None:
    rows = [prediction(s) if i % 2 else Failure(s, "not_found", s) for i, s in enumerate(sources)]
    lines, array = io.StringIO(), io.StringIO()
    failed = batch.write_jsonl(rows, lines)
    assert batch.write_json(rows, array) == failed == sum(not row.ok for row in rows)
    assert lines.getvalue().isascii()
    read = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [row["path"] for row in read] == sources
    assert json.loads(array.getvalue()) == read
    for row, got in zip(rows, read, strict=True):
        if row.ok:
            assert got["labels"] == [{"label": "dog", "score": 0.75}, {"label": "rain", "score": 0.25}]
            assert got["flags"] == []
            assert "error" not in got
        else:
            assert got["error"].keys() == {"code", "message"}


def test_a_name_that_is_no_utf8_comes_back_as_bytes() -> None:
    out = io.StringIO()
    batch.write_jsonl([prediction(os.fsdecode(b"d\xff\xe9.wav"))], out)
    assert os.fsencode(json.loads(out.getvalue())["path"]) == b"d\xff\xe9.wav"


@given(NAMES)
def test_csv_has_one_line_per_row_and_no_formula(source: str) -> None:
    out = io.StringIO()
    assert batch.write_csv([prediction(source), Failure(source, "not_found", source)], out, top_k=3) == 1
    text = out.getvalue().encode("utf-8", "strict").decode()
    assert len(text.split("\n")) == 4
    head, good, bad = csv.reader(io.StringIO(text))
    assert len(head) == len(good) == len(bad)
    row, failure = dict(zip(head, good, strict=True)), dict(zip(head, bad, strict=True))
    for cell in (row["path"], failure["path"], failure["message"]):
        assert cell.isprintable()
        assert cell.lstrip()[:1] not in tuple("=+-@＝＋－＠")
        assert cell in (batch.visible(source), f"'{batch.visible(source)}")
    assert (row["decision"], row["label_2"], row["label_3"], row["error"]) == ("dog", "rain", "", "")
    assert (failure["error"], failure["label_1"]) == ("not_found", "")


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-x.wav", "@SUM(A1)", " =1", "＝1"])
def test_formula_cells_are_neutralised(name: str) -> None:
    out = io.StringIO()
    batch.write_csv([prediction(name)], out, top_k=1)
    assert next(csv.DictReader(io.StringIO(out.getvalue())))["path"] == f"'{name}"


def test_csv_of_an_unknown_says_why() -> None:
    out = io.StringIO()
    batch.write_csv(
        [prediction(label=None, unknown=True, reason="silent", flags=("short", "silent"))], out, top_k=1
    )
    row = next(csv.DictReader(io.StringIO(out.getvalue())))
    assert (row["decision"], row["label_1"], row["flags"]) == ("unknown (silent)", "dog", "short silent")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BundleError("broken")])
def test_an_interrupted_array_is_closed(error: BaseException) -> None:
    def rows(n: int) -> Iterator[batch.Row]:
        yield from [prediction()] * n
        raise error

    for n in (0, 2):
        out = io.StringIO()
        with pytest.raises(type(error)):
            batch.write_json(rows(n), out)
        assert len(json.loads(out.getvalue())) == n


def test_an_empty_array_is_an_array() -> None:
    out = io.StringIO()
    assert batch.write_json([], out) == 0
    assert json.loads(out.getvalue()) == []


@given(st.text(st.characters(codec=None), max_size=30))
def test_visible_text_moves_no_cursor(text: str) -> None:
    shown = batch.visible(text)
    assert shown.isprintable()
    shown.encode()  # no surrogates
    assert batch.visible(shown) == shown


def test_visible_spells_out() -> None:
    assert batch.visible("a\x1b[31m\n\x9b\u202e\udcff中") == "a\\x1b[31m\\n\\x9b\\u202e\\udcff中"


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def default_sigint() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_sigint")
def test_ctrl_c_inside_a_decoder_callback_waits_for_the_end_of_the_recording() -> None:
    def vio_read() -> str:
        interrupt()
        return "whole"

    with batch.stoppable() as check:
        check()
        assert vio_read() == "whole"
        with pytest.raises(KeyboardInterrupt):
            check()
        with pytest.raises(KeyboardInterrupt):
            interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with batch.stoppable() as check:
            interrupt()
            check()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_sigint")
def test_stoppable_outside_the_main_thread() -> None:
    done: list[bool] = []

    def work() -> None:
        with batch.stoppable() as check:
            check()
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_wavs_are_written_and_replaced(tmp_path: Path, tiny_classifier: Classifier) -> None:
    clips = demo_clips(sample_rate=16_000, seconds=1.0)[:2]
    for _ in range(2):
        paths = batch.write_wavs(clips, tmp_path / "new" / "demo")
    assert [path.name for path in paths] == [f"{clip.name}.wav" for clip in clips]
    assert sorted(path.name for path in (tmp_path / "new" / "demo").iterdir()) == sorted(
        path.name for path in paths
    )
    assert all(row.ok for row in tiny_classifier.classify_many(paths))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        batch.write_wavs(clips, tmp_path / "file")
