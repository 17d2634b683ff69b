"""Answers of a Soundmark service, as if it were a classifier here; waits and tries again where it is busy.

>>> from soundmark.client import Client
>>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
...     print(client.classify("dog.wav").label)
"""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import soundfile

from soundmark.errors import (
    AUDIO_CODES,
    AudioError,
    ConfigError,
    MissingExtraError,
    ServerError,
    SoundmarkError,
)
from soundmark.inputs import open_input
from soundmark.postprocess import Failure, LabelScore, Prediction, source_name
from soundmark.scan import Found

if TYPE_CHECKING:
    import httpx

MAX_UPLOAD_BYTES = 1 << 30
"""A file beyond is not even read; what the service takes, it says itself."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 10.0
TRIES = 6
"""Of one request: about 12 s of waiting, or what the service asks for."""

Source: TypeAlias = str | os.PathLike[str] | bytes | tuple[Any, int] | Any


@dataclass(frozen=True, slots=True)
class _Send:
    method: str
    path: str
    content: bytes | None
    params: dict[str, Any]


T = TypeVar("T")
_Steps: TypeAlias = Generator["_Send | float", "httpx.Response | Exception | None", T]


class _Requests:
    """What both clients ask, as steps: `_Send` wants a response, a number wants that many seconds of sleep."""

    def __init__(self, tries: int, rng: random.Random) -> None:
        if tries < 1:
            raise ConfigError(f"`tries` is {tries}", wanted="at least 1")
        self.tries, self.rng = tries, rng

    def json(self, method: str, path: str, content: bytes | None = None, **params: Any) -> _Steps[Any]:
        wait = FIRST_WAIT_S
        for left in reversed(range(self.tries)):
            got = yield _Send(method, path, content, params)
            if got is None or isinstance(got, Exception):
                error: SoundmarkError = ServerError(
                    f"no answer from the service: {type(got).__name__}",
                    wanted="a running service at that address",
                )
                asked_s = 0.0
            elif got.status_code == 200:
                try:
                    return got.json()
                except ValueError:
                    raise ServerError("an answer that is not JSON", wanted="a Soundmark service") from None
            else:
                error = _error(got)
                if got.status_code != 503:
                    raise error
                text = got.headers.get("retry-after", "")
                asked_s = float(text) if text.isdigit() else 0.0
            if not left:
                raise error
            yield min(LONGEST_WAIT_S, max(asked_s, wait) * self.rng.uniform(0.75, 1.25))
            wait *= 2
        raise AssertionError

    def classify(self, source: Source, *, top_k: int, strict: bool, name: str | None) -> _Steps[Prediction]:
        content = _bytes(source)
        tree = yield from self.json("POST", "/v1/classify", content, top_k=top_k, strict=strict)
        return _prediction(tree, source_name(source) if name is None else name)

    def row(self, source: Source | Found, *, top_k: int, strict: bool) -> _Steps[Prediction | Failure]:
        """Return the row of one source; a bad recording is a row."""
        if isinstance(source, Found):
            if source.error is not None:
                return Failure.of(source_name(source.path), source.error)
            source = source.path if isinstance(source.path, os.PathLike) else str(source.path)
        try:
            return (yield from self.classify(source, top_k=top_k, strict=strict, name=None))
        except AudioError as error:
            return Failure.of(source_name(source), error)


class _Base:
    def __init__(self, *, tries: int, rng: random.Random | None) -> None:
        try:
            import httpx
        except ImportError:
            raise MissingExtraError.of("client", "httpx") from None
        self._httpx = httpx
        self._requests = _Requests(tries, rng or random.Random())

    def _options(self, url: str, token: str | None, timeout_s: float) -> dict[str, Any]:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"a service at {url[:200]!r}", wanted="http://HOST:PORT")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return {"base_url": url, "headers": headers, "timeout": timeout_s}

    def _built(self, client: Any, step: _Send) -> Any:
        headers = {"Content-Type": "application/octet-stream"} if step.content is not None else {}
        params = {key: _text(value) for key, value in step.params.items()}
        return client.build_request(
            step.method, step.path, content=step.content, params=params, headers=headers
        )


class Client(_Base):
    """Answers of the service at ``url``; use it in a ``with``, or `close` it.

    Args:
        url: for example ``http://127.0.0.1:8000``.
        token: bearer token of the service.
        tries: of one request where the service is busy (503) or does not answer; the time between doubles.
        timeout_s: seconds without a byte after which a try counts as failed.
        rng: of the jitter between tries.

    Raises:
        MissingExtraError: httpx is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        tries: int = TRIES,
        timeout_s: float = 60.0,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(tries=tries, rng=rng)
        self._client = self._httpx.Client(**self._options(url, token, timeout_s))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def classify(
        self, source: Source, *, top_k: int = 3, strict: bool = False, name: str | None = None
    ) -> Prediction:
        """Return what the service hears; arguments as of `Classifier.classify`, scores and logits stay empty.

        Raises:
            AudioError: the recording cannot be used.
            ServerError: no answer, or the service refuses (token, limits).
        """
        return self._drive(self._requests.classify(source, top_k=top_k, strict=strict, name=name))

    def classify_many(
        self, sources: Iterable[Source | Found], *, top_k: int = 3, strict: bool = False
    ) -> Iterator[Prediction | Failure]:
        """Yield one row per source, in order; an `AudioError` is a `Failure` row."""
        for source in sources:
            yield self._drive(self._requests.row(source, top_k=top_k, strict=strict))

    def ask(self, source: Source, **options: Any) -> dict[str, Any]:
        """Return the whole answer as JSON, with any option of the service (``timeline=True``, ``mel="png"`` ...)."""
        return self._drive(self._requests.json("POST", "/v1/classify", _bytes(source), **options))

    def model(self) -> dict[str, Any]:
        """Return what the service says of its model."""
        return self._drive(self._requests.json("GET", "/v1/model"))

    def labels(self) -> tuple[str, ...]:
        """Return the labels of the service's model."""
        return tuple(self._drive(self._requests.json("GET", "/v1/labels"))["labels"])

    def _drive(self, steps: _Steps[T]) -> T:
        got: Any = None
        try:
            while True:
                step = steps.send(got)
                got = None
                if isinstance(step, float):
                    time.sleep(step)
                    continue
                try:
                    got = self._client.send(self._built(self._client, step))
                except self._httpx.HTTPError as error:
                    got = error
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


class AsyncClient(_Base):
    """`Client` for asyncio: the same names and arguments, to be awaited."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        tries: int = TRIES,
        timeout_s: float = 60.0,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(tries=tries, rng=rng)
        self._client = self._httpx.AsyncClient(**self._options(url, token, timeout_s))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def classify(
        self, source: Source, *, top_k: int = 3, strict: bool = False, name: str | None = None
    ) -> Prediction:
        """Return what the service hears; see `Client.classify`."""
        return await self._drive(self._requests.classify(source, top_k=top_k, strict=strict, name=name))

    async def classify_many(
        self, sources: Iterable[Source | Found], *, top_k: int = 3, strict: bool = False
    ) -> AsyncIterator[Prediction | Failure]:
        """Yield one row per source, in order; see `Client.classify_many`."""
        for source in sources:
            yield await self._drive(self._requests.row(source, top_k=top_k, strict=strict))

    async def ask(self, source: Source, **options: Any) -> dict[str, Any]:
        """Return the whole answer as JSON; see `Client.ask`."""
        return await self._drive(self._requests.json("POST", "/v1/classify", _bytes(source), **options))

    async def model(self) -> dict[str, Any]:
        """Return what the service says of its model."""
        return await self._drive(self._requests.json("GET", "/v1/model"))

    async def labels(self) -> tuple[str, ...]:
        """Return the labels of the service's model."""
        return tuple((await self._drive(self._requests.json("GET", "/v1/labels")))["labels"])

    async def _drive(self, steps: _Steps[T]) -> T:
        import asyncio

        got: Any = None
        try:
            while True:
                step = steps.send(got)
                got = None
                if isinstance(step, float):
                    await asyncio.sleep(step)
                    continue
                try:
                    got = await self._client.send(self._built(self._client, step))
                except self._httpx.HTTPError as error:
                    got = error
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _bytes(source: Source) -> bytes:
    """Return the bytes of a recording; arrays ``(samples, sample_rate)`` become a WAV file.

    Raises:
        AudioError: no such file, not a file, empty, too large.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, tuple):
        samples, rate = source
        memory = io.BytesIO()
        soundfile.write(memory, np.asarray(samples, np.float32), rate, format="WAV", subtype="FLOAT")
        return memory.getvalue()
    opened = open_input(source, MAX_UPLOAD_BYTES)
    try:
        return bytes(opened.peek(0, opened.size))
    finally:
        opened.close()


def _prediction(tree: dict[str, Any], name: str) -> Prediction:
    try:
        return Prediction(
            source=name,
            label=tree["label"],
            score=float(tree["score"]),
            labels=tuple(LabelScore(one["label"], float(one["score"])) for one in tree["labels"]),
            flags=tuple(tree["flags"]),
            unknown=bool(tree["unknown"]),
            reason=tree["reason"],
            duration_s=float(tree["duration_s"]),
            n_windows=int(tree["n_windows"]),
            timing_ms={key: float(value) for key, value in tree["timing_ms"].items()},
            model=tree["model"],
            model_digest=tree["model_digest"],
            scores=np.empty(0, np.float32),
            logits=np.empty((0, 0), np.float32),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError(
            f"an answer without {error}", wanted="an answer of this version of Soundmark"
        ) from None


def _error(response: httpx.Response) -> SoundmarkError:
    """Return the error of a problem+json answer."""
    try:
        tree = response.json()
        code, detail = str(tree["code"]), str(tree["detail"])
    except (ValueError, KeyError, TypeError):
        return ServerError(f"status {response.status_code} from the service", wanted="a Soundmark service")
    if code in AUDIO_CODES:
        return AudioError(detail, code=code)
    if code == "request_too_large":
        return AudioError(detail, wanted="a smaller recording", code="file_too_large")
    if code in ("bad_options", "no_such_layer", "no_such_label"):
        return ConfigError(detail, code=code)
    return ServerError(detail, code=code)
