"""Results of functions that run in processes of their own, cores divided among them; they end when their parent does.

A process per call gives its memory back, and a crash in one is an error instead of the end of everything. A parent
that is killed in any way takes its processes along, so whoever goes on with its work finds nobody else at it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from soundmark.errors import ConfigError, SoundmarkError, TrainingError
from soundmark.preset import Preset

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
POLL_S = 0.5


def refuse_several_devices(preset: Preset) -> None:
    """Refuse a preset whose training is distributed itself.

    Raises:
        ConfigError: more than one device or machine.
    """
    if preset.train.devices > 1 or preset.train.num_nodes > 1:
        raise ConfigError(
            f"`train.devices` {preset.train.devices}, `train.num_nodes` {preset.train.num_nodes}",
            wanted="1 and 1: what runs several trainings puts each into one process (--jobs)",
        )


def in_processes(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    *,
    jobs: int,
    on_wait: Callable[[], None] | None = None,
) -> list[Any]:
    """Return what ``function(*call)`` gave for each of ``calls``, or the `SoundmarkError` it raised.

    Args:
        function: of a module, since the processes start afresh.
        calls: arguments; they and the results are pickled.
        jobs: processes at a time; each gets its share of the cores.
        on_wait: called about every `POLL_S` seconds while waiting; what it raises ends all processes.

    Raises:
        RuntimeError: a fault of our own in one of them, with its traceback; the others are ended.
    """
    results: list[Any] = [None] * len(calls)
    waiting = list(range(len(calls)))
    running: dict[Connection, tuple[int, SpawnProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                index = waiting.pop(0)
                running_end, process = _start(function, calls[index], min(jobs, len(calls)))
                running[running_end] = index, process
            for end in wait(list(running), timeout=POLL_S):
                assert isinstance(end, Connection)
                index, process = running[end]
                results[index] = _received(end, process)
                del running[end]
            if on_wait:
                on_wait()
    finally:
        for _, process in running.values():
            process.kill()
            process.join()
    return results


def _start(function: Callable[..., Any], call: tuple[Any, ...], jobs: int) -> tuple[Connection, SpawnProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, function, call), daemon=True)
    with _threads(jobs):
        process.start()
    theirs.close()  # so that a dead process is the end of the pipe
    return ours, process


def _received(end: Connection, process: SpawnProcess) -> Any:
    try:
        kind, value = end.recv()
    except EOFError:
        process.join()
        return TrainingError(
            f"a process ended without an answer (status {process.exitcode})",
            wanted="enough memory for --jobs trainings at a time",
            cause="it was killed; the same command goes on where it stood",
        )
    finally:
        end.close()
    process.join()
    if kind == "fault":
        raise RuntimeError(value)
    return value


def _child(end: Connection, function: Callable[..., Any], call: tuple[Any, ...]) -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C goes to all of a terminal's processes; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        end.send(("result", function(*call)))
    except SoundmarkError as error:
        end.send(("error", error))
    except Exception:
        end.send(("fault", traceback.format_exc()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


@contextmanager
def _threads(jobs: int) -> Iterator[None]:
    """Let processes that start in here use their share of the cores, or of what OMP_NUM_THREADS allows."""
    before = {name: os.environ.get(name) for name in _THREADS}
    given = before["OMP_NUM_THREADS"] or ""
    try:
        cores = int(given) if given.isdigit() else len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cores = os.cpu_count() or 1
    try:
        os.environ.update(dict.fromkeys(_THREADS, str(max(1, cores // jobs))))
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
