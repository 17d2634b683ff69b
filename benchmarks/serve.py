"""A real server under load, on loopback, for a bounded time: equal answers, overload, slow clients, throughput, memory.

    python benchmarks/serve.py [answers overload mixed slow throughput] [--data ESC50] [--out docs/results/serve.json]

The server is a process of its own with one worker. Clips are those of a data set (--data, $SOUNDMARK_ESC50), else demo
sounds. Health is asked for from a process of its own, so that what is measured is the server, not the load.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import timing

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np  # noqa: E402
import soundfile  # noqa: E402
from serving import answer, clips, health, percentiles, request, serving  # noqa: E402

from soundmark import Classifier  # noqa: E402

PARTS = ("answers", "overload", "mixed", "slow", "throughput")
MB = 1 << 20
CALM = 0.93
"""Share of a core that a run must have had, or something else was running there."""


def as_wav(content: bytes) -> bytes:
    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    memory = io.BytesIO()
    soundfile.write(memory, samples, rate, format="WAV", subtype="PCM_16")
    return memory.getvalue()


def answers(data: str | None) -> dict[str, Any]:
    """F2: by raw body, multipart and base64, the answers are those of ``soundmark classify``."""
    import httpx

    found = clips(data, 100)
    if data:
        command = [
            sys.executable,
            "-m",
            "soundmark",
            "classify",
            "--format",
            "jsonl",
            *(name for name, _ in found),
        ]
        rows = [
            json.loads(line)
            for line in subprocess.run(command, capture_output=True, check=True).stdout.splitlines()
        ]
    else:
        rows = [row.to_dict() for row in Classifier.load().classify_many([content for _, content in found])]
    differences, equal = [], Counter[str]()
    with serving() as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        for row, (_, content) in zip(rows, found, strict=True):
            text = base64.b64encode(content).decode()
            for road, options in {
                "raw": {"content": content, "headers": {"Content-Type": "audio/ogg"}},
                "multipart": {"files": {"file": ("x", content)}},
                "base64": {"json": {"audio": text}},
            }.items():
                tree = client.post("/v1/classify", **options).json()
                equal[road] += tree["label"] == row["label"]
                here = {one["label"]: one["score"] for one in row["labels"]}
                there = {one["label"]: one["score"] for one in tree["labels"]}
                differences.append(max(abs(there.get(label, 9) - score) for label, score in here.items()))
    return {"clips": len(found), "equal_top_1": dict(equal), "largest_score_difference": max(differences)}


def overload(_: str | None, bursts: int = 5) -> dict[str, Any]:
    """F3: bursts of 1 000 parallel uploads of 1 MB at a queue of 64; health is asked for during the bursts alone."""
    memory = io.BytesIO()
    noise = (0.1 * np.random.default_rng(0).standard_normal(12 * 44_100)).astype(np.float32)
    soundfile.write(memory, noise, 44_100, format="WAV", subtype="PCM_16")
    content = memory.getvalue()[: MB + 44]
    good = request(content, close=True)
    statuses: Counter[str] = Counter()
    times: dict[str, list[float]] = {}

    async def one(address: tuple[str, int]) -> None:
        started = time.perf_counter()
        try:
            reader, writer = await asyncio.open_connection(*address)
            try:
                writer.write(good)
                await writer.drain()
                status = str((await asyncio.wait_for(answer(reader), 60))[0])
            finally:
                writer.close()
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            status = type(error).__name__
        statuses[status] += 1
        times.setdefault(status, []).append(1e3 * (time.perf_counter() - started))

    async def burst(address: tuple[str, int], count: int) -> None:
        await asyncio.gather(*(one(address) for _ in range(count)))

    health_ms: list[float] = []
    took = []
    with serving() as server:
        for _ in range(2):  # warm: the allocators have seen a burst
            asyncio.run(burst(server.address, 1000))
        time.sleep(6)
        statuses.clear()
        times.clear()
        before, fds = server.rss(), server.descriptors()
        for _ in range(bursts):
            with health(server, 60) as asked:
                started = time.monotonic()
                asyncio.run(burst(server.address, 1000))
                took.append(time.monotonic() - started)
            health_ms += asked
            time.sleep(2)
        time.sleep(6)
        after, fds_after = server.rss(), server.descriptors()
    return {
        "bursts": bursts, "uploads": 1000 * bursts, "bytes_each": len(content), "queue": 64,
        "seconds_per_burst": round(statistics.median(took), 2), "statuses": dict(statuses),
        "accepted": percentiles(times.get("200", [])), "refused": percentiles(times.get("503", [])),
        "health": {**percentiles(health_ms), "max_ms": round(max(health_ms), 1)}, "health_asked": len(health_ms),
        "rss_growth_mb": [round((b - a) / 1e6, 2) for a, b in zip(before, after, strict=True)],
        "rss_mb": [round(a / 1e6, 1) for a in after],
        "descriptors_growth": [b - a for a, b in zip(fds, fds_after, strict=True)],
    }  # fmt: skip


def mixed(_: str | None, count: int = 10_000) -> dict[str, Any]:
    """F3: 10 000 requests, 30 % bad, over 4 connections: memory per request, descriptors."""
    memory = io.BytesIO()
    noise = (0.1 * np.random.default_rng(0).standard_normal(8000)).astype(np.float32)
    soundfile.write(memory, noise, 16_000, format="WAV", subtype="PCM_16")
    good = memory.getvalue()
    text = base64.b64encode(good).decode()
    kinds = [
        request(good), request(good), request(good),
        request(json.dumps({"audio": text}).encode(), "application/json"),
        request(good[: len(good) // 2]), request(good, path="/v1/classify?timeline=true&mel=png"),
        request(good, path="/v1/classify?feature_maps=stem&class_activation=array"),
        request(b"<html>"), request(b'{"audio": "!"}', "application/json"),
        request(b"--x", "multipart/form-data; boundary=x"),
    ]  # fmt: skip
    statuses: Counter[int] = Counter()

    async def run(address: tuple[str, int], n: int) -> None:
        async def many(first: int) -> None:
            reader, writer = await asyncio.open_connection(*address)
            for i in range(first, n, 4):
                writer.write(kinds[i % len(kinds)])
                statuses[(await asyncio.wait_for(answer(reader), 60))[0]] += 1
            writer.close()

        await asyncio.gather(*(many(i) for i in range(4)))

    with serving() as server:
        asyncio.run(run(server.address, count // 5))
        statuses.clear()
        points = [(0, server.rss())]
        fds = server.descriptors()
        for step in range(1, 11):
            asyncio.run(run(server.address, count // 10))
            points.append((step * count // 10, server.rss()))
        time.sleep(1)  # connections that were closed a moment ago
        fds_after = server.descriptors()
    slopes = [
        float(np.polyfit([n for n, _ in points], [rss[i] for _, rss in points], 1)[0])
        for i in range(len(points[0][1]))
    ]
    return {
        "requests": count, "statuses": {str(k): v for k, v in statuses.items()},
        "rss_bytes_per_request": [round(slope, 1) for slope in slopes],
        "rss_growth_mb": [round((b - a) / 1e6, 2) for a, b in zip(points[0][1], points[-1][1], strict=True)],
        "descriptors_growth": [b - a for a, b in zip(fds, fds_after, strict=True)],
    }  # fmt: skip


def slow(data: str | None, seconds: float = 60.0) -> dict[str, Any]:
    """F4: 200 connections that send a byte a second, half of them headers, half a body; 17 new ones a second."""
    head = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: audio/wav\r\n"
    ends: dict[str, list[float]] = {"headers": [], "body": []}
    uploads: Counter[str] = Counter()

    async def trickle(address: tuple[str, int], kind: str, begin_s: float) -> None:
        await asyncio.sleep(begin_s)
        started = time.monotonic()
        reader, writer = await asyncio.open_connection(*address)
        ending = asyncio.create_task(reader.read())
        try:
            writer.write(head if kind == "headers" else head + b"Content-Length: 1000\r\n\r\n")
            while time.monotonic() - started < seconds and not ending.done():
                writer.write(b"X")
                await writer.drain()
                await asyncio.wait([ending], timeout=1.0)
        except OSError:
            pass
        ends[kind].append(time.monotonic() - started)
        ending.cancel()
        writer.close()

    async def upload(address: tuple[str, int], content: bytes) -> None:
        """Upload a clip every second, as anybody would."""
        for _ in range(round(seconds)):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(request(content, "audio/ogg", close=True))
            uploads[str((await asyncio.wait_for(answer(reader), 60))[0])] += 1
            writer.close()
            await asyncio.sleep(1)

    async def attack(address: tuple[str, int]) -> None:
        await asyncio.gather(
            upload(address, clips(data, 1)[0][1]),
            *(trickle(address, ("headers", "body")[i % 2], 0.06 * i) for i in range(200)),
        )

    with serving() as server:
        with health(server, 15) as base:
            time.sleep(15)
        with health(server, seconds + 5) as during:
            asyncio.run(attack(server.address))
        open_after = server.descriptors()[0]
    worst = {f"{kind}_closed_after_s": round(max(times), 1) for kind, times in ends.items()}
    return {
        "connections": 200, "baseline": percentiles(base), "during": percentiles(during), **worst,
        "uploads": dict(uploads),
        "p99_ratio": round(np.percentile(during, 99) / np.percentile(base, 99), 2), "descriptors_after": open_after,
    }  # fmt: skip


def throughput(data: str | None, rounds: int = 7) -> dict[str, Any]:
    """F5: one worker against `Classifier.classify_many` on the same clips in memory, taken in turn.

    "one core": HTTP process and worker share the core that the classifier has in its turn. "own core": each has one.
    "one core, wav": the same clips as WAV, whose decoding costs nothing, so that HTTP weighs more. Rounds in which
    other programs took the core do not count: they would slow one process down more than two.
    """
    given = [content for _, content in clips(data, 100)]
    classifier = Classifier.load()
    cores = sorted(os.sched_getaffinity(0))
    times: list[float] = []

    async def ask(address: tuple[str, int], requests: list[bytes], connections: int) -> None:
        pending = iter(requests)

        async def many() -> None:
            reader, writer = await asyncio.open_connection(*address)
            for one in pending:
                started = time.perf_counter()
                writer.write(one)
                status, _ = await asyncio.wait_for(answer(reader), 60)
                assert status == 200
                times.append(1e3 * (time.perf_counter() - started))
            writer.close()

        await asyncio.gather(*(many() for _ in range(connections)))

    out: dict[str, Any] = {}
    with serving() as server:
        http, worker = server.pids
        for name, places, found in (
            ("one core", (cores[0], cores[0]), given),
            ("own core", (cores[-1], cores[0]), given),
            ("one core, wav", (cores[0], cores[0]), [as_wav(content) for content in given]),
        ):
            requests = [request(content) for content in found]
            for pid, core in ((http, places[0]), (worker, places[1])):
                for task in os.listdir(f"/proc/{pid}/task"):
                    os.sched_setaffinity(int(task), {core})
            rows: list[dict[str, Any]] = []
            while (
                sum(row["calm"] for row in rows[1:]) < rounds and len(rows) <= 4 * rounds
            ):  # the first warms
                os.sched_setaffinity(0, {cores[0]})
                started, cpu_s = time.perf_counter(), time.process_time()
                assert all(row.ok for row in classifier.classify_many(found))
                here_s, here_cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
                os.sched_setaffinity(0, {cores[-1]})
                times.clear()
                started, cpu_s = time.perf_counter(), server.cpu_s()
                asyncio.run(ask(server.address, requests, 4))
                there_s, there_cpu_s = time.perf_counter() - started, server.cpu_s() - cpu_s
                used = [here_cpu_s / here_s, there_cpu_s / there_s if name != "own core" else 1.0]
                rows.append(
                    {
                        "calm": min(used) > CALM,
                        "share": here_s / there_s,
                        "cpu": here_cpu_s / max(there_cpu_s, 1e-9),
                        "here": len(found) / here_s,
                        "there": len(found) / there_s,
                        "ms": [*times],
                    }
                )
            calm = [row for row in rows[1:] if row["calm"]]
            rows = calm or rows[1:]
            medians = {
                key: statistics.median(row[key] for row in rows) for key in ("share", "cpu", "here", "there")
            }
            out[name] = {
                "share_of_classify_many": round(medians["share"], 3),
                "share_by_cpu_time": round(medians["cpu"], 3),
                "classify_many_per_s": round(medians["here"], 1),
                "requests_per_s": round(medians["there"], 1),
                "latency_at_4_connections": percentiles([ms for row in rows for ms in row["ms"]]),
                "calm_rounds": len(calm),
            }
    os.sched_setaffinity(0, set(cores))
    return {"clips": len(given), **out}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--data", default=os.environ.get("SOUNDMARK_ESC50"), help="ESC-50, for its clips")
    parser.add_argument("--out", type=Path, default=Path("docs/results/serve.json"))
    args = parser.parse_args()
    chosen = args.parts or list(PARTS)
    if {*chosen} - {*PARTS}:
        parser.error(f"parts are: {', '.join(PARTS)}")
    tree: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    for part in chosen:
        started = time.monotonic()
        tree[part] = globals()[part](args.data)
        print(f"{part} ({time.monotonic() - started:.0f} s)")
        for key, value in tree[part].items():
            print(f"    {key:<28} {value}")
    load = os.getloadavg()[0]
    timing.write(args.out, {**tree, "machine": {**timing.machine(), "load_average": round(load, 1)}})


if __name__ == "__main__":
    main()
