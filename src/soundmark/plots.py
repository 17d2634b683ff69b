"""Numbers to inline SVG (histograms, bars, curves, matrices, waveforms) and pictures (PNG).

Text in them is escaped; nothing is loaded from anywhere.
"""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT = 300, 130  # of a histogram, in CSS pixels
BINS = 40
TAIL = (
    0.5  # percent at either end that stand in the outermost bins, so that one clip does not squeeze the rest
)
MAX_POINTS = 240  # of a waveform
MAX_NAMED = 60  # rows of a matrix that carry their name
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


def curve(
    points: Sequence[tuple[float, float, str]],
    *,
    title: str,
    across: str,
    up: str,
    ideal: bool = False,
) -> str:
    """Return shares ``(x, y, text)``, each 0 to 1, as a curve with dots; ``ideal`` draws the diagonal."""
    left, top, size = 44, 22, 200
    at = [(left + size * x, top + size * (1 - y), text) for x, y, text in points]
    line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in at) if at else ""
    dots = "".join(
        f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"><title>{escape(text)}</title></rect>'
        for x, y, text in at
    )
    grid = "".join(
        f'<path class="axis" d="M{left + size * v:g} {top}V{top + size}M{left} {top + size * v:g}H{left + size}"/>'
        f'<text x="{left + size * v:g}" y="{top + size + 14}" text-anchor="middle">{v:.0%}</text>'
        f'<text x="{left - 5}" y="{top + size * (1 - v) + 4:g}" text-anchor="end">{v:.0%}</text>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    )
    diagonal = f'<path class="ideal" d="M{left} {top + size}L{left + size} {top}"/>' if ideal else ""
    return (
        f'<svg class="plot" viewBox="0 0 260 262" role="img" aria-label="{escape(title)}">'
        f'<text x="0" y="12" class="name">{escape(title)}</text>{grid}{diagonal}'
        f'<path class="curve" d="{line}"/>{dots}'
        f'<text x="{left + size / 2}" y="{top + size + 32}" text-anchor="middle">{escape(across)}</text>'
        f'<text transform="translate(9 {top + size / 2}) rotate(-90)" text-anchor="middle">{escape(up)}</text></svg>'
    )


def matrix(counts: Sequence[Sequence[int]], names: Sequence[str], *, title: str) -> str:
    """Return a square of counts, row by true and column by heard name; shade says the share of the row.

    Cells of zero are left out, and beyond `MAX_NAMED` rows the names.
    """
    n = len(names)
    cell = max(4.0, min(14.0, 700 / max(1, n)))
    margin = 110 if n <= MAX_NAMED else 10
    size = margin + n * cell
    shapes = []
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            if count:
                shade = 0.25 + 0.75 * count / max(1, sum(row))
                shapes.append(
                    f'<rect class="{"right" if i == j else "wrong"}" x="{margin + j * cell:.1f}" '
                    f'y="{margin + i * cell:.1f}" width="{cell - 0.5:.1f}" height="{cell - 0.5:.1f}" '
                    f'fill-opacity="{shade:.2f}">'
                    f"<title>{escape(names[i])} heard as {escape(names[j])}: {count}</title></rect>"
                )
    for i, name in enumerate(names if n <= MAX_NAMED else ()):
        at, text = f"{margin + (i + 0.75) * cell:.1f}", escape(name[:20])
        shapes.append(f'<text x="{margin - 4}" y="{at}" text-anchor="end">{text}</text>')
        shapes.append(f'<text transform="translate({at} {margin - 4}) rotate(-90)">{text}</text>')
    grid = f'<path class="axis" d="M{margin} {margin}h{n * cell:g}v{n * cell:g}h{-n * cell:g}z"/>'
    return (
        f'<svg class="matrix" viewBox="0 0 {size:g} {size:g}" role="img" aria-label="{escape(title)}">'
        f"{grid}{''.join(shapes)}</svg>"
    )


def shades(
    values: npt.NDArray[np.float32], *, low: float | None = None, high: float | None = None
) -> npt.NDArray[np.uint8]:
    """Return ``values`` (n_rows, n_frames) as levels of `PALETTE`, row 0 last; default ends are those of ``values``."""
    bottom = float(values.min()) if low is None else low
    top = float(values.max()) if high is None else high
    return (255 * ((values - bottom) / max(top - bottom, 1e-12)).clip(0, 1)).astype(np.uint8)[::-1]


def heat(values: npt.NDArray[np.float32], *, low: float | None = None, high: float | None = None) -> str:
    """Return ``values`` (n_rows, n_frames) as an SVG with a picture in it; see `shades`."""
    rows, columns = values.shape
    uri = f"data:image/png;base64,{base64.b64encode(png(shades(values, low=low, high=high))).decode('ascii')}"
    return (
        f'<svg viewBox="0 0 {columns} {rows}" preserveAspectRatio="none">'
        f'<image width="{columns}" height="{rows}" preserveAspectRatio="none" image-rendering="pixelated" '
        f'href="{uri}"/></svg>'
    )


def side_by_side(parts: Sequence[tuple[str, str]], *, title: str) -> str:
    """Return plots as one SVG file, each under its name; ``parts`` are ``(name, inline SVG)``."""
    wide, high, top, gap = 280, 130, 22, 16
    width = len(parts) * (wide + gap) + gap
    body = ""
    for i, (name, plot) in enumerate(parts):
        left = gap + i * (wide + gap)
        place = f'x="{left}" y="{top + 8}" width="{wide}" height="{high}" preserveAspectRatio="none" '
        plain = plot.replace(' preserveAspectRatio="none"', "", 1)
        body += (
            f'<text x="{left}" y="{top}">{escape(name)}</text>{plain.replace("<svg ", f"<svg {place}", 1)}'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top + high + gap + 8}" width="{width}" '
        f'role="img" aria-label="{escape(title)}"><style>text {{ font: 13px system-ui, sans-serif; fill: #1c2733 }} '
        f"path {{ stroke: #2f6f73; fill: none }}</style>"
        f'<rect width="100%" height="100%" fill="#fbfaf7"/>{body}</svg>\n'
    )


def png(levels: npt.NDArray[np.uint8]) -> bytes:
    """Return levels (rows, columns) as a PNG with `PALETTE` (PNG specification, ISO/IEC 15948)."""
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


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
