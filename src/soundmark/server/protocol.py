"""HTTP/1.1 connections with deadlines: headers in time, readers that read, and a polite end where a body is not read.

uvicorn has a timeout for idle connections only. Closing a socket whose peer still sends makes the kernel answer with a
reset, and the peer loses the 413 or 503 that was meant for it. So the end of a connection is in two steps, as nginx
does it (``lingering_close``): shut down our side, throw away what still comes, for a bounded time and amount.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from soundmark.serve_config import ServeConfig
from soundmark.server.problems import MEDIA_TYPE, body

LINGER_S = 5.0
LINGER_BYTES = 32 << 20
LINGERING_AT_ONCE = 32
MAX_HEADER_BYTES = 64 << 10
UPLOADS = (b"POST /v1/classify", b"POST /inference")

# Reading of h11's states: IDLE until the headers are whole, SEND_BODY while a body comes.


class _Transport:
    """The transport as uvicorn sees it; `close` lingers where the peer may still be sending."""

    def __init__(self, transport: asyncio.Transport, protocol: Connection) -> None:
        self._transport, self._protocol = transport, protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._protocol.ending or self._transport.is_closing()

    def close(self) -> None:
        self._protocol.end(self._transport)


class _Discard(asyncio.BufferedProtocol):
    """Throws away what a peer still sends, through one buffer for all, of a few peers at a time: the others wait."""

    buffer = bytearray(1 << 18)
    now: ClassVar[set[_Discard]] = set()
    later: ClassVar[deque[_Discard]] = deque()

    def __init__(self, connection: Connection, transport: asyncio.Transport) -> None:
        self._connection, self._transport = connection, transport
        self._left = LINGER_BYTES
        self._timer: asyncio.TimerHandle | None = None
        if len(self.now) < LINGERING_AT_ONCE:
            self._begin()
        else:
            self.later.append(self)
            transport.pause_reading()

    def _begin(self) -> None:
        self.now.add(self)
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._transport.abort)
        self._transport.resume_reading()

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._left -= nbytes
        if self._left < 0:
            self._transport.abort()

    def eof_received(self) -> None:
        pass

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.now.discard(self)
        if self in self.later:
            self.later.remove(self)
        elif self.later and len(self.now) < LINGERING_AT_ONCE:
            self.later.popleft()._begin()
        self._connection.connection_lost(exc)


class Connection(H11Protocol):
    """One connection; `limits` says how long and how many, `shed` what to answer to one upload too many."""

    limits = ServeConfig()
    shed: Callable[[], bytes | None] = staticmethod(lambda: None)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ending = False
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._end_timer: asyncio.TimerHandle | None = None
        self._more_may_come = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline of the first headers; one connection too many is told so."""
        super().connection_made(_Transport(transport, self))  # type: ignore[arg-type]
        if len(self.connections) > self.limits.max_connections:
            self._refuse("overloaded", "too many connections", (b"retry-after", b"1"))
        else:
            self._header_timer = self.loop.call_later(self.limits.header_s, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop every clock."""
        for timer in (self._header_timer, self._write_timer, self._end_timer):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; the clock runs while headers are under way."""
        if self.ending:
            return
        at_start = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if at_start and data.startswith(UPLOADS) and (refusal := self.shed()) is not None:
            self._unset_keepalive_if_required()
            self._more_may_come = True
            self.transport.write(refusal)
            self.transport.close()
        else:
            super().data_received(data)
            self._watch_headers()

    def on_response_complete(self) -> None:
        """Go on to the next request, whose first bytes may be there already."""
        super().on_response_complete()
        if not self.ending and self.conn.trailing_data[0]:
            self._watch_headers()

    def _watch_headers(self) -> None:
        under_way = self.conn.their_state is h11.IDLE and not self.ending
        if under_way and self._header_timer is None:
            self._header_timer = self.loop.call_later(self.limits.header_s, self._late)
        elif not under_way and self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _late(self) -> None:
        if not self.transport.is_closing():
            self._refuse("request_timeout", f"no whole headers within {self.limits.header_s:g} s")

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer what is no HTTP/1.1."""
        self._refuse("bad_request", "not a valid HTTP/1.1 request")

    def _refuse(self, code: str, detail: str, *headers: tuple[bytes, bytes]) -> None:
        """Write an answer without a request to answer to, and end the connection."""
        text = body(code, detail, "")
        self._more_may_come = True
        status = {"bad_request": 400, "request_timeout": 408, "overloaded": 503}[code]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            lines = [
                (b"content-type", MEDIA_TYPE.encode()),
                (b"content-length", str(len(text)).encode()),
                (b"connection", b"close"),
                *headers,
            ]
            for event in (
                h11.Response(status_code=status, headers=lines),
                h11.Data(data=text),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def pause_writing(self) -> None:
        """Give a client that does not read a last chance."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.limits.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Take the clock back."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def end(self, transport: asyncio.Transport) -> None:
        """Close in order: at once if nothing more comes, else in two steps; never later than the write deadline."""
        if self.ending or transport.is_closing():
            return
        self.ending = True
        self._watch_headers()
        unread = self._more_may_come or self.conn.their_state is h11.SEND_BODY
        if unread and transport.can_write_eof():
            try:
                transport.write_eof()
            except OSError:  # the peer is gone
                transport.abort()
                return
            transport.set_protocol(_Discard(self, transport))
            self._end_timer = self.loop.call_later(self.limits.write_s, transport.abort)
        else:
            transport.close()
            self._end_timer = self.loop.call_later(self.limits.write_s, transport.abort)
