"""Messages between the HTTP process and a worker: two lengths, a JSON header, and the JSON of an answer as it is."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from typing import Any, TypeAlias

import msgspec

_LENGTHS = struct.Struct("!II")
MAX_HEADER_BYTES = 1 << 22
Message: TypeAlias = tuple[dict[str, Any], bytes]
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def pack(header: dict[str, Any], body: bytes = b"") -> bytes:
    """Return a message as bytes."""
    text = _encode(header)
    return b"".join((_LENGTHS.pack(len(text), len(body)), text, body))


class Link(asyncio.Protocol):
    """The HTTP process's end of a socket to a worker; a message is there after one turn of the event loop."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._messages: deque[Message] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._lost = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Tell whoever waits for a message."""
        self._lost.set_result(None)
        self._wake()

    def data_received(self, data: bytes) -> None:
        """Take bytes; wake whoever waits when a message is whole."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _LENGTHS.size:
            n_header, n_body = _LENGTHS.unpack_from(buffer)
            if n_header > MAX_HEADER_BYTES:  # not a worker's message
                self.close()
                return
            middle = _LENGTHS.size + n_header
            if len(buffer) < middle + n_body:
                return
            body = bytes(buffer[middle : middle + n_body])
            try:
                self._messages.append((_decode(buffer[_LENGTHS.size : middle]), body))
            except msgspec.DecodeError:
                self.close()
                return
            del buffer[: middle + n_body]
            self._wake()

    def send(self, header: dict[str, Any]) -> None:
        """Send a message without a body."""
        assert self._transport is not None
        self._transport.write(pack(header))

    async def receive(self) -> Message:
        """Return the next message.

        Raises:
            ConnectionError: the worker is gone.
        """
        while not self._messages:
            if self._lost.done():
                raise ConnectionError("the worker is gone")
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        return self._messages.popleft()

    def close(self) -> None:
        """Close the link; the worker ends then."""
        if self._transport is not None:
            self._transport.close()

    async def closed(self) -> None:
        """Return when the link is closed."""
        await self._lost

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


def send_now(link: socket.socket, header: dict[str, Any], body: bytes = b"") -> None:
    """Send a message, waiting until it is gone."""
    link.sendall(pack(header, body))


def receive_now(link: socket.socket) -> Message | None:
    """Return the next message, None where the other side is gone."""
    lengths = _read(link, _LENGTHS.size)
    if lengths is None:
        return None
    n_header, n_body = _LENGTHS.unpack(lengths)
    header, body = _read(link, n_header), _read(link, n_body)
    return None if header is None or body is None else (_decode(header), body)


def _read(link: socket.socket, size: int) -> bytes | None:
    data = link.recv(size) if size else b""
    while len(data) < size:  # in pieces
        more = link.recv(size - len(data))
        if not more:
            return None
        data += more
    return data
