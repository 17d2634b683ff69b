"""A real server for tests: a process of its own, on loopback, on a free port, always ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FAULTY = Path(__file__).with_name("faulty_service.py")


class Served:
    """A running server: its address, its log as it comes, and short ways to ask it."""

    def __init__(self, *args: object, script: Path | None = None, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, *(["-m", "soundmark", "serve"] if script is None else [str(script)])]
        self.process = subprocess.Popen(
            [*command, "--port", "0", *map(str, args)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}", **(env or {})},
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        line = self.wait_for(r"listening on http://", 30)
        self.url = re.search(r"http://[^,]+", line)[0]
        host, port = self.url.removeprefix("http://").rsplit(":", 1)
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        self.address = (host.strip("[]"), int(port))

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, pattern: str, seconds: float = 10.0) -> str:
        """Return the first line of the log that has the pattern."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for line in self.lines:
                if re.search(pattern, line):
                    return line
            if self.process.poll() is not None and not self._reader.is_alive():
                break
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} in the log:\n" + "\n".join(self.lines))

    @property
    def log(self) -> list[dict[str, Any]]:
        """The JSON lines so far."""
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def post(self, content: Any = None, path: str = "/v1/classify", **options: Any) -> httpx.Response:
        if content is not None and "headers" not in options:
            options["headers"] = {"Content-Type": "audio/wav"}
        return self.client.post(path, content=content, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)

    def socket(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=20)

    def raw(self, data: bytes) -> bytes:
        """Return everything that the server sends for these bytes until it closes."""
        with self.socket() as sock:
            sock.sendall(data)
            return b"".join(iter(lambda: sock.recv(65536), b""))

    def workers(self) -> list[int]:
        """Process ids of the children."""
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:
            return [int(pid) for pid in file.read().split()]

    def stop(self, number: int = signal.SIGTERM, seconds: float = 20) -> int:
        with contextlib.suppress(AttributeError):  # it may not have come up
            self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._reader.join(5)
            with contextlib.suppress(OSError):
                self.process.stderr.close()


def sound(seconds: float = 0.5, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    """Return noise."""
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))).astype(np.float32)
