"""How requests are documented: bodies, parameters and examples of the OpenAPI page, and the page itself."""

from __future__ import annotations

import base64
import struct
from importlib import resources
from typing import Any

from soundmark.server.problems import MEDIA_TYPE
from soundmark.server.schemas import Options, ProblemBody

AUDIO = {"type": "string", "format": "binary"}
BASE64 = {"type": "string", "contentEncoding": "base64", "description": "WAV, FLAC, Ogg or MP3 as base64"}
RAW_TYPES = ("audio/wav", "audio/flac", "audio/ogg", "audio/mpeg", "application/octet-stream")
OLD_BODY = {
    "type": "object",
    "properties": {"audio_data": BASE64},
    "required": ["audio_data"],
    "additionalProperties": False,
}


def click() -> str:
    """Return 0.05 s with a click as a WAV file in base64, for examples that can be sent as they are."""
    samples = bytes(128 + (100 if i % 80 < 4 else 0) for i in range(400))
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + len(samples),
        b"WAVE",
        b"fmt ",
        16,
        1,
        1,
        8000,
        8000,
        1,
        8,
        b"data",
        len(samples),
    )
    return base64.b64encode(head + samples).decode()


def _options() -> dict[str, Any]:
    schema = Options.model_json_schema()
    return dict(schema["properties"])


def _parameters() -> list[dict[str, Any]]:
    out = []
    for name, schema in _options().items():
        text = schema.get("description", "")
        if schema.get("type") == "array":
            schema = {"type": "string", "maxLength": 4096}
            text += " Separated by commas."
        out.append({"name": name, "in": "query", "required": False, "description": text, "schema": schema})
    return out


def _form(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema": {
            "type": "object",
            "properties": {name: schema, **_options()},
            "required": [name],
            "additionalProperties": False,
        }
    }


def _json(properties: dict[str, Any], required: list[str], example: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema": {
            "type": "object",
            "properties": {**properties, **_options()},
            "required": required,
            "additionalProperties": False,
        },
        "example": example,
    }


def classify() -> dict[str, Any]:
    """Return what is documented of the request to classify one recording."""
    raw = {kind: {"schema": AUDIO} for kind in RAW_TYPES}
    example = {"audio": click(), "top_k": 3}
    return {
        "parameters": _parameters(),
        "requestBody": {
            "required": True,
            "content": {  # Swagger's page starts with the first one, and cannot go from a form to JSON
                "application/json": _json({"audio": BASE64}, ["audio"], example),
                "multipart/form-data": _form("file", AUDIO),
                **raw,
            },
        },
    }


def batch(most: int) -> dict[str, Any]:
    """Return what is documented of the request to classify several recordings."""
    item = {
        "type": "object",
        "properties": {"audio": BASE64, "name": {"type": "string", "maxLength": 1000}},
        "required": ["audio"],
        "additionalProperties": False,
    }
    items = {"type": "array", "items": item, "minItems": 1, "maxItems": most}
    files = {"type": "array", "items": AUDIO, "minItems": 1, "maxItems": most}
    example = {"items": [{"audio": click(), "name": "click"}], "top_k": 1}
    return {
        "parameters": _parameters(),
        "requestBody": {
            "required": True,
            "content": {
                "application/json": _json({"items": items}, ["items"], example),
                "multipart/form-data": _form("files", files),
            },
        },
    }


def inference() -> dict[str, Any]:
    """Return what is documented of the compatibility request."""
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": OLD_BODY, "example": {"audio_data": click()}}},
        }
    }


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of error answers."""
    texts = {
        400: "the request is malformed",
        401: "no token, or a wrong one",
        404: "no such route",
        405: "another method is wanted",
        408: "the body did not come in time",
        413: "too many bytes or seconds",
        415: "this content is not supported",
        422: "the recording or an option cannot be used",
        500: "a fault of the service",
        503: "too many requests, or no model yet: try again after Retry-After seconds",
    }
    body = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{ProblemBody.__name__}"}}}
    return {status: {"description": texts[status], "content": body} for status in statuses}


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Soundmark</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="docs/swagger-ui.css"></head>
<body><div id="swagger-ui"></div><script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script></body></html>
"""
START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true});\n'


def asset(name: str) -> tuple[bytes, str]:
    """Return a file of the documentation page and its media type; nothing comes from another host."""
    if name == "start.js":
        return START.encode(), "text/javascript"
    kind = "text/css" if name.endswith(".css") else "text/javascript"
    return resources.files("fastapi_offline").joinpath("static", name).read_bytes(), kind


ASSETS = ("swagger-ui.css", "swagger-ui-bundle.js", "start.js")
