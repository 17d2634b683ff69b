"""Arrays for a response: float16 in base64, or PNG pictures in false colour; feature maps as one contact sheet."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_STOPS = np.array(  # dark to bright, even steps of lightness: position, red, green, blue
    [
        (0.0, 12, 7, 40),
        (0.2, 66, 15, 105),
        (0.4, 138, 34, 105),
        (0.6, 205, 65, 70),
        (0.8, 246, 130, 25),
        (1.0, 252, 240, 160),
    ]
)
_SCALE = np.linspace(0, 1, 256)
PALETTE = np.stack([np.interp(_SCALE, _STOPS[:, 0], _STOPS[:, i]) for i in (1, 2, 3)], 1).astype(np.uint8)
"""Colours of a picture, (256, 3)."""
GAP = 1


def array(values: Array) -> dict[str, Any]:
    """Return an array as shape, dtype and base64 of little-endian float16 in C order."""
    small = np.clip(values, -65504, 65504).astype("<f2")
    return {
        "shape": list(values.shape),
        "dtype": "float16",
        "data": base64.b64encode(small.tobytes()).decode(),
    }


def picture(values: Array) -> dict[str, Any]:
    """Return ``(rows, columns)``, or ``(maps, rows, columns)`` as a contact sheet, as a PNG; row 0 at the bottom."""
    low, high = float(values.min()), float(values.max())
    levels = (255 * (values - low) / max(high - low, 1e-12)).astype(np.uint8)
    sheet = _sheet(levels[..., ::-1, :])
    return {
        "shape": list(values.shape),
        "low": low,
        "high": high,
        "png": base64.b64encode(png(sheet)).decode(),
    }


def _sheet(levels: Array) -> Array:
    """Return maps side by side, about as wide as high, with gaps."""
    if levels.ndim == 2:
        return levels
    n, rows, columns = levels.shape
    across = max(1, min(n, round(math.sqrt(n * rows / columns))))
    down = -(-n // across)
    out = np.zeros((down * (rows + GAP) - GAP, across * (columns + GAP) - GAP), np.uint8)
    for i in range(n):
        top, left = i // across * (rows + GAP), i % across * (columns + GAP)
        out[top : top + rows, left : left + columns] = levels[i]
    return out


def png(levels: Array) -> bytes:
    """Return levels ``(rows, columns)`` uint8 as a PNG with `PALETTE` (PNG specification, ISO/IEC 15948)."""
    rows, columns = levels.shape

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    lines = np.zeros((rows, columns + 1), np.uint8)  # a filter byte before each line: none
    lines[:, 1:] = levels
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
            chunk(b"PLTE", PALETTE.tobytes()),
            chunk(b"IDAT", zlib.compress(lines.tobytes(), 6)),
            chunk(b"IEND", b""),
        )
    )
