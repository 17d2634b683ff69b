"""The routes: one page that says what can be asked, and whom it is passed on to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from soundmark.serve_config import ServeConfig
from soundmark.server import openapi, schemas, uploads
from soundmark.server.gate import LOOPBACK, Gate
from soundmark.server.jobs import Answer
from soundmark.server.metrics import CONTENT_TYPE, Metrics
from soundmark.server.pool import Pool
from soundmark.server.problems import INTERNAL, MEDIA_TYPE, Problem
from soundmark.server.process import COMMAND
from soundmark.server.protocol import Entrance, refusal
from soundmark.server.receiving import ENVELOPE_BYTES, ClientGone, Receiver

JSON = frozenset({"application/json"})
FORMS = frozenset({"multipart/form-data", "application/json"})
RAW = frozenset({"application/octet-stream"})


class Service(Entrance):
    """One service: its workers, its counters, and the ASGI app in front of them.

    Args:
        model: bundle directory or name; None for the default.
        config: numbers and limits.
        token: bearer token; None for none.
        command: what starts a worker.
    """

    def __init__(
        self,
        model: str | None = None,
        config: ServeConfig | None = None,
        *,
        token: str | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.config = config or ServeConfig()
        self.pool = Pool(model, self.config, command)
        self.metrics = Metrics()
        self.receiver = Receiver(self.config)
        self.metrics.watch("queue_length", "Requests that wait for a worker", lambda: len(self.pool.jobs))
        self.metrics.watch("workers", "Workers that run", lambda: self.pool.alive)
        self.metrics.watch("worker_restarts", "Workers that were replaced", lambda: self.pool.restarts)
        self.metrics.watch("upload_bytes", "Bytes of uploads under way", lambda: self.receiver.held)
        given = {name.lower() for name in self.config.allow_hosts}
        hosts = frozenset() if token is not None and not given else LOOPBACK | given
        self._uploads = {
            "/v1/classify": self._classify,
            "/v1/classify/batch": self._batch,
            "/inference": self._inference,
        }
        self.app = Gate(self._routes(), self._uploads, metrics=self.metrics, hosts=hosts, token=token)

    def refuse(self) -> bytes | None:
        """Return the answer to one more upload, whatever it is, where there is no place for it; None where there is.

        It costs next to nothing, so that health is answered also while a thousand uploads arrive at once.
        """
        if len(self.pool.jobs) + self.receiver.fresh() < self.config.queue:
            return None
        problem = self.pool.overloaded()
        self.metrics.count_shed()
        return refusal(problem.code, problem.detail, problem.headers["Retry-After"])

    def enter(self) -> Callable[[], None]:
        """Count an upload until its body is received, which is counted by itself."""
        return self.receiver.enter()

    @contextlib.asynccontextmanager
    async def _life(self, _: FastAPI) -> AsyncIterator[None]:
        if not self.pool.info:  # `serve` has started it already, to say what is wrong with a model
            await self.pool.start()
        try:
            yield
        finally:
            await self.pool.stop()

    def _routes(self) -> FastAPI:
        api = FastAPI(
            title="Soundmark",
            version="1",
            description="Names the sounds in recordings. Errors are problem+json with a stable code.",
            docs_url=None,
            redoc_url=None,
            lifespan=self._life,
            redirect_slashes=False,
        )
        post: dict[str, Any] = {
            "methods": ["POST"],
            "responses": {
                **openapi.problems(400, 401, 408, 413, 415, 422, 500, 503),
                422: {"model": schemas.ProblemBody, **openapi.problems(422)[422]},
            },
        }
        most = self.config.max_batch
        for path, model, extra in (  # for the documentation; the gate asks `_uploads`
            ("/v1/classify", schemas.Answer, openapi.classify()),
            ("/v1/classify/batch", schemas.BatchAnswer, openapi.batch(most)),
            ("/inference", schemas.OldAnswer, openapi.inference()),
        ):
            handler = self._uploads[path]
            api.add_api_route(path, handler, response_model=model, openapi_extra=extra, **post)
        get: dict[str, Any] = {"methods": ["GET"], "responses": openapi.problems(401, 503)}
        api.add_api_route("/v1/model", self._model, response_model=schemas.ModelInfo, **get)
        api.add_api_route("/v1/labels", self._labels, response_model=schemas.Labels, **get)
        api.add_api_route("/health/live", self._live, response_model=schemas.Health, methods=["GET"])
        api.add_api_route("/health/ready", self._ready, response_model=schemas.Health, **get)
        api.add_api_route("/metrics", self._metrics, methods=["GET"], include_in_schema=False)
        api.add_api_route("/docs", self._docs, methods=["GET"], include_in_schema=False)
        api.add_api_route("/docs/{name}", self._asset, methods=["GET"], include_in_schema=False)
        api.add_exception_handler(Problem, _problem)
        api.add_exception_handler(HTTPException, _http_problem)
        api.add_exception_handler(ClientGone, _gone)
        api.add_exception_handler(Exception, _fault)
        api.openapi()  # made once, now: it takes 0.1 s that the event loop does not have later
        return api

    async def _classify(self, request: Request) -> Response:
        """Name the sounds in one recording: multipart part `file`, raw audio, or JSON with base64."""
        return await self._ask(request, "classify", FORMS | RAW, raw=True)

    async def _batch(self, request: Request) -> Response:
        """Name the sounds in several recordings: multipart parts `files`, or JSON `items`; a row for each."""
        return await self._ask(request, "batch", FORMS)

    async def _inference(self, request: Request) -> Response:
        """Answer as older services do: `{"audio_data": base64}` to `{"predictions": [{"class", "confidence"}]}`."""
        return await self._ask(request, "inference", JSON)

    async def _model(self) -> dict[str, Any]:
        """Say which model answers, and which layers it has."""
        return {key: value for key, value in self.pool.info.items() if key != "labels"}

    async def _labels(self) -> dict[str, list[str]]:
        """List the labels in the order of the scores."""
        return {"labels": self.pool.info["labels"]}

    async def _live(self) -> dict[str, str]:
        """Say that the service answers at all."""
        return {"status": "ok"}

    async def _ready(self) -> dict[str, str]:
        """Say whether a worker hears the golden clip as it should, now."""
        if not await self.pool.ready():
            raise Problem("model_not_ready", "no worker hears the golden clip", headers={"Retry-After": "2"})
        return {"status": "ok"}

    async def _metrics(self) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def _docs(self) -> Response:
        return Response(openapi.PAGE, media_type="text/html")

    async def _asset(self, name: str) -> Response:
        if name not in openapi.ASSETS:
            raise HTTPException(404)
        content, kind = openapi.asset(name)
        return Response(content, media_type=kind)

    async def _ask(
        self, request: Request, route: str, accepted: frozenset[str], *, raw: bool = False
    ) -> Response:
        """Return a worker's answer: headers are judged first, then the body is received, then it waits its turn."""
        content_type = request.headers.get("content-type", "")
        kind, _ = uploads.media_type(content_type)
        is_raw = raw and (kind.startswith("audio/") or kind in RAW)
        if not is_raw and kind not in accepted:
            wanted = ", ".join([*sorted(accepted), *(["audio/*"] if raw else [])])
            raise Problem("unsupported_media_type", f"wanted: {wanted}", close=True)
        limit = self.config.max_bytes + (0 if is_raw else ENVELOPE_BYTES)
        self.receiver.check(request.headers.get("content-length"), limit)
        if self.pool.full:
            problem = self.pool.overloaded()
            problem.close = True
            raise problem
        body = await self.receiver.body(request.receive, limit)
        self.metrics.uploaded.inc(len(body))
        header = {
            "route": route,
            "content_type": content_type,
            "query": request.scope["query_string"].decode("latin-1"),
            "request_id": request.state.request_id,
        }
        known = request.scope.get("extensions", {}).get("soundmark.gone")
        if known is not None:
            return self._respond(request, await self.pool.ask(header, body, gone=known["future"]))
        gone = asyncio.ensure_future(_disconnect(request))  # another server than ours
        try:
            return self._respond(request, await self.pool.ask(header, body, gone=gone))
        finally:
            gone.cancel()

    def _respond(self, request: Request, answer: Answer) -> Response:
        fields = request.state.fields
        for row in answer.heard:
            self.metrics.count_heard(row)
        fields["queue_ms"] = round(1e3 * answer.queue_s, 2)
        fields["work_ms"] = round(1e3 * answer.work_s, 2)
        headers = {"Server-Timing": f"queue;dur={fields['queue_ms']}, work;dur={fields['work_ms']}"}
        if answer.code:
            fields["code"] = answer.code
        if answer.status == 503:
            headers["Retry-After"] = "1"
        media_type = "application/json" if answer.status == 200 else MEDIA_TYPE
        return Response(answer.body, answer.status, headers, media_type)


async def _disconnect(request: Request) -> None:
    """Return when the client has left; the body is whole, so nothing else can come."""
    await request.receive()


def _as_response(request: Request, problem: Problem) -> Response:
    request.state.fields["code"] = problem.code
    headers = {**problem.headers, **({"Connection": "close"} if problem.close else {})}
    return Response(problem.body(request.state.request_id), problem.status, headers, MEDIA_TYPE)


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _as_response(request, error)


async def _http_problem(request: Request, error: Exception) -> Response:
    """Answer what the router refuses."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        headers = dict(error.headers or {})
        problem = Problem("method_not_allowed", "another method is wanted, see Allow", headers=headers)
    elif error.status_code == 404:
        problem = Problem("no_such_route", "no such route")
    else:
        problem = Problem("bad_request", "the request cannot be understood")
    problem.close = request.method not in ("GET", "HEAD")  # a body may follow, and is not read
    return _as_response(request, problem)


async def _gone(request: Request, _: Exception) -> Response:
    request.state.fields["gone"] = True
    return Response(status_code=499)


async def _fault(request: Request, _: Exception) -> Response:
    """Answer a fault of ours; the gate logs it."""
    return _as_response(request, Problem("internal", INTERNAL, close=True))
