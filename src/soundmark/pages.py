"""What pages are made of: one HTML file that needs nothing else, with style, plots, pictures and players in it.

A content security policy in the page forbids every request and every script. Figures of a page come from the tree that
is its JSON file, through `Figures`, so that the page cannot say anything else.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from soundmark.plots import escape, png, shades, waveform

FOOT = "</body></html>\n"
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; media-src data:;
  img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; --ink: #1c2733; --soft: #5b6875; --page: #fbfaf7; --card: #fff; --line: #d9dcd6;
  --bar: #2f6f73; --error: #b3261e; --warning: #9a6700; --note: #4a6785 }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e6e8e6; --soft: #9aa7b0; --page: #14191d; --card: #1c2328;
  --line: #36414a; --bar: #67b3b0; --error: #ff8a80; --warning: #e6b450; --note: #9cc0e6 }} }}
body {{ margin: 0 auto; max-width: 68rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }}
h1 {{ font-size: 1.6rem; margin: 0 }} h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .6rem }}
p {{ margin: .4rem 0 }} .soft {{ color: var(--soft) }} .stamp {{ color: var(--error); font-weight: 700 }}
.tiles, .plots, .players {{ display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)) }}
.plots, .players {{ grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)) }}
.tiles div, .plots > *, .players > div {{ background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .6rem .8rem }}
.tiles b {{ display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums }}
.error {{ color: var(--error) }} .warning {{ color: var(--warning) }} .note {{ color: var(--note) }}
details, .group {{ border-top: 1px solid var(--line); padding: .5rem 0 }} summary {{ cursor: pointer }}
ul {{ margin: .3rem 0; padding-left: 1.2rem }} li {{ overflow-wrap: anywhere }}
svg {{ width: 100%; height: auto; display: block }} .bars {{ max-width: 40rem }}
svg text {{ font-size: 11px; fill: var(--soft) }}
svg .name {{ fill: var(--ink); font-weight: 600 }} rect {{ fill: var(--bar) }}
path {{ stroke: var(--soft); fill: none }} .mark {{ stroke: var(--error); stroke-dasharray: 3 2 }}
.wave path {{ stroke: var(--bar) }} audio {{ width: 100%; height: 2rem; margin-top: .3rem }}
table {{ border-collapse: collapse }} td, th {{ padding: .15rem .7rem .15rem 0; text-align: left }}
td.n, th.n {{ text-align: right; font-variant-numeric: tabular-nums }} th {{ vertical-align: bottom }}
.wide {{ overflow-x: auto }} .picture {{ width: 100%; height: 7rem; display: block; image-rendering: pixelated }}
.axis {{ stroke: var(--line) }} .curve {{ stroke: var(--bar); stroke-width: 2 }} .ideal {{ stroke-dasharray: 4 3 }}
svg.matrix {{ max-width: 60rem }} .matrix text {{ font-size: 9px }} .matrix .wrong {{ fill: var(--error) }}
code {{ overflow-wrap: anywhere }}
</style></head><body>
"""


def head(title: str) -> str:
    """Return the page up to its body, ``title`` in the name of its window."""
    return _HEAD.format(title=escape(title))


def tiles(cells: Iterable[tuple[str, str, str]]) -> str:
    """Return one tile per ``(name, value as HTML, class)``."""
    body = "".join(f'<div><b class="{kind}">{value}</b>{escape(name)}</div>' for name, value, kind in cells)
    return f'<div class="tiles">{body}</div>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1) -> str:
    """Return a table of cells that are HTML already; all but the first ``names`` columns are numbers."""
    top = "".join(
        f"<th>{escape(text)}</th>" if i < names else f'<th class="n">{escape(text)}</th>'
        for i, text in enumerate(heads)
    )
    body = ""
    for row in rows:
        cells = "".join(
            f"<td>{cell}</td>" if i < names else f'<td class="n">{cell}</td>' for i, cell in enumerate(row)
        )
        body += f"<tr>{cells}</tr>"
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def flac(samples: npt.NDArray[np.float32], rate: int) -> bytes:
    """Return samples (n,) at ``rate`` Hz as FLAC, 16 bits.

    Raises:
        soundfile.SoundFileError: a rate that FLAC does not have.
    """
    file = io.BytesIO()
    soundfile.write(file, samples.clip(-1, 1), rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def player(samples: npt.NDArray[np.float32], sound: bytes) -> str:
    """Return the waveform of ``samples`` and a player of ``sound`` (see `flac`)."""
    uri = f"data:audio/flac;base64,{base64.b64encode(sound).decode('ascii')}"
    return f'{waveform(samples)}<audio controls preload="none" src="{uri}"></audio>'


def picture(values: npt.NDArray[np.float32], *, title: str) -> str:
    """Return ``values`` (n_rows, n_frames) as a picture, lowest value dark, row 0 at the bottom."""
    uri = f"data:image/png;base64,{base64.b64encode(png(shades(values))).decode('ascii')}"
    return f'<img class="picture" alt="{escape(title)}" src="{uri}">'


@dataclass(frozen=True, slots=True)
class Figures:
    """The JSON tree of a page; what it shows carries its path there, for readers and for tests."""

    tree: dict[str, Any]

    def at(self, path: str) -> Any:
        """Return the value at a path such as ``figures.per_class.3.recall``."""
        value: Any = self.tree
        for key in path.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        return value

    def show(self, path: str, spec: str = "") -> str:
        """Return the value at ``path`` as HTML, formatted as ``spec`` says; text is escaped."""
        text = escape(format(self.at(path), spec))
        return f'<span data-of="{escape(path)}" data-as="{escape(spec)}">{text}</span>'

    def interval(self, path: str) -> str:
        """Return both ends of an interval of shares."""
        return f"{self.show(f'{path}.0', '.1%')} to {self.show(f'{path}.1', '.1%')}"
