"""Many recordings through one classifier: every file a row, in order, and writers for the rows.

A bad file is a row with an error, never the end of the batch.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from soundmark.classifier import Classifier
from soundmark.config import AudioLimits
from soundmark.containers import AUDIO_SUFFIXES
from soundmark.errors import AudioError
from soundmark.postprocess import Failure, Prediction
from soundmark.scan import Found, scan

Row = Prediction | Failure
STDIN = "-"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def expand(paths: Iterable[str | os.PathLike[str]]) -> list[Found]:
    """Return the recordings under files, folders and glob patterns, each once; ``-`` is standard input.

    Raises:
        AudioError: nothing matched; code ``not_found``, exit status 3.
    """
    given = [os.fspath(path) for path in paths]
    found = list(scan(path for path in given if path != STDIN))
    if STDIN in given:
        found.insert(0, Found(Path(STDIN)))
    if not found:
        raise AudioError(
            f"nothing matched {', '.join(map(repr, given))}",
            wanted=f"recordings ({', '.join(AUDIO_SUFFIXES)}), folders of them, or glob patterns",
            code="not_found",
        )
    return found


def classify_found(
    classifier: Classifier,
    found: Iterable[Found],
    *,
    top_k: int = 3,
    limits: AudioLimits | None = None,
    strict: bool = False,
) -> Iterator[Row]:
    """Yield one row per path that `expand` returned, in that order, as they are ready."""
    for one in found:
        if one.error is not None:
            yield Failure.of(os.fspath(one.path), one.error)
        else:
            yield from classifier.classify_many([one.path], top_k=top_k, limits=limits, strict=strict)


def write_jsonl(rows: Iterable[Row], out: IO[str]) -> int:
    """Write one JSON object per row as it comes; return how many failed."""
    failed = 0
    for row in rows:
        failed += not row.ok
        out.write(json.dumps(row.to_dict()) + "\n")
        out.flush()
    return failed


def write_json(rows: Iterable[Row], out: IO[str]) -> int:
    """Write all rows as one JSON array; return how many failed."""
    listed = list(rows)
    out.write(json.dumps([row.to_dict() for row in listed], indent=2) + "\n")
    return sum(not row.ok for row in listed)


def write_csv(rows: Iterable[Row], out: IO[str], *, top_k: int) -> int:
    """Write a header and one line per row as it comes; return how many failed.

    Text cells that a spreadsheet would run as a formula get a leading ``'`` (CWE-1236); JSON keeps them exact.
    """
    ranked = [f"{name}_{place}" for place in range(1, top_k + 1) for name in ("label", "score")]
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["path", "decision", *ranked, "flags", "error", "message"])
    failed = 0
    for row in rows:
        cells: list[object] = [_plain(row.source)]
        if isinstance(row, Prediction):
            best = [cell for one in row.labels for cell in (_plain(one.label), f"{one.score:.6f}")]
            decision = _plain(row.label) if row.label is not None else f"unknown ({row.reason})"
            cells += [decision, *best, *[""] * (len(ranked) - len(best)), " ".join(row.flags), "", ""]
        else:
            failed += 1
            cells += ["", *[""] * len(ranked), "", row.code, _plain(row.message)]
        table.writerow(cells)
        out.flush()
    return failed


def _plain(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
