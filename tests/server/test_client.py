"""client: the answers of a classifier, tries again where the service is busy, errors as they are here; and --server."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import Served, sound

from soundmark import cli
from soundmark.classifier import Classifier
from soundmark.client import AsyncClient, Client
from soundmark.errors import AudioError, ConfigError, MissingExtraError, ServerError
from soundmark.postprocess import Failure, Prediction


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.url) as one:
        yield one


def test_answers_are_those_of_a_classifier(
    client: Client, wav: bytes, tmp_path: Path, tiny_classifier: Classifier
) -> None:
    (tmp_path / "a.wav").write_bytes(wav)
    here = tiny_classifier.classify(tmp_path / "a.wav")
    for source in (tmp_path / "a.wav", str(tmp_path / "a.wav"), wav, (sound(1.0), 16_000)):
        there = client.classify(source)
        assert [one.label for one in there.labels] == [one.label for one in here.labels]
    there = client.classify(tmp_path / "a.wav")
    mine, theirs = here.to_dict(), there.to_dict()
    del mine["timing_ms"], theirs["timing_ms"]
    assert mine == theirs
    assert client.labels() == tiny_classifier.labels
    assert client.model()["model_digest"] == tiny_classifier.digest
    assert client.ask(wav, timeline=True, feature_maps=["conv"])["timeline"]


def test_errors_are_those_of_a_classifier(client: Client, wav: bytes, tmp_path: Path) -> None:
    for source, code in (
        (b"<html>", "unsupported_format"),
        (b"", "empty_file"),
        (tmp_path / "no", "not_found"),
    ):
        with pytest.raises(AudioError) as refused:
            client.classify(source)
        assert refused.value.code == code
    with pytest.raises(ConfigError):
        client.classify(wav, top_k=0)
    with pytest.raises(ConfigError):
        client.ask(wav, feature_maps="nope")
    rows = list(client.classify_many([wav, b"bad", tmp_path / "no", wav]))
    assert [type(row) for row in rows] == [Prediction, Failure, Failure, Prediction]


def test_the_async_client_says_the_same(served: Served, wav: bytes) -> None:
    async def main() -> None:
        async with AsyncClient(served.url) as client:
            one, two = await asyncio.gather(client.classify(wav), client.classify(wav))
            assert one == two
            assert [row.ok async for row in client.classify_many([wav, b"no"])] == [True, False]
            assert (await client.model())["n_labels"] == len(await client.labels())
            assert (await client.ask(wav, envelope=4))["envelope"]

    asyncio.run(main())


class Busy:
    """A server that answers from a list: a status, or None to cut the connection."""

    def __init__(self, *answers: tuple[int, dict[str, str], Any] | None) -> None:
        self.answers, self.times = list(answers), []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                outer.times.append(time.monotonic())
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                if answer is None:
                    self.connection.close()
                    return
                status, headers, tree = answer
                body = json.dumps(tree).encode()
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = "http://127.0.0.1:%d" % self.server.server_address[1]  # noqa: UP031
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def __enter__(self) -> Busy:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


BUSY = (503, {"retry-after": "0"}, {"code": "overloaded", "detail": "too many requests are waiting"})


def test_busy_services_are_asked_again_with_growing_waits(served: Served, wav: bytes) -> None:
    good = (200, {}, served.post(wav).json())
    with Busy(BUSY, None, BUSY, good) as busy, Client(busy.url, rng=random.Random(0)) as client:
        assert client.classify(wav).label
        waits = np.diff(busy.times)
    assert len(waits) == 3
    assert all(0.7 * 0.2 * 2**i < wait < 2 + 2 * 0.2 * 2**i for i, wait in enumerate(waits))


def test_it_gives_up_in_the_end(wav: bytes) -> None:
    with Busy(BUSY) as busy, Client(busy.url, tries=2) as client:
        with pytest.raises(ServerError) as refused:
            client.classify(wav)
        assert (refused.value.code, len(busy.times)) == ("overloaded", 2)
    with Client("http://127.0.0.1:9", tries=1) as client, pytest.raises(ServerError) as refused:
        client.classify(wav)
    assert refused.value.code == "no_answer"


@pytest.mark.parametrize("tree", [{}, [], {"label": 5}, "x"])
def test_what_is_no_soundmark_service(wav: bytes, tree: Any) -> None:
    for status in (200, 418):
        with Busy((status, {}, tree)) as busy, Client(busy.url) as client, pytest.raises(ServerError):
            client.classify(wav)


def test_wrong_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError):
        Client("127.0.0.1:8000")
    with pytest.raises(ConfigError):
        Client("http://127.0.0.1:8000", tries=0)
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingExtraError, match=r"soundmark\[client\]"):
        Client("http://127.0.0.1:8000")


def test_classify_by_a_server_prints_the_same_rows(
    served: Served,
    tiny_bundle: Path,
    tmp_path: Path,
    make_wav: Callable[..., bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for i in range(3):
        (tmp_path / f"{i}.wav").write_bytes(make_wav(sound(0.7, seed=i), 16_000, "PCM_16"))
    (tmp_path / "bad.wav").write_bytes(b"RIFF")

    def rows(*options: str) -> tuple[object, list[dict[str, Any]]]:
        with pytest.raises(SystemExit) as left:
            cli.main(["classify", "--format", "jsonl", str(tmp_path), *options])
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        for row in found:
            row.pop("timing_ms", None)
            row.get("error", {}).pop("message", None)
        return left.value.code, found

    assert rows("--server", served.url) == rows("--model", str(tiny_bundle))
    assert rows("--server", served.url, "--model", "x")[0] == 2
    assert rows("--server", "ftp://x")[0] == 2
