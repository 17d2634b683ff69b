"""Every case of the corpus through `load`: the wanted outcome and flags, quickly, the same from path and bytes."""

from __future__ import annotations

import atexit
import faulthandler
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_corpus import make

from soundmark.audio import Audio, Reader, load
from soundmark.errors import AUDIO_CODES, FLAGS, AudioError

OUT = Path(tempfile.mkdtemp(prefix="soundmark-corpus-"))
atexit.register(shutil.rmtree, OUT, ignore_errors=True)
ROWS = make(OUT)
GROUPS = {row["group"] for row in ROWS}


def outcome(source: Any, **options: Any) -> Audio | AudioError:
    faulthandler.dump_traceback_later(60, exit=True)  # C code that hangs cannot be interrupted otherwise
    try:
        return load(source, sample_rate=16_000, **options)
    except AudioError as error:
        return error
    finally:
        faulthandler.cancel_dump_traceback_later()


def test_the_corpus_is_large_enough_and_names_known_codes_and_flags() -> None:
    assert len(ROWS) >= 150
    assert len(GROUPS) == 11
    for row in ROWS:
        assert set(row["expect"]) <= AUDIO_CODES | {"ok"}
        assert set(row["flags"]) | set(row["maybe"]) <= FLAGS


@pytest.mark.parametrize("row", ROWS, ids=[ascii(row["name"])[:60] for row in ROWS])
def test_case(row: dict[str, Any]) -> None:
    path = str(OUT / row["name"])
    started = time.perf_counter()
    found = outcome(path)
    seconds = time.perf_counter() - started
    assert seconds < 2
    if isinstance(found, AudioError):
        assert found.code in row["expect"], str(found)
        assert str(found).isprintable(), "control characters of a name must not reach a terminal or log"
        assert found.saw
        assert found.wanted
    else:
        assert "ok" in row["expect"], found
        assert set(row["flags"]) <= set(found.flags) <= set(row["flags"]) | set(row["maybe"])
        assert found.samples.dtype == np.float32
        assert found.samples.ndim == 1
        assert len(found.samples) > 0
        assert np.isfinite(found.samples).all()
    if not (os.path.isfile(path) and os.access(path, os.R_OK)):
        return
    again = outcome(Path(path).read_bytes())
    if isinstance(found, AudioError):
        assert isinstance(again, AudioError)
        assert again.code == found.code
    else:
        assert isinstance(again, Audio)
        assert set(found.flags) - {"extension_mismatch"} == set(again.flags)
        np.testing.assert_array_equal(again.samples, found.samples)


@pytest.mark.parametrize(
    "row", [r for r in ROWS if r["group"] == "damaged stream"], ids=lambda row: row["name"]
)
def test_damaged_streams_decode_alike_in_blocks(row: dict[str, Any]) -> None:
    found = outcome(OUT / row["name"])
    if isinstance(found, Audio):
        with Reader(OUT / row["name"], sample_rate=16_000) as reader:
            np.testing.assert_array_equal(np.concatenate(list(reader)), found.samples)
        assert reader.flags == found.flags


@pytest.mark.parametrize("row", ROWS, ids=[ascii(row["name"])[:60] for row in ROWS])
def test_strict_refuses_what_is_flagged_as_faulty(row: dict[str, Any]) -> None:
    faults = {"truncated", "header_length_wrong", "length_unknown", "extension_mismatch", "chained"}
    if row["expect"] == ["ok"] and not set(row["maybe"]) & faults and row["group"] != "bomb":
        found = outcome(OUT / row["name"], strict=True)
        if set(row["flags"]) & faults:
            assert isinstance(found, AudioError)
            assert found.code == "corrupt_audio"
        else:
            assert isinstance(found, Audio)


def test_no_descriptor_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for row in ROWS:
        if row["group"] in ("wav length", "damaged stream", "not a file"):
            outcome(OUT / row["name"])
    assert len(os.listdir("/proc/self/fd")) <= before


CHILD = """
import json, resource, sys
from pathlib import Path
import numpy, soundfile, soxr
from soundmark.audio import load
from soundmark.errors import AudioError
load((numpy.zeros(44100), 44100), sample_rate=16000)
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
room = int(open("/proc/self/statm").read().split()[0]) * 4096 + (512 << 20)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
for name in json.loads(sys.argv[2]):
    try:
        load(str(Path(sys.argv[1]) / name), sample_rate=16000)
    except AudioError as error:
        assert error.code != "file_too_large", name
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert now - used < 256 * 1024, (name, now - used)
"""


@pytest.mark.parametrize("group", ["bomb", "wav length", "damaged stream"])
def test_no_case_needs_more_than_256_mb(group: str) -> None:
    import json

    chosen = [row["name"] for row in ROWS if row["group"] == group]
    command = [sys.executable, "-c", CHILD, str(OUT), json.dumps(chosen)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_special_files_are_what_they_should_be() -> None:
    assert stat.S_ISFIFO(os.stat(OUT / "fifo.wav").st_mode)
    assert stat.S_ISSOCK(os.stat(OUT / "socket.wav").st_mode)
