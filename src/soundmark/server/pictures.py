"""Arrays for a response: float16 in base64, or PNG pictures in false colour; feature maps as one contact sheet."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from soundmark.plots import png

Array = npt.NDArray[Any]

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
