"""Log lines as JSON, one per event, on standard error; tokens and file names are never among it."""

from __future__ import annotations

import logging
import sys
import time
from functools import lru_cache
from typing import Any, TextIO

import msgspec

_OWN = {*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName", "color_message"}
_encode = msgspec.json.Encoder(enc_hook=str).encode
_streams: list[TextIO] = []  # one, when `start` was called


@lru_cache(maxsize=1)
def _second(moment: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))


def _line(moment: float, level: str, event: str, fields: dict[str, Any]) -> str:
    second = int(moment)
    stamp = f"{_second(second)}.{int(1e3 * (moment - second)):03d}Z"
    return _encode({"time": stamp, "level": level, "event": event, **fields}).decode()


class Lines(logging.Formatter):
    """A record as one line of JSON with everything that was given as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = {key: value for key, value in record.__dict__.items() if key not in _OWN}
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        return _line(record.created, record.levelname.lower(), record.getMessage(), fields)


def request(fields: dict[str, Any]) -> None:
    """Log an answered request. A logger looks at stack, thread and process for every line, which none of them has."""
    if _streams:
        _streams[0].write(_line(time.time(), "info", "request", fields) + "\n")
    else:
        logging.getLogger("soundmark.server").info("request", extra=fields)


def start() -> None:
    """Send the service's log, and uvicorn's, to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    _streams[:] = [sys.stderr]
    for name, level in (("soundmark", logging.INFO), ("uvicorn", logging.ERROR), ("asyncio", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
