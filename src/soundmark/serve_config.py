"""What `soundmark serve` may be told: `ServeConfig`."""

from __future__ import annotations

from typing import Annotated

import msgspec

from soundmark.config import Config, Positive, PositiveFloat, Provider


class ServeConfig(Config, frozen=True, kw_only=True):
    """How `soundmark serve` listens, and what it takes from whom (RELIABILITY 5.2)."""

    host: str = "127.0.0.1"  # address to listen on; any other than loopback needs a token
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 8000  # 0 takes a free one and prints it
    workers: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1  # processes that decode and classify
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1  # threads of a model run in each of them
    provider: Provider = (
        "auto"  # cuda or cpu runs the model; auto is cuda where ONNX Runtime has it and it works
    )
    queue: Positive = 64  # requests that wait for a worker; more get 503 and Retry-After
    allow_hosts: tuple[str, ...] = ()  # names in Host besides loopback ones; a token allows any if empty
    max_bytes: Positive = 25_000_000  # of one recording, and of one upload
    max_seconds: PositiveFloat = 600.0  # decoded seconds of one recording
    max_batch: Positive = 32  # recordings in one batch request
    max_connections: Positive = 4096  # open sockets; more get 503
    buffer_bytes: Positive = 100_000_000  # of all uploads that are being received
    header_s: PositiveFloat = 15.0  # a request's headers must be there by then
    body_s: PositiveFloat = 30.0  # and its body, counted from the headers
    write_s: PositiveFloat = 30.0  # a client that does not read for that long is cut off
    keep_alive_s: PositiveFloat = 5.0  # an idle connection is closed after that
    job_s: PositiveFloat = 20.0  # a worker that takes longer for one recording is replaced
    answer_s: PositiveFloat = 30.0  # from the whole body to the answer, waiting included
    grace_s: PositiveFloat = 30.0  # accepted requests are finished within that after SIGTERM
