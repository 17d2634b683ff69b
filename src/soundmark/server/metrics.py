"""Counters and timings for Prometheus; label values come from closed lists, so their number is bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH"})


disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """What one service counts."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "soundmark_requests", "Answered requests", ["route", "method", "status"], registry=registry
        )
        self._shed = self.requests.labels("shed", "POST", "503")
        self.gone = Counter(
            "soundmark_clients_gone", "Requests whose client left before the answer", registry=registry
        )
        self.errors = Counter(
            "soundmark_errors", "Requests and batch rows by error code", ["code"], registry=registry
        )
        self.labels = Counter(
            "soundmark_predictions", "Recordings by what was heard", ["label"], registry=registry
        )
        self.flags = Counter("soundmark_flags", "Recordings by quality flag", ["flag"], registry=registry)
        self.seconds = Histogram(
            "soundmark_request_seconds",
            "From headers to answer",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.stages = Histogram(
            "soundmark_stage_seconds",
            "Stages of one recording",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.uploaded = Counter("soundmark_received_bytes", "Bytes of request bodies", registry=registry)
        self.lag = Histogram(
            "soundmark_loop_lag_seconds", "How late the event loop is", buckets=SECONDS, registry=registry
        )
        self.swaps = Counter(
            "soundmark_model_reloads", "Reloads of the model", ["outcome"], registry=registry
        )

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Add a gauge that is read when somebody asks."""
        Gauge(f"soundmark_{name}", what, registry=self.registry).set_function(value)

    def count_shed(self) -> None:
        """Count an upload that was refused unseen."""
        self._shed.inc()

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answer; ``route`` is a template, never what the client wrote."""
        self.requests.labels(route, method if method in METHODS else "other", str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def count_heard(self, row: dict[str, Any]) -> None:
        """Count a recording that a worker has done."""
        if "code" in row:
            self.errors.labels(row["code"]).inc()
        if "label" in row:
            self.labels.labels(row["label"] or "unknown").inc()
            for flag in row["flags"]:
                self.flags.labels(flag).inc()
            for stage, ms in row["timing_ms"].items():
                self.stages.labels(stage).observe(ms / 1e3)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
