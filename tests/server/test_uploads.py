"""Bodies to recordings: JSON, base64 and multipart as nobody should send them (RELIABILITY 5.2: H8 to H23, H26)."""

from __future__ import annotations

import base64
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="needs the extra 'serve'")

from soundmark.errors import SoundmarkError
from soundmark.server import uploads
from soundmark.server.problems import Problem

LIMIT = 1000
FORM = "multipart/form-data; boundary=xx"


def code(content_type: str, body: bytes, query: str = "") -> str:
    """Return how a body is told."""
    started = time.perf_counter()
    try:
        recording, _ = uploads.one(content_type, query, body, LIMIT)
        uploads.checked(recording, LIMIT)
    except (Problem, SoundmarkError) as error:
        return error.code
    finally:
        assert time.perf_counter() - started < 10
    return "ok"


def part(headers: str, content: bytes = b"RIFF") -> bytes:
    return b"--xx\r\n" + headers.encode("utf-8", "surrogateescape") + b"\r\n\r\n" + content + b"\r\n"


FILE = 'Content-Disposition: form-data; name="file"; filename="a.wav"'
END = b"--xx--\r\n"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"5", b'"x"', b"\xef\xbb\xbf{}", '{"audio": "AAAA"}'.encode("utf-16"),
        b'{"audio": "AAAA", "label": "\\ud800"}', b'{"audio": "AAAA", "audio": "AAAA"}',
        b'{"audio": "AAAA", "top_k": 1e999}', b'{"audio": "AAAA", "top_k": NaN}',
        b'{"audio": "AAAA", "top_k": -Infinity}', b'{"audio": "AAAA", "top_k": ' + b"9" * 5000 + b"}",
        b'{"audio": ' + b"[" * 21 + b"]" * 21 + b"}", b"[" * 2000, b"[" * 100_000, b'{"a":' * 1500,
        b"{" + b",".join(b'"k%d":1' % i for i in range(100_000)) + b"}",
        b'{"audio": [' + b"0.1," * 100_000 + b"1]}", b'{"audio": "AAAA"} x', b'{"audio": 5}', b'{"audio": null}',
    ],
    ids=lambda body: ascii(body[:24]),
)  # fmt: skip
def test_json_that_is_refused(body: bytes) -> None:
    assert code("application/json", body) == "bad_request"


@pytest.mark.parametrize(
    "text", ["AAA", "A=AA", "AA=A", "!!!!AAAA", "AA_-", "ÄÄÄÄ", "data:audio/wav,AAAA", "data:;base64"]
)
def test_text_that_is_not_base64(text: str) -> None:
    assert code("application/json", f'{{"audio": "{text}"}}'.encode()) == "bad_request"


def test_base64_at_the_limit_and_one_byte_more() -> None:
    for size, wanted in ((LIMIT, "ok"), (LIMIT + 1, "file_too_large"), (10 * LIMIT, "file_too_large")):
        text = base64.encodebytes(bytes(size)).decode().replace("\n", "\\n")
        assert code("application/json", f'{{"audio": "{text}"}}'.encode()) == wanted


def test_charsets() -> None:
    assert code("application/json; charset=utf-16", b'{"audio": "AAAA"}') == "bad_request"
    assert code("application/json; charset=UTF-8", b'{"audio": "AAAA"}') == "ok"
    assert code("APPLICATION/JSON", b'{"audio": "AAAA"}') == "ok"


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (part(FILE) + END, "ok"),
        (part(FILE, b"") + END, "empty_file"),
        (part(FILE, bytes(LIMIT + 1)) + END, "file_too_large"),
        (part('Content-Disposition: form-data; name="file"') + END, "bad_request"),
        (part(FILE) + part(FILE) + END, "bad_request"),
        (part('Content-Disposition: form-data; name="audio"; filename="a"') + END, "bad_options"),
        (part(FILE) + part('Content-Disposition: form-data; name="nope"', b"1") + END, "bad_options"),
        (part(FILE) + part('Content-Disposition: form-data; name="top_k"', b"2") + END, "ok"),
        (part(FILE) + part('Content-Disposition: form-data; name="top_k"', b"2") * 2 + END, "bad_request"),
        (part(FILE) + part('Content-Disposition: form-data; name="label"', b"x" * 70_000) + END, "bad_request"),
        (part("Content-Type: audio/wav") + END, "bad_request"),
        (part("Content-Disposition: attachment; filename=x") + END, "bad_request"),
        (part(FILE), "bad_request"),
        (part(FILE)[:40], "bad_request"),
        (b"--yy\r\n\r\n\r\n--yy--", "bad_request"),
        (b"x" * 5_000_000 + part(FILE) + END, "bad_request"),
        (part(FILE + "\r\nX: " + "y" * 1_000_000) + END, "bad_request"),
        (part('Content-Disposition: form-data; name="a"', b"1") * 10_000 + END, "bad_request"),
        (b"", "bad_request"),
    ],
    ids=range(19),
)  # fmt: skip
def test_multipart(body: bytes, wanted: str) -> None:
    assert code(FORM, body) == wanted


@pytest.mark.parametrize(
    "content_type", [f"multipart/form-data{end}" for end in ("", "; boundary=" + "x" * 10_000, "; boundary=")]
)
def test_multipart_without_a_usable_boundary(content_type: str) -> None:
    assert code(content_type, part(FILE) + END) == "bad_request"


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "..\\x",
        "/abs",
        "C:\\x",
        "",
        "x" * 3000,
        "a\0b.wav",
        '\\"; x=\\"',
        "=cmd",
        "\udcff",
    ],
    ids=ascii,
)
def test_hostile_file_names_are_only_names(name: str) -> None:
    body = part(f'Content-Disposition: form-data; name="file"; filename="{name}"') + END
    assert code(FORM, body) in ("ok", "bad_request")


@given(
    st.binary(max_size=300), st.sampled_from(["application/json", FORM, "audio/wav"]), st.text(max_size=20)
)
@settings(max_examples=300, deadline=None)
def test_any_body_is_told(body: bytes, content_type: str, query: str) -> None:
    code(content_type, body, query)


@given(st.binary(max_size=80), st.binary(max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_part_is_told(head: bytes, content: bytes) -> None:
    code(FORM, b"--xx\r\n" + head + b"\r\n\r\n" + content + b"\r\n" + END)
