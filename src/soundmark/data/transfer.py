"""A file from the network, whole or not at all: size cap, time limits, and going on where a transfer was cut.

pooch (extra ``data``) does the transfer. What it receives is kept in a ``.part`` file together with the validator that
the server gave (ETag or date, RFC 9110 section 13.1.5), so that a later call asks for the rest alone; a server that
does not know ranges sends everything again.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from soundmark import storage
from soundmark.errors import DatasetError, MissingExtraError, StorageError

if TYPE_CHECKING:
    from requests import Response

ATTEMPTS = 5
PAUSE_S = 1.0
"""Before the second attempt; twice that before the third, and so on."""

CONNECT_S, STALL_S = 15.0, 60.0
"""A server that does not answer, or sends nothing for so long, has failed."""

CHUNK_BYTES = 1 << 16
OnBytes = Callable[[int, int | None], None]


class Unreachable(DatasetError):
    """Nothing answered at all: no network, no such server, or nobody there."""


def fetch(url: str, part: Path, *, max_bytes: int, on_bytes: OnBytes | None = None) -> None:
    """Bring ``url`` to ``part``, going on where an earlier call stopped.

    Args:
        url: http or https; a redirect from https to anything else is refused.
        part: file to complete; its validator is kept beside it.
        max_bytes: a larger file is refused, whatever its length is said to be.
        on_bytes: called with the bytes that arrived, the ones of earlier calls first, and with the length where known.

    Raises:
        DatasetError: ``download_failed``; what came is kept where it can be of use to a later call. `Unreachable`
            where no attempt got any answer.
        MissingExtraError: pooch is not installed.
        StorageError: the disk refuses.
    """
    try:
        import pooch
        import requests
    except ImportError:
        raise MissingExtraError.of("data", "pooch") from None
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise _failed(f"{url!r} is not a web address", "https://...")
    silent = True
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S * 2 ** (attempt - 1))
        sink = _Sink(url, part, max_bytes, on_bytes)
        load = pooch.HTTPDownloader(
            chunk_size=CHUNK_BYTES,
            headers={"Accept-Encoding": "identity", **sink.range()},
            timeout=(CONNECT_S, STALL_S),
            hooks={"response": sink.answered},
        )
        try:
            load(url, sink, None)
            sink.check_whole()
        except _Cut as cut:
            problem, silent = str(cut), False
        except requests.exceptions.RequestException as error:
            problem = _reason(error)
            silent = silent and isinstance(error, requests.exceptions.ConnectionError) and not sink.answers
        except OSError as error:
            raise StorageError(
                f"{part} cannot be written ({error.strerror or error})", wanted=f"{max_bytes} bytes of space"
            ) from None
        else:
            return
        finally:
            sink.close()
    kept = f"; {part.stat().st_size} bytes are kept" if part.exists() else ""
    kind = Unreachable if silent else DatasetError
    raise kind(
        f"{url}: {problem}{kept}",
        wanted="a whole transfer",
        cause="the connection; start the same command again",
        code="download_failed",
    )


def discard(part: Path) -> None:
    """Remove a transfer, finished or not."""
    part.unlink(missing_ok=True)
    _validator(part).unlink(missing_ok=True)


class _Cut(Exception):
    """An attempt that is worth another one."""


class _Sink:
    """The ``.part`` file as pooch writes to it; the answer's head decides whether it goes on or begins anew."""

    def __init__(self, url: str, part: Path, max_bytes: int, on_bytes: OnBytes | None) -> None:
        self._url, self._part, self._max_bytes, self._on_bytes = url, part, max_bytes, on_bytes
        self._size = part.stat().st_size if part.exists() else 0
        self._total: int | None = None
        self._file: Any = None
        self.answers = 0

    def range(self) -> dict[str, str]:
        """Return the headers that ask for the rest, none where all is wanted."""
        with contextlib.suppress(OSError):
            validator = _validator(self._part).read_text("latin-1")
            if self._size and validator:
                return {"Range": f"bytes={self._size}-", "If-Range": validator}
        return {}

    def answered(self, response: Response, *_: object, **__: object) -> None:
        """Look at the head of an answer before its body is read; called by requests, for redirects too."""
        status, head = response.status_code, response.headers
        self.answers += 1
        if response.is_redirect:
            target = urlsplit(urljoin(response.url, head["location"]))
            if target.scheme != "https" and target.scheme != urlsplit(self._url).scheme:
                raise _failed(f"{response.url} leads to {target.geturl()[:200]}", "an https address")
            return
        if status == 416 or status >= 500 or status == 429:
            if status == 416:  # it has another length than we thought
                discard(self._part)
            raise _Cut(f"the server answered {status} {response.reason}")
        if status not in (200, 206):
            raise _failed(f"{response.url}: the server answered {status} {response.reason}", "the file")
        if head.get("content-type", "").startswith("text/"):
            raise _failed(f"{response.url} is a page ({head['content-type']})", "a file")
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", head.get("content-range", ""))
        if status == 206:
            if not found or int(found[1]) != self._size:
                discard(self._part)
                raise _Cut(f"the server sent another range ({head.get('content-range', '')[:80]!r})")
            self._total = int(found[2])
        else:
            self._size = 0
            length = head.get("content-length", "")
            self._total = int(length) if re.fullmatch("[0-9]{1,18}", length) else None
        self._check_cap(self._total or 0)
        if status == 200:
            etag = head.get("etag", "")
            validator = etag if etag and not etag.startswith("W/") else head.get("last-modified", "")
            storage.write_bytes(_validator(self._part), validator.encode("latin-1", "replace"))
        self._file = self._part.open("ab" if status == 206 else "wb")
        if self._on_bytes:
            self._on_bytes(self._size, self._total)

    def write(self, chunk: bytes) -> None:
        """Append what arrived."""
        self._check_cap(self._size + len(chunk))
        self._file.write(chunk)
        self._size += len(chunk)
        if self._on_bytes:
            self._on_bytes(len(chunk), self._total)

    def flush(self) -> None:
        """Do nothing: pooch asks after every chunk."""

    def check_whole(self) -> None:
        """Raise `_Cut` where bytes are missing."""
        if self._total is not None and self._size != self._total:
            raise _Cut(f"{self._size} of {self._total} bytes arrived")

    def close(self) -> None:
        """Close the file; what is in it stays."""
        if self._file:
            self._file.close()

    def _check_cap(self, size: int) -> None:
        if size > self._max_bytes:
            discard(self._part)
            raise _failed(
                f"{self._url} has more than {self._max_bytes} bytes", "the official archive", "another file"
            )


def _validator(part: Path) -> Path:
    return part.with_name(f"{part.name}.validator")


def _reason(error: Exception) -> str:
    """Return the first line of what went wrong; requests nests the reasons of others."""
    kind, told = type(error).__name__, str(error).partition("\n")[0]
    text = {
        "ConnectTimeout": "the server does not answer",
        "ReadTimeout": "the server stopped sending",
        "SSLError": "the server's certificate is not good",
        "InvalidSchema": "it leads to something that is not a web address",
        "TooManyRedirects": "it leads on and on",
    }.get("ReadTimeout" if "Read timed out" in told else kind)
    return text or f"the connection failed ({kind}: {told[:120]})"


def _failed(saw: str, wanted: str, cause: str = "") -> DatasetError:
    return DatasetError(saw, wanted=wanted, cause=cause, code="download_failed")
