"""Numbers to inline SVG: histograms, bars, waveforms. Text in them is escaped; nothing is loaded from anywhere."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT = 300, 130  # of a histogram, in CSS pixels
BINS = 40
TAIL = (
    0.5  # percent at either end that stand in the outermost bins, so that one clip does not squeeze the rest
)
MAX_POINTS = 240  # of a waveform


def escape(text: object) -> str:
    """Return text for HTML: markup escaped, control characters and lone surrogates written out."""
    shown = (
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in str(text)
    )
    return html.escape("".join(shown), quote=True)


def histogram(values: Sequence[float], *, title: str, unit: str = "", log: bool = False) -> str:
    """Return how many clips have which value: bars over `BINS` bins, the outermost with everything beyond them."""
    x = np.asarray(values, dtype=np.float64)
    low, high = (float(v) for v in np.percentile(x, [TAIL, 100 - TAIL]))
    low, high = math.floor(low * 20) / 20, math.ceil(high * 20) / 20
    ends = (_number(low), _number(high))
    if high - low < 1e-9:
        low, high, ends = low - 0.5, high + 0.5, ("", "")
    sizes, edges = np.histogram(np.clip(x, low, high), BINS, (low, high))
    heights = np.log1p(sizes) if log else sizes.astype(np.float64)
    top, base, wide = 20, HEIGHT - 18, WIDTH / BINS
    bars = "".join(
        f'<rect x="{i * wide:.1f}" y="{base - h:.1f}" width="{wide - 1:.1f}" height="{h:.1f}">'
        f"<title>{_number(edges[i])} to {_number(edges[i + 1])}: {n}</title></rect>"
        for i, n in enumerate(sizes)
        if (h := max(1.5, (base - top) * float(heights[i] / heights.max()))) and n
    )
    name = escape(f"{title}, {unit}" if unit else title)
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">'
        f'<text x="0" y="12" class="name">{name}</text>{bars}<path d="M0 {base}H{WIDTH}"/>'
        f'<text x="0" y="{HEIGHT - 4}">{ends[0]}</text>'
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle">median {_number(float(np.median(x)))}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT - 4}" text-anchor="end">{ends[1]}</text></svg>'
    )


def bars(rows: Sequence[tuple[str, float, str]], *, title: str, mark: float | None = None) -> str:
    """Return one horizontal bar per ``(name, value, text)``; ``mark`` is a value with a line through all bars."""
    most = max([value for _, value, _ in rows] + [mark or 0.0, 1e-9])
    left, right, step = 180, 110, 18
    scale, height = (640 - left - right) / most, 24 + step * len(rows)
    body = "".join(
        f'<text x="{left - 6}" y="{36 + i * step}" text-anchor="end">{escape(name[:28])}</text>'
        f'<rect x="{left}" y="{26 + i * step}" width="{max(1.0, value * scale):.1f}" height="{step - 6}"/>'
        f'<text x="{left + value * scale + 5:.1f}" y="{36 + i * step}">{escape(text)}</text>'
        for i, (name, value, text) in enumerate(rows)
    )
    line = f'<path class="mark" d="M{left + mark * scale:.1f} 22V{height}"/>' if mark is not None else ""
    return (
        f'<svg class="bars" viewBox="0 0 640 {height}" role="img" aria-label="{escape(title)}">'
        f'<text x="0" y="12" class="name">{escape(title)}</text>{body}{line}</svg>'
    )


def waveform(samples: npt.NDArray[np.float32]) -> str:
    """Return the envelope of ``samples`` (n,): lowest and highest value in each of up to `MAX_POINTS` pieces."""
    pieces = [piece for piece in np.array_split(samples, MAX_POINTS) if len(piece)]
    lines = "".join(
        f"M{i} {24 - 23 * min(1.0, float(piece.max())):.1f}V{24.5 - 23 * max(-1.0, float(piece.min())):.1f}"
        for i, piece in enumerate(pieces)
    )
    return f'<svg class="wave" viewBox="0 0 {MAX_POINTS} 48" role="img" aria-label="waveform"><path d="{lines}"/></svg>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
