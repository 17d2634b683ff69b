"""Tables of clips (CSV, TSV) as rows with line numbers, or an error that names everything that is wrong with them."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from soundmark.errors import DatasetError


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row or file that is not among the clips; ``where`` is a path or ``line N``."""

    where: str
    code: str
    message: str

    def to_dict(self) -> dict[str, str]:
        """Return plain data for JSON."""
        return {"where": self.where, "code": self.code, "message": self.message}


def read_table(
    table: Path, columns: Sequence[str], *, delimiter: str = ",", wanted: str
) -> tuple[list[tuple[int, dict[str, str]]], list[Skipped]]:
    """Return ``(line number, row)`` of a table, and its rows that have too few or too many cells.

    Raises:
        DatasetError: it cannot be read, is not UTF-8, lacks columns (all named at once), or is not a table.
    """
    if os.path.exists(table) and not os.path.isfile(table):  # a pipe would block for ever
        raise DatasetError(f"{table} is not a regular file", wanted=wanted, code="no_table")
    try:
        data = table.read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        cause = "--data names another folder"
        if isinstance(error, OSError):
            reason = error.strerror
        else:
            line = data.count(b"\n", 0, error.start) + 1
            utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
            reason = "not UTF-8: it begins like UTF-16" if utf16 else f"not UTF-8, line {line}"
            cause = "save it as CSV UTF-8"
        raise DatasetError(
            f"{table} cannot be read ({reason})", wanted=wanted, cause=cause, code="no_table"
        ) from None
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    problems: list[Skipped] = []
    try:
        _check_header(reader.fieldnames or [], table, columns, delimiter)
        for row in reader:
            where = f"line {reader.line_num}"
            if None in row or any(row[name] is None for name in columns):
                cells = sum(value is not None for name, value in row.items() if name) + len(
                    row.get(None) or ()
                )
                due = f"{cells} cells where {len(reader.fieldnames or [])} are due"
                problems.append(Skipped(where, "bad_row", f"{where}: {due}"))
            else:
                rows.append((reader.line_num, row))
    except csv.Error as error:
        where = f"line {reader.line_num}"
        refuse(table, [Skipped(where, "bad_table", f"{where}: {error}")])
    return rows, problems


def refuse(table: Path, problems: Sequence[Skipped], *, wanted: str = "the official table") -> NoReturn:
    """Raise the `DatasetError` that names the first ten problems and counts the rest."""
    more = f" ... and {len(problems) - 10} more" if len(problems) > 10 else ""
    text = "; ".join(problem.message for problem in problems[:10])
    raise DatasetError(f"{table}: {text}{more}", wanted=wanted, code="bad_table")


def listed(what: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return one warning that counts and names, or none."""
    if not names:
        return ()
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (f"{len(names)} x {what}: {', '.join(names[:5])}{more}",)


def _check_header(header: Sequence[str], table: Path, columns: Sequence[str], delimiter: str) -> None:
    missing = [name for name in columns if name not in header]
    twice = sorted(name for name, n in Counter(header).items() if n > 1 and name in columns)
    if not missing and not twice:
        return
    other = {";": "semicolons", "\t": "tabs", ",": "commas"}
    used = [
        word for sign, word in other.items() if sign != delimiter and len(header) == 1 and sign in header[0]
    ]
    raise DatasetError(
        f"{table} lacks the columns {', '.join(missing)}"
        if missing
        else f"{table} has the column {', '.join(twice)} twice",
        wanted=f"columns {', '.join(columns)}",
        cause=f"its cells are separated by {used[0]}, not {other[delimiter]}" if used else "",
        code="bad_table",
    )
