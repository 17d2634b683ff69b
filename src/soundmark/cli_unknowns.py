"""``soundmark unknowns``: how well a preset tells sounds that it was not trained on, measured by leaving labels out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from soundmark import cli_options, config, errors
from soundmark.preset import load_preset


@click.command(short_help="Leave labels out, and see whether a preset notices.")
@click.argument("preset")
@cli_options.data
@cli_options.split
@cli_options.lenient
@click.option(
    "--test-fold",
    metavar="K[,K]",
    help="Fold that is scored, and never learnt from; of several, each draw has the next.",
)
@click.option("--train-folds", metavar="K,K", help="Narrower choice of training folds; default: all others.")
@click.option(
    "--out",
    type=cli_options.path,
    metavar="DIR",
    required=True,
    help="draw<n>/run, draw<n>/bundle, report.json.",
)
@click.option(
    "--teacher",
    "teachers",
    type=cli_options.teacher,
    multiple=True,
    metavar="DIR[=W]",
    help="Distil each draw from DIR/draw<n>, a folder of this command; several share their answers by weight.",
)
@cli_options.config_options(config.UnknownsConfig)
@cli_options.jobs
@cli_options.overriding
@cli_options.weights
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a table.")
def unknowns(
    preset: str,
    data: str | None,
    split_file: str | None,
    lenient: bool,
    test_fold: str | None,
    train_folds: str | None,
    out: Path,
    teachers: tuple[tuple[Path, float], ...],
    jobs: int,
    overrides: tuple[str, ...],
    weights: Path | None,
    as_json: bool,
    **fields: str | None,
) -> int:
    """Train PRESET without some labels, drawn at random, and see how well each score tells clips of those from others.

    Each draw is trained on the other labels' clips of all folds but --test-fold, exported, and scored on that fold and
    on speech-like, music-like and noise-like sounds made in code. With --teacher it is distilled, each draw from a
    teacher that never heard of its labels. The same command goes on where it was ended.
    """
    merged = load_preset(preset, overrides)
    wanted = config.from_options(fields, config.UnknownsConfig)
    chosen = cli_options.folds(train_folds) or ()
    aside = cli_options.folds(test_fold)
    import soundmark.learn  # noqa: F401 - says at once which extra is missing
    from soundmark import render
    from soundmark.learn import left_out
    from soundmark.sources import open_dataset
    from soundmark.splits import folded
    from soundmark.unknown_report import n_clips

    dataset = open_dataset(data, strict=False if lenient else None)
    dataset, split = folded(dataset, split_file, allow_leak=lenient)
    dataset = dataset.narrowed(merged.labels)
    if aside is None:
        raise click.UsageError(
            f"--test-fold is wanted: some of {', '.join(map(str, dataset.folds))}",
            click.get_current_context(),
        )
    for text in (*dataset.stamps, *dataset.warnings, *(split.warnings if split else ())):
        render.print_note(text, aside=True)
    totals = {"views": left_out.n_views(merged, dataset, aside, wanted, chosen)} if teachers else {}
    totals["epochs"] = left_out.n_epochs(merged, dataset, aside, wanted)
    totals["clips"] = n_clips(dataset, aside, wanted, chosen)
    with render.several_progress(totals) as on:
        left_out.train_draws(
            merged,
            dataset,
            test_folds=aside,
            out=out,
            config=wanted,
            train_folds=chosen,
            teachers=teachers,
            split=split,
            weights=weights,
            jobs=jobs,
            on_view=on.get("views"),
            on_epoch=on["epochs"],
            on_note=lambda text: render.print_note(text, aside=True),
        )
        report = left_out.score_draws(
            dataset,
            test_folds=aside,
            out=out,
            config=wanted,
            command=cli_options.command(click.get_current_context()),
            on_clip=on["clips"],
        )
    if as_json:
        render.print_json(report)
    else:
        _print(report)
    click.echo(f"report: {out / 'report.json'}", err=as_json)
    return errors.EXIT_SOME_FAILED if any(draw["failed"] for draw in report["draws"]) else errors.EXIT_OK


def _print(report: dict[str, Any]) -> None:
    from soundmark.foreign import FOREIGN_KINDS
    from soundmark.render import Column, Lines
    from soundmark.unknown_report import LEFT_OUT
    from soundmark.unknowns import SCORES

    figures, draws = report["figures"], report["draws"]
    of_draws = Lines(
        [
            Column("draw", 4, True),
            Column("fold", 4, True),
            Column("accuracy", 8, True),
            *(Column(kind, 11, True) for kind in SCORES),
        ]
    )
    for stamp in report["stamps"]:
        of_draws.say(stamp, style="bold red")
    of_draws.say(
        f"{draws[0]['model']} on {report['data']}: AUROC of known clips against clips of "
        f"{report['n_left_out']} of {report['n_labels']} labels that were left out"
    )
    of_draws.heads()
    for draw in draws:
        seen = [draw["scores"][kind].get(LEFT_OUT, {}).get("auroc") for kind in SCORES]
        of_draws.row(
            [str(draw["draw"]), str(draw["test_fold"]), f"{draw['accuracy']:.2%}", *map(_number, seen)]
        )
    of_draws.row(
        [
            "mean",
            "",
            f"{figures['accuracy_known']['mean']:.2%}",
            *(_mean(figures[k], LEFT_OUT) for k in SCORES),
        ],
        style="bold",
    )
    names = {LEFT_OUT: "left out", **{kind: kind for kind in FOREIGN_KINDS}}
    against = [Column(name, 8, True) for name in names.values()]
    means = Lines([Column("mean AUROC", 11), *against, Column("FPR at 95 %", 11, True)])
    means.heads()
    for kind in SCORES:
        cells = [_mean(figures[kind], what) for what in names]
        means.row([kind, *cells, _mean(figures[kind], LEFT_OUT, "fpr_at_95")])
    means.say("FPR at 95 %: left-out clips that pass where 95 % of the known clips pass.")


def _mean(figures: dict[str, Any], what: str, key: str = "auroc") -> str:
    return _number(figures[what][key]["mean"] if what in figures else None)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
