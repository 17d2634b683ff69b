"""Trials as a CSV table and as one HTML page with three plots that needs nothing else: no script, no request."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

WIDTH, HEIGHT, LEFT, BASE = 640, 240, 48, 214
SHOWN = 20  # trials in the table of the page, best first
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark }}
body {{ margin: 0 auto; max-width: 60rem; padding: 1.5rem; font: 15px/1.5 system-ui, sans-serif }}
svg {{ max-width: 40rem; width: 100%; height: auto; display: block; margin: 1rem 0 }}
svg text {{ font-size: 11px; fill: GrayText }} .name {{ font-weight: 600; fill: CanvasText }}
circle, rect {{ fill: #2f8f83 }} .pruned {{ fill: #b58900 }} path {{ fill: none; stroke: GrayText; opacity: .5 }}
.best {{ stroke: #c0392b; stroke-width: 2; opacity: 1 }}
table {{ border-collapse: collapse }} td, th {{ padding: .15rem .7rem .15rem 0; text-align: left; vertical-align: top }}
</style></head><body>
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One finished trial; ``loss`` is that of its last epoch where it was pruned, None where there was none."""

    number: int
    state: str  # "complete" or "pruned"
    loss: float | None  # on the inner split, nats per window
    epochs: int
    seconds: float
    why: str
    values: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Return rows with the best first, pruned ones behind."""
    return sorted(
        rows,
        key=lambda row: (row.state != "complete", math.inf if row.loss is None else row.loss, row.number),
    )


def csv_table(rows: Sequence[Row]) -> str:
    """Return the trials as CSV, one column per field that was searched."""
    paths = sorted({path for row in rows for path in row.values})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "inner_loss", "epochs", "seconds", "why", *paths])
    for row in rows:
        loss = "" if row.loss is None else f"{row.loss:.6f}"
        values = [row.values.get(path, "") for path in paths]
        writer.writerow([row.number, row.state, loss, row.epochs, row.seconds, row.why, *values])
    return text.getvalue()


def page(
    name: str,
    rows: Sequence[Row],
    importances: Mapping[str, float],
    best: int,
    curves: Mapping[int, Sequence[float]],
) -> str:
    """Return the page: trials over time, what mattered, loss by epoch, the best trials.

    Args:
        name: of the preset.
        rows: finished trials, by number.
        importances: field path -> share.
        best: number of the best trial.
        curves: trial -> inner loss after each epoch.
    """
    parts = [_HEAD.format(title=html.escape(f"Tuning of {name}")), f"<h1>Tuning of {html.escape(name)}</h1>"]
    pruned = sum(row.state == "pruned" for row in rows)
    parts.append(
        f"<p>{len(rows)} trials, {pruned} pruned. Loss is cross-entropy on the inner split; no clip of the test "
        "fold was read.</p>"
    )
    parts += [_history(rows), _bars(importances), _curves(curves, best), _table(rows)]
    return "".join(parts) + "</body></html>\n"


def _scale(values: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and the highest value to draw; what lies far above the rest stands at the upper edge."""
    if not values:
        return 0.0, 1.0
    ordered = sorted(values)
    low, middle = ordered[0], ordered[len(ordered) // 2]
    high = min(ordered[-1], middle + 3 * max(middle - low, 1e-3))
    return low, high if high > low else low + 1.0


def _frame(title: str, body: str, low: float, high: float, left: str, right: str) -> str:
    name = html.escape(title)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">'
        f'<text x="0" y="12" class="name">{name}</text><path d="M{LEFT} 24V{BASE}H{WIDTH}"/>'
        f'<text x="{LEFT - 5}" y="34" text-anchor="end">{high:.3g}</text>'
        f'<text x="{LEFT - 5}" y="{BASE}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 8}">{left}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT - 8}" text-anchor="end">{right}</text>{body}</svg>'
    )


def _y(value: float, low: float, high: float) -> float:
    return BASE - (BASE - 30) * (min(value, high) - low) / (high - low)


def _history(rows: Sequence[Row]) -> str:
    known = [(row, row.loss) for row in rows if row.loss is not None and math.isfinite(row.loss)]
    low, high = _scale([loss for _, loss in known])
    last = max([row.number for row, _ in known], default=0)
    step = (WIDTH - LEFT - 16) / max(1, last)
    dots, line, best = "", "", math.inf
    for row, loss in known:
        x, y = LEFT + 8 + row.number * step, _y(loss, low, high)
        kind = ' class="pruned"' if row.state == "pruned" else ""
        said = f"<title>trial {row.number}: {loss:.4f}, {row.state}</title>"
        dots += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"{kind}>{said}</circle>'
        if row.state == "complete" and loss < best:
            line += (
                f"{'L' if line else 'M'}{x:.1f} {_y(min(best, high) if line else loss, low, high):.1f}"
                + (f"V{y:.1f}" if line else "")
            )
            best = loss
    if line:
        dots += f'<path class="best" d="{line}H{LEFT + 8 + last * step:.1f}"/>'
    return _frame("Trials: loss, the best so far as a line", dots, low, high, "trial 0", f"trial {last}")


def _bars(importances: Mapping[str, float]) -> str:
    if not importances:
        return "<p>What mattered can be said from four complete trials on.</p>"
    rows = sorted(importances.items(), key=lambda item: -item[1])
    left, step, most = 190, 18, max(*importances.values(), 1e-9)
    body = "".join(
        f'<text x="{left - 6}" y="{36 + i * step}" text-anchor="end">{html.escape(path)}</text>'
        f'<rect x="{left}" y="{26 + i * step}" width="{max(1.0, 380 * share / most):.1f}" height="{step - 6}"/>'
        f'<text x="{left + 380 * share / most + 5:.1f}" y="{36 + i * step}">{share:.0%}</text>'
        for i, (path, share) in enumerate(rows)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {30 + step * len(rows)}" role="img" aria-label="What mattered">'
        f'<text x="0" y="12" class="name">What mattered: share of what makes trials good</text>{body}</svg>'
    )


def _curves(curves: Mapping[int, Sequence[float]], best: int) -> str:
    drawn = {number: [v for v in losses if math.isfinite(v)] for number, losses in curves.items()}
    low, high = _scale([loss for losses in drawn.values() for loss in losses])
    epochs = max([len(losses) for losses in drawn.values()], default=1)
    step = (WIDTH - LEFT) / max(1, epochs - 1)
    body = ""
    for number, losses in sorted(drawn.items(), key=lambda item: item[0] == best):  # the best on top
        points = " ".join(f"{LEFT + i * step:.1f},{_y(loss, low, high):.1f}" for i, loss in enumerate(losses))
        kind = ' class="best"' if number == best else ""
        body += f'<path{kind} d="M{points.replace(" ", "L")}"/>' if points else ""
    return _frame("Inner loss by epoch, the best trial in red", body, low, high, "epoch 1", f"epoch {epochs}")


def _table(rows: Sequence[Row]) -> str:
    lines = "".join(
        f"<tr><td>{row.number}</td><td>{row.state}</td><td>{'' if row.loss is None else f'{row.loss:.4f}'}</td>"
        f"<td>{row.epochs}</td><td>{html.escape(row.why or settings(row))}</td></tr>"
        for row in ranked(rows)[:SHOWN]
    )
    return (
        "<table><tr><th>trial</th><th>state</th><th>loss</th><th>epochs</th><th>values</th></tr>"
        f"{lines}</table>"
    )


def settings(row: Row) -> str:
    """Return what a trial tried, as text."""
    return ", ".join(
        f"{path}={value:.4g}" if isinstance(value, float) else f"{path}={value}"
        for path, value in row.values.items()
    )
