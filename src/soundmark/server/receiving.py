"""A request's body as bytes, counted as they come, within a deadline, and within a budget that all uploads share."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

from soundmark.serve_config import ServeConfig
from soundmark.server.problems import Problem

ENVELOPE_BYTES = 64 << 10
"""What form fields, part headers and JSON around a recording may take."""
SMALL_BYTES = 4096
FRESH_S = 2.0
Receive = Callable[[], Awaitable[Any]]


class ClientGone(Exception):
    """The client closed the connection; nobody waits for an answer."""


class Receiver:
    """Reads bodies; one per service, because the budget is shared."""

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.held = 0  # bytes of all bodies that are being received
        self._begun: dict[int, float] = {}  # upload on its way in, or under way -> when it began
        self._keys = itertools.count()

    def check(self, length: str | None, limit: int) -> None:
        """Refuse by the announced length, before a byte of the body is read.

        Raises:
            Problem: ``request_too_large``, ``bad_request``, ``overloaded``.
        """
        if length is not None:
            if not length.isdigit():
                raise Problem("bad_request", "Content-Length is not a number", close=True)
            if int(length) > limit:
                raise self._too_large(limit)
            if self.held + int(length) > self.config.buffer_bytes:
                raise self._no_room()

    async def body(self, receive: Receive, limit: int) -> list[bytes | bytearray]:
        """Return the whole body in pieces; small ones are put together, so that there are not too many.

        Raises:
            Problem: ``request_too_large``, ``request_timeout``, ``overloaded``.
            ClientGone: the client went away.
        """
        pieces: list[bytes | bytearray] = []
        size = 0
        leave = self.enter()
        deadline = time.monotonic() + self.config.body_s
        try:
            while True:
                try:
                    async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                        message = await receive()
                except TimeoutError:
                    detail = f"no whole body within {self.config.body_s:g} s"
                    raise Problem("request_timeout", detail, close=True) from None
                if message["type"] != "http.request":
                    raise ClientGone
                chunk = message.get("body", b"")
                size += len(chunk)
                self.held += len(chunk)
                if size > limit:
                    raise self._too_large(limit)
                if self.held > self.config.buffer_bytes:
                    raise self._no_room()
                if len(chunk) >= SMALL_BYTES:
                    pieces.append(chunk)
                elif pieces and isinstance(pieces[-1], bytearray):
                    pieces[-1] += chunk
                else:
                    pieces.append(bytearray(chunk))
                if not message.get("more_body", False):
                    return pieces
        finally:
            self.held -= size
            leave()

    def enter(self) -> Callable[[], None]:
        """Count an upload until the returned function is called, once."""
        key = next(self._keys)
        self._begun[key] = time.monotonic()
        return lambda: self._begun.__delitem__(key)

    def fresh(self) -> int:
        """Return how many uploads began within `FRESH_S` and are under way; slow ones do not count against others."""
        since = time.monotonic() - FRESH_S
        return sum(began > since for began in self._begun.values())

    def _too_large(self, limit: int) -> Problem:
        return Problem("request_too_large", f"more than {limit} bytes", close=True)

    def _no_room(self) -> Problem:
        return Problem("overloaded", "too many uploads", headers={"Retry-After": "1"}, close=True)
