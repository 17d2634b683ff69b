"""Workers that die, hang or are killed; overload; leaving clients; ends and swaps under load (T15 to T19, F7)."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serving import FAULTY, Served, sound

from soundmark.bundle import Bundle
from soundmark.errors import BundleError
from soundmark.serve_config import ServeConfig
from soundmark.server.pool import Pool
from soundmark.server.problems import Problem

FAULTY_WORKER = Path(__file__).with_name("faulty_worker.py")


def faulty(what: str, make_wav: Callable[..., bytes]) -> bytes:
    """Return a good recording with an order to the faulty worker behind its sound."""
    return make_wav(sound(), 16_000, "PCM_16") + b"FAULT:" + what.encode().ljust(5, b"!")


def with_pool(
    body: Callable[[Pool], Awaitable[Any]], model: Path, command: Path | None = FAULTY_WORKER, **config: Any
) -> Any:
    """Run ``body`` with a pool that is ended afterwards, and check that no worker outlives it."""

    async def main() -> Any:
        import sys

        pool = Pool(str(model), ServeConfig(**config), [sys.executable, str(command)])
        await pool.start()
        try:
            async with asyncio.timeout(60):
                while not pool.alive:
                    await asyncio.sleep(0.01)
                return await body(pool)
        finally:
            pids = pool.pids
            await pool.stop()
            assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]

    return asyncio.run(main())


def header(route: str = "classify") -> dict[str, Any]:
    return {"route": route, "content_type": "audio/wav", "query": "", "request_id": "r"}


def test_an_aborting_decoder_costs_one_request(
    serve: Callable[..., Served], tiny_bundle: Path, make_wav: Callable[..., bytes], wav: bytes
) -> None:
    server = serve("--model", tiny_bundle, script=FAULTY)
    for what in ("abort", "exit0"):
        bad = server.post(faulty(what, make_wav))
        assert (bad.status_code, bad.json()["code"]) == (422, "decoder_crashed")
        started = time.monotonic()
        assert server.post(wav).status_code == 200
        assert time.monotonic() - started < 60
    bug = server.post(faulty("bug!!", make_wav))
    assert (bug.status_code, bug.json()["code"]) == (500, "internal")
    assert "secret" not in bug.text
    assert "secret" in server.wait_for("a fault of soundmark")
    assert "soundmark_worker_restarts 2.0" in server.get("/metrics").text
    files = [("files", ("a", wav)), ("files", ("b", faulty("abort", make_wav))), ("files", ("c", wav))]
    rows = server.post(files=files, path="/v1/classify/batch").json()["results"]
    assert [row.get("error", {}).get("code", "ok") for row in rows] == ["ok", "decoder_crashed", "ok"]
    assert server.stop() == 0


def test_a_batch_of_bombs_ends(tiny_bundle: Path, make_wav: Callable[..., bytes], wav: bytes) -> None:
    async def body(pool: Pool) -> None:
        import base64

        items = [{"audio": base64.b64encode(faulty("abort", make_wav)).decode()} for _ in range(5)]
        tree = json.dumps({"items": items}).encode()
        answer = await pool.ask({**header("batch"), "content_type": "application/json"}, [tree])
        rows = json.loads(answer.body)["results"]
        assert [row["error"]["code"] for row in rows] == ["decoder_crashed"] * 5
        assert pool.restarts == 3
        assert (await pool.ask(header(), [wav])).status == 200

    with_pool(body, tiny_bundle)


def test_a_hanging_decoder_is_ended_at_its_limit(
    tiny_bundle: Path, make_wav: Callable[..., bytes], wav: bytes
) -> None:
    async def body(pool: Pool) -> None:
        started = time.monotonic()
        answer = await pool.ask(header(), [faulty("hang!", make_wav)])
        assert (answer.status, answer.code) == (422, "decode_timeout")
        assert time.monotonic() - started < 60
        assert (await pool.ask(header(), [wav])).status == 200

    with_pool(body, tiny_bundle, job_s=1.0)


def test_a_killed_worker_is_replaced_and_its_request_answered(
    tiny_bundle: Path, make_wav: Callable[..., bytes]
) -> None:
    async def body(pool: Pool) -> None:
        for _ in range(2):
            job = asyncio.create_task(pool.ask(header(), [faulty("wait!", make_wav)]))
            await asyncio.sleep(0.1)
            for pid in pool.pids:
                os.kill(pid, signal.SIGKILL)
            assert (await job).status == 200
        started = time.monotonic()
        assert await pool.ready()
        assert time.monotonic() - started < 60

    with_pool(body, tiny_bundle)


def test_a_stopped_worker_makes_the_service_unready_and_is_replaced(
    tiny_bundle: Path, wav: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from soundmark.server import pool as pools

    monkeypatch.setattr(pools, "GOLDEN_S", 1.5)

    async def body(pool: Pool) -> None:
        assert await pool.ready()
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        assert not await pool.ready()
        assert (await pool.ask(header(), [wav])).status == 200
        assert pool.pids != [pid]
        assert await pool.ready()
        os.kill(pool.pids[0], signal.SIGSTOP)
        answer = await pool.ask(header(), [wav])
        assert (answer.status, answer.code) == (503, "model_not_ready"), "not the recording's fault"

    with_pool(body, tiny_bundle, job_s=2.0)


def test_a_full_queue_refuses_and_says_when_to_come_back(
    tiny_bundle: Path, make_wav: Callable[..., bytes]
) -> None:
    async def body(pool: Pool) -> None:
        slow = faulty("wait!", make_wav)
        asked = [asyncio.create_task(pool.ask(header(), [slow])) for _ in range(12)]
        done = await asyncio.gather(*asked, return_exceptions=True)
        refused = [one for one in done if isinstance(one, Problem)]
        assert {one.code for one in refused} == {"overloaded"}
        assert all(int(one.headers["Retry-After"]) >= 1 for one in refused)
        assert 12 - len(refused) in (4, 5)
        assert all(one.status == 200 for one in done if not isinstance(one, BaseException))

    with_pool(body, tiny_bundle, queue=4)


def test_requests_of_clients_that_left_never_run(tiny_bundle: Path, make_wav: Callable[..., bytes]) -> None:
    async def body(pool: Pool) -> None:
        slow = faulty("wait!", make_wav)
        asked = [asyncio.create_task(pool.ask(header(), [slow])) for _ in range(40)]
        await asyncio.sleep(0.05)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        assert not pool.jobs
        started = time.monotonic()
        assert (await pool.ask(header(), [slow])).status == 200
        assert time.monotonic() - started < 6, "40 of them take 8 s"

    with_pool(body, tiny_bundle)


def test_what_waits_too_long_is_refused(tiny_bundle: Path, make_wav: Callable[..., bytes]) -> None:
    async def body(pool: Pool) -> None:
        asked = [asyncio.create_task(pool.ask(header(), [faulty("wait!", make_wav)])) for _ in range(8)]
        done = await asyncio.gather(*asked, return_exceptions=True)
        assert {one.code for one in done if isinstance(one, Problem)} == {"overloaded"}
        assert not pool.jobs

    with_pool(body, tiny_bundle, answer_s=0.5)


def test_a_bad_model_never_starts_and_never_replaces_a_good_one(
    make_bundle: Callable[..., Bundle], tmp_path: Path, wav: bytes
) -> None:
    where = make_bundle(tmp_path / "model").path

    async def body(pool: Pool) -> None:
        digest = pool.info["model_digest"]
        good = (where / "model.onnx").read_bytes()
        (where / "model.onnx").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(BundleError) as refused:
            await pool.reload()
        assert refused.value.code == "hash_mismatch"
        assert (await pool.ask(header(), [wav])).status == 200
        shutil.rmtree(where)
        make_bundle(where, name="other")
        await pool.reload()
        assert pool.info["model"] == "other"
        assert pool.info["model_digest"] != digest
        answer = await pool.ask(header(), [wav])
        assert json.loads(answer.body)["model"] == "other"

    with_pool(body, where, workers=2)
    shutil.rmtree(where)
    with pytest.raises(BundleError):
        with_pool(body, where)


class Load:
    """Threads that post until they are told to stop; what they got is counted."""

    def __init__(self, server: Served, content: bytes, threads: int = 4) -> None:
        self.statuses: list[int] = []
        self.broken: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(server, content)) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, server: Served, content: bytes) -> None:
        with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
            while not self._stop.is_set():
                try:
                    headers = {"Content-Type": "audio/wav"}
                    self.statuses.append(
                        client.post("/v1/classify", content=content, headers=headers).status_code
                    )
                except httpx.ConnectError:
                    return  # it has ended, and takes no connections any more
                except httpx.HTTPError as error:
                    self.broken.append(repr(error))
                    return

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(40)


def test_sigterm_under_load_finishes_what_was_accepted(
    serve: Callable[..., Served], tiny_bundle: Path, wav: bytes
) -> None:
    server = serve("--model", tiny_bundle)
    load = Load(server, wav)
    try:
        time.sleep(0.7)
        assert server.stop() == 0
    finally:
        load.end()
    assert load.statuses.count(200) > 5
    assert {*load.statuses} <= {200, 503}
    assert not load.broken
    assert server.log[-1]["event"] == "ended"


def test_sighup_swaps_the_model_without_a_gap(
    serve: Callable[..., Served], make_bundle: Callable[..., Bundle], tmp_path: Path, wav: bytes
) -> None:
    where = make_bundle(tmp_path / "model").path
    server = serve("--model", where)
    load = Load(server, wav, threads=2)
    try:
        good = (where / "model.onnx").read_bytes()
        (where / "model.onnx").write_bytes(good[:-1])
        server.process.send_signal(signal.SIGHUP)
        assert "hash_mismatch" in server.wait_for("model refused", 20)
        shutil.rmtree(where)
        make_bundle(where, name="second")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("model swapped", 20)
        deadline = time.monotonic() + 5
        while server.post(wav).json()["model"] != "second":
            assert time.monotonic() < deadline
    finally:
        load.end()
    assert {*load.statuses} == {200}
    assert not load.broken
    assert server.get("/v1/model").json()["model"] == "second"


def test_a_worker_is_confined(served: Served) -> None:
    (pid,) = served.workers()
    limits = Path(f"/proc/{pid}/limits").read_text()
    values = {line[:26].strip(): line[26:].split()[0] for line in limits.splitlines()}
    assert values["Max core file size"] == "0"
    assert values["Max file size"] == "0"
    assert int(values["Max address space"]) < 6 << 30
    assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()


def test_memory_and_descriptors_stay(served: Served, make_wav: Callable[..., bytes]) -> None:
    """A small F3: the real one is benchmarks/serve.py."""
    big = make_wav(np.zeros(400_000, np.float32), 44_100, "PCM_16")

    def used() -> tuple[int, int]:
        pid = served.process.pid
        rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
        return rss, len(os.listdir(f"/proc/{pid}/fd"))

    for i in range(60):
        served.post(big if i % 3 else b"bad")
    before = used()
    for i in range(120):
        served.post(big if i % 3 else b"bad")
    after = used()
    assert after[0] - before[0] < 5_000_000
    assert after[1] <= before[1] + 1
