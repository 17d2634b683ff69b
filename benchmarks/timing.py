"""What the benchmarks share: paired timing, the machine line, the JSON file."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM = 4
"""Runs after which caches are full of what is one's own; on a core with 2 MB of its own, one run is not enough."""


def one_thread() -> None:
    """Pin this process to one core, before any library starts its threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"


def paired_ms(
    runs: dict[str, Callable[[], object]], *, rounds: int, alone: bool = False
) -> dict[str, list[float]]:
    """Return milliseconds per round of each run, taken in turn, so that a slow moment of the machine hits all.

    Args:
        runs: name -> what is timed.
        rounds: values of each.
        alone: every run is timed after `WARM` of itself, as on a device that does nothing else; otherwise right after
            the one before, with caches full of what is not its own.
    """
    for run in runs.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            for _ in range(WARM if alone else 0):
                run()
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def ratio(times: dict[str, list[float]], ours: str, theirs: str) -> float:
    """Return the median over rounds of ``ours / theirs``."""
    return statistics.median(a / b for a, b in zip(times[ours], times[theirs], strict=True))


VECTORS = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16"}
"""What a core must have for int8 and float kernels to be of one speed or another."""


def machine() -> dict[str, Any]:
    """Return what a figure depends on: processor, threads, versions, commit."""
    model = platform.processor()
    cpuinfo, flags = Path("/proc/cpuinfo"), set[str]()
    if cpuinfo.exists():
        said = dict(line.partition(":")[::2] for line in cpuinfo.read_text().splitlines())
        named = {key.strip(): value.strip() for key, value in said.items()}
        model = named.get("model name", model)
        flags = {*named.get("flags", "").split()} & VECTORS
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "processor": model,
        "vectors": sorted(flags),
        "cores_allowed": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "python": platform.python_version(),
        "commit": git.stdout.strip() or "unknown",
    }


def write(path: Path, tree: dict[str, Any]) -> None:
    """Write the figures of one benchmark as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, indent=1) + "\n")
    print(f"written: {path}")
