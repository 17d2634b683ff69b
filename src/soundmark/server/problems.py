"""Answers that say no: problem+json (RFC 9457) with the stable code of the error and the request's id, nothing else.

Messages of recordings name what is wrong with the upload. No path, version or stack frame of this machine gets out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

from soundmark.errors import AudioError, ConfigError, SoundmarkError

MEDIA_TYPE = "application/problem+json"

STATUS = {
    **dict.fromkeys(("bad_request", "bad_host"), 400),
    "unauthorized": 401,
    "no_such_route": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    **dict.fromkeys(("too_long", "file_too_large", "request_too_large"), 413),
    "headers_too_large": 431,
    **dict.fromkeys(("unsupported_format", "unsupported_media_type"), 415),
    **dict.fromkeys(("bad_options", "no_such_layer", "no_such_label"), 422),
    "internal": 500,
    **dict.fromkeys(("overloaded", "model_not_ready"), 503),
}
"""Code -> HTTP status; every code of a recording that is not here is 422."""

RETRY_CODES = frozenset({"overloaded", "model_not_ready"})


class Problem(Exception):
    """A request that is answered with an error.

    Args:
        code: stable code, one of `STATUS` or of `errors.AUDIO_CODES`.
        detail: what to change, for the person who sent it.
        headers: more response headers.
        close: the connection ends, because the rest of the request is not read.
    """

    def __init__(
        self, code: str, detail: str, *, headers: Mapping[str, str] | None = None, close: bool = False
    ) -> None:
        super().__init__(detail)
        self.code, self.detail, self.close = code, detail, close
        self.headers = dict(headers or {})

    @property
    def status(self) -> int:
        """HTTP status of the code."""
        return STATUS.get(self.code, 422)

    def body(self, request_id: str) -> bytes:
        """Return the JSON of the answer."""
        return body(self.code, self.detail, request_id)

    @classmethod
    def of(cls, error: SoundmarkError) -> Problem:
        """Return what a client may know of an error: recordings and options are theirs, the rest is ours."""
        if isinstance(error, AudioError) or error.code in ("no_such_layer", "no_such_label"):
            return cls(error.code, str(error))
        if isinstance(error, ConfigError):
            return cls("bad_options", str(error))
        return cls("internal", INTERNAL)


INTERNAL = "a fault of the service; it was logged under this request id"


def body(code: str, detail: str, request_id: str) -> bytes:
    """Return a problem as JSON."""
    status = STATUS.get(code, 422)
    return json.dumps(
        {
            "type": f"urn:soundmark:code:{code}",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "code": code,
            "detail": detail,
            "request_id": request_id,
        }
    ).encode()
