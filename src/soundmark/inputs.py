"""Bytes of a recording, opened safely: from a path, bytes, a file object or stdin.

`Input` is what libsndfile reads through callbacks; it never raises there.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
import tempfile
from typing import IO, Any

from soundmark.errors import AudioError, ConfigError

ACCEPTED = "WAV (also RF64, W64), FLAC, Ogg Vorbis or Opus, MP3, AIFF"
SPOOL_LIMIT_BYTES = 4 << 30  # read from a pipe when AudioLimits.max_bytes is None
IN_MEMORY_BYTES = 16 << 20  # smaller files, but for WAV, are read once and decoded from memory
BY_DESCRIPTOR = os.name == "posix"
"""Whether libsndfile may read a file by its descriptor; on Windows, its C library may have other ones."""


class Input:
    """Bytes from ``base`` on, as libsndfile's virtual file; errors are kept in ``error``, never raised."""

    def __init__(
        self,
        name: str,
        size: int,
        data: memoryview | None,
        file: IO[bytes] | None,
        owned: bool,
        path: str = "",
    ) -> None:
        self.name, self.end, self.data, self.file, self.owned = name, size, data, file, owned
        self.path = path  # for the extension only
        self.base = 0
        self.patches: dict[int, bytes] = {}  # offset -> bytes shown instead of the stored ones
        self.error: Exception | None = None
        self._at = 0

    @property
    def size(self) -> int:
        """Bytes from ``base`` to the end."""
        return self.end - self.base

    def descriptor(self) -> int | None:
        """Return that of a file that libsndfile may read by itself, at its start; None where there is none."""
        plain = BY_DESCRIPTOR and self.owned and self.path and not self.base and not self.patches
        if not plain or self.file is None:
            return None
        self.file.seek(0)
        return self.file.fileno()

    def peek(self, offset: int, count: int) -> bytes | memoryview:
        """Return up to ``count`` bytes at ``offset``, fewer at the end or where reading fails."""
        count = min(count, self.size - offset)
        if offset < 0 or count <= 0:
            return b""
        start = self.base + offset
        if self.data is not None:
            return self.data[start : start + count]
        try:
            assert self.file is not None
            self.file.seek(start)
            return memoryview(self.file.read(count) or b"").cast("B")[:count]
        except Exception as error:  # a caller's file object may raise anything, and C is waiting for a number
            self.error = error
            return b""

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` from the current position; 0 at the end or after an error."""
        chunk = self.peek(self._at, len(buffer))
        for offset, patch in self.patches.items():
            if self._at - len(patch) < offset < self._at + len(chunk):
                view = bytearray(chunk)
                for i, value in enumerate(patch, offset - self._at):
                    if 0 <= i < len(view):
                        view[i] = value
                chunk = bytes(view)
        memoryview(buffer)[: len(chunk)] = chunk
        self._at += len(chunk)
        return len(chunk)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; damaged headers ask for positions before the start, and get the start."""
        self._at = max(0, offset + (0, self._at, self.size)[whence])
        return self._at

    def tell(self) -> int:
        """Return the current position."""
        return self._at

    def close(self) -> None:
        """Close the file if `open_input` opened it."""
        if self.owned and self.file is not None:
            self.file.close()
        self.data = self.file = None


def open_input(source: Any, max_bytes: int | None) -> Input:
    """Return the opened source: path, ``-`` for stdin, bytes-like, or binary file object from its position on.

    Paths are opened once, without blocking, and checked on the descriptor, so that FIFOs and devices neither
    hang nor are raced. Pipes are spooled.

    Raises:
        AudioError: ``not_found``, ``not_regular_file``, ``symlink_loop``, ``permission_denied``,
            ``io_error``, ``file_too_large``, ``empty_file``.
        ConfigError: the source is of no accepted type.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        view = memoryview(source)
        view = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
        opened = Input(f"audio of {len(view)} bytes", len(view), view, None, False)
    elif isinstance(source, (str, os.PathLike)) and source != "-":
        opened = _open_path(os.fsdecode(source))
    elif source == "-" or hasattr(source, "read"):
        if isinstance(source, str) and sys.stdin is None:
            raise AudioError("standard input is closed", wanted="a recording on it", code="io_error")
        opened = _open_file(sys.stdin.buffer if isinstance(source, str) else source, max_bytes)
    else:
        raise ConfigError(
            f"a source of type {type(source).__name__}",
            wanted="a path, '-', bytes, a binary file object or (samples, sample_rate)",
        )
    if max_bytes is not None and opened.size > max_bytes:
        opened.close()
        raise _too_large(opened.name, max_bytes)
    if opened.size <= 0:
        opened.close()
        raise AudioError(f"{opened.name}: 0 bytes", wanted=ACCEPTED, code="empty_file")
    by_descriptor = BY_DESCRIPTOR and opened.path and opened.peek(0, 4) == b"RIFF"
    if opened.file is not None and opened.size <= IN_MEMORY_BYTES and not by_descriptor:
        data, path = opened.peek(0, opened.size), opened.path
        if opened.error is not None:
            opened.close()
            raise AudioError(f"{opened.name}: {opened.error!r}", code="io_error")
        opened.close()
        opened = Input(opened.name, len(data), memoryview(data), None, False, path)
    return opened


def _open_path(path: str) -> Input:
    name = repr(path)
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags)
    except ValueError:  # NUL byte, or characters that the file system encoding lacks
        raise AudioError(f"{name}: no such file", wanted="a path to a recording", code="not_found") from None
    except OSError as error:
        raise path_error(name, error) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise AudioError(f"{name}: not a regular file", wanted="a recording", code="not_regular_file")
    file = os.fdopen(descriptor, "rb", buffering=0)
    return Input(name, status.st_size, None, file, True, path)


PATH_CODES = {
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG), "not_found"),
    **dict.fromkeys((errno.ENXIO, errno.ENODEV, errno.EISDIR), "not_regular_file"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "permission_denied"),
    errno.ELOOP: "symlink_loop",
}


def path_error(name: str, error: OSError) -> AudioError:
    """Return the `AudioError` for an `OSError` on the way to a file."""
    code = PATH_CODES.get(error.errno or 0, "io_error")
    return AudioError(
        f"{name}: {error.strerror or type(error).__name__}", wanted="a readable recording", code=code
    )


def _open_file(file: IO[bytes], max_bytes: int | None) -> Input:
    name = repr(getattr(file, "name", None) or type(file).__name__)
    limit = SPOOL_LIMIT_BYTES if max_bytes is None else max_bytes
    try:
        if isinstance(file, io.TextIOBase):
            raise TypeError
        if getattr(file, "seekable", lambda: False)():
            start = file.tell()
            opened = Input(name, file.seek(0, os.SEEK_END), None, file, False)
            opened.base = start
            return opened
        spool = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES)  # noqa: SIM115 - Input closes it
        while chunk := file.read(1 << 20):
            spool.write(chunk)
            if spool.tell() > limit:
                spool.close()
                raise _too_large(name, limit)
        return Input(name, spool.tell(), None, spool, True)
    except TypeError:
        raise ConfigError(f"{name} gives text", wanted="a file object opened in binary mode") from None
    except AudioError:
        raise
    except Exception as error:  # a caller's object may raise anything
        raise AudioError(f"{name}: {error!r}", wanted="a readable recording", code="io_error") from None


def _too_large(name: str, limit: int) -> AudioError:
    return AudioError(f"{name}: too many bytes", wanted=f"at most {limit} bytes", code="file_too_large")
