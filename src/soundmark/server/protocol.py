"""HTTP/1.1 connections with deadlines: headers in time, readers that read, and a polite end where a body is not read.

uvicorn has a timeout for idle connections only. Closing a socket whose peer still sends makes the kernel answer with a
reset, and the peer loses the 413 or 503 that was meant for it. So the end of a connection is in two steps, as nginx
does it (``lingering_close``): shut down our side, throw away what still comes, for a bounded time and amount.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from soundmark.serve_config import ServeConfig
from soundmark.server.problems import MEDIA_TYPE, STATUS, body

LINGER_S = 5.0
LINGER_BYTES = 32 << 20
MAX_HEADER_BYTES = 64 << 10
PAUSE_BYTES = 1 << 18
"""Of a body that nobody has taken yet: then the client has to wait. It is what one read gives at most."""
HEAD = b"HTTP/1.1 "
UPLOADS = (b"POST /v1/classify", b"POST /inference")
PHRASES = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


@lru_cache(maxsize=64)
def refusal(code: str, detail: str, retry_after: str = "") -> bytes:
    """Return a whole response for a connection that ends with it, made without looking at the request."""
    text, status = body(code, detail, ""), STATUS[code]
    wait = f"retry-after: {retry_after}\r\n" if retry_after else ""
    head = (
        f"HTTP/1.1 {status} {PHRASES[status]}\r\ncontent-type: {MEDIA_TYPE}\r\n"
        f"content-length: {len(text)}\r\n{wait}connection: close\r\n\r\n"
    )
    return head.encode() + text


class Entrance:
    """Who may come in; the service has one, this one lets everybody in."""

    def refuse(self) -> bytes | None:
        """Return the answer to one more upload where there is no place for it; None where there is."""
        return None

    def enter(self) -> Callable[[], None]:
        """Keep a place for an upload until the returned function is called: its body is counted elsewhere then."""
        return lambda: None


class _Transport:
    """The transport as uvicorn sees it: one write per response, and `close` lingers where the peer may still send."""

    def __init__(self, transport: asyncio.Transport, protocol: Connection) -> None:
        self._transport, self._protocol = transport, protocol
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write; a head waits for the first bytes of its body, which follow without a turn of the event loop."""
        if self._protocol.ending:
            return
        if not self._held and data.endswith(b"\r\n\r\n") and data.startswith(HEAD) and data[9:10] != b"1":
            self._held = data
            return
        self._transport.write(self._held + data)
        self._held = b""

    def is_closing(self) -> bool:
        return self._protocol.ending or self._transport.is_closing()

    def close(self) -> None:
        self.flush()
        self._protocol.end(self._transport)

    def flush(self) -> None:
        """Write a head that has no body."""
        if self._held and not self.is_closing():
            self._transport.write(self._held)
        self._held = b""


class _Pieces:
    """What uvicorn collects a body in, until the app takes it as bytes; one piece, the usual case, is not copied."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def __iadd__(self, piece: bytes) -> _Pieces:
        self._pieces.append(piece)
        self._size += len(piece)
        return self

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)


class _Discard(asyncio.BufferedProtocol):
    """Throws away what a peer still sends, through one buffer for all."""

    buffer = bytearray(1 << 18)

    def __init__(self, connection: Connection, transport: asyncio.Transport) -> None:
        self._connection, self._transport = connection, transport
        self._left = LINGER_BYTES
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, transport.abort)

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
        self._timer.cancel()
        self._connection.connection_lost(exc)


class Connection(HttpToolsProtocol):
    """One connection; ``limits`` says how long, ``entrance`` whether one more upload has a place.

    Args:
        since: when it was accepted, on the loop's clock: its first headers must be there `limits.header_s` later.
    """

    limits = ServeConfig()
    entrance = Entrance()

    def __init__(self, *args: Any, since: float | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ending = False
        self._since = since
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._end_timer: asyncio.TimerHandle | None = None
        self._stage: Literal["first", "idle", "head", "body"] = "first"  # of the request that is being read
        self._head_bytes = 0  # after the first piece
        self._more_may_come = self._nonsense = False
        self._leave: Callable[[], None] | None = None
        self._gone: asyncio.Future[None] = self.loop.create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline of the first headers."""
        super().connection_made(_Transport(transport, self))  # type: ignore[arg-type]
        self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop every clock, and tell those who work for this client."""
        for timer in (self._header_timer, self._write_timer, self._end_timer):
            if timer is not None:
                timer.cancel()
        self._give_place_back()
        if not self._gone.done():
            self._gone.set_result(None)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def placed(self, leave: Callable[[], None] | None) -> None:
        """Say that the first request has a place already, and what gives it back."""
        self._leave = leave

    @property
    def _busy(self) -> bool:
        """Whether a request waits for its answer."""
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Take bytes; the clock runs while headers are under way."""
        if self.ending:
            return
        before = self._stage
        begins = before in ("first", "idle") and not self._busy
        if begins and self._leave is None and data.startswith(UPLOADS):
            refused = self.entrance.refuse()
            if refused is not None:
                self._unset_keepalive_if_required()
                self._more_may_come = True
                self.transport.write(refused)
                self.transport.close()
                return
            self._leave = self.entrance.enter()
        super().data_received(data)
        if before == self._stage == "head" and not self.ending:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEADER_BYTES:
                self._refuse("bad_request", "headers without an end")
        self._watch_headers()

    def on_message_begin(self) -> None:
        """Start a request."""
        super().on_message_begin()
        self._stage, self._head_bytes = "head", 0
        self.scope["extensions"] = {"soundmark.gone": {"future": self._gone}}

    def on_headers_complete(self) -> None:
        """Hand the request to the app; the parser makes a 400 of what is raised here."""
        if not self.url.startswith(b"/") or self.parser.get_http_version() not in ("1.0", "1.1"):
            raise ValueError
        self._stage = "body"
        super().on_headers_complete()
        if self._leave is not None:  # after the app's first step, which counts the body as one that comes
            self.loop.call_soon(self._leave)
            self._leave = None
        if self.parser.should_upgrade():  # no such thing here; what follows would be of another protocol
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Keep a piece of a body until the app takes it."""
        cycle = self.cycle
        if cycle.response_complete:
            return
        if not cycle.body:
            cycle.body = _Pieces()  # type: ignore[assignment]
        cycle.body += body
        if len(cycle.body) > PAUSE_BYTES:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """End a request's body."""
        self._stage = "idle"
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on to the next request, whose first bytes may be there already."""
        self.transport.flush()  # type: ignore[attr-defined]
        super().on_response_complete()
        if self._nonsense and not self._busy:
            self.send_400_response("")
        self._watch_headers()

    def _give_place_back(self) -> None:
        if self._leave is not None:
            self._leave()
            self._leave = None

    def _watch_headers(self) -> None:
        under_way = self._stage in ("first", "head") and not self.ending
        if under_way and self._header_timer is None:
            since = self.loop.time() if self._since is None else self._since
            self._since = None
            self._header_timer = self.loop.call_at(since + self.limits.header_s, self._late)
        elif not under_way and self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _late(self) -> None:
        self._header_timer = None
        if self._busy:  # the next request can wait until this one is answered
            self._watch_headers()
        elif not self.transport.is_closing():
            self._refuse("request_timeout", f"no whole headers within {self.limits.header_s:g} s")

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer what is no HTTP/1.1, after the requests before it."""
        if self._busy and self._stage != "body" and not self.ending:
            self._nonsense = True
            self.flow.pause_reading()
        else:
            self._refuse("bad_request", "not a valid HTTP/1.1 request")

    def _refuse(self, code: str, detail: str) -> None:
        """Answer without a request to answer to, or before its end, and end the connection."""
        self._more_may_come = True
        if not self._busy or not self.cycle.response_started:
            self.transport.write(refusal(code, detail))
        if self._busy:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
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
        self._give_place_back()
        self._watch_headers()
        self._end_timer = self.loop.call_later(self.limits.write_s, transport.abort)
        if (self._more_may_come or self._stage == "body") and transport.can_write_eof():
            try:
                transport.write_eof()
            except OSError:  # the peer is gone
                transport.abort()
                return
            transport.set_protocol(_Discard(self, transport))
            transport.resume_reading()
        else:
            transport.close()
