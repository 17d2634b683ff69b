"""The command line: verbs that parse, call and print. Everything heavy is imported inside the verb that needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from soundmark import __version__, config, errors

if TYPE_CHECKING:
    from soundmark.dataset import Dataset

MODEL_HELP = "Bundle directory, or the name of one that ships with the package."
DATA_HELP = "ESC-50 folder (meta/esc50.csv and audio/); default: $SOUNDMARK_ESC50."


def main() -> None:
    """Run the command and exit with a status of `soundmark.errors`; no traceback for a user's mistake."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        cli.main(prog_name="soundmark", standalone_mode=False)
        status = errors.EXIT_OK
        sys.stdout.flush()
    except click.exceptions.Exit as exit_:
        status = exit_.exit_code
    except click.Abort:
        click.echo("interrupted", err=True)
        status = errors.EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        status = errors.EXIT_USAGE
    except errors.SoundmarkError as error:
        click.echo(f"soundmark: {error.code}: {error}", err=True)
        status = error.exit_status
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        status = errors.EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left: nothing to say
        status = errors.EXIT_OK
    sys.exit(status)


def config_options(kind: type[config.Config], section: str) -> Callable[[Any], Any]:
    """Return a decorator that adds one option per field of ``kind``, as an override of ``section.field``."""

    def decorate(verb: Any) -> Any:
        for name, comment in reversed(config.describe(kind).items()):
            verb = click.option(
                f"--{name.replace('_', '-')}", f"{section}.{name}", metavar="VALUE", help=comment
            )(verb)
        return verb

    return decorate


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="soundmark")
def cli() -> None:
    """Recognise environmental sounds on small machines: train, judge honestly, compress, classify."""


@cli.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--model", metavar="M", help=MODEL_HELP)
@click.option(
    "--top-k", type=click.IntRange(1), default=3, show_default=True, help="Labels listed per recording."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "jsonl", "csv"]),
    default="table",
    show_default=True,
)
@click.option("--max-seconds", type=float, help=config.describe(config.AudioLimits)["max_seconds"])
@click.option("--strict", is_flag=True, help="Refuse damaged recordings instead of flagging them.")
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of one model run."
)
def classify(
    paths: tuple[str, ...],
    model: str | None,
    top_k: int,
    form: str,
    max_seconds: float | None,
    strict: bool,
    threads: int,
) -> None:
    """Name the sounds in recordings. PATH is a file, a folder, a glob pattern, or - for standard input."""
    from soundmark import batch, render
    from soundmark.classifier import Classifier

    given = {} if max_seconds is None else {"max_seconds": max_seconds}
    limits = config.from_dict(given, config.AudioLimits, where="command line")
    classifier = Classifier.load(model, threads=threads)
    found = batch.expand(paths)
    rows = batch.classify_found(classifier, found, top_k=top_k, limits=limits, strict=strict)
    failed = render.show_rows(rows, form, top_k=top_k, total=len(found))
    if failed:
        raise click.exceptions.Exit(errors.EXIT_SOME_FAILED)


@cli.command(short_help="Train a preset on every fold but one.")
@click.argument("preset")
@click.option("--data", metavar="D", help=DATA_HELP)
@click.option("--test-fold", type=int, help="Fold kept aside: never read while training.")
@click.option("--train-folds", metavar="K,K", help="Narrower choice of training folds; default: all others.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.")
@click.option("--resume", is_flag=True, help="Go on where the run folder stands.")
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override any preset value."
)
@click.option("--print-config", is_flag=True, help="Print the merged preset as TOML and stop.")
@config_options(config.TrainConfig, "train")
def train(
    preset: str,
    data: str | None,
    test_fold: int | None,
    train_folds: str | None,
    out: Path | None,
    resume: bool,
    overrides: tuple[str, ...],
    print_config: bool,
    **fields: str | None,
) -> None:
    """Train PRESET (a name or a TOML file) on every fold but --test-fold; the last epoch's averaged weights count.

    Order of values: defaults, preset, --set, options named after a field.
    """
    from_options = [f"{key}={value}" for key, value in fields.items() if value is not None]
    merged = config.load_preset(preset, [*overrides, *from_options])
    if print_config:
        click.echo(config.to_toml(merged), nl=False)
        return
    if test_fold is None or out is None:
        raise click.UsageError("--test-fold and --out are wanted")
    dataset = _dataset(data)
    from soundmark import render
    from soundmark.learn.train import train as run_training

    with render.training_progress(len(dataset.clips), merged.train.epochs) as (on_clip, on_epoch):
        run = run_training(
            merged,
            dataset,
            test_fold=test_fold,
            out=out,
            train_folds=_folds(train_folds) if train_folds else (),
            resume=resume,
            on_clip=on_clip,
            on_epoch=on_epoch,
        )
    click.echo(f"trained {run.path}; next: soundmark export {run.path} --out BUNDLE")


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Bundle directory to write.")
@click.option("--data", metavar="D", help="The data of the run, where it has moved.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")
@config_options(config.ExportConfig, "export")
def export(run: Path, out: Path, data: str | None, overwrite: bool, **fields: str | None) -> None:
    """Turn a finished training RUN into a bundle: batch norm folded, int8, agreement checked."""
    from soundmark import render
    from soundmark.learn.export import export as run_export
    from soundmark.learn.train import open_run

    opened = open_run(run)
    from_options = [f"{key}={value}" for key, value in fields.items() if value is not None]
    merged = config.load_preset(run / "preset.toml", from_options)
    with render.clip_progress("features", opened.info["n_clips"]) as on_clip:
        written, agreement = run_export(
            opened, out, data=data, config=merged.export, overwrite=overwrite, on_clip=on_clip
        )
    render.print_export(written, agreement.to_dict())


@cli.command()
@click.option("--model", metavar="M", help=MODEL_HELP)
@click.option("--data", metavar="D", help=DATA_HELP)
@click.option("--folds", metavar="K,K", help="Folds to score; default: all.")
@click.option("--out", type=click.Path(path_type=Path), help="Report file (JSON).")
@click.option("--against", metavar="M", help="Second bundle: print how often both name the same label.")
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of one model run."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a table.")
def evaluate(
    model: str | None,
    data: str | None,
    folds: str | None,
    out: Path | None,
    against: str | None,
    threads: int,
    as_json: bool,
) -> None:
    """Score a bundle on folds of a data set: accuracy with its interval, top-3, macro F1, per class, confusion."""
    dataset = _dataset(data)
    chosen = _folds(folds) if folds else None
    from soundmark import evaluate as evaluation
    from soundmark import render
    from soundmark.classifier import Classifier

    reports = []
    for name in (model, against) if against else (model,):
        classifier = Classifier.load(name, threads=threads)
        n_clips = len((dataset.in_folds(chosen) if chosen else dataset).clips)
        with render.clip_progress(f"evaluate {classifier.name}", n_clips) as on_clip:
            reports.append(evaluation.evaluate(classifier, dataset, folds=chosen, on_clip=on_clip))
    if out:
        reports[0].write(out)
    if as_json:
        render.print_json(reports[0].to_dict())
        return
    for report in reports:
        render.print_report(report)
    if against:
        click.echo(f"equal top labels: {evaluation.agreement(*reports):.2%}")
    if out:
        click.echo(f"report: {out}")


@cli.command()
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print bundle.json.")
def info(model: str | None, as_json: bool) -> None:
    """Show what a bundle is: labels, front end, training, export, licence, hashes."""
    from soundmark import bundle, render

    render.print_bundle(bundle.read(model), as_json=as_json)


@cli.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("soundmark-demo"), show_default=True)
@click.option("--model", metavar="M", help=MODEL_HELP)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Another seed, other sounds."
)
def demo(out: Path, model: str | None, seed: int) -> None:
    """Make everyday sounds in code, write them as WAV files, and let the model name them, right or wrong."""
    from soundmark import render
    from soundmark.classifier import Classifier
    from soundmark.demo import demo_clips

    classifier = Classifier.load(model)
    render.print_demo(classifier, demo_clips(seed=seed), out)


def _dataset(data: str | None) -> Dataset:
    from soundmark.dataset import load_esc50

    return load_esc50(data)


def _folds(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of folds such as 5 or 1,2") from None
