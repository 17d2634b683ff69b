"""Messages between the HTTP process and a worker: two lengths, a JSON header, and the JSON of an answer as it is."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

_LENGTHS = struct.Struct("!II")
MAX_HEADER_BYTES = 1 << 22


def pack(header: dict[str, Any], size: int) -> bytes:
    """Return what goes before ``size`` bytes of body."""
    text = json.dumps(header).encode()
    return _LENGTHS.pack(len(text), size) + text


async def receive(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    """Return the next message of a worker.

    Raises:
        asyncio.IncompleteReadError: the worker is gone.
    """
    n_header, n_body = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
    if n_header > MAX_HEADER_BYTES:
        raise ConnectionError("not a worker's message")
    header = json.loads(await reader.readexactly(n_header))
    return header, await reader.readexactly(n_body) if n_body else b""


def send_now(link: socket.socket, header: dict[str, Any], body: bytes = b"") -> None:
    """Send a message, waiting until it is gone."""
    link.sendall(pack(header, len(body)))
    if body:
        link.sendall(body)


def receive_now(link: socket.socket) -> tuple[dict[str, Any], bytes] | None:
    """Return the next message, None where the other side is gone."""
    lengths = _read(link, _LENGTHS.size)
    if lengths is None:
        return None
    n_header, n_body = _LENGTHS.unpack(lengths)
    header, body = _read(link, n_header), _read(link, n_body)
    return None if header is None or body is None else (json.loads(header), body)


def _read(link: socket.socket, size: int) -> bytes | None:
    buffer = bytearray(size)
    view, got = memoryview(buffer), 0
    while got < size:
        count = link.recv_into(view[got:])
        if not count:
            return None
        got += count
    view.release()
    return bytes(buffer)
