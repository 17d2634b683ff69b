"""What the benchmarks of the service share: a running server, requests as bytes, health asked by another process."""

from __future__ import annotations

import asyncio
import contextlib
import io
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from soundmark.demo import demo_clips


class Server:
    """A running ``soundmark serve``."""

    def __init__(self, *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "soundmark", "serve", "--port", "0", *args],
            stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stderr is not None
        line = next(
            line for line in self.process.stderr if "listening" in line or line.startswith("soundmark:")
        )
        self.url = re.search(r"http://[^,]+", line)[0]  # type: ignore[index]
        host, port = self.url.removeprefix("http://").split(":")
        self.address = (host, int(port))
        self.log: list[str] = []
        self.thread = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self.thread.start()

    @property
    def pids(self) -> list[int]:
        """The HTTP process and its workers."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def rss(self) -> list[int]:
        """Resident bytes of each process."""
        return [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 for pid in self.pids]

    def descriptors(self) -> list[int]:
        """Open descriptors of each process."""
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids]

    def cpu_s(self) -> float:
        """CPU seconds of all processes."""
        ticks = 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End it, and say so if it does not end well."""
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        if status:
            print(f"the server ended with {status}")


@contextlib.contextmanager
def serving(*args: str) -> Iterator[Server]:
    server = Server(*args)
    try:
        yield server
    finally:
        server.stop()


def request(
    content: bytes, kind: str = "audio/wav", path: str = "/v1/classify", close: bool = False
) -> bytes:
    end = "Connection: close\r\n" if close else ""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{end}"
    return head.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return status and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    length = int(re.search(r"content-length: (\d+)", head, re.IGNORECASE)[1])  # type: ignore[index]
    return int(head.split()[1]), await reader.readexactly(length)


def _health(address: tuple[str, int], seconds: float, every_s: float, pipe: Any) -> None:
    """Ask /health/live again and again over new connections; send the milliseconds that each took."""
    times, end = [], time.monotonic() + seconds
    pipe.send("asking")
    while time.monotonic() < end and not pipe.poll():
        started = time.perf_counter()
        try:
            with socket.create_connection(address, timeout=30) as sock:
                sock.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                ok = b"".join(iter(lambda s=sock: s.recv(4096), b"")).startswith(b"HTTP/1.1 200")
        except OSError:
            ok = False
        times.append(1e3 * (time.perf_counter() - started) if ok else 1e9)
        time.sleep(every_s)
    pipe.send(times)


@contextlib.contextmanager
def health(server: Server, seconds: float, every_s: float = 0.02) -> Iterator[list[float]]:
    """Ask for health meanwhile; the list is filled at the end."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_health, args=(server.address, seconds, every_s, there)
    )
    process.start()
    here.recv()  # it runs
    times: list[float] = []
    try:
        yield times
    finally:
        here.send(None)
        if here.poll(60):
            times += here.recv()
        process.join(10)


def percentiles(times: list[float]) -> dict[str, float]:
    return {f"p{p}_ms": round(float(np.percentile(times, p)), 2) for p in (50, 95, 99)} if times else {}


def clips(data: str | None, count: int) -> list[tuple[str, bytes]]:
    """Return names and bytes of recordings."""
    if data:
        return [
            (str(p), p.read_bytes())
            for p in sorted((Path(data) / "audio").iterdir())[:: 2000 // count][:count]
        ]
    found = []
    for seed in range(-(-count // 10)):
        for clip in demo_clips(seed=seed):
            memory = io.BytesIO()
            soundfile.write(memory, clip.samples, clip.sample_rate, format="WAV", subtype="PCM_16")
            found.append((clip.name, memory.getvalue()))
    return found[:count]
