"""``soundmark data prepare`` and ``soundmark features extract``: clean recordings, and arrays made of them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from soundmark import cli_options, config, errors
from soundmark.preset import load_preset

if TYPE_CHECKING:
    from soundmark.data.extract import Extraction
    from soundmark.data.prepare import Prepared
    from soundmark.dataset import Dataset
    from soundmark.render import Lines

KINDS = ("mfcc", "logmel", "spectrogram")
MOST_NAMED = 10
"""Clips that are named in the terminal; the files have all."""

_root = click.argument("root", metavar="[DIR]", required=False)
_out = click.option(
    "--out",
    type=cli_options.path,
    metavar="DIR",
    required=True,
    help="New folder, or one that an earlier run began.",
)
_max_seconds = click.option(
    "--max-seconds", type=float, metavar="S", help="A longer recording is left out, with the error too_long."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command(short_help="Write a clean copy of a data set.")
@_root
@_out
@cli_options.config_options(config.PrepareConfig)
@_max_seconds
@cli_options.lenient
@_json
def prepare(
    root: str | None,
    out: Path,
    max_seconds: float | None,
    lenient: bool,
    as_json: bool,
    **fields: str | None,
) -> int:
    """Write a clean copy of DIR: one channel, one rate, quiet ends cut off, levelled, 16 bits; originals stay.

    Silent recordings are kept whole and named. The copy is a data set with the same labels, folds and sources;
    prepare.csv in it has every recording before and after. Run it again to go on after an interruption.
    """
    chosen = config.overridden(config.PrepareConfig(), cli_options.overrides("", fields))
    limits = _limits(max_seconds)
    dataset = _dataset(root, lenient)
    from soundmark import render
    from soundmark.data.prepare import prepare as run

    with render.clip_progress("prepare", len(dataset.clips)) as on_clip:
        report = run(dataset, out, chosen, limits=limits, on_clip=on_clip)
    if as_json:
        render.print_json(report.to_dict())
    else:
        _print_prepared(report, dataset)
    return errors.EXIT_SOME_FAILED if report.failures or dataset.skipped else errors.EXIT_OK


@click.group(short_help="Turn recordings into arrays.")
def features() -> None:
    """Turn recordings into arrays for other programs; training needs none of this."""


@features.command(short_help="Write features of every clip of a data set.")
@_root
@_out
@click.option(
    "--kind", type=click.Choice(KINDS), default=None, help="What to compute. [default: mfcc, or the preset's]"
)
@click.option(
    "--preset", metavar="P", help="Take the front end of this preset (a name or a TOML file) as a start."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Length of a row in the array of all clips. [default: 99 % of the clips fit]",
)
@cli_options.config_options(config.FrontendConfig, but=frozenset({"kind"}))
@_max_seconds
@cli_options.lenient
@_json
def extract(
    root: str | None,
    out: Path,
    kind: str | None,
    preset: str | None,
    seconds: float | None,
    max_seconds: float | None,
    lenient: bool,
    as_json: bool,
    **fields: str | None,
) -> int:
    """Write the features of every clip of DIR, and all of them in one array that is read without loading it.

    `soundmark.dataset.load_features(DIR)` reads them. Options named after a value of the front end change it; 13 MFCCs
    at 44.1 kHz are the default. Run it again to go on after an interruption.
    """
    start = load_preset(preset).frontend if preset else config.FrontendConfig(kind="mfcc")
    chosen = config.overridden(start, cli_options.overrides("", {"kind": kind, **fields}))
    limits = _limits(max_seconds)
    dataset = _dataset(root, lenient)
    from soundmark import render
    from soundmark.data.extract import extract as run

    with render.clip_progress("features", len(dataset.clips)) as on_clip:
        report = run(dataset, out, chosen, seconds=seconds, limits=limits, on_clip=on_clip)
    if as_json:
        render.print_json(report.to_dict())
    else:
        _print_extraction(report, dataset, chosen)
    return errors.EXIT_SOME_FAILED if report.failures or dataset.skipped else errors.EXIT_OK


def _limits(max_seconds: float | None) -> config.AudioLimits:
    given = {} if max_seconds is None else {"max_seconds": max_seconds}
    return config.from_dict(given, config.AudioLimits, where="command line")


def _dataset(root: str | None, lenient: bool) -> Dataset:
    from soundmark.sources import open_dataset

    return open_dataset(root, strict=False if lenient else None)


def _print_prepared(report: Prepared, dataset: Dataset) -> None:
    """Print the before/after table of all recordings, and the recordings that a person should know of."""
    from soundmark import render

    good = [row for row in report.rows if not row.error]
    sounding = [row for row in good if "silent" not in row.flags.split()]
    lines = render.Lines([render.Column("", 22), render.Column("before", 22), render.Column("after", 22)])
    _print_warnings(lines, dataset)
    lines.heads()
    rates = Counter(f"{row.rate_hz} Hz" for row in good)
    channels = Counter("mono" if row.channels == 1 else f"{row.channels} channels" for row in good)
    written = {name.rpartition(".")[2] for name in (row.written for row in good)}
    lines.row(["rate", _counted(rates), f"{report.config.sample_rate} Hz"])
    lines.row(["channels", _counted(channels), "mono"])
    lines.row(
        ["format", _counted(Counter(row.container for row in good)), "/".join(sorted(written)) + ", 16 bits"]
    )
    hours = [sum(row.before_s for row in good) / 3600, sum(row.after_s for row in good) / 3600]
    lines.row(["hours", *(f"{one:.3f}" for one in hours)])
    for title, name, unit in (("length", "s", "s"), ("peak", "peak_db", "dB"), ("RMS", "rms_db", "dB")):
        sides = [[getattr(row, f"{side}_{name}") for row in sounding] for side in ("before", "after")]
        lines.row([f"{title}: low, mid, high", *(_spread(side, unit) for side in sides)])
    lines.console.print()
    cut = sum(row.trimmed_start_s + row.trimmed_end_s > 0 for row in good)
    lines.pair("recordings", f"{report.written} written, {report.kept} kept, {len(report.failures)} failed")
    lines.pair("trimmed", f"{cut}, by {3600 * (hours[0] - hours[1]):.1f} s in all")
    for flag, text in (("gain_limited", "quieter than asked"), ("clamped", "cut at full scale")):
        if names := [row.name for row in good if flag in row.flags.split()]:
            lines.pair(text, _named(names), indent=20)
    if report.silent:
        lines.pair("silent, kept", _named([row.name for row in report.silent]))
    _print_failed(lines, [(row.name, row.error, row.message) for row in report.failures])
    lines.pair("table", str(report.out / "prepare.csv"))


def _print_extraction(report: Extraction, dataset: Dataset, chosen: config.FrontendConfig) -> None:
    from soundmark import render
    from soundmark.feature_files import all_file

    lines = render.Lines()
    _print_warnings(lines, dataset)
    lines.pair(
        "features",
        f"{chosen.kind} at {chosen.sample_rate} Hz, {report.computed} computed, {report.kept} kept",
    )
    whole = all_file(report.out, chosen.kind)
    size = 4 * report.shape[0] * report.shape[1] * report.shape[2] / 1e6
    lines.pair("all clips", f"{whole}, {' x '.join(map(str, report.shape))} float32, {size:.1f} MB")
    if report.padded:
        hint = "; --seconds makes rows shorter" if report.padding > 0.5 else ""
        lines.pair("padded", f"{report.padded} shorter clips, {report.padding:.1%} of the array{hint}")
    if report.cut:
        lines.pair("cut", f"{report.cut} longer clips; their own files have all of them")
    _print_failed(lines, [(name, error.code, str(error)) for name, error in report.failures])


def _print_warnings(lines: Lines, dataset: Dataset) -> None:
    for stamp in dataset.stamps:
        lines.say(stamp, style="bold red")
    for warning in dataset.warnings:
        lines.pair("warning", warning)


def _print_failed(lines: Lines, failures: Sequence[tuple[str, str, str]]) -> None:
    for _, code, message in failures[:MOST_NAMED]:
        lines.pair("failed", f"{code}: {message}")
    if len(failures) > MOST_NAMED:
        lines.pair("failed", f"{len(failures) - MOST_NAMED} more (see the folder, or --json)")


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{len(names)}: {', '.join(names[:MOST_NAMED])}{more}"


def _counted(sizes: Counter[str]) -> str:
    (most, n), *others = sizes.most_common() or [("none", 0)]
    return f"{most} ({n} of {n + sum(m for _, m in others)})" if others else most


def _spread(values: Sequence[float], unit: str) -> str:
    if not values:
        return "-"
    low, middle, high = (round(f(values), 1) + 0.0 for f in (min, statistics.median, max))  # + 0.0: no "-0.0"
    return f"{low:.1f}, {middle:.1f}, {high:.1f} {unit}"
