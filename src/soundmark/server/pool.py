"""Answers from worker processes: a bounded queue, deadlines, replacement of dead workers, swap of the model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from soundmark.errors import BundleError
from soundmark.serve_config import ServeConfig
from soundmark.server.jobs import Answer, Job
from soundmark.server.problems import INTERNAL, Problem
from soundmark.server.process import COMMAND, Chunk, WorkerProcess
from soundmark.server.receiving import ClientGone

MAX_TRIES = 2
"""Of a request whose worker was killed from outside (kill -9, out of memory): it gets one more."""
MAX_CRASHES = 3
"""Of workers in one batch; the recordings behind are rows with an error, and not tried."""
BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
GOLDEN_S = 5.0
"""A worker that does not hear the golden clip by then is replaced, and the service is not ready."""
FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)

_log = logging.getLogger("soundmark.server")


class Pool:
    """Workers and the queue before them.

    Args:
        model: bundle directory or name, read again at every `reload` and for every new worker.
        config: numbers and limits.
        command: what starts a worker.
    """

    def __init__(self, model: str | None, config: ServeConfig, command: Sequence[str] = COMMAND) -> None:
        self.model, self.config, self.command = model, config, command
        self.info: dict[str, Any] = {}
        self.restarts = 0
        self.jobs: deque[Job] = deque()
        self.running: set[Job] = set()
        self._sleepers: list[asyncio.Future[None]] = []
        self._slots: list[asyncio.Task[None]] = []
        self._workers: dict[int, WorkerProcess] = {}
        self._next: dict[int, WorkerProcess] = {}  # replacements that wait for a moment between two jobs
        self._stopping = False
        self._golden: asyncio.Task[bool] | None = None
        self._job_s = 0.05  # running mean, for Retry-After

    async def start(self) -> None:
        """Start every worker; the first one says what the model is.

        Raises:
            BundleError: the model is refused.
        """
        first = await WorkerProcess.start(self.model, self.config, self.command)
        self.info = first.info
        self._tell_fallback()
        self._next[0] = first
        self._slots = [asyncio.create_task(self._keep(slot)) for slot in range(self.config.workers)]

    async def stop(self) -> None:
        """Finish what was accepted within the grace time, then end every worker."""
        self._stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.grace_s):
                while self.jobs or self.running:
                    await self._change()
        for job in [*self.jobs, *self.running]:
            job.fail("overloaded", "the service is ending")
        self.jobs.clear()
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*self._slots, return_exceptions=True)
        for worker in [*self._workers.values(), *self._next.values()]:
            await worker.end()
        self._workers.clear()
        self._next.clear()

    async def reload(self) -> None:
        """Put workers with the model as it is on the disk now in the place of the present ones, without a gap.

        Raises:
            BundleError: it is refused (hash, operators, golden clip); the present one goes on.
        """
        fresh: list[WorkerProcess] = []
        try:
            for _ in range(self.config.workers):
                fresh.append(await WorkerProcess.start(self.model, self.config, self.command))
        except BaseException:
            for worker in fresh:
                await worker.end()
            raise
        stale = list(self._next.values())
        self._next = dict(enumerate(fresh))
        self.info = fresh[0].info
        self._tell_fallback()
        self._wake()
        for worker in stale:
            await worker.end()

    def _tell_fallback(self) -> None:
        if self.info["provider_fallback"]:
            _log.warning("the model runs on the CPU", extra={"saw": self.info["provider_fallback"]})

    @property
    def full(self) -> bool:
        """Whether the queue takes no more."""
        return len(self.jobs) >= self.config.queue

    @property
    def alive(self) -> int:
        """Workers that run."""
        return sum(worker.alive for worker in self._workers.values())

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers.values()]

    def overloaded(self) -> Problem:
        """Return the problem of a full queue, with a time by which it should be shorter."""
        wait = max(1, round(len(self.jobs) * self._job_s / max(1, self.config.workers)))
        return Problem("overloaded", "too many requests are waiting", headers={"Retry-After": str(wait)})

    async def ask(
        self,
        header: dict[str, Any],
        body: Sequence[Chunk],
        *,
        first: bool = False,
        gone: asyncio.Future[None] | None = None,
    ) -> Answer:
        """Return the answer of a worker; a caller that is cancelled takes the request back if it still waits.

        Args:
            header: route, content type, query, request id.
            body: the body in pieces.
            first: before all others, with the time of a golden clip.
            gone: done when the client has left.

        Raises:
            Problem: ``overloaded`` where the queue is full, ``model_not_ready`` while ending.
            ClientGone: the client has left, so nothing is done.
        """
        if self._stopping:
            raise Problem("model_not_ready", "the service is ending", headers={"Retry-After": "5"})
        if self.full and not first:
            raise self.overloaded()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        limit_s = GOLDEN_S if first else self.config.job_s
        job = Job({**header, "done": 0, "give_up": False}, body, answer, limit_s)
        (self.jobs.appendleft if first else self.jobs.append)(job)
        self._wake()

        def give_up(_: object) -> None:
            answer.cancel()

        if gone is not None:
            gone.add_done_callback(give_up)
        try:
            async with asyncio.timeout(GOLDEN_S if first else self.config.answer_s):
                return await answer
        except TimeoutError:
            raise self.overloaded() from None
        except asyncio.CancelledError:
            if gone is not None and gone.done():
                raise ClientGone from None
            raise
        finally:
            if gone is not None:
                gone.remove_done_callback(give_up)
            answer.cancel()
            if job in self.jobs:  # asked first: the error of `remove` would print the job
                self.jobs.remove(job)

    async def ready(self) -> bool:
        """Return whether a worker hears the golden clip as it should; callers at one time share one try."""
        if self._golden is None or self._golden.done():
            self._golden = asyncio.create_task(self._hear_golden())
        return await asyncio.shield(self._golden)

    async def _hear_golden(self) -> bool:
        header = {"route": "golden", "content_type": "", "query": "", "request_id": "golden"}
        try:
            return (await self.ask(header, [], first=True)).status == 200
        except Problem:
            return False

    async def _keep(self, slot: int) -> None:
        """Keep one worker running for ever, and give it jobs."""
        failures = 0
        while True:
            worker = self._next.pop(slot, None)
            if worker is None:
                await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
                try:
                    worker = await WorkerProcess.start(self.model, self.config, self.command)
                except BundleError as error:
                    failures += 1
                    _log.error("no worker", extra={"code": error.code, "saw": error.saw})
                    continue
                if worker.info["model_digest"] != self.info["model_digest"]:
                    _log.warning("the model on the disk has changed; new workers use it")
                    self.info = worker.info
            self._workers[slot] = worker
            failures = 0 if await self._use(slot, worker) else failures + 1
            del self._workers[slot]
            await worker.end()

    async def _use(self, slot: int, worker: WorkerProcess) -> bool:
        """Give jobs to a worker until it is gone or replaced; return whether it answered any."""
        worker.gone.add_done_callback(lambda _: self._wake())
        answered = False
        while True:
            if not worker.alive:
                self.restarts += 1
                _log.warning("worker ended", extra={"pid": worker.pid})
                return answered
            if slot in self._next:
                return True
            if not self.jobs:
                await self._change()
                continue
            job = self.jobs.popleft()
            self.running.add(job)
            try:
                alive = await self._perform(worker, job)
            finally:
                self.running.discard(job)
                if self._stopping:
                    self._wake()
            if not alive:
                self.restarts += 1
                return True
            answered = True

    async def _change(self) -> None:
        """Wait until something happened: a job, the end of a worker, a replacement."""
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append(sleeper)
        await sleeper

    def _wake(self) -> None:
        for sleeper in self._sleepers:
            if not sleeper.done():
                sleeper.set_result(None)
        self._sleepers.clear()

    async def _perform(self, worker: WorkerProcess, job: Job) -> bool:
        """Let a worker do a job; return whether it can take another one."""
        job.started = job.started or time.monotonic()
        job.tries += 1
        began = time.monotonic()
        try:
            async with asyncio.timeout(job.limit_s) as clock:
                worker.send(job.header, job.body)
                await self._collect(worker, job, clock)
        except TimeoutError:
            stopped = worker.stopped
            worker.kill()
            await worker.end()
            _log.warning("worker took too long", extra={"pid": worker.pid, "stopped": stopped})
            if stopped or job.limit_s == GOLDEN_S:
                job.fail("model_not_ready", "a worker did not answer; try again")
            else:
                self._lost(job, "decode_timeout", "took too long to decode and classify")
            return False
        except OSError:
            status = await worker.end()
            _log.warning("worker died", extra={"pid": worker.pid, "status": status})
            if status in FROM_OUTSIDE and not self._stopping and job.tries < MAX_TRIES:
                self.jobs.appendleft(job)
            elif status in FROM_OUTSIDE:
                job.fail("model_not_ready", "the worker was ended; try again")
            else:
                self._lost(job, "decoder_crashed", "ended the process that decoded it")
            return False
        except Exception:
            _log.exception("a fault of soundmark; please report it")
            await worker.end()
            job.fail("internal", INTERNAL)
            return False
        self._job_s += 0.1 * (time.monotonic() - began - self._job_s)
        return True

    async def _collect(self, worker: WorkerProcess, job: Job, clock: asyncio.Timeout) -> None:
        """Take messages until the job is done; the limit is per recording of a batch."""
        while True:
            header, body = await worker.receive()
            if header["kind"] == "begin":
                job.current = header["name"]
                clock.reschedule(asyncio.get_running_loop().time() + job.limit_s)
            elif header["kind"] == "row":
                self._add_row(job, body, header)
            else:
                if header.get("trace"):
                    about = {"request_id": job.header["request_id"], "trace": header["trace"]}
                    _log.error("a fault of soundmark; please report it", extra=about)
                if header["status"] == 200 and "timing_ms" in header:
                    job.heard.append(header)
                if header["status"] == 200 and job.header["route"] == "batch":
                    body = self._batch_body(job)
                job.finish(header["status"], body, header.get("code", ""))
                return

    def _lost(self, job: Job, code: str, detail: str) -> None:
        """Settle what took a worker along: a row of a batch, whose rest is tried again, or the request."""
        if job.header["route"] != "batch" or not job.current:
            job.fail(code, detail)
            return
        job.crashes += 1
        row = {"name": job.current, "error": {"code": code, "message": detail}}
        self._add_row(job, json.dumps(row).encode(), {"code": code})
        job.current, job.tries = "", 0
        job.header["give_up"] = job.crashes >= MAX_CRASHES
        if not job.answer.done():
            self.jobs.appendleft(job)

    def _add_row(self, job: Job, body: bytes, about: dict[str, Any]) -> None:
        job.rows.append(body)
        job.header["done"] = len(job.rows)
        job.heard.append(about)

    def _batch_body(self, job: Job) -> bytes:
        request_id = json.dumps(job.header["request_id"]).encode()
        return b'{"request_id": ' + request_id + b', "results": [' + b", ".join(job.rows) + b"]}"
