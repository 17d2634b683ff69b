"""A request's body to recordings and options: raw audio, multipart/form-data, or JSON with base64. Runs in a worker.

Nothing is guessed: other content types, unknown fields, duplicate keys, a second file, text that is not base64 and
depth beyond `MAX_DEPTH` are refused. Line breaks inside base64 and a data URI before it are accepted.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import parse_qsl

from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from soundmark.errors import AudioError
from soundmark.server.problems import Problem
from soundmark.server.schemas import Options

MAX_DEPTH = 20
MAX_FIELDS = 16
MAX_FIELD_BYTES = 64 << 10
MAX_JSON_MARKS = 4096
"""Quotes, commas and brackets in a JSON body: base64 has none, so more is no request of ours."""
MAX_QUERY_BYTES = 16 << 10
DATA_URI_BYTES = 200

Content = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Recording:
    """One uploaded recording, or why it is none."""

    name: str
    content: Content = field(repr=False)
    error: Problem | None = None


def media_type(content_type: str) -> tuple[str, dict[str, str]]:
    """Return the media type in lower case, and its parameters."""
    kind, parameters = parse_options_header(content_type)
    return kind.decode("latin-1").lower(), {
        key.decode("latin-1"): value.decode("latin-1") for key, value in parameters.items()
    }


def one(content_type: str, query: str, body: bytes, max_bytes: int) -> tuple[Recording, Options]:
    """Return the recording and the options of one request to classify.

    Raises:
        Problem: ``bad_request``, ``bad_options``, ``unsupported_media_type``, ``file_too_large``.
    """
    kind, parameters = media_type(content_type)
    given = _query(query)
    if kind == "application/json":
        tree = _json(body, parameters)
        if "audio" not in tree:
            _refuse("the field `audio` is missing", "bad_options")
        recording = Recording("audio", _base64(tree.pop("audio"), max_bytes))
        return recording, _json_options(given, tree)
    if kind == "multipart/form-data":
        files, fields = _multipart(body, parameters, name="file", most=1)
        options = _options({**given, **fields}, as_text=True)
        if not files:
            _refuse("the part `file` is missing", "bad_options")
        return files[0], options
    return Recording("body", body), _options(given, as_text=True)


def many(
    content_type: str, query: str, body: bytes, max_bytes: int, most: int
) -> tuple[list[Recording], Options]:
    """Return the recordings and the options of a batch; what is wrong with one recording is in its row.

    Raises:
        Problem: as of `one`.
    """
    kind, parameters = media_type(content_type)
    given = _query(query)
    if kind == "application/json":
        tree = _json(body, parameters)
        items = tree.pop("items", None)
        if not isinstance(items, list) or not 1 <= len(items) <= most:
            _refuse(f"`items` must be a list of 1 to {most} objects with `audio`", "bad_options")
        return [_item(item, i, max_bytes) for i, item in enumerate(items)], _json_options(given, tree)
    files, fields = _multipart(body, parameters, name="files", most=most)
    options = _options({**given, **fields}, as_text=True)
    if not files:
        _refuse("no part `files`", "bad_options")
    return files, options


def compatible(content_type: str, body: bytes, max_bytes: int) -> Recording:
    """Return the recording of the compatibility route, ``{"audio_data": base64}``.

    Raises:
        Problem: as of `one`.
    """
    tree = _json(body, media_type(content_type)[1])
    if "audio_data" not in tree:
        _refuse("the field `audio_data` is missing", "bad_options")
    return Recording("audio_data", _base64(tree["audio_data"], max_bytes))


def _refuse(detail: str, code: str = "bad_request") -> NoReturn:
    raise Problem(code, detail)


def _query(query: str) -> dict[str, Any]:
    if len(query) > MAX_QUERY_BYTES:
        _refuse("the query is too long")
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=32, errors="strict"
        )
    except ValueError:
        _refuse("the query is not a list of name=value")
    return _no_twins(pairs, "query parameter")


def _no_twins(pairs: Sequence[tuple[str, Any]], what: str) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in tree if names.count(name) > 1)
        _refuse(f"{what} {twin[:80]!r} is given twice")
    return tree


def _json_options(query: dict[str, Any], tree: dict[str, Any]) -> Options:
    """Return the options of the query, those of the JSON on top, as forms do it: Swagger's page sends both."""
    given, fields = _options(query, as_text=True), _options(tree, as_text=False)
    return given.model_copy(update={name: getattr(fields, name) for name in fields.model_fields_set})


def _options(tree: dict[str, Any], *, as_text: bool) -> Options:
    """Return checked options; in forms and queries, numbers are text, and an empty field is one not filled in."""
    if as_text:
        tree = {name: value for name, value in tree.items() if value != ""}
    if as_text and isinstance(tree.get("feature_maps"), str):
        tree = {**tree, "feature_maps": [name for name in tree["feature_maps"].split(",") if name]}
    try:
        return Options.model_validate(tree, strict=not as_text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))[:80]
        _refuse(f"option {where!r}: {first['msg']}", "bad_options")


def _json(body: bytes, parameters: dict[str, str]) -> dict[str, Any]:
    if parameters.get("charset", "utf-8").lower() not in ("utf-8", "utf8"):
        _refuse("JSON must be UTF-8")
    if max(map(body.count, (b'"', b",", b"[", b"{"))) > MAX_JSON_MARKS:
        _refuse("too many fields or values in JSON")

    def no_constant(name: str) -> NoReturn:
        _refuse(f"{name} is not a JSON number")

    try:
        tree = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=lambda pairs: _no_twins(pairs, "key"),
            parse_constant=no_constant,
        )
    except RecursionError:
        _refuse(f"JSON is nested deeper than {MAX_DEPTH}")
    except ValueError:
        _refuse("the body is not JSON in UTF-8")
    if not isinstance(tree, dict):
        _refuse("the body is not a JSON object")
    pending: list[tuple[Any, int]] = [(tree, 1)]
    while pending:
        value, depth = pending.pop()
        if depth > MAX_DEPTH:
            _refuse(f"JSON is nested deeper than {MAX_DEPTH}")
        if isinstance(value, float) and not abs(value) < float("inf"):
            _refuse("a number is too large")
        if isinstance(value, str) and len(value) < MAX_FIELD_BYTES and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                _refuse("a string has a lone surrogate")
        if isinstance(value, (dict, list)):
            children = [*value.values(), *value] if isinstance(value, dict) else value
            pending += ((child, depth + 1) for child in children)
    return tree


def _base64(text: Any, max_bytes: int) -> bytes:
    if not isinstance(text, str):
        _refuse("audio must be a string of base64")
    if text.startswith("data:"):
        comma = text.find(",", 0, DATA_URI_BYTES)
        if comma < 0 or not text[:comma].endswith(";base64"):
            _refuse("a data URI that is not base64")
        text = text[comma + 1 :]
    try:
        data = text.encode("ascii")
        if len(data) * 3 // 4 > max_bytes + 4:
            data = b"".join(data.split())
            if len(data) * 3 // 4 > max_bytes + 4:
                raise Problem("file_too_large", f"more than {max_bytes} bytes of audio")
        try:
            found = base64.b64decode(data, validate=True)
        except binascii.Error:
            found = base64.b64decode(b"".join(data.split()), validate=True)
    except ValueError:  # binascii.Error is one
        _refuse("audio is not base64 (RFC 4648, with padding)")
    if len(found) > max_bytes:
        raise Problem("file_too_large", f"more than {max_bytes} bytes of audio")
    return found


def _item(item: Any, index: int, max_bytes: int) -> Recording:
    if not isinstance(item, dict) or "audio" not in item or set(item) - {"audio", "name"}:
        _refuse(f"item {index} must be an object of `audio` and, if you like, `name`", "bad_options")
    name = item.get("name", str(index))
    if not isinstance(name, str) or len(name) > 1000:
        _refuse(f"the name of item {index} must be a string of at most 1000 characters", "bad_options")
    try:
        return Recording(name, _base64(item["audio"], max_bytes))
    except Problem as problem:
        return Recording(name, b"", problem)


class _Parts:
    """Collects parts from the callbacks of the parser, with caps; contents are views, not copies."""

    def __init__(self, name: str, most: int) -> None:
        self.name, self.most = name, most
        self.files: list[Recording] = []
        self.fields: list[tuple[str, str]] = []
        self.whole = False
        self._header = [b"", b""]
        self._disposition = b""
        self._pieces: list[memoryview] = []

    def callbacks(self) -> Any:
        """Return what the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._grow(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._grow(1, data[start:end]),
            "on_header_end": self._header_end,
            "on_part_data": lambda data, start, end: self._pieces.append(memoryview(data)[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._disposition, self._pieces, self._header = b"", [], [b"", b""]
        if len(self.files) + len(self.fields) >= self.most + MAX_FIELDS:
            _refuse("too many parts")

    def _grow(self, which: int, data: bytes) -> None:
        self._header[which] += data

    def _header_end(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            self._disposition = self._header[1]
        self._header = [b"", b""]

    def _end(self) -> None:
        kind, parameters = parse_options_header(self._disposition)
        name = parameters.get(b"name", b"").decode("utf-8", "replace")
        pieces = self._pieces
        content = memoryview(b"".join(pieces)) if len(pieces) != 1 else pieces[0]
        if kind != b"form-data" or not name:
            _refuse("a part without a name")
        if b"filename" in parameters:
            if name != self.name:
                _refuse(f"file part {name[:80]!r}, wanted {self.name!r}", "bad_options")
            if len(self.files) >= self.most:
                _refuse(f"more than {self.most} file{'s' if self.most > 1 else ''}")
            self.files.append(Recording(parameters[b"filename"].decode("utf-8", "replace")[:1000], content))
        elif name == self.name:
            _refuse(f"part {name!r} without a filename")
        elif len(content) > MAX_FIELD_BYTES:
            _refuse(f"field {name[:80]!r} is too long")
        elif len(self.fields) >= MAX_FIELDS:
            _refuse("too many fields")
        else:
            self.fields.append((name, bytes(content).decode("utf-8", "replace")))

    def _finish(self) -> None:
        self.whole = True


def _multipart(
    body: bytes, parameters: dict[str, str], *, name: str, most: int
) -> tuple[list[Recording], dict[str, Any]]:
    boundary = parameters.get("boundary", "")
    if not 1 <= len(boundary) <= 200 or not boundary.isascii():
        _refuse("multipart without a usable boundary")
    if body.find(b"--" + boundary.encode(), 0, 1024 + len(boundary)) < 0:
        _refuse("no boundary at the start of the multipart body")
    parts = _Parts(name, most)
    try:
        parser = MultipartParser(boundary.encode(), parts.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError:
        _refuse("the multipart body is damaged")
    if not parts.whole:
        _refuse("the multipart body has no end")
    return parts.files, _no_twins(parts.fields, "field")


def checked(recording: Recording, max_bytes: int) -> Content:
    """Return the bytes of a recording.

    Raises:
        Problem: what `many` found wrong with it, or ``file_too_large``.
        AudioError: ``empty_file``.
    """
    if recording.error is not None:
        raise recording.error
    if len(recording.content) > max_bytes:
        raise Problem("file_too_large", f"more than {max_bytes} bytes of audio")
    if not len(recording.content):
        raise AudioError("0 bytes", wanted="a recording", code="empty_file")
    return recording.content
