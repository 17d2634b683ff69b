"""A rush: what arrives together is answered with 200 or 503, never reset, and health is asked meanwhile (F3, H38)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from serving import FAULTY, Served

from soundmark.server.receiving import FRESH_S

HOST = b"Host: localhost\r\n"
POST = b"POST /v1/classify HTTP/1.1\r\n" + HOST + b"Content-Type: audio/wav\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"


async def ask(address: tuple[str, int], *pieces: bytes) -> bytes:
    """Send pieces, each in its own time, all before the answer is read; return everything that comes."""
    reader, writer = await asyncio.open_connection(*address)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.02 if len(pieces) > 1 else 0)
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return answer


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    return int(answer.split(b" ", 2)[1])


def descriptors(server: Served) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def test_a_rush_of_uploads(serve: Callable[..., Served], tiny_bundle: Path, wav: bytes) -> None:
    server = serve("--model", tiny_bundle, "--queue", 4, script=FAULTY)
    slow = wav + b"FAULT:wait!" + bytes(300_000)
    upload = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(slow) + slow
    assert status(asyncio.run(ask(server.address, LIVE))) == 200  # it is up, not only announced
    before = descriptors(server)

    async def rush() -> tuple[Counter[int], list[float]]:
        times: list[float] = []

        async def health() -> None:
            while True:
                started = time.monotonic()
                assert status(await ask(server.address, LIVE)) == 200
                times.append(time.monotonic() - started)

        asking = asyncio.create_task(health())
        answers = await asyncio.gather(*(ask(server.address, upload) for _ in range(150)))
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        return Counter(map(status, answers)), times

    statuses, times = asyncio.run(rush())
    assert {*statuses} == {200, 503}
    assert 4 <= statuses[200] <= 20, "the queue of 4, and what found a place when one was done"
    assert times, "health was answered while uploads waited"
    shed = re.search(r'soundmark_requests_total\{[^}]*route="shed"[^}]*\} (\S+)', server.get("/metrics").text)
    assert shed is not None
    assert 100 <= float(shed[1]) <= statuses[503]
    for _ in range(6):  # every place was given back
        assert server.post(wav).status_code == 200
    server.client.close()
    deadline = time.monotonic() + 10
    while descriptors(server) > before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_places_are_given_back_by_those_who_never_upload(
    serve: Callable[..., Served], tiny_bundle: Path, wav: bytes
) -> None:
    server = serve("--model", tiny_bundle, "--queue", 3, "--header-s", 0.5)
    for start in (
        POST,
        POST + b"Content-Length: x\r\n\r\n",
        b"POST /v1/classify",
        POST + b"Content-Length: 9\r\n\r\n",
    ):
        for _ in range(4):
            with server.socket() as sock:
                sock.sendall(start)
                time.sleep(0.05)
    for _ in range(3):  # the fourth has to wait for their deadline, if they are still there
        with server.socket() as sock:
            sock.sendall(POST)
            assert status(sock.recv(1000)) == 408
    assert server.post(wav).status_code == 200
    assert server.stop() == 0


def test_slow_starts_keep_nobody_out(serve: Callable[..., Served], tiny_bundle: Path, wav: bytes) -> None:
    """As many as there are places in the queue, with headers or bodies that do not end."""
    server = serve("--model", tiny_bundle, "--queue", 4)
    with contextlib.ExitStack() as stack:
        for start in (POST, POST + b"Content-Length: 9\r\n\r\n"):
            for _ in range(4):
                stack.enter_context(server.socket()).sendall(start)
        time.sleep(FRESH_S + 0.5)
        assert server.post(wav).status_code == 200


def test_a_start_in_pieces_is_the_same_request(served: Served, wav: bytes) -> None:
    head = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(wav)
    pieces = [head[:3], head[3:20], head[20:], wav[:5], wav[5:]]
    assert status(asyncio.run(ask(served.address, *pieces))) == 200


@pytest.mark.parametrize(
    "garbage",
    [b"\0\0\0\0\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", POST + b"Content-Length: -1\r\n\r\n"],
    ids=range(3),
)
def test_an_answer_is_not_lost_to_what_follows_its_request(
    served: Served, wav: bytes, garbage: bytes
) -> None:
    good = POST + b"Content-Length: %d\r\n\r\n" % len(wav) + wav
    answer = asyncio.run(ask(served.address, good + garbage))
    assert re.findall(rb"HTTP/1\.1 (\d{3}) ", answer) == [b"200", b"400"]


@pytest.mark.parametrize(
    "start",
    [b"GET /v1/labels\r\n", b"GET http://localhost/v1/labels HTTP/1.1\r\n", b"OPTIONS * HTTP/1.1\r\n",
     b"SOURCE /v1/labels ICE/1.0\r\n", b"GET /v1/labels HTTP/1.1\r\nX: a\x00b\r\n",
     b"GET /v1/labels HTTP/1.1\nX: a\n", b"GET /v1/labels HTTP/1.1\r\nX: a\r\n folded\r\n"],
    ids=range(7),
)  # fmt: skip
def test_what_is_no_plain_http_1_1_is_refused(served: Served, start: bytes) -> None:
    assert status(asyncio.run(ask(served.address, start + HOST + b"\r\n"))) in (400, 404, 405)


def test_an_upgrade_is_answered_and_ended(served: Served) -> None:
    more = b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    answer = asyncio.run(ask(served.address, b"GET /v1/labels HTTP/1.1\r\n" + HOST + more))
    assert status(answer) == 200
    assert b"connection: close" in answer.lower()


def test_a_client_that_asks_before_it_sends_is_told_to(served: Served, wav: bytes) -> None:
    with served.socket() as sock:
        sock.sendall(
            POST + b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(wav)
        )
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(wav)
        assert status(b"".join(iter(lambda: sock.recv(65536), b""))) == 200


def test_a_head_without_a_body_is_sent(served: Served) -> None:
    answer = asyncio.run(ask(served.address, LIVE.replace(b"GET", b"HEAD")))
    assert status(answer) in (200, 405)
    assert answer.endswith(b"\r\n\r\n")
