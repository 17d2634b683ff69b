"""Files, folders and glob patterns to the recordings in them, each once, with what must not be opened as rows."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from soundmark.containers import AUDIO_SUFFIXES
from soundmark.errors import AudioError
from soundmark.inputs import path_error


@dataclass(frozen=True, slots=True)
class Found:
    """One path of a scan; with ``error`` it is not to be opened, and becomes a row."""

    path: Path
    error: AudioError | None = None


def scan(
    paths: Iterable[str | os.PathLike[str]],
    *,
    root: str | os.PathLike[str] | None = None,
    patterns: tuple[str, ...] = AUDIO_SUFFIXES,
) -> Iterator[Found]:
    """Yield the recordings under ``paths``, each file once (by device and inode), sorted within folders.

    Files are taken as they are, even when missing (`load` then says so); folders are walked for the endings
    in ``patterns``, without ``._*`` (macOS metadata); other names with ``* ? [`` are glob patterns (``**``
    recurses). Links out of the folder, or out of ``root`` where given, are `outside_root`; loops end.
    """
    seen: set[tuple[int, int]] = set()
    for path in [os.fsdecode(path) for path in paths]:
        literal = os.path.lexists(path) or not glob.has_magic(path)
        for one in [path] if literal else sorted(glob.glob(path, recursive=True)) or [path]:
            fence = None if root is None else os.path.realpath(root)
            if os.path.isdir(one) and (fence is None or _inside(one, fence)):
                yield from _walk(one, fence or os.path.realpath(one), patterns, seen)
            else:
                yield from _one(one, fence, seen, listed=True)


def _inside(path: str, fence: str) -> bool:
    real = os.path.realpath(path)
    return real == fence or real.startswith(fence.rstrip(os.sep) + os.sep)


def _walk(folder: str, fence: str, patterns: tuple[str, ...], seen: set[tuple[int, int]]) -> Iterator[Found]:
    pending = [folder]  # no recursion: folders can be nested deeper than Python's stack
    while pending:
        path = pending.pop()
        name = os.path.basename(path)
        if not os.path.isdir(path):
            if name.lower().endswith(patterns) and not name.startswith("._"):
                yield from _one(path, fence, seen, listed=False)
        elif os.path.islink(path) and not _inside(path, fence):
            yield Found(Path(path), _outside(path))
        else:
            try:
                status = os.stat(path)
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    pending += (os.path.join(path, child) for child in sorted(os.listdir(path), reverse=True))
            except OSError as error:
                yield Found(Path(path), path_error(repr(path), error))


def _one(path: str, fence: str | None, seen: set[tuple[int, int]], *, listed: bool) -> Iterator[Found]:
    try:
        status = os.stat(path)
    except ValueError:  # a NUL byte; load says not_found
        yield Found(Path(path))
        return
    except OSError as error:
        yield Found(Path(path), None if listed else path_error(repr(path), error))
        return
    if fence is not None and (listed or os.path.islink(path)) and not _inside(path, fence):
        yield Found(Path(path), _outside(path))
    elif not listed and not stat.S_ISREG(status.st_mode):
        yield Found(Path(path), AudioError(f"{path!r}: not a regular file", code="not_regular_file"))
    elif (status.st_dev, status.st_ino) not in seen:
        seen.add((status.st_dev, status.st_ino))
        yield Found(Path(path))


def _outside(path: str) -> AudioError:
    return AudioError(f"{path!r}: leads out of the folder", wanted="files inside it", code="outside_root")
