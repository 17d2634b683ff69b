"""A request on its way through the pool, and the answer that it ends with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from soundmark.server.problems import Problem
from soundmark.server.process import Chunk


@dataclass(slots=True)
class Answer:
    """What a request ended with: status, JSON, and what the metrics count."""

    status: int
    body: bytes
    code: str = ""
    heard: list[dict[str, Any]] = field(default_factory=list)
    queue_s: float = 0.0
    work_s: float = 0.0
    retry_after_s: int = 0


@dataclass(slots=True, eq=False)
class Job:
    """One request on its way."""

    header: dict[str, Any]
    body: Sequence[Chunk] = field(repr=False)
    answer: asyncio.Future[Answer]
    limit_s: float
    arrived: float = field(default_factory=time.monotonic)
    started: float = 0.0
    tries: int = 0
    crashes: int = 0
    rows: list[bytes] = field(default_factory=list)  # of a batch, as they come
    heard: list[dict[str, Any]] = field(default_factory=list)
    current: str = ""  # name of the recording of a batch that a worker is at

    def finish(self, status: int, body: bytes, code: str = "") -> None:
        """Give the answer, unless nobody waits for it any more."""
        if not self.answer.done():
            now = time.monotonic()
            began = self.started or now
            self.answer.set_result(Answer(status, body, code, self.heard, began - self.arrived, now - began))

    def fail(self, code: str, detail: str) -> None:
        """Give a problem as the answer."""
        problem = Problem(code, detail)
        self.finish(problem.status, problem.body(self.header["request_id"]), code)
