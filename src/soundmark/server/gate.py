"""What every request passes first: an id, the Host allow-list, the token; and last: its log line and its count."""

from __future__ import annotations

import hmac
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from soundmark.server import logs
from soundmark.server.metrics import Metrics
from soundmark.server.problems import INTERNAL, MEDIA_TYPE, Problem
from soundmark.server.receiving import ClientGone

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
OPEN = ("/health/", "/docs", "/openapi.json")
"""Paths that need no token: they hold no data and cost nothing."""
MAX_PATH_BYTES = 4096
MAX_HEADERS, MAX_HEADER_BYTES = 100, 32 << 10
SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'",
    ),
)
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")

_log = logging.getLogger("soundmark.server")


class Gate:
    """ASGI middleware around the whole app.

    Args:
        app: what is behind it.
        uploads: handlers of POST requests by path that do not need a router, which costs as much as they do.
        metrics: what to count in.
        hosts: names allowed in Host; empty for any.
        token: bearer token; None for no token.
    """

    def __init__(
        self,
        app: ASGIApp,
        uploads: Mapping[str, Handler],
        *,
        metrics: Metrics,
        hosts: frozenset[str],
        token: str | None,
    ) -> None:
        self.app, self.uploads, self.metrics, self.hosts, self.token = app, uploads, metrics, hosts, token
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = _Headers(scope["headers"])
        wanted = headers.get(b"x-request-id")
        request_id = wanted if wanted and _ID.fullmatch(wanted) else os.urandom(16).hex()
        scope["state"] = {**scope.get("state", {}), "request_id": request_id, "fields": {}}
        started, status = time.perf_counter(), 0

        async def send_on(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                there = {name for name, _ in message["headers"]}
                more = [pair for pair in SAFE_HEADERS if pair[0] not in there]
                if self.draining:
                    more.append((b"connection", b"close"))
                message = {
                    **message,
                    "headers": [*message["headers"], (b"x-request-id", request_id.encode()), *more],
                }
            await send(message)

        try:
            try:
                self._admit(scope, headers)
                handler = self.uploads.get(scope["path"]) if scope["method"] == "POST" else None
                if handler is None:
                    await self.app(scope, receive, send_on)
                else:
                    response = await handler(Request(scope, receive))
                    await response(scope, receive, send_on)
            except Problem as problem:
                await self._answer(problem, request_id, send_on, scope)
        except ClientGone:
            scope["state"]["fields"]["gone"] = True
        except Exception:
            _log.exception("a fault of soundmark; please report it", extra={"request_id": request_id})
            if not status:
                await self._answer(Problem("internal", INTERNAL, close=True), request_id, send_on, scope)
        finally:
            self._note(scope, status, request_id, time.perf_counter() - started)

    async def _answer(self, problem: Problem, request_id: str, send: Send, scope: Scope) -> None:
        scope["state"]["fields"]["code"] = problem.code
        text = problem.body(request_id)
        headers = {
            **problem.headers,
            "content-type": MEDIA_TYPE,
            "content-length": str(len(text)),
            **({"connection": "close"} if problem.close else {}),
        }
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": problem.status, "headers": raw})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else text})

    def _admit(self, scope: Scope, headers: _Headers) -> None:
        """Return if the request may go on.

        Raises:
            Problem: it may not.
        """
        host = _HOST.fullmatch(headers.get(b"host") or "")
        if host is None or len(headers.all(b"host")) > 1:
            raise Problem("bad_host", "one valid Host header is wanted", close=True)
        if self.hosts and host[1].lower() not in self.hosts:
            raise Problem("bad_host", "this name is not allowed in Host", close=True)
        if headers.size > MAX_HEADER_BYTES or headers.count > MAX_HEADERS:
            detail = f"more than {MAX_HEADERS} headers or {MAX_HEADER_BYTES} bytes of them"
            raise Problem("headers_too_large", detail, close=True)
        if len(scope["raw_path"]) > MAX_PATH_BYTES or b"\0" in scope["path"].encode("utf-8", "replace"):
            raise Problem("no_such_route", "no such route", close=True)
        if headers.get(b"content-length") is not None and headers.get(b"transfer-encoding") is not None:
            raise Problem("bad_request", "both Content-Length and Transfer-Encoding", close=True)
        if (headers.get(b"content-encoding") or "identity").lower() != "identity":
            raise Problem("unsupported_media_type", "Content-Encoding is not supported", close=True)
        if self.token is not None and not scope["path"].startswith(OPEN):
            given = headers.all(b"authorization")
            kind, _, secret = (given[0] if len(given) == 1 else "").partition(" ")
            right = hmac.compare_digest(secret.encode("latin-1"), self.token.encode())
            if kind.lower() != "bearer" or not right:
                challenge = {"WWW-Authenticate": "Bearer"}
                raise Problem("unauthorized", "a bearer token is wanted", headers=challenge, close=True)
        if self.draining and not scope["path"].startswith("/health/live"):
            raise Problem(
                "model_not_ready", "the service is ending", headers={"Retry-After": "5"}, close=True
            )

    def _note(self, scope: Scope, status: int, request_id: str, seconds: float) -> None:
        path = scope["path"]
        route = path if path in self.uploads else getattr(scope.get("route"), "path", "other")
        fields = scope["state"]["fields"]
        if fields.get("gone") or not status:
            self.metrics.gone.inc()
        else:
            self.metrics.count_request(route, scope["method"], status, seconds)
        if "code" in fields:
            self.metrics.errors.labels(fields["code"]).inc()
        if route.startswith(("/health", "/metrics")) and status == 200:
            return
        logs.request(
            {
                "request_id": request_id,
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(1e3 * seconds, 2),
                **fields,
            }
        )


class _Headers:
    """Headers of a request by name, as latin-1 text."""

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self._raw = raw
        self.count = len(raw)
        self.size = sum(len(name) + len(value) for name, value in raw)

    def all(self, name: bytes) -> list[str]:
        return [value.decode("latin-1") for key, value in self._raw if key == name]

    def get(self, name: bytes) -> str | None:
        return next(iter(self.all(name)), None)
