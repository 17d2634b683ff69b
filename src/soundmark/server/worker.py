"""One worker process: takes requests from a socket, parses, decodes and classifies, and sends answers back.

``python -m soundmark.server.worker LINK MAILBOX``, two descriptors: the first message on the link says which model and
which limits; bodies are in the mailbox, a file in memory that the HTTP process writes to. A recording that
makes C code crash or eat memory costs this process, not the service: `pool.Pool` starts another one.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import traceback
from time import perf_counter
from typing import Any

import msgspec

from soundmark.classifier import Classifier
from soundmark.config import from_dict
from soundmark.errors import SoundmarkError
from soundmark.serve_config import ServeConfig
from soundmark.server import frames, uploads
from soundmark.server.answers import Answers
from soundmark.server.problems import INTERNAL, Problem
from soundmark.server.schemas import Options

HEADROOM_BYTES = 2 << 30
"""Address space beyond what the loaded model takes: 600 s at 44.1 kHz are 0.1 GB, the arena of the model 1 GB."""
OPEN_FILES, SPARE_FILES = 64, 32
KEPT_BYTES = 4 << 20
"""Of the mailbox between two requests: pages that are there already need not be cleared for the next body."""
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38


class Worker:
    """Answers requests from ``link`` until it closes."""

    def __init__(self, link: socket.socket, mailbox: int, answers: Answers, config: ServeConfig) -> None:
        self.link, self.mailbox, self.answers, self.config = link, mailbox, answers, config

    def run(self) -> None:
        """Serve until the HTTP process is gone."""
        while (message := frames.receive_now(self.link)) is not None:
            header = message[0]
            body = os.pread(self.mailbox, header["size"], 0)
            if len(body) > KEPT_BYTES:
                os.ftruncate(self.mailbox, KEPT_BYTES)
            started = perf_counter()
            try:
                self._serve(header, body)
            except Problem as problem:
                self._fail(header, problem)
            except SoundmarkError as error:
                known = Problem.of(error)
                self._fail(header, known, trace=str(error) if known.status == 500 else "")
            except MemoryError:
                self._fail(header, Problem("file_too_large", "the request does not fit in memory"))
            except Exception:
                self._fail(header, Problem("internal", INTERNAL), trace=traceback.format_exc())
            del body
            if perf_counter() - started > 1:  # a large one: give its memory back
                gc.collect()

    def _fail(self, header: dict[str, Any], problem: Problem, trace: str = "") -> None:
        about = {"kind": "done", "status": problem.status, "code": problem.code, "trace": trace}
        frames.send_now(self.link, about, problem.body(header.get("request_id", "")))

    def _done(self, tree: dict[str, Any], about: dict[str, Any] | None = None) -> None:
        header = {"kind": "done", "status": 200, **(about or {})}
        frames.send_now(self.link, header, msgspec.json.encode(tree))

    def _serve(self, header: dict[str, Any], body: bytes) -> None:
        max_bytes, kind = self.config.max_bytes, header["content_type"]
        route, request_id = header["route"], header["request_id"]
        if route == "golden":
            self.answers.verify()
            self._done({"status": "ok"})
        elif route == "classify":
            recording, options = uploads.one(kind, header["query"], body, max_bytes)
            tree = self.answers.answer(uploads.checked(recording, max_bytes), options)
            self._done({"request_id": request_id, **tree}, _heard(tree))
        elif route == "inference":
            recording = uploads.compatible(kind, body, max_bytes)
            tree = self.answers.answer(uploads.checked(recording, max_bytes), Options())
            rows = [{"class": one["label"], "confidence": one["score"]} for one in tree["labels"]]
            self._done({"predictions": [] if tree["reason"] == "silent" else rows}, _heard(tree))
        elif route == "batch":
            self._batch(header, body)
        else:
            raise ValueError(f"route {route!r}")

    def _batch(self, header: dict[str, Any], body: bytes) -> None:
        """Send a row per recording as it is ready, so that a crash costs one; ``done`` of them are there already."""
        config = self.config
        recordings, options = uploads.many(
            header["content_type"], header["query"], body, config.max_bytes, config.max_batch
        )
        for index, recording in enumerate(recordings):
            if index < header["done"]:
                continue
            row: dict[str, Any] = {"name": recording.name}
            about: dict[str, Any] = {}
            if header["give_up"]:
                about = {"code": "decoder_crashed"}
                row["error"] = {
                    **about,
                    "message": "not tried: other recordings of the batch ended their worker",
                }
                frames.send_now(self.link, {"kind": "row", **about}, msgspec.json.encode(row))
                continue
            frames.send_now(self.link, {"kind": "begin", "name": recording.name})
            try:
                content = uploads.checked(recording, config.max_bytes)
                row["answer"] = {
                    "request_id": header["request_id"],
                    **self.answers.answer(content, options),
                }
                about = _heard(row["answer"])
            except (Problem, SoundmarkError) as error:
                problem = error if isinstance(error, Problem) else Problem.of(error)
                if problem.code in ("no_such_layer", "no_such_label", "internal"):
                    raise  # the whole request, or the model
                row["error"] = {"code": problem.code, "message": problem.detail}
                about = {"code": problem.code}
            except MemoryError:
                row["error"] = {"code": "file_too_large", "message": "does not fit in memory"}
            frames.send_now(self.link, {"kind": "row", **about}, msgspec.json.encode(row))
        frames.send_now(self.link, {"kind": "done", "status": 200})


def _heard(tree: dict[str, Any]) -> dict[str, Any]:
    """Return what the metrics count; labels and flags come from closed lists."""
    return {"label": tree["label"], "flags": tree["flags"], "timing_ms": tree["timing_ms"]}


def _disarm() -> None:
    """Let this process end with its parent, gain no rights, write no core file, and leave signals to its parent."""
    with contextlib.suppress(OSError, AttributeError):
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # its full share, but HTTP is woken first
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _confine() -> None:
    """Cap address space, descriptors and file sizes, now that the model is loaded."""
    with open("/proc/self/statm") as file:  # Linux
        used = int(file.read().split()[0]) * resource.getpagesize()
    last = max(map(int, os.listdir("/proc/self/fd")))  # a GPU's driver has many open
    for what, cap in (
        (resource.RLIMIT_AS, used + HEADROOM_BYTES),
        (resource.RLIMIT_NOFILE, max(OPEN_FILES, last + SPARE_FILES)),
        (resource.RLIMIT_FSIZE, 0),
    ):
        _, hard = resource.getrlimit(what)
        cap = cap if hard == resource.RLIM_INFINITY else min(cap, hard)
        resource.setrlimit(what, (cap, cap))


def main(link_descriptor: int, mailbox: int) -> None:
    """Load the model, say what it is, then serve."""
    _disarm()
    with socket.socket(fileno=link_descriptor) as link:
        first = frames.receive_now(link)
        if first is None:
            return
        hello = first[0]
        try:
            config = from_dict(hello["config"], ServeConfig)
            classifier = Classifier.load(hello["model"], threads=config.threads, provider=config.provider)
            answers = Answers(classifier, config)
            answers.verify()
            info = answers.info()
            _confine()
        except SoundmarkError as error:
            about = {"kind": "refused", "saw": error.saw, "wanted": error.wanted, "cause": error.cause}
            frames.send_now(link, {**about, "code": error.code})
            return
        except Exception:
            frames.send_now(link, {"kind": "refused", "code": "internal", "trace": traceback.format_exc()})
            return
        gc.freeze()
        frames.send_now(link, {"kind": "ready", "info": info})
        Worker(link, mailbox, answers, config).run()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
