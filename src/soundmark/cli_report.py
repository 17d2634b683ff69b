"""``soundmark report`` and ``compare``: report files as pages and side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from soundmark import cli_options

if TYPE_CHECKING:
    from soundmark.evaluate import Report


@click.command(short_help="Turn a report file into a page.")
@click.argument("report", type=cli_options.path, metavar="REPORT.json")
@click.option("--html", type=cli_options.path, metavar="FILE", required=True, help="Page to write.")
@click.option(
    "--data",
    metavar="D",
    help="The data that was scored: adds players, spectrograms, accuracy by loudness and by silence.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    metavar="N",
    help="Processes that measure; default: one per processor.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report with all its figures as JSON.")
def report(report: Path, html: Path, data: str | None, processes: int | None, as_json: bool) -> None:
    """Turn REPORT.json into one HTML page that opens offline, and write the JSON with all its figures beside it.

    The JSON has the name of the page, ending in .json. It holds every figure of the page; what an older report lacks
    is computed from its rows.
    """
    from dataclasses import replace

    from soundmark import evaluate, render, render_model, report_files, report_page

    judged = report_files.read(report)
    tables = html.with_suffix(".json")
    if html == tables:
        raise click.UsageError("--html is a page, not a .json file", click.get_current_context())
    for path in (html, tables):
        evaluate.refuse_stamped(judged.stamps, path)
    command = cli_options.command(click.get_current_context())
    judged = replace(judged, provenance={**judged.provenance, "page_command": command})
    clips = None
    if data is not None:
        from soundmark.sources import open_dataset

        dataset = open_dataset(data, strict=False)
        clips = report_files.clips_of(judged, dataset)
        with render.clip_progress("measure", len(clips)) as on_clip:
            judged = report_files.measured(judged, dataset, processes=processes, on_clip=on_clip)
    n_players = min(report_page.MISTAKES, len(judged.answers)) if clips else 0
    with render.clip_progress("players", n_players) as on_clip:
        page = report_page.page(judged, clips, on_clip=on_clip)
    try:
        if as_json:
            render.print_json(judged.to_dict())
        else:
            render_model.print_report(judged)
    finally:  # a full disk costs no figures, and a closed pipe no page
        _write(judged, tables, html, page)
    render.print_note(f"page: {html}, its figures: {tables}", aside=as_json)


def _write(judged: Report, tables: Path, html: Path, page: bytes) -> None:
    from soundmark import storage

    judged.write(tables)
    storage.write_bytes(html, page)


@click.command(short_help="Set reports side by side.")
@click.argument("reports", nargs=-1, required=True, type=cli_options.path, metavar="REPORT.json...")
@click.option("--html", type=cli_options.path, metavar="FILE", help="Write a page, and its JSON beside it.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON instead of tables.")
def compare(reports: tuple[Path, ...], html: Path | None, as_json: bool) -> None:
    """Set two or more report files side by side: accuracy with its interval, size, latency, training, confusions.

    Differences are to the first report, on the same clips, with a 95 % interval over sources. Reports about other clips
    are shown too, and their differences are not.
    """
    from soundmark import comparison, evaluate, render, report_files, storage

    if len(reports) < 2:
        raise click.UsageError("two or more reports are wanted", click.get_current_context())
    judged = [report_files.read(path) for path in reports]
    tree = comparison.compare(comparison.named(reports), judged)
    if as_json:
        render.print_json(tree)
    else:
        _print(tree)
    if html:
        from soundmark import comparison_page

        tables = html.with_suffix(".json")
        if html == tables:
            raise click.UsageError("--html is a page, not a .json file", click.get_current_context())
        for path in (html, tables):
            evaluate.refuse_stamped([stamp for one in judged for stamp in one.stamps], path)
        storage.write_bytes(tables, (json.dumps(tree, indent=1) + "\n").encode())
        storage.write_bytes(html, comparison_page.page(tree))
        render.print_note(f"page: {html}, its figures: {tables}", aside=as_json)


def _print(tree: dict[str, Any]) -> None:
    from soundmark import render

    rows = tree["reports"]
    width = min(25, max(6, *(len(row["name"]) for row in rows)))
    first = render.Column("report", width)
    lines = render.Lines(
        [
            first,
            render.Column("accuracy", 8, True),
            render.Column("95 % interval", 15, True),
            render.Column("top 3", 6, True),
            render.Column("macro F1", 8, True),
            render.Column("ECE", 5, True),
        ]
    )
    for row in rows:
        for stamp in row["stamps"]:
            lines.say(f"{row['name']}: {stamp}", style="bold red")
    if not tree["same_clips"]:
        lines.say("These reports are not about the same clips; see the folds and the data.", style="yellow")
    lines.heads()
    for row in rows:
        low, high = row["accuracy_interval_95"]
        shares = (f"{row['accuracy']:.2%}", f"{low:.1%} - {high:.1%}", f"{row['top3']:.1%}")
        lines.row([row["name"], *shares, f"{row['macro_f1']:.3f}", f"{row['ece']:.3f}"])
    lines.say("")
    lines.columns = [
        first,
        render.Column("clips", 6, True),
        render.Column("size, kB", 8, True),
        render.Column("ms/clip", 7, True),
        render.Column("training", 8, True),
    ]
    lines.heads("against the first")
    for row in rows:
        rest = ""
        if (difference := row["difference"]) is not None:
            low, high = row["difference_interval_95"]
            rest = f"{100 * difference:+.2f} ({100 * low:+.1f} to {100 * high:+.1f})"
        seconds = row["training_seconds"]
        trained = (
            "-" if seconds is None else f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:,.0f} min"
        )
        size = f"{row['model_bytes'] / 1000:,.0f}"
        lines.row([row["name"], f"{row['clips']:,}", size, f"{row['ms_per_clip']:.1f}", trained], rest)
    lines.say("")
    for row in rows:
        folds = ", ".join(map(str, row["folds"]))
        lines.say(f"{row['name']}: {row['model']} on {row['data']}, fold {folds}")
        worst = [f"{pair['label']} as {pair['heard']} {pair['clips']}x" for pair in row["worst_pairs"][:3]]
        lines.say("confused most: " + (", ".join(worst) or "none"), indent="  ")
