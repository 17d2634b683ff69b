"""Routes: answers, options, content types, and how wrong requests are told (RELIABILITY 5.2: H8 to H33)."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from serving import Served, sound

from soundmark.classifier import Classifier
from soundmark.server import schemas
from soundmark.server.openapi import click
from tiny import TINY_LABELS

JSON = {"Content-Type": "application/json"}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Return the body of an error after a look at everything that every error must be."""
    assert (response.status_code, response.json().get("code")) == (status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = schemas.ProblemBody.model_validate(response.json())
    assert body.status == status
    assert body.request_id == response.headers["x-request-id"]
    no_leak(response.text)
    return response.json()


def no_leak(text: str) -> None:
    """T22: no path, stack frame or version."""
    assert not re.search(r"/[a-z]+/[a-z]|\.py\b|Traceback|line \d+|\d+\.\d+\.\d+", text), text


def test_the_same_clip_by_every_road_gives_what_the_classifier_says(
    served: Served, wav: bytes, tiny_classifier: Classifier
) -> None:
    here = tiny_classifier.classify(wav)
    answers = [
        served.post(wav),
        served.post(wav, headers={"Content-Type": "application/octet-stream"}),
        served.post(files={"file": ("x.wav", wav, "text/html")}),  # what the part says does not count
        served.post(json={"audio": b64(wav)}),
        served.post(json={"audio": "data:audio/wav;base64," + b64(wav)}),
        served.post(json={"audio": base64.encodebytes(wav).decode()}),  # a line break every 76
    ]
    for response in answers:
        assert response.status_code == 200, response.text
        answer = schemas.Answer.model_validate(response.json())
        assert answer.label == here.label
        assert [(one.label, one.score) for one in answer.labels] == [
            (one.label, pytest.approx(one.score, abs=1e-6)) for one in here.labels
        ]
        assert (answer.model, answer.model_digest) == (here.model, here.model_digest)
        assert answer.request_id == response.headers["x-request-id"]
        assert set(answer.timing_ms) == {"decode", "frontend", "model", "total"}
        assert "server" not in response.headers
        assert "access-control-allow-origin" not in response.headers


def test_options_by_query_by_form_and_by_json(served: Served, wav: bytes) -> None:
    for response in (
        served.post(wav + b"", params={"top_k": "1"}),
        served.post(files={"file": ("x", wav)}, data={"top_k": "1"}),
        served.post(json={"audio": b64(wav), "top_k": 1}),
    ):
        assert len(response.json()["labels"]) == 1
    both = served.post(json={"audio": b64(wav), "top_k": 2}, path="/v1/classify?top_k=1&timeline=true").json()
    assert len(both["labels"]) == 2, "the JSON goes before the query"
    assert len(both["timeline"]) == 1


def test_what_swaggers_page_sends(served: Served, wav: bytes) -> None:
    """Every option with its default in the query, and in the form again; what is not filled in is empty."""
    options = {
        "top_k": "3", "strict": "false", "timeline": "false", "envelope": "0", "mel": "none", "feature_maps": "",
        "class_activation": "none", "label": "", "maps": "png", "window": "0",
    }  # fmt: skip
    assert {*options} == {*schemas.Options.model_fields}
    form = served.post(files={"file": ("x", wav)}, data=options, params=options)
    assert form.status_code == 200, form.text
    api = served.get("/openapi.json").json()
    for path in ("/v1/classify", "/v1/classify/batch", "/inference"):
        kind, body = next(iter(api["paths"][path]["post"]["requestBody"]["content"].items()))
        assert kind == "application/json", "the page starts with the first one"
        sent = served.post(json=body["example"], path=path, params={} if path == "/inference" else options)
        assert sent.status_code == 200, sent.text


def test_everything_that_can_be_asked_for(
    served: Served, make_wav: Callable[..., bytes], tiny_classifier: Classifier
) -> None:
    long = make_wav(sound(2.6), 16_000, "FLOAT")
    params = {
        "timeline": "true", "envelope": "100", "mel": "array", "feature_maps": "all", "maps": "array",
        "class_activation": "array", "label": "rain", "window": "1",
    }  # fmt: skip
    answer = schemas.Answer.model_validate(served.post(long, params=params).json())
    assert [(one.start_s, one.end_s) for one in answer.timeline] == [(0, 1), (1, 2), (2, 2.6)]
    assert len(answer.envelope.low) == len(answer.envelope.high) == 100
    assert all(
        -1 <= low <= high <= 1 for low, high in zip(answer.envelope.low, answer.envelope.high, strict=True)
    )
    features = tiny_classifier.features(long)[1]
    mel = np.frombuffer(base64.b64decode(answer.mel.data), "<f2").reshape(answer.mel.shape)
    np.testing.assert_allclose(mel, features, atol=2e-3)
    assert answer.feature_maps["conv"].shape[0] == 8
    assert answer.class_activation.label == "rain"


def test_pictures_are_png(served: Served, wav: bytes) -> None:
    params = {"mel": "png", "feature_maps": "conv", "class_activation": "png"}
    answer = served.post(wav, params=params).json()
    for picture in (answer["mel"], answer["feature_maps"]["conv"], answer["class_activation"]["map"]):
        data = base64.b64decode(picture["png"])
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        at = data.index(b"IDAT")
        size = struct.unpack(">I", data[at - 4 : at])[0]
        assert len(zlib.decompress(data[at + 4 : at + 4 + size])) == height * (width + 1)


def test_a_batch_keeps_good_rows_beside_bad_ones(served: Served, wav: bytes) -> None:
    items = [{"audio": b64(wav), "name": "a"}, {"audio": "!!"}, {"audio": b64(b"<html>")}, {"audio": ""}]
    rows = schemas.BatchAnswer.model_validate(
        served.post(json={"items": items, "top_k": 1}, path="/v1/classify/batch").json()
    ).results
    assert [row.error.code if row.error else "ok" for row in rows] == [
        "ok", "bad_request", "unsupported_format", "empty_file",
    ]  # fmt: skip
    assert [row.name for row in rows] == ["a", "1", "2", "3"]
    files = [("files", ("x.wav", wav)), ("files", ("../../y", b"no"))]
    rows = served.post(files=files, path="/v1/classify/batch").json()["results"]
    assert [("answer" in row, row["name"]) for row in rows] == [(True, "x.wav"), (False, "../../y")]
    assert len(rows[0]["answer"]["labels"]) == 3


def test_the_compatibility_route(served: Served, wav: bytes, make_wav: Callable[..., bytes]) -> None:
    answer = served.post(json={"audio_data": b64(wav)}, path="/inference").json()
    assert set(answer) == {"predictions"}
    assert {row["class"] for row in answer["predictions"]} <= {*TINY_LABELS}
    assert all(0 <= row["confidence"] <= 1 for row in answer["predictions"])
    silence = make_wav(np.zeros(8000, np.float32))
    assert served.post(json={"audio_data": b64(silence)}, path="/inference").json() == {"predictions": []}
    problem(served.post(json={"audio": ""}, path="/inference"), 422, "bad_options")


def test_what_answers_and_how_it_is(served: Served, tiny_classifier: Classifier) -> None:
    info = schemas.ModelInfo.model_validate(served.get("/v1/model").json())
    assert info.model_digest == tiny_classifier.digest
    assert info.layers == {"conv": 8}
    assert served.get("/v1/labels").json() == {"labels": [*TINY_LABELS]}
    assert served.get("/health/live").json() == served.get("/health/ready").json() == {"status": "ok"}
    text = served.get("/metrics").text
    assert re.search(r"^soundmark_requests_total\{.*\} \d", text, re.MULTILINE)
    assert "soundmark_workers 1.0" in text


def test_the_documentation_is_complete_and_its_examples_work(served: Served) -> None:
    page = served.get("/docs").text
    for link in re.findall(r'(?:src|href)="(docs/[^"]+)"', page):
        assert served.get("/" + link).status_code == 200
    assert "http" not in page, "nothing from another host"
    api = served.get("/openapi.json").json()
    assert {*api["paths"]} >= {"/v1/classify", "/v1/classify/batch", "/v1/model", "/v1/labels", "/inference"}
    for path in ("/v1/classify", "/v1/classify/batch", "/inference"):
        body = api["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert served.post(json=body["example"], path=path).status_code == 200
    assert "ProblemBody" in api["components"]["schemas"]
    assert base64.b64decode(click())[:4] == b"RIFF"


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "video/mp4",
        "image/png",
        "",
        "application/jsonp",
        "x",
    ],
)
def test_other_content_types_are_refused(served: Served, wav: bytes, content_type: str) -> None:
    problem(served.post(wav, headers={"Content-Type": content_type}), 415, "unsupported_media_type")
    problem(
        served.post(b"{}", headers={"Content-Type": content_type}, path="/inference"),
        415,
        "unsupported_media_type",
    )


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 422, "empty_file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), 415, "unsupported_format"),
        (b"<html></html>", 415, "unsupported_format"),
        (b"PK\x03\x04" + bytes(100), 415, "unsupported_format"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", 422, "corrupt_header"),
    ],
)
def test_content_decides(served: Served, content: bytes, status: int, code: str) -> None:
    problem(served.post(content), status, code)
    problem(served.post(files={"file": ("good.wav", content, "audio/wav")}), status, code)


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0}, {"top_k": -1}, {"top_k": 51}, {"top_k": 10**9}, {"top_k": "5"}, {"top_k": 5.5},
        {"top_k": None}, {"top_k": True}, {"unknown": 1}, {"label": "no such"}, {"feature_maps": ["nope"]},
        {"feature_maps": "all"}, {"mel": "gif"}, {"envelope": -1}, {"window": 9, "mel": "png"}, {"strict": 1},
    ],
)  # fmt: skip
def test_options_are_checked(served: Served, wav: bytes, options: dict[str, Any]) -> None:
    response = served.post(json={"audio": b64(wav), **options})
    detail = problem(response, 422, response.json()["code"])["detail"]
    assert next(iter(options)) in detail or response.json()["code"].startswith("no_such")


def test_queries_are_checked(served: Served, wav: bytes) -> None:
    for query in ("top_k=x", "top_k=1.5", "nope=1", "top_k=1&x"):
        assert served.post(wav, path=f"/v1/classify?{query}").status_code in (400, 422)
    problem(served.post(wav, path="/v1/classify?top_k=1&top_k=2"), 400, "bad_request")


def test_a_host_that_is_not_allowed_is_refused(served: Served) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "", "a b", "localhost:x", "[::1"):
        answer = served.raw(f"GET /v1/model HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 400 "), host
    assert served.get("/v1/model", headers={"Host": "LOCALHOST:1"}).status_code == 200


def test_no_origin_is_granted_anything(served: Served) -> None:
    response = served.client.options(
        "/v1/classify",
        headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"},
    )
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_wrong_methods_and_paths(served: Served) -> None:
    response = served.get("/v1/classify")
    problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    paths = ["/v1/classify/", "/v2/classify", "/nope", "/docs/..%2f..%2fetc/passwd", "/docs/%2e%2e/x", "/v1//model",
             "/docs/start.js%00", "/v1/model;x"]  # fmt: skip
    for path in paths:
        response = served.get(path)
        assert response.status_code in (400, 404), path
        no_leak(response.text.replace("urn:soundmark", ""))
    assert served.client.request("TRACE", "/v1/classify").status_code == 405


def test_request_ids_are_kept_if_they_are_sane(served: Served) -> None:
    assert (
        served.get("/v1/labels", headers={"X-Request-ID": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
    )
    assert served.get("/v1/labels", headers={"X-Request-ID": b"\x1b[31m"}).status_code == 400
    for bad in ("a b", "x" * 65, "ü"):
        got = served.get("/v1/labels", headers={"X-Request-ID": bad.encode()}).headers["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{32}", got)


def test_the_log_has_one_line_per_request_and_no_name_of_a_file(served: Served, wav: bytes) -> None:
    served.post(files={"file": ("secret-name\n{}.wav", wav)}, headers={"X-Request-ID": "logged-once"})
    line = json.loads(served.wait_for("logged-once"))
    assert (line["event"], line["status"], line["route"]) == ("request", 200, "/v1/classify")
    assert not any("secret-name" in text for text in served.lines)


def test_encoded_bodies_are_refused(served: Served, wav: bytes) -> None:
    headers = {"Content-Type": "audio/wav", "Content-Encoding": "gzip"}
    problem(served.post(wav, headers=headers), 415, "unsupported_media_type")


def test_scores_do_not_mix_between_requests(served: Served, make_wav: Callable[..., bytes]) -> None:
    """H48, H49."""
    from concurrent.futures import ThreadPoolExecutor

    clips = [make_wav(sound(1.0, seed=i)) for i in range(4)]
    nan = make_wav(np.full(8000, np.nan, np.float32))
    alone = [served.post(clip).json()["labels"] for clip in clips]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: served.post(nan if i % 5 == 4 else clips[i % 5]), range(40)))
    for i, response in enumerate(together):
        if i % 5 == 4:
            problem(response, 422, "nonfinite_samples")
        else:
            assert response.json()["labels"] == alone[i % 5]


def test_file_like_uploads_are_streamed_in_chunks(served: Served, wav: bytes) -> None:
    stream = io.BytesIO(wav)
    chunks = iter(lambda: stream.read(1000), b"")
    assert served.post(chunks).status_code == 200
