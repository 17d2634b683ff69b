"""A worker process from the outside: started, spoken to, watched, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, TypeAlias

from soundmark.config import to_dict
from soundmark.errors import BundleError
from soundmark.serve_config import ServeConfig
from soundmark.server import frames

COMMAND = (sys.executable, "-m", "soundmark.server.worker")
START_S = 60.0
"""A model that is not loaded and verified by then is refused."""
PIECES_AT_ONCE = 512
Chunk: TypeAlias = bytes | bytearray
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""For the front end, whose matrix products are too small for more threads; the model's threads are its own."""


class WorkerProcess:
    """One running worker, with a loaded and verified model."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        link: frames.Link,
        mailbox: int,
        info: dict[str, Any],
    ) -> None:
        self._process, self._link, self._mailbox = process, link, mailbox
        self.info = info
        self.gone = asyncio.create_task(process.wait())

    @classmethod
    async def start(
        cls, model: str | None, config: ServeConfig, command: Sequence[str] = COMMAND
    ) -> WorkerProcess:
        """Return a worker that has loaded ``model`` and heard its golden clip.

        Raises:
            BundleError: the model is refused, or no worker came up.
        """
        ours, theirs = socket.socketpair()
        mailbox = _mailbox()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    str(theirs.fileno()),
                    str(mailbox),
                    pass_fds=[theirs.fileno(), mailbox],
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,  # libmpg123 writes there for every damaged frame
                    env={**os.environ, **ONE_THREAD},
                )
        except OSError as error:  # no memory, no process or descriptor left
            ours.close()
            os.close(mailbox)
            raise BundleError(
                f"no worker process can be started: {error.strerror}", code="no_worker"
            ) from None
        _, link = await asyncio.get_running_loop().create_connection(frames.Link, sock=ours)
        try:
            link.send({"model": model, "config": to_dict(config)})
            async with asyncio.timeout(START_S):
                header, _ = await link.receive()
        except (TimeoutError, OSError):
            header = {"kind": "refused", "saw": "the worker process did not start", "code": "no_worker"}
        except BaseException:
            await _end(process, link, mailbox)
            raise
        if header["kind"] != "ready":
            await _end(process, link, mailbox)
            raise BundleError(
                header.get("saw", header.get("trace", "")) or "the model cannot be loaded",
                wanted=header.get("wanted", ""),
                cause=header.get("cause", ""),
                code=header["code"],
            )
        return cls(process, link, mailbox, header["info"])

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.returncode is None

    @property
    def stopped(self) -> bool:
        """Whether the process is held by SIGSTOP or a debugger, so that it is not its request that takes long."""
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] in ("T", "t")
        except OSError:
            return False

    def send(self, header: dict[str, Any], body: Sequence[Chunk]) -> None:
        """Send a request, its body in the mailbox; `OSError` where that has no room."""
        size = 0
        for first in range(0, len(body), PIECES_AT_ONCE):
            pieces = body[first : first + PIECES_AT_ONCE]
            written, wanted = os.pwritev(self._mailbox, pieces, size), sum(map(len, pieces))
            if written != wanted:  # out of memory, or beyond what one call writes
                raise OSError(f"{written} of {wanted} bytes written")
            size += written
        self._link.send({**header, "size": size})

    async def receive(self) -> frames.Message:
        """Return the next message; `OSError` where the worker is gone."""
        return await self._link.receive()

    def kill(self) -> None:
        """End the process at once."""
        _kill(self._process)

    async def end(self) -> int:
        """End the process, wait for it, and return its status, negative for a signal."""
        await _end(self._process, self._link, self._mailbox)
        self._mailbox = -1
        return await self.gone


def _mailbox() -> int:
    """Return the descriptor of a nameless file in memory: a body through a socket is copied three times as slowly."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("soundmark", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _kill(process: asyncio.subprocess.Process) -> None:
    """Send SIGKILL; asyncio's own way polls first, and so takes the exit status away from its watcher."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)


async def _end(process: asyncio.subprocess.Process, link: frames.Link, mailbox: int) -> None:
    link.close()  # a worker ends when its link does
    if mailbox >= 0:
        os.close(mailbox)
    await link.closed()
    if process.returncode is None:
        _kill(process)
    await process.wait()
