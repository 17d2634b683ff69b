"""``soundmark data``: to get, make, know and split a data set. Verbs that parse, call and print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from soundmark import cli_options, config, errors

if TYPE_CHECKING:
    from soundmark.dataset import Dataset

STRATEGIES = ("official", "stratified", "group", "group-kfold", "time")
MOST_LABELS = 20
"""Labels that are listed in the terminal; JSON has all."""

_root = click.argument("root", metavar="[DIR]", required=False)
_lenient = click.option(
    "--lenient",
    is_flag=True,
    help="Leave out bad rows and missing recordings, and name them, instead of refusing.",
)


@click.group(short_help="Get, make, know and split a data set.")
def data() -> None:
    """Get, make, know and split a data set.

    DIR is ESC-50, ``esc10:`` and ESC-50, UrbanSound8K, a table (filename,label[,fold][,source][,time]) or a folder per
    label; without it, $SOUNDMARK_ESC50.
    """


@data.command(short_help="Show what a data set is.")
@_root
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(root: str | None, as_json: bool) -> int:
    """Show layout, clips, labels, folds, sources, hours and warnings of DIR; what is wrong is listed, not refused."""
    from soundmark import render
    from soundmark.sources import open_dataset

    dataset = open_dataset(root, strict=False)
    with render.clip_progress("headers", len(dataset.clips)) as on_clip:
        facts = _facts(dataset, on_clip)
    if as_json:
        render.print_json(facts)
        return _status(dataset)
    lines = render.Lines()
    for stamp in dataset.stamps:
        lines.say(stamp, style="bold red")
    lines.pair("data", dataset.name)
    lines.pair("layout", dataset.layout)
    lines.pair("where", str(dataset.root))
    lines.pair("clips", f"{len(dataset.clips)} in {facts['hours']:.2f} hours")
    lines.pair("sources", str(facts["sources"]))
    lines.pair(
        "folds", _counts(facts["folds"]) if dataset.has_folds else "none: `soundmark data split` makes some"
    )
    lines.pair("labels", f"{len(dataset.labels)}: {_counts(facts['labels'])}")
    for warning in dataset.warnings:
        lines.pair("warning", warning)
    for problem in dataset.skipped[:MOST_LABELS]:
        lines.pair("left out", f"{problem.code}: {problem.message}")
    if len(dataset.skipped) > MOST_LABELS:
        lines.pair("left out", f"{len(dataset.skipped) - MOST_LABELS} more (--json lists them)")
    return _status(dataset)


@data.command(short_help="Fetch ESC-50 or ESC-10, and check it.")
@click.argument("name", type=click.Choice(["esc50", "esc10"]))
@click.option("--to", type=cli_options.path, metavar="DIR", required=True, help="New or empty folder.")
@click.option("--url", metavar="URL", help="Archive at another place; default: its publisher's, 0.6 GB.")
def download(name: Any, to: Path, url: str | None) -> None:
    """Fetch ESC-50, or the clips of ESC-10 in it, from its publisher; check every clip against a list of our own.

    Interrupted, the same command goes on where it stopped. DIR appears when all is there and checked.
    """
    from soundmark import render
    from soundmark.data import download as fetching

    dataset = fetching.download(name, to, url=url or fetching.URL, progress=render.clip_progress)
    render.print_note(f"{dataset.name}: {len(dataset.clips)} clips in {to}, each as in the official table")
    render.print_note(f"licence: {fetching.LICENCES[name]}")


@data.command(short_help="Make a small data set in code.")
@click.option("--out", type=cli_options.path, metavar="DIR", required=True, help="New or empty folder.")
@cli_options.config_options(config.SynthConfig)
def synth(out: Path, **fields: str | None) -> None:
    """Make a data set in the layout of ESC-50 (folds, sources, takes) whose labels differ in how a sound moves.

    For tests, tutorials and trying out; it says nothing about real recordings.
    """
    wanted = config.from_options(fields, config.SynthConfig)
    from soundmark import render
    from soundmark.data.synth import synthesise

    with render.clip_progress("clips", wanted.classes * wanted.clips) as on_clip:
        dataset = synthesise(out, wanted, on_clip=on_clip)
    render.print_note(f"{len(dataset.clips)} clips of {len(dataset.labels)} labels in {out}")


@data.command(short_help="Split a data set without leaks.")
@_root
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    default="group-kfold",
    show_default=True,
    help="How; all but stratified keep the clips of a source together.",
)
@click.option("--out", metavar="FILE", required=True, help="Split file to write (JSON).")
@click.option(
    "--test-size", type=float, default=0.2, show_default=True, metavar="X", help="Share of the test side."
)
@click.option("--folds", type=int, default=5, show_default=True, metavar="N", help="Folds of group-kfold.")
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="Another seed, another draw."
)
@click.option(
    "--allow-leak", is_flag=True, help="Make a leaking split, and stamp all that comes from it LEAKY."
)
@_lenient
def split(
    root: str | None,
    strategy: Any,
    out: str,
    test_size: float,
    folds: int,
    seed: int,
    allow_leak: bool,
    lenient: bool,
) -> int:
    """Write a split of DIR: which clip is on which side, with the digest of the data and a hash of its own."""
    from soundmark import render
    from soundmark.sources import open_dataset
    from soundmark.splits import apply_split, make_split

    dataset = open_dataset(root, strict=False if lenient else None)
    with render.clip_progress("hashes", len(dataset.clips)) as on_clip:
        hashes = dataset.hashes(on_clip)
    made = make_split(
        dataset, strategy, test_size=test_size, folds=folds, seed=seed, allow_leak=allow_leak, hashes=hashes
    )
    target = Path(out).expanduser()
    made.write(target)
    split_set = apply_split(dataset, made, hashes=hashes)
    lines = render.Lines()
    for stamp in made.stamps:
        lines.say(stamp, style="bold red")
    for warning in (*dataset.warnings, *made.warnings):
        lines.pair("warning", warning)
    sizes = Counter(clip.fold for clip in split_set.clips)
    sources = {
        fold: len({clip.source for clip in split_set.clips if clip.fold == fold}) for fold in split_set.folds
    }
    for fold in split_set.folds:
        name = ("train side", "test side")[fold - 1] if made.holdout else f"fold {fold}"
        lines.pair(name, f"{sizes[fold]} clips from {sources[fold]} sources")
    lines.pair("split", f"{target}, {made.sha256[:12]}")
    return _status(dataset)


def _facts(dataset: Dataset, on_clip: Callable[[int], None]) -> dict[str, Any]:
    labels = Counter(clip.label for clip in dataset.clips)
    seconds = sum(_seconds([clip.path for clip in dataset.clips], on_clip))
    return {
        "data": dataset.name,
        "layout": dataset.layout,
        "root": str(dataset.root),
        "clips": len(dataset.clips),
        "labels": {label: labels[label] for label in dataset.labels},
        "folds": dict(sorted(Counter(clip.fold for clip in dataset.clips).items()))
        if dataset.has_folds
        else {},
        "sources": len({clip.source for clip in dataset.clips}),
        "hours": round(seconds / 3600, 4),
        "warnings": list(dataset.warnings),
        "skipped": [problem.to_dict() for problem in dataset.skipped],
        "stamps": list(dataset.stamps),
    }


def _seconds(paths: Sequence[Path], on_clip: Callable[[int], None]) -> Iterator[float]:
    """Yield the durations that headers promise, 0 for a file that has none; `soundmark data inspect` decodes."""
    from concurrent.futures import ThreadPoolExecutor

    import soundfile

    def one(path: Path) -> float:
        try:
            duration = float(soundfile.info(str(path)).duration)
        except (RuntimeError, OSError, ValueError, ZeroDivisionError, OverflowError):
            return 0.0
        return duration if 0 < duration < 1e6 else 0.0

    with ThreadPoolExecutor() as pool:
        for seconds in pool.map(one, paths):
            on_clip(1)
            yield seconds


def _counts(sizes: dict[Any, int]) -> str:
    shown = ", ".join(f"{str(name)[:40]} ({n})" for name, n in list(sizes.items())[:MOST_LABELS])
    return shown + (f", and {len(sizes) - MOST_LABELS} more" if len(sizes) > MOST_LABELS else "")


def _status(dataset: Dataset) -> int:
    return errors.EXIT_SOME_FAILED if dataset.skipped else errors.EXIT_OK
