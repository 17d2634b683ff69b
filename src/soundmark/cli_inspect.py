"""``soundmark data inspect``: the quality report of a data set, in the terminal, as JSON and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from soundmark import cli_options, errors

if TYPE_CHECKING:
    from soundmark.data.inspect import Inspection
    from soundmark.render import Lines

MOST_NAMES = 8
"""Clips that are named per finding in the terminal; JSON and the page name all."""

TITLES = {
    "duration_s": "duration, s",
    "silent_share": "digital silence",
    "peak_dbfs": "peak, dBFS",
    "rms_dbfs": "RMS, dBFS",
    "loudness_lufs": "loudness, LUFS",
    "clipped_share": "clipped samples",
    "dc": "DC offset",
    "bandwidth_hz": "bandwidth, Hz",
    "noise_floor_dbfs": "noise floor, dBFS",
    "snr_db": "SNR, dB",
}


@click.command(short_help="Measure every recording; report faults, copies and leaks.")
@click.argument("root", metavar="[DIR]", required=False)
@click.option("--html", type=cli_options.path, metavar="FILE", help="Write a page with plots and players.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
@click.option("--out", type=cli_options.path, metavar="FILE", help="Write the whole report as JSON.")
@click.option(
    "--processes",
    type=click.IntRange(1),
    metavar="N",
    help="Processes that measure; default: one per processor.",
)
def inspect(
    root: str | None, html: Path | None, as_json: bool, out: Path | None, processes: int | None
) -> int:
    """Measure every recording of DIR once, and report what is wrong, copied, leaking or guessable.

    Nothing is refused: bad rows and recordings that cannot be used are findings. The status is 3 if any finding is an
    error: something cannot be used, contradicts itself, or stands on both sides of a fold.
    """
    import json

    from soundmark import render, storage
    from soundmark.data.inspect import inspect as run_inspection
    from soundmark.data.page import page
    from soundmark.sources import open_dataset

    dataset = open_dataset(root, strict=False)
    inspection = run_inspection(dataset, processes=processes, progress=render.clip_progress)
    tree = inspection.to_dict()
    if as_json:
        render.print_json(tree)
    else:
        _print(inspection, tree)
    if out:  # after printing: a full disk must not cost the figures
        storage.write_bytes(out, (json.dumps(tree, indent=1) + "\n").encode())
        render.print_note(f"report: {out}", aside=as_json)
    if html:
        storage.write_bytes(html, page(inspection))
        render.print_note(f"page: {html}", aside=as_json)
    return errors.EXIT_SOME_FAILED if inspection.counts["error"] else errors.EXIT_OK


def _print(inspection: Inspection, tree: dict[str, Any]) -> None:
    from soundmark import render

    lines = render.Lines()
    for stamp in tree["stamps"]:
        lines.say(stamp, style="bold red")
    lines.pair(
        "data", tree["data"] if tree["layout"] in tree["data"] else f"{tree['data']}, {tree['layout']} layout"
    )
    n_sources = len({clip.source for clip in inspection.dataset.clips})
    lines.pair(
        "clips",
        f"{tree['clips']} in {tree['hours']:.2f} hours, {len(tree['classes'])} labels, {n_sources} sources, "
        f"{len(tree['folds']) or 'no'} folds, {tree['unreadable']} cannot be used",
    )
    for name, sizes in tree["formats"].items():
        shown = ", ".join(f"{value} ({n})" for value, n in list(sizes.items())[:6])
        lines.pair(name.replace("_", " "), shown or "none", indent=14)
    _print_figures(tree["distributions"])
    _print_leaks(lines, inspection, tree["leaks"])
    if check := tree["shortcut"]:
        seen = ", ".join(f"{name} {value:.1%}" for name, value in check["accuracy"].items())
        lines.pair("shortcuts", f"labels guessed without hearing: {seen}; chance {check['chance']:.1%}")
    _print_findings(lines, inspection)


def _print_figures(distributions: dict[str, dict[str, float]]) -> None:
    from soundmark import render

    if not distributions:
        return
    heads = {"p0": "lowest", "p5": "5 %", "p50": "median", "p95": "95 %", "p100": "highest"}
    lines = render.Lines([render.Column("", 17), *(render.Column(head, 9, True) for head in heads.values())])
    lines.heads()
    for name, title in TITLES.items():
        lines.row([title, *(_number(distributions[name][key]) for key in heads)])


def _print_leaks(lines: Lines, inspection: Inspection, leaks: dict[str, Any]) -> None:
    if not inspection.dataset.has_folds:
        return
    known, leaking, copies = (list(leaks[key]) for key in ("known_sources", "sources", "copies"))
    lines.pair("leaks", f"in several folds: sources {len(leaking)}, copies {len(copies)}")
    if known:
        lines.pair(
            "", f"besides {', '.join(known)}, which official folds of ESC-50 share, under different labels"
        )


def _print_findings(lines: Lines, inspection: Inspection) -> None:
    from soundmark.data.findings import CODES

    styles = {"error": "bold red", "warning": "yellow", "note": ""}
    for code in dict.fromkeys(finding.code for finding in inspection.findings):
        found = inspection.of(code)
        kind = found[0].severity
        lines.say(
            f"{kind}: {len(found)} x {code}: {CODES[code][1] if code in CODES else ''}", style=styles[kind]
        )
        for finding in found[:MOST_NAMES]:
            lines.say(
                f"{finding.clip}: {finding.message}".replace(f"{finding.clip}: {finding.clip}", finding.clip),
                indent="  ",
            )
        if len(found) > MOST_NAMES:
            lines.say(f"and {len(found) - MOST_NAMES} more (--json, --out and --html name all)", indent="  ")
    counts = inspection.counts
    lines.pair("findings", ", ".join(f"{severity}s {n}" for severity, n in counts.items()))


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.1e}"
