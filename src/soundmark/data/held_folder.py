"""An output folder that one process holds while it fills it: claimed, cleared of a killed run's scraps, and let go."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from soundmark.errors import DatasetError, StorageError

LOCK = ".lock"
_SCRAP = re.compile(r"\..+\.[a-z0-9_]{8}")  # as storage names what it writes aside


@contextmanager
def held(folder: Path, *, marker: str) -> Iterator[None]:
    """Make ``folder`` and hold it for this process; the system lets go of it, also after kill -9.

    What a killed run left half written in it is removed.

    Args:
        folder: a new one, an empty one, or one that has ``marker``.
        marker: the file that says that we made the folder; a folder of somebody else is refused.

    Raises:
        DatasetError: the folder holds something else.
        StorageError: another process holds it, or the disk refuses.
    """
    with storage_errors(folder):
        there = sorted(os.listdir(folder)) if folder.is_dir() else []
        strange = [name for name in there if name != LOCK and not _SCRAP.fullmatch(name)]
        if strange and not (folder / marker).is_file():
            raise DatasetError(
                f"{folder} holds something else ({strange[0]})",
                wanted="a new folder, or one of an earlier run",
            )
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StorageError(
                    f"{folder} is in use by another process", wanted="one run at a time"
                ) from None
            for path in folder.rglob(".*"):
                if _SCRAP.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                    path.unlink(missing_ok=True)
            yield


@contextmanager
def storage_errors(out: Path) -> Iterator[None]:
    """Turn what the disk refuses into `StorageError`."""
    try:
        yield
    except OSError as error:
        where = os.fsdecode(error.filename) if error.filename else out
        raise StorageError(
            f"{where} cannot be written ({error.strerror or error})",
            wanted="a writable place with enough space",
        ) from None


def refuse_overlap(source: Path, out: Path) -> None:
    """Refuse an output folder that is, lies in or lies around the source: originals stay untouched.

    Raises:
        DatasetError: it does.
    """
    here, there = Path(os.path.realpath(source)), Path(os.path.realpath(out))
    if here == there or here in there.parents or there in here.parents:
        raise DatasetError(
            f"--out {out} is, lies in or lies around {source}",
            wanted="another place",
            cause="originals stay untouched",
        )


@contextmanager
def pool(workers: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Yield threads, one per core of this process; an error drops what waits.

    Threads, because decoding, resampling and matrix products let go of the interpreter lock.
    """
    threads = ThreadPoolExecutor(workers or cores())
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
