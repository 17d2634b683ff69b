"""Files and folders that are either wholly the old or wholly the new ones, whatever happens in between.

Everything is written aside in the same folder, flushed to the disk, and then renamed (POSIX rename is atomic).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from soundmark.errors import StorageError

CACHE_VARIABLE = "SOUNDMARK_CACHE"
"""Environment variable that names the cache folder (default: ``~/.cache/soundmark``)."""

_MASK = threading.Lock()


def cache_dir() -> Path:
    """Return the cache folder; it may not exist yet."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "soundmark"


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write ``data`` to ``path``; on failure the old file is untouched.

    Args:
        path: its folder is made where there is none.
        data: what goes in.
        sync: wait until the disk has it. False survives a killed process but not a power cut, which may leave the file
            empty: for files whose checksum is looked at before they are used again.

    Raises:
        StorageError: disk full, read-only, no permission.
    """
    with writing(path, size=len(data), sync=sync) as file:
        file.write(data)


@contextmanager
def writing(path: Path, *, size: int = 0, sync: bool = True) -> Iterator[IO[bytes]]:
    """Yield a file that takes the name ``path`` once it is whole: `write_bytes` in pieces, of ``size`` bytes in all.

    Raises:
        StorageError: disk full, read-only, no permission.
    """
    with _as_storage_error(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            os.chmod(scratch, 0o666 & ~_umask())
            os.replace(scratch, path)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise
        if sync:
            _sync_folder(path.parent)


def write_folder(
    folder: Path, fill: Callable[[Path], None], *, overwrite: bool = False, within: Path | None = None
) -> None:
    """Let ``fill`` write into a scratch folder, then put that folder in the place of ``folder``.

    The scratch folder lies beside ``folder``, or in ``within``, which is on the same disk: what a killed process leaves
    is then where the caller can find it. Files are flushed to the disk, those in folders below the scratch folder are
    not: data sets, which are checked or can be made again.

    Raises:
        StorageError: ``folder`` exists and ``overwrite`` is False; disk full, read-only, no permission.
    """
    if folder.exists() and not overwrite:
        raise StorageError(f"{folder} exists", wanted="a new folder", cause="give --overwrite to replace it")
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file", wanted="a folder to replace, or a new one")
    with _as_storage_error(folder, 0):
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=within or folder.parent))
        try:
            fill(scratch)
            for path in scratch.iterdir():  # not what lies deeper: thousands of flushes take minutes
                (_sync_folder if path.is_dir() else _sync_file)(path)
            _sync_folder(scratch)
            os.chmod(scratch, 0o777 & ~_umask())
            _replace(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)  # what failed, or the old folder
        _sync_folder(folder.parent)


def _replace(new: Path, folder: Path) -> None:
    """Put ``new`` in the place of ``folder`` in one step; what was there is then at ``new``, or gone."""
    if not folder.exists():
        os.replace(new, folder)
        return
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE: renameat2(2) of Linux
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 and renameat2(here, os.fsencode(new), here, os.fsencode(folder), exchange) == 0:
        return
    # A system without an exchange: two steps, the first undone if the second fails.
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        os.replace(folder, aside / folder.name)
        os.replace(new, folder)
    except BaseException:
        if (aside / folder.name).exists():
            os.replace(aside / folder.name, folder)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _as_storage_error(path: Path, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        need = f"{size} bytes of space" if size else "a writable place with enough space"
        raise StorageError(f"{path} cannot be written ({error.strerror or error})", wanted=need) from None


def _umask() -> int:
    """Return the umask; where the system does not show it, by setting it twice, one thread at a time."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            return next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))
    except (OSError, StopIteration, ValueError):
        with _MASK:
            mask = os.umask(0)
            os.umask(mask)
            return mask


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
