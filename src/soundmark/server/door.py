"""Connections that are worth one: each is accepted and looked at for next to nothing, before anything is made for it.

A thousand uploads at a queue of 64 are nine hundred refusals. Made by the machinery of an event loop (a transport, a
protocol, a parser, a task for each) they take as long as the requests that are served, and a question after the
service's health waits behind them. Here a connection is a socket in an epoll set: accepted with all others that wait,
looked at when its first bytes are there, then either refused with a finished answer or handed to a `Connection`. What
a refused client still sends is thrown away in the kernel, of a few clients at a time. Closing earlier would make the
kernel reset the connection, and the client lose its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import select
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

from soundmark.serve_config import ServeConfig
from soundmark.server.protocol import (
    LINGER_BYTES,
    LINGER_S,
    UPLOADS,
    Connection,
    Entrance,
    refusal,
)

LOOK_BYTES = max(map(len, UPLOADS))
LOOKS, REFUSALS, THROWS = 1024, 64, 16
"""Sockets in one turn of the event loop that are looked at, refused, and emptied. To look is cheap, to refuse costs ten
times as much, and can wait: behind a thousand uploads may be somebody who asks after the service's health."""
SWEEP_S = 0.2
ACCEPTS = 1024
THROW_BYTES = 1 << 20
MSG_MORE = getattr(socket, "MSG_MORE", 0)
ENDING_S, ENDING_TURNS = 1.0, 20
"""How long the end of the service waits for clients that are refused, so that they read their answer."""
PAUSE_S = 0.1
"""Before the next try to accept, where the process has no descriptors left."""
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_log = logging.getLogger("soundmark.server")


@dataclass(slots=True)
class _Guest:
    """A socket without a protocol."""

    sock: socket.socket
    since: float  # when it came, then when it was refused
    left: int = LINGER_BYTES


class Door:
    """Accepts connections of one listening socket; in uvicorn's eyes an `asyncio.Server`.

    Args:
        sock: listening, not blocking.
        make: makes a `Connection` that was accepted at the given time of the loop's clock.
        limits: deadlines, and how many connections.
        entrance: whether one more upload has a place.
        opened: how many connections there are that were handed on.
    """

    def __init__(
        self,
        sock: socket.socket,
        make: Callable[[float], Connection],
        *,
        limits: ServeConfig,
        entrance: Entrance,
        opened: Callable[[], int],
    ) -> None:
        self._sock, self._make, self._opened = sock, make, opened
        self._limits, self._entrance = limits, entrance
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, _Guest] = {}  # both by descriptor, in the order of `since`
        self._leaving: dict[int, _Guest] = {}
        self._refused: deque[tuple[_Guest, bytes]] = deque()
        self._sweeping = False
        self._first_bytes, self._rests = select.epoll(), select.epoll()
        self._handing: set[asyncio.Task[None]] = set()
        self._rubbish = bytearray(THROW_BYTES)  # never written to: MSG_TRUNC throws bytes away in the kernel
        self._closed = False
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._accept)
        self._loop.add_reader(self._first_bytes.fileno(), self._look)
        self._loop.add_reader(self._rests.fileno(), self._throw_away)

    def __len__(self) -> int:
        """Return how many sockets have no protocol: they said nothing yet, or are refused."""
        return len(self._waiting) + len(self._refused) + len(self._leaving)

    def close(self) -> None:
        """Take who has knocked already, then nobody."""
        if self._closed:
            return
        self._closed = True
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._accept()
            self._sock.close()  # now, so that whoever comes is told that nobody listens

    async def wait_closed(self) -> None:
        """Return when everybody is gone; who said nothing is not waited for."""
        for guest in [*self._waiting.values()]:
            self._let_go(guest)
        while self._refused:
            self._refuse_some()
        if self._handing:
            await asyncio.wait(self._handing)
        for _ in range(ENDING_TURNS):
            if not self._leaving:
                break
            await asyncio.sleep(ENDING_S / ENDING_TURNS)
        for guest in [*self._leaving.values()]:
            self._let_go(guest)
        for poll in (self._first_bytes, self._rests):
            if not poll.closed:
                self._loop.remove_reader(poll.fileno())
                poll.close()

    def _accept(self) -> None:
        """Take everybody, then look at those who have spoken already."""
        self._take()
        self._look()

    def _take(self) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in NO_DESCRIPTORS and not self._closed:
                    _log.error("no more connections", extra={"saw": error.strerror})
                    self._loop.remove_reader(self._sock.fileno())
                    self._loop.call_later(PAUSE_S, self._go_on)
                return
            sock.setblocking(False)
            guest = _Guest(sock, self._loop.time())
            if len(self) + self._opened() >= self._limits.max_connections:
                self._refuse(guest, refusal("overloaded", "too many connections", "1"))
                continue
            self._waiting[sock.fileno()] = guest
            self._first_bytes.register(sock.fileno(), select.EPOLLIN)
            self._sweep_later()

    def _go_on(self) -> None:
        if not self._closed and self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock.fileno(), self._accept)

    def _look(self) -> None:
        """Decide about sockets with first bytes."""
        for number, _ in self._first_bytes.poll(0, LOOKS):
            guest = self._waiting.pop(number, None)
            if guest is None:
                continue
            self._first_bytes.unregister(number)
            try:
                start = guest.sock.recv(LOOK_BYTES, socket.MSG_PEEK)
            except OSError:
                start = b""
            if not start:
                guest.sock.close()
                continue
            upload = start.startswith(UPLOADS)
            refused = self._entrance.refuse() if upload else None
            if refused is not None:
                self._refuse(guest, refused)
                continue
            task = self._loop.create_task(self._hand_on(guest, self._entrance.enter() if upload else None))
            self._handing.add(task)
            task.add_done_callback(self._handing.discard)

    async def _hand_on(self, guest: _Guest, leave: Callable[[], None] | None) -> None:
        """Make a connection of it; its first bytes are still in the socket."""
        connection = self._make(guest.since)
        connection.placed(leave)
        try:
            await self._loop.connect_accepted_socket(lambda: connection, guest.sock)
        except OSError:  # the peer is gone
            guest.sock.close()
            if leave is not None:
                leave()

    def _sweep_later(self) -> None:
        if not self._sweeping and (self._waiting or self._leaving):
            self._sweeping = True
            self._loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """End connections on which nothing was said in time, and those that still send after they were refused."""
        self._sweeping, now = False, self._loop.time()
        silent = takewhile(lambda guest: guest.since + self._limits.header_s <= now, self._waiting.values())
        detail = f"no whole headers within {self._limits.header_s:g} s"
        for guest in [*silent]:
            self._first_bytes.unregister(guest.sock.fileno())
            del self._waiting[guest.sock.fileno()]
            self._refuse(guest, refusal("request_timeout", detail))
        for guest in [*takewhile(lambda guest: guest.since + LINGER_S <= now, self._leaving.values())]:
            self._let_go(guest)
        self._sweep_later()

    def _refuse(self, guest: _Guest, answer: bytes) -> None:
        """Have it refused soon."""
        if not self._refused:
            self._loop.call_soon(self._refuse_some)
        self._refused.append((guest, answer))

    def _refuse_some(self) -> None:
        """Answer, end our side, and wait for the end of the other."""
        for _ in range(min(REFUSALS, len(self._refused))):
            guest, answer = self._refused.popleft()
            try:
                guest.sock.send(answer, MSG_MORE)  # fits: nothing was sent before; and goes out with the end
                guest.sock.shutdown(socket.SHUT_WR)
            except OSError:
                guest.sock.close()
                continue
            guest.since = self._loop.time()
            self._leaving[guest.sock.fileno()] = guest
            self._rests.register(guest.sock.fileno(), select.EPOLLIN)
        if self._refused:
            self._loop.call_soon(self._refuse_some)
        self._sweep_later()

    def _throw_away(self) -> None:
        """Empty the sockets of some who were refused."""
        for number, _ in self._rests.poll(0, THROWS):
            guest = self._leaving.get(number)
            if guest is None:
                continue
            try:
                count = guest.sock.recv_into(self._rubbish, 0, socket.MSG_TRUNC)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError:
                count = 0
            guest.left -= count
            if not count or guest.left < 0:
                self._let_go(guest)

    def _let_go(self, guest: _Guest) -> None:
        number = guest.sock.fileno()
        for group, poll in ((self._waiting, self._first_bytes), (self._leaving, self._rests)):
            if group.pop(number, None) is not None:
                with contextlib.suppress(OSError):
                    poll.unregister(number)
        guest.sock.close()
