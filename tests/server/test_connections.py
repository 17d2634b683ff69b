"""Raw sockets: deadlines, lengths that lie, bodies that are too long, ends without resets (H1 to H7, H30 to H40)."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serving import Served

HOST = b"Host: localhost\r\n"
POST = b"POST /v1/classify HTTP/1.1\r\n" + HOST + b"Content-Type: audio/wav\r\n"
LIMIT = 200_000


@pytest.fixture(scope="module")
def strict(tiny_bundle: Path) -> Iterator[Served]:
    """Return a server with short deadlines and a small limit."""
    server = Served(
        "--model", tiny_bundle, "--max-bytes", LIMIT, "--header-s", 1, "--body-s", 1.5, "--write-s", 2,
        "--keep-alive-s", 1, "--max-connections", 60, "--buffer-bytes", 3 * LIMIT,
    )  # fmt: skip
    yield server
    assert server.stop() == 0
    assert not [line for line in server.log if line["level"] == "error"]


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    return int(answer.split(b" ", 2)[1])


def test_the_limit_exactly_and_one_byte_more(strict: Served) -> None:
    assert strict.post(bytes(LIMIT)).status_code == 415
    assert strict.post(bytes(LIMIT + 1)).status_code == 413


def test_a_length_beyond_the_limit_is_refused_before_the_body(strict: Served) -> None:
    for more in (b"", b"Expect: 100-continue\r\n"):
        started = time.monotonic()
        answer = strict.raw(POST + more + b"Content-Length: 10000000000\r\n\r\n" + b"x" * 1000)
        assert status(answer) == 413
        assert b"100 Continue" not in answer
        assert b"connection: close" in answer.lower()
        assert time.monotonic() - started < 30


def test_an_endless_chunked_body_is_cut_off(strict: Served) -> None:
    sent, chunk = 0, b"10000\r\n" + bytes(65536) + b"\r\n"
    with strict.socket() as sock:
        sock.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError, TimeoutError):
            while sent < 100 * len(chunk):
                sock.sendall(chunk)
                sent += len(chunk)
        sock.settimeout(5)
        assert status(sock.recv(1000)) == 413


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n", b"Content-Length: -1\r\n", b"Content-Length: +5\r\n",
        b"Content-Length: 0x10\r\n", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"No colon\r\n",
        b"X: " + b"y" * 70_000 + b"\r\n", b"Transfer-Encoding: gzip\r\n",
        b"".join(b"X%d: %s\r\n" % (i, b"y" * 700) for i in range(110)),
    ],
    ids=range(9),
)  # fmt: skip
def test_headers_that_are_refused(strict: Served, head: bytes) -> None:
    assert status(strict.raw(POST + head + b"\r\n0\r\n\r\n")) in (400, 408, 431, 501)


@pytest.mark.parametrize(
    "request_line",
    [b"GET /v1/model", b"get /v1/model HTTP/1.1", b"GET http://evil/ HTTP/1.1", b"CONNECT a:1 HTTP/1.1",
     b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1", b"GET / HTTP/9.9", b"\x16\x03\x01\x02", b"PRI * HTTP/2.0"],
    ids=range(8),
)  # fmt: skip
def test_request_lines_that_are_refused(strict: Served, request_line: bytes) -> None:
    answer = strict.raw(request_line + b"\r\n" + HOST + b"\r\n")
    assert status(answer) in (400, 404, 405, 408, 414, 501, 505)


def test_chunk_sizes_that_lie(strict: Served) -> None:
    for size in (b"FFFFFFFFFFFFFFFFF", b"-1", b"x", b"5\n"):
        answer = strict.raw(POST + b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\nabc\r\n")
        assert status(answer) in (400, 408, 413)


def test_slow_headers_are_closed_at_their_deadline(strict: Served) -> None:
    with strict.socket() as sock:
        started = time.monotonic()
        for byte in POST[:30]:
            with contextlib.suppress(ConnectionError):
                sock.sendall(bytes([byte]))
            time.sleep(0.06)
        assert status(sock.recv(1000)) == 408
        assert 0.9 < time.monotonic() - started < 30


def test_a_connection_that_says_nothing_is_closed(strict: Served) -> None:
    with strict.socket() as sock:
        started = time.monotonic()
        answer = b"".join(iter(lambda: sock.recv(1000), b""))  # until it is closed
        assert status(answer) == 408
        assert time.monotonic() - started < 30


def test_a_slow_body_and_a_short_one_get_408(strict: Served) -> None:
    with strict.socket() as sock:
        started = time.monotonic()
        sock.sendall(POST + b"Content-Length: 1000\r\n\r\n" + b"x" * 10)
        assert status(sock.recv(1000)) == 408
        assert 1.3 < time.monotonic() - started < 30


def test_keep_alive_serves_several_requests_in_order_and_ends_idle(strict: Served) -> None:
    get = b"GET /v1/labels HTTP/1.1\r\n" + HOST + b"\r\n"
    bad = b"GET /nope HTTP/1.1\r\n" + HOST + b"\r\n"
    answer = strict.raw(get + bad + get)  # until the server closes the idle connection
    lines = [line for line in answer.split(b"\r\n") if b"HTTP/1.1 " in line]
    assert [line[-20:].split(b" ", 1)[1] for line in lines] == [b"200 OK", b"404 Not Found", b"200 OK"] or [
        status(b"HTTP/1.1 " + part) for part in answer.split(b"HTTP/1.1 ")[1:]
    ] == [200, 404, 200]


def test_a_refused_upload_is_told_and_not_reset(strict: Served) -> None:
    """The whole body is sent before the answer is read, as simple clients do."""
    for _ in range(5):
        with strict.socket() as sock:
            sock.sendall(POST + b"Content-Length: 3000000\r\n\r\n" + bytes(3_000_000))
            assert status(sock.recv(1000)) == 413


def test_too_many_connections_are_told_so(strict: Served) -> None:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(strict.socket()) for _ in range(60)]
        time.sleep(0.2)
        last = stack.enter_context(strict.socket())
        answer = last.recv(1000)
        assert status(answer) == 503
        assert b"retry-after" in answer
        assert held
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            if strict.get("/health/live").status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError("not alive again")


def test_a_client_that_does_not_read_is_cut_off(strict: Served) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(strict.address)
        get = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\n" + HOST + b"\r\n"
        sock.sendall(get * 8)
        time.sleep(4)  # past the write deadline
        sock.settimeout(5)
        got = 0
        with contextlib.suppress(ConnectionError):
            while data := sock.recv(1 << 20):
                got += len(data)
        assert got < 12_000_000


def test_clients_that_leave_are_no_errors(strict: Served, make_wav: Callable[..., bytes]) -> None:
    for cut in (20, len(POST) + 30, None):
        with strict.socket() as sock:
            body = bytes(1000)
            sock.sendall((POST + b"Content-Length: 1000\r\n\r\n" + body)[:cut])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset
    assert strict.get("/health/ready").status_code == 200
    assert 'status="500"' not in strict.get("/metrics").text
