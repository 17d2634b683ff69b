"""``soundmark train``, ``export`` and ``evaluate``: from labelled recordings to a bundle and its report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from soundmark import cli_options, config, errors
from soundmark.preset import Preset, load_preset

if TYPE_CHECKING:
    from soundmark.dataset import Dataset
    from soundmark.evaluate import Report
    from soundmark.splits import Split


@click.command(short_help="Train a preset on every fold but one.")
@click.argument("preset")
@cli_options.data
@cli_options.split
@cli_options.lenient
@cli_options.test_fold(
    "Fold kept aside, or none: then nothing can judge the result. Default for data without folds: the last."
)
@click.option("--train-folds", metavar="K,K", help="Narrower choice of training folds; default: all others.")
@click.option("--out", type=cli_options.path, metavar="DIR", help="Run folder.")
@click.option("--resume", is_flag=True, help="Go on where the run folder stands.")
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override any preset value."
)
@click.option(
    "--export",
    "bundle_dir",
    type=cli_options.path,
    metavar="DIR",
    help="Write the bundle when training is done.",
)
@click.option("--weights", type=cli_options.path, metavar="FILE", help="Pretrained weights to start from.")
@click.option(
    "--smoke",
    "--fast-dev-run",
    "smoke",
    is_flag=True,
    help="A few clips, two epochs, export, evaluation: is the road whole?",
)
@click.option("--print-config", is_flag=True, help="Print the merged preset as TOML and stop.")
@cli_options.config_options(config.TrainConfig)
def train(
    preset: str,
    data: str | None,
    split_file: str | None,
    lenient: bool,
    test_fold: str | None,
    train_folds: str | None,
    out: Path | None,
    resume: bool,
    overrides: tuple[str, ...],
    bundle_dir: Path | None,
    weights: Path | None,
    smoke: bool,
    print_config: bool,
    **fields: str | None,
) -> None:
    """Train PRESET (a name or a TOML file) on every fold but --test-fold; the last epoch's averaged weights count.

    Data without folds gets five, every source in one, kept as split.json in the run folder. Recordings that cannot be
    read are left out and named. Order of values, later ones win: defaults, preset, --set, options named after a field.
    """
    merged = load_preset(preset, [*overrides, *cli_options.overrides("train", fields)])
    if print_config:
        click.echo(config.to_toml(merged), nl=False)
        return
    context = click.get_current_context()
    if out is None and not smoke:
        raise click.UsageError("--test-fold and --out are wanted", context)
    if bundle_dir is not None and bundle_dir.exists():
        raise errors.StorageError(f"{bundle_dir} exists", wanted="a new folder for --export")
    chosen = cli_options.folds(train_folds) or ()
    import soundmark.learn  # noqa: F401 - says at once which extra is missing
    from soundmark import render, render_model
    from soundmark.learn.export import export as run_export
    from soundmark.learn.train import train as run_training
    from soundmark.splits import folded

    dataset, split = _dataset(data, lenient), None
    if not smoke or not dataset.has_folds:  # a smoke run judges nothing, so it need not look for leaks
        dataset, split = folded(dataset, split_file, allow_leak=lenient)
    last = dataset.folds[-1] if split is not None or smoke else None
    aside = cli_options.held_out(test_fold, dataset.folds, default=last)
    if aside is not None:
        dataset.in_folds([aside])  # or it says which there are
    elif smoke:
        raise click.UsageError("--test-fold none is for training in full", context)
    for text in (*dataset.stamps, *dataset.warnings, *(split.warnings if split else ())):
        render.print_note(text, aside=True)
    if merged.ensemble.members:
        if weights or chosen:
            raise click.UsageError("--weights and --train-folds are for one network", context)
        _ensemble(merged, dataset, aside, out, bundle_dir, split, smoke)
        return
    if smoke or out is None:
        _smoke(merged, dataset, aside or 0, out, weights)
        return

    with render.training_progress(len(dataset.clips), merged.train.epochs) as (on_clip, on_epoch):
        run = run_training(
            merged,
            dataset,
            test_fold=aside,
            out=out,
            train_folds=chosen,
            split=split,
            weights=weights,
            resume=resume,
            on_clip=on_clip,
            on_epoch=on_epoch,
            on_note=lambda text: render.print_note(text, aside=True),
        )
    if bundle_dir is None:
        render.print_note(f"trained {run.path}; next: soundmark export {run.path} --out BUNDLE")
        return
    with render.clip_progress("features", len(dataset.clips)) as on_clip:
        written, agreement = run_export(run, bundle_dir, data=data, on_clip=on_clip)
    render_model.print_export(written, agreement.to_dict())


def _smoke(preset: Preset, dataset: Dataset, test_fold: int, out: Path | None, weights: Path | None) -> None:
    import tempfile

    from soundmark import render
    from soundmark.learn.smoke import EPOCHS, LABELS, TRAIN_CLIPS
    from soundmark.learn.smoke import smoke as run_smoke

    with (
        tempfile.TemporaryDirectory(prefix="soundmark-smoke-") as scratch,
        render.training_progress(LABELS * TRAIN_CLIPS, EPOCHS) as (on_clip, on_epoch),
    ):
        seen = run_smoke(
            preset,
            dataset,
            test_fold=test_fold,
            out=out or Path(scratch),
            weights=weights,
            on_clip=on_clip,
            on_epoch=on_epoch,
            on_note=lambda text: render.print_note(text, aside=True),
        )
    for line in seen.lines():
        render.print_note(line)


def _ensemble(
    preset: Preset,
    dataset: Dataset,
    test_fold: int | None,
    out: Path | None,
    target: Path | None,
    split: Split | None,
    smoke: bool,
) -> None:
    import tempfile

    from soundmark import render
    from soundmark.learn import teach
    from soundmark.learn.cv import train_ensemble

    def on_note(text: str) -> None:
        render.print_note(text, aside=True)

    if smoke or out is None:
        with tempfile.TemporaryDirectory(prefix="soundmark-smoke-") as scratch:
            for line in teach.smoke(
                preset, dataset, test_fold=test_fold or 0, out=out or Path(scratch), on_note=on_note
            ):
                render.print_note(line)
        return
    target = target or out / "ensemble"
    with render.clip_progress("epochs", teach.n_epochs(preset, dataset, test_fold)) as on_epoch:
        made = train_ensemble(
            preset,
            dataset,
            test_fold=test_fold,
            out=out,
            target=target,
            split=split,
            on_epoch=on_epoch,
            on_note=on_note,
        )
    render.print_note(f"wrote {made.path}: {len(made.models)} members, {made.n_bytes:,} bytes")


@click.command(short_help="Turn a finished run into a bundle.")
@click.argument("run", type=cli_options.path)
@click.option("--out", type=cli_options.path, metavar="DIR", required=True, help="Bundle directory to write.")
@click.option("--data", metavar="D", help="The data of the run, where it has moved.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")
@click.option(
    "--quote",
    type=cli_options.path,
    metavar="REPORT",
    help="Report over all folds, whose figure the card of a run on all clips quotes.",
)
@cli_options.config_options(config.ExportConfig)
def export(
    run: Path, out: Path, data: str | None, overwrite: bool, quote: Path | None, **fields: str | None
) -> None:
    """Turn a finished training RUN into a bundle: batch norm folded, int8, agreement checked."""
    import soundmark.learn  # noqa: F401 - says at once which extra is missing
    from soundmark import render, render_model
    from soundmark.learn.export import export as run_export
    from soundmark.learn.run_folder import open_run

    opened = open_run(run)
    merged = load_preset(run / "preset.toml", cli_options.overrides("export", fields))
    with render.clip_progress("features", opened.info["n_clips"]) as on_clip:
        written, agreement = run_export(
            opened,
            out,
            data=data,
            config=merged.export,
            quoted=quote,
            overwrite=overwrite,
            on_clip=on_clip,
        )
    render_model.print_export(written, agreement.to_dict())


@click.command(short_help="Score a bundle on folds of a data set.")
@cli_options.model
@cli_options.data
@cli_options.split
@cli_options.lenient
@click.option("--folds", metavar="K,K", help="Folds to score; default: all.")
@click.option("--out", type=cli_options.path, metavar="FILE", help="Report file (JSON).")
@click.option("--against", metavar="M", help="Second bundle: print how often both name the same label.")
@click.option("--known-labels", is_flag=True, help="Score the clips of the model's labels alone.")
@click.option(
    "--cv",
    type=cli_options.path,
    metavar="DIR",
    help="Bundles fold1 ..., each scored on the fold it never saw.",
)
@cli_options.threads
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a table.")
def evaluate(
    model: str | None,
    data: str | None,
    split_file: str | None,
    lenient: bool,
    folds: str | None,
    out: Path | None,
    against: str | None,
    known_labels: bool,
    cv: Path | None,
    threads: int,
    as_json: bool,
) -> int:
    """Score a bundle on folds of a data set: accuracy with its interval, top-3, macro F1, per class, confusion."""
    if cv and (model or against):
        raise click.UsageError("--cv goes without --model and --against", click.get_current_context())
    chosen = cli_options.folds(folds)
    dataset = _dataset(data, lenient)
    if cv:
        return _evaluate_cv(cv, dataset, split_file, chosen or (), threads, out, as_json)
    from soundmark import evaluate as evaluation
    from soundmark import render, render_model
    from soundmark.ensemble import load_model

    classifiers = [load_model(name, threads=threads) for name in ([model, against] if against else [model])]
    if split_file or dataset.has_folds or chosen or any(map(evaluation.split_of, classifiers)):
        from soundmark.splits import folded

        dataset, _ = folded(dataset, split_file, allow_leak=True)
    if known_labels:
        known = [label for label in dataset.labels if label in classifiers[0].labels]
        dataset = dataset.with_labels(known) if known != list(dataset.labels) else dataset
    command = cli_options.command(click.get_current_context())
    reports = []
    for classifier in classifiers:
        if out and classifier is classifiers[0]:  # before the minutes that it takes
            scored = chosen or dataset.folds
            evaluation.refuse_stamped(evaluation.stamps(classifier, dataset, tuple(scored)), out)
        n_clips = len((dataset.in_folds(chosen) if chosen else dataset).clips)
        with render.clip_progress(f"evaluate {classifier.name}", n_clips) as on_clip:
            reports.append(
                evaluation.evaluate(classifier, dataset, folds=chosen, on_clip=on_clip, command=command)
            )
    equal = evaluation.agreement(*reports) if against else None
    with _written(reports[0], out, as_json):
        if as_json:
            extra = {"against": {**reports[1].to_dict(), "equal_top_labels": equal}} if against else {}
            render.print_json({**reports[0].to_dict(), **extra})
        else:
            for report in reports:
                render_model.print_report(report)
            if equal is not None:
                render.print_note(f"equal top labels: {equal:.2%}")
    return errors.EXIT_SOME_FAILED if any(report.failures for report in reports) else errors.EXIT_OK


def _evaluate_cv(
    folder: Path,
    dataset: Dataset,
    split_file: str | None,
    folds: tuple[int, ...],
    threads: int,
    out: Path | None,
    as_json: bool,
) -> int:
    from soundmark import cross_validation, render, render_model
    from soundmark.splits import folded

    found = cross_validation.find_bundles(folder)
    dataset, _ = folded(dataset, split_file, allow_leak=True)
    classifiers = cross_validation.load_bundles(
        cross_validation.find_bundles(folder, folds or {*dataset.folds, *found}), threads=threads
    )
    n_clips = len(dataset.in_folds(classifiers).clips)
    with render.clip_progress("evaluate", n_clips) as on_clip:
        command = cli_options.command(click.get_current_context())
        report, _ = cross_validation.evaluate_folds(classifiers, dataset, on_clip=on_clip, command=command)
    with _written(report, out, as_json):
        if as_json:
            render.print_json(report.to_dict())
        else:
            render_model.print_report(report)
    return errors.EXIT_SOME_FAILED if report.failures else errors.EXIT_OK


@contextmanager
def _written(report: Report, out: Path | None, as_json: bool) -> Iterator[None]:
    """Write ``report`` after it was printed: a full disk costs no figures, and a closed pipe no report."""
    try:
        yield
    finally:
        if out:
            report.write(out)
    if out:
        click.echo(f"report: {out}", err=as_json)


def _dataset(data: str | None, lenient: bool) -> Dataset:
    from soundmark.sources import open_dataset

    return open_dataset(data, strict=False if lenient else None)
