"""``soundmark cv`` and ``tune``: one preset trained many times, and what to believe of it or to change in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from soundmark import cli_options, errors
from soundmark.preset import load_preset

if TYPE_CHECKING:
    from soundmark.dataset import Dataset
    from soundmark.learn.tune import Tuned
    from soundmark.learn.tune_page import Row
    from soundmark.splits import Split

_SHOWN = 5
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON instead of a table.")


@click.command(short_help="Train, export and score a preset once per fold.")
@click.argument("preset")
@cli_options.data
@cli_options.split
@cli_options.lenient
@click.option(
    "--out",
    type=cli_options.path,
    metavar="DIR",
    required=True,
    help="fold<k>/run, fold<k>/bundle, report.json.",
)
@click.option("--folds", metavar="K,K", help="Folds to do; default: all. Others can follow later.")
@click.option(
    "--teacher",
    "teachers",
    type=cli_options.teacher,
    multiple=True,
    metavar="DIR[=W]",
    help="Distil each fold from DIR/fold<k>, a folder of `cv`; several share their answers by weight.",
)
@click.option("--inner", is_flag=True, help="Inner runs, too: inner-3-4-5/bundle, to fit on and as teachers.")
@click.option(
    "--calibrate", is_flag=True, help="Fit the temperature of each bundle on the answers of inner runs."
)
@cli_options.jobs
@cli_options.overriding
@cli_options.weights
@_json
def cv(
    preset: str,
    data: str | None,
    split_file: str | None,
    lenient: bool,
    out: Path,
    folds: str | None,
    teachers: tuple[tuple[Path, float], ...],
    inner: bool,
    calibrate: bool,
    jobs: int,
    overrides: tuple[str, ...],
    weights: Path | None,
    as_json: bool,
) -> int:
    """Train PRESET once per fold without that fold, export int8 bundles, score each on its fold, write one report.

    With --teacher it is distilled, each fold from a teacher that has never seen it, inner runs from theirs.
    The same command goes on where it was ended, whatever ended it.
    """
    merged = load_preset(preset, overrides)
    chosen = cli_options.folds(folds) or ()
    import soundmark.learn  # noqa: F401 - says at once which extra is missing
    from soundmark import render, render_model
    from soundmark.learn import cv as crossing

    dataset, split = _folded(data, split_file, lenient)
    more = inner or calibrate
    totals = {"views": crossing.n_views(merged, dataset, chosen, inner=more)} if teachers else {}
    totals["epochs"] = crossing.n_epochs(merged, dataset, chosen, inner=more)
    totals["clips"] = crossing.n_clips(merged, dataset, chosen, calibrate=calibrate)
    with render.several_progress(totals) as on:
        report = crossing.cross_validate(
            merged,
            dataset,
            out=out,
            folds=chosen,
            teachers=teachers,
            inner=inner,
            calibrate=calibrate,
            split=split,
            weights=weights,
            jobs=jobs,
            command=cli_options.command(click.get_current_context()),
            on_view=on.get("views"),
            on_epoch=on["epochs"],
            on_clip=on["clips"],
            on_note=lambda text: render.print_note(text, aside=True),
        )
    if as_json:
        render.print_json(report.to_dict())
    else:
        render_model.print_report(report)
    click.echo(f"report: {out / 'report.json'}", err=as_json)
    return errors.EXIT_SOME_FAILED if report.failures else errors.EXIT_OK


@click.command(short_help="Search for better values of a preset.")
@click.argument("preset")
@cli_options.data
@cli_options.split
@cli_options.lenient
@click.option(
    "--out",
    type=cli_options.path,
    metavar="DIR",
    required=True,
    help="The study, best.toml, trials.csv, tune.html.",
)
@click.option(
    "--trials",
    type=click.IntRange(1, 100_000),
    required=True,
    metavar="N",
    help="Finished trials that the study is to have, pruned ones included.",
)
@click.option("--test-fold", type=int, metavar="K", help="Fold that is never read; default: the last.")
@click.option(
    "--pruner",
    type=click.Choice(["median", "hyperband", "none"]),
    default="median",
    show_default=True,
    help="What ends bad trials early.",
)
@cli_options.jobs
@cli_options.overriding
@cli_options.weights
@_json
def tune(
    preset: str,
    data: str | None,
    split_file: str | None,
    lenient: bool,
    out: Path,
    trials: int,
    test_fold: int | None,
    pruner: Literal["median", "hyperband", "none"],
    jobs: int,
    overrides: tuple[str, ...],
    weights: Path | None,
    as_json: bool,
) -> None:
    """Search around PRESET, where its [tune] section says, by the loss on an inner split of the training folds.

    The same command goes on where it was ended; started again elsewhere meanwhile, it works on the same study.
    """
    merged = load_preset(preset, overrides)
    if merged.ensemble.members:
        raise errors.ConfigError(f"{merged.name} is an ensemble", wanted="one of its members")
    import soundmark.learn  # noqa: F401 - says at once which extra is missing
    from soundmark import render
    from soundmark.learn.tune import tune as run_tuning

    dataset, split = _folded(data, split_file, lenient, aside=test_fold or 0)
    test_fold = test_fold or dataset.folds[-1]

    with render.clip_progress("trials", trials) as on_clip:

        def on_trial(row: Row) -> None:
            on_clip(1)
            loss = "no loss" if row.loss is None else f"inner loss {row.loss:.4f}"
            render.print_note(
                f"trial {row.number}: {row.state}, {loss}, {row.epochs} epochs, {row.seconds:.0f} s"
                + (f" ({row.why})" if row.why else ""),
                aside=True,
            )

        tuned = run_tuning(
            merged,
            dataset,
            test_fold=test_fold,
            out=out,
            trials=trials,
            pruner=pruner,
            jobs=jobs,
            split=split,
            weights=weights,
            on_trial=on_trial,
        )
    if as_json:
        render.print_json(tuned.to_dict())
    else:
        _print(tuned, test_fold)


def _print(tuned: Tuned, test_fold: int) -> None:
    from soundmark.learn.tune_page import ranked, settings
    from soundmark.render import Column, Lines

    lines = Lines([Column("trial", 5, True), Column("loss", 7, True), Column("epochs", 6, True)])
    pruned = sum(row.state == "pruned" for row in tuned.rows)
    lines.say(f"{len(tuned.rows)} trials, {pruned} pruned; the best:")
    lines.heads("state")
    for row in ranked(tuned.rows)[:_SHOWN]:
        loss = "" if row.loss is None else f"{row.loss:.4f}"
        lines.row([str(row.number), loss, str(row.epochs)], row.state)
    if tuned.best:
        (best,) = (row for row in tuned.rows if row.number == tuned.number)
        lines.say(f"trial {best.number}: {settings(best)}")
    if tuned.importances:
        first = sorted(tuned.importances.items(), key=lambda item: -item[1])[:_SHOWN]
        lines.say("what mattered most: " + ", ".join(f"{path} {share:.0%}" for path, share in first))
    lines.say(f"trials: {tuned.out / 'trials.csv'}, {tuned.out / 'tune.html'}")
    if tuned.best:
        command = f"soundmark train {tuned.out / 'best.toml'} --test-fold {test_fold}"
        lines.say(f"next: {command} --data D --out RUN")


def _folded(
    data: str | None, split_file: str | None, lenient: bool, *, aside: int | None = None
) -> tuple[Dataset, Split | None]:
    """Return the data set with folds; with ``aside`` (0: the last fold) no clip of that fold is opened for it."""
    from dataclasses import replace

    from soundmark import render
    from soundmark.sources import open_dataset
    from soundmark.splits import folded

    dataset = open_dataset(data, strict=False if lenient else None)
    split = None
    if aside is None or split_file or not dataset.has_folds:
        dataset, split = folded(dataset, split_file, allow_leak=lenient)
    else:
        test = dataset.in_folds([aside or dataset.folds[-1]]).clips
        others = replace(dataset, clips=tuple(clip for clip in dataset.clips if clip not in {*test}))
        others, _ = folded(others, allow_leak=lenient)
        dataset = replace(others, clips=dataset.clips)
    for text in (*dataset.stamps, *dataset.warnings, *(split.warnings if split else ())):
        render.print_note(text, aside=True)
    return dataset, split
