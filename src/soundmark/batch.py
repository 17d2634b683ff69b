"""Around `Classifier.classify_many`: which recordings a command line means, and writers for their rows.

Rows are written and flushed as they come, so that what is finished stays when a run is interrupted, the disk fills up
or the reader of a pipe leaves.
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

import soundfile

from soundmark import storage
from soundmark.containers import AUDIO_SUFFIXES
from soundmark.errors import AudioError, SoundmarkError
from soundmark.postprocess import Failure, Prediction
from soundmark.scan import Found, scan

if TYPE_CHECKING:
    from soundmark.scene import DemoClip

Row = Prediction | Failure
STDIN = "-"
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four: full-width forms


def expand(paths: Iterable[str | os.PathLike[str]]) -> list[Found]:
    """Return the recordings under files, folders and glob patterns, in order, each once; ``-`` is standard input.

    "Once" is by device and inode: a file that is named twice, or also reached through a link, is one row.

    Raises:
        AudioError: nothing matched; code ``not_found``, exit status 3.
    """
    given = [os.fspath(path) for path in paths]
    found = list(scan(path for path in given if path != STDIN))
    if STDIN in given:  # before it stands what the paths before it give
        stdin = Found(STDIN)  # type: ignore[arg-type]  # Path("-") would be a file of that name
        found.insert(len(list(scan(given[: given.index(STDIN)]))), stdin)
    if not found:
        raise AudioError(
            f"nothing matched {', '.join(map(repr, given))}",
            wanted=f"recordings ({', '.join(AUDIO_SUFFIXES)}), folders of them, or glob patterns",
            code="not_found",
        )
    return found


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """Yield a function to call after every recording, which raises `KeyboardInterrupt` where Ctrl-C came too early.

    libsndfile reads through Python callbacks, and an exception in there is printed and lost: the recording would look
    damaged and the batch would go on. So a Ctrl-C that hits a callback waits until the recording is done. Anywhere else
    it acts at once. A process in which SIGINT is ignored or handled otherwise is left as it is.
    """
    late: list[int] = []

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_name.startswith("vio_"):  # soundfile's callbacks
                late.append(number)
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    def check() -> None:
        if late:
            raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check
        return
    try:
        signal.signal(signal.SIGINT, on_interrupt)
    except ValueError:  # not in the main thread
        yield check
        return
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def write_jsonl(rows: Iterable[Row], out: IO[str]) -> int:
    r"""Write one JSON object per row as it comes; return how many failed.

    ASCII only. Bytes of a file name that are not UTF-8 are lone surrogates (``\udcff``), as `os.fsdecode` gives them,
    so that `os.fsencode` of the path opens the file.
    """
    failed = 0
    for row in rows:
        failed += not row.ok
        out.write(json.dumps(row.to_dict()) + "\n")
        out.flush()
    return failed


def write_json(rows: Iterable[Row], out: IO[str]) -> int:
    """Write one JSON array, an element per line as it comes, closed also when interrupted; return how many failed."""
    failed, lead = 0, "[\n"
    try:
        for row in rows:
            failed += not row.ok
            out.write(lead + json.dumps(row.to_dict()))
            out.flush()
            lead = ",\n"
    except (KeyboardInterrupt, SoundmarkError):
        out.write("\n]\n" if lead == ",\n" else "[]\n")
        raise
    out.write("\n]\n" if lead == ",\n" else "[]\n")
    return failed


def write_csv(rows: Iterable[Row], out: IO[str], *, top_k: int) -> int:
    """Write a header and one line per row as it comes; return how many failed.

    For people and spreadsheets: control characters are written out (`visible`), and text that a spreadsheet would run
    as a formula gets a leading ``'`` (CWE-1236). JSON keeps names exact.
    """
    ranked = [f"{name}_{place}" for place in range(1, top_k + 1) for name in ("label", "score")]
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["path", "decision", *ranked, "flags", "error", "message"])
    failed = 0
    for row in rows:
        cells: list[Any] = [_cell(row.source)]
        if isinstance(row, Prediction):
            best = [cell for one in row.labels[:top_k] for cell in (_cell(one.label), f"{one.score:.6f}")]
            decision = _cell(row.label) if row.label is not None else f"unknown ({row.reason})"
            cells += [decision, *best, *[""] * (len(ranked) - len(best)), " ".join(row.flags), "", ""]
        else:
            failed += 1
            cells += ["", *[""] * len(ranked), "", row.code, _cell(row.message)]
        table.writerow(cells)
        out.flush()
    return failed


def write_wavs(clips: Iterable[DemoClip], folder: Path) -> list[Path]:
    """Write demo clips as 16-bit WAV files, ``<name>.wav``, replacing those of an earlier call; return their paths.

    Raises:
        StorageError: ``folder`` cannot be written.
    """
    paths = []
    for clip in clips:
        memory = io.BytesIO()
        soundfile.write(memory, clip.samples, clip.sample_rate, format="WAV", subtype="PCM_16")
        paths.append(folder / f"{clip.name}.wav")
        storage.write_bytes(paths[-1], memory.getvalue())
    return paths


def visible(text: str) -> str:
    """Return ``text`` with control characters and lone surrogates written out, so that no name moves the cursor."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text
    )


def _cell(text: str) -> str:
    shown = visible(text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown
