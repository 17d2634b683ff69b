"""The command line: verbs that parse, call and print. Everything heavy is imported inside the verb that needs it.

Exit statuses and codes are in docs/reference/outcomes.md, options in docs/reference/cli.md (made from this file).
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from soundmark import __version__, cli_data, config, errors

if TYPE_CHECKING:
    from soundmark.dataset import Dataset

EXIT_PIPE = 141
"""The reader of standard output left (``| head``): 128 + SIGPIPE, as other programs in a pipe end."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command and exit with a status of `soundmark.errors`; no traceback for a user's mistake."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _run(sys.argv[1:] if args is None else list(args))
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        _say("usage", error.format_message(), hint=f"try: {context.command_path} --help" if context else "")
        status = errors.EXIT_USAGE
    except errors.SoundmarkError as error:
        _say(error.code, str(error))
        status = error.exit_status
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted", "what is finished is kept")
        status = errors.EXIT_INTERRUPTED
    except BrokenPipeError:
        _close_stdout()
        status = EXIT_PIPE
    except OSError as error:
        if error.filename is not None:
            raise
        _close_stdout()  # a full disk behind `> rows.jsonl`; errors of files that we open carry their name
        _say("storage", f"standard output cannot be written ({error.strerror}); finished rows are kept")
        status = errors.EXIT_DISK
    sys.exit(status)


def _run(args: list[str]) -> int:
    if "_SOUNDMARK_COMPLETE" in os.environ:
        cli.main(args, prog_name="soundmark")
    if not args:
        click.echo(cli.get_help(click.Context(cli, info_name="soundmark", **cli.context_settings)), err=True)
        return errors.EXIT_USAGE
    try:
        with cli.make_context("soundmark", args) as context:
            return int(cli.invoke(context) or errors.EXIT_OK)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code


def _say(code: str, message: str, *, hint: str = "") -> None:
    if not message.isprintable():
        from soundmark.batch import visible

        message = visible(message)
    with contextlib.suppress(OSError):
        click.echo(f"soundmark: {code}: {message}" + (f"\n{hint}" if hint else ""), err=True)


def _close_stdout() -> None:
    """Let what is still buffered go nowhere, so that Python does not fail on it at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _path(text: str) -> Path:
    """Return a path with ``~`` expanded also in ``--out=~/x``, which shells leave alone."""
    return Path(text).expanduser()


def config_options(kind: type[config.Config]) -> Callable[[Any], Any]:
    """Return a decorator that adds one option per field of ``kind``, under the name of the field."""
    comments = config.describe(kind)

    def decorate(verb: Any) -> Any:
        for name, hint in reversed(config.fields(kind).items()):
            flag = f"--{name.replace('_', '-')}"
            verb = click.option(flag, name, help=comments.get(name), **_value(hint))(verb)
        return verb

    return decorate


def _value(hint: Any) -> dict[str, Any]:
    """Return the type and the placeholder of an option; numbers are checked where all config values are."""
    if get_origin(hint) is Literal:
        return {"type": click.Choice(get_args(hint))}
    if hint is bool:
        return {"type": click.Choice(["true", "false"])}
    bare = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    return {"metavar": {int: "N", float: "X"}.get(bare, "VALUE")}


_model = click.option(
    "--model", metavar="M", help="Bundle directory, or the name of one that ships with the package."
)
_data = click.option(
    "--data", metavar="D", help="Any data set that `soundmark data` reads; default: $SOUNDMARK_ESC50."
)
_split = click.option(
    "--split",
    "split_file",
    metavar="FILE",
    help="Folds from `soundmark data split` instead of the data's own.",
)
_lenient = click.option(
    "--lenient",
    is_flag=True,
    help="Leave out bad rows and missing recordings instead of refusing; stamp leaks.",
)
_threads = click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Threads of a model run.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="soundmark")
def cli() -> None:
    """Recognise environmental sounds on small machines: train, judge honestly, compress, classify."""


cli.add_command(cli_data.data)


@cli.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@_model
@click.option(
    "--top-k", type=click.IntRange(1), default=3, show_default=True, metavar="K", help="Labels per recording."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "jsonl", "csv"]),
    default="table",
    show_default=True,
    help="For people (table, csv) or programs (json, jsonl).",
)
@click.option(
    "--max-seconds", type=float, metavar="S", help="A longer recording is a row with the error too_long."
)
@click.option("--strict", is_flag=True, help="Refuse damaged recordings instead of flagging them.")
@_threads
def classify(
    paths: tuple[str, ...],
    model: str | None,
    top_k: int,
    form: str,
    max_seconds: float | None,
    strict: bool,
    threads: int,
) -> int:
    """Name the sounds in recordings. PATH is a file, a folder, a glob pattern, or - for standard input."""
    given = {} if max_seconds is None else {"max_seconds": max_seconds}
    limits = config.from_dict(given, config.AudioLimits, where="command line")
    from soundmark import batch, render
    from soundmark.classifier import Classifier

    classifier = Classifier.load(model, threads=threads)
    found = batch.expand(paths)
    rows = batch.classify_found(classifier, found, top_k=top_k, limits=limits, strict=strict)
    names = [os.fspath(one.path) for one in found]
    failed = render.show_rows(rows, form, top_k=top_k, paths=names, labels=classifier.labels)
    return errors.EXIT_SOME_FAILED if failed else errors.EXIT_OK


@cli.command(short_help="Train a preset on every fold but one.")
@click.argument("preset")
@_data
@_split
@_lenient
@click.option(
    "--test-fold",
    type=int,
    metavar="K",
    help="Fold kept aside: never learnt from. Wanted where the data has folds; default for others: the last.",
)
@click.option("--train-folds", metavar="K,K", help="Narrower choice of training folds; default: all others.")
@click.option("--out", type=_path, metavar="DIR", help="Run folder.")
@click.option("--resume", is_flag=True, help="Go on where the run folder stands.")
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override any preset value."
)
@click.option(
    "--export", "bundle_dir", type=_path, metavar="DIR", help="Write the bundle when training is done."
)
@click.option("--print-config", is_flag=True, help="Print the merged preset as TOML and stop.")
@config_options(config.TrainConfig)
def train(
    preset: str,
    data: str | None,
    split_file: str | None,
    lenient: bool,
    test_fold: int | None,
    train_folds: str | None,
    out: Path | None,
    resume: bool,
    overrides: tuple[str, ...],
    bundle_dir: Path | None,
    print_config: bool,
    **fields: str | None,
) -> None:
    """Train PRESET (a name or a TOML file) on every fold but --test-fold; the last epoch's averaged weights count.

    Data without folds gets five, every source in one, kept as split.json in the run folder. Recordings that cannot be
    read are left out and named. Order of values, later ones win: defaults, preset, --set, options named after a field.
    """
    merged = config.load_preset(preset, [*overrides, *_overrides("train", fields)])
    if print_config:
        click.echo(config.to_toml(merged), nl=False)
        return
    context = click.get_current_context()
    if out is None:
        raise click.UsageError("--test-fold and --out are wanted", context)
    if bundle_dir is not None and bundle_dir.exists():
        raise errors.StorageError(f"{bundle_dir} exists", wanted="a new folder for --export")
    chosen = _folds(train_folds) or ()
    import soundmark.learn  # noqa: F401 - says at once which extra is missing
    from soundmark import render
    from soundmark.learn.export import export as run_export
    from soundmark.learn.train import train as run_training
    from soundmark.splits import folded

    dataset, split = folded(_dataset(data, lenient), split_file, allow_leak=lenient)
    if test_fold is None and split is None:
        raise click.UsageError(f"--test-fold is wanted: one of {', '.join(map(str, dataset.folds))}", context)
    if split is not None:
        test_fold = test_fold or dataset.folds[-1]
        dataset.in_folds([test_fold])  # or it says which there are
    for text in (*dataset.stamps, *dataset.warnings, *(split.warnings if split else ())):
        render.print_note(text, aside=True)

    with render.training_progress(len(dataset.clips), merged.train.epochs) as (on_clip, on_epoch):
        run = run_training(
            merged,
            dataset,
            test_fold=test_fold or 0,
            out=out,
            train_folds=chosen,
            split=split,
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
    render.print_export(written, agreement.to_dict())


@cli.command(short_help="Turn a finished run into a bundle.")
@click.argument("run", type=_path)
@click.option("--out", type=_path, metavar="DIR", required=True, help="Bundle directory to write.")
@click.option("--data", metavar="D", help="The data of the run, where it has moved.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")
@config_options(config.ExportConfig)
def export(run: Path, out: Path, data: str | None, overwrite: bool, **fields: str | None) -> None:
    """Turn a finished training RUN into a bundle: batch norm folded, int8, agreement checked."""
    import soundmark.learn  # noqa: F401 - says at once which extra is missing
    from soundmark import render
    from soundmark.learn.export import export as run_export
    from soundmark.learn.train import open_run

    opened = open_run(run)
    merged = config.load_preset(run / "preset.toml", _overrides("export", fields))
    with render.clip_progress("features", opened.info["n_clips"]) as on_clip:
        written, agreement = run_export(
            opened, out, data=data, config=merged.export, overwrite=overwrite, on_clip=on_clip
        )
    render.print_export(written, agreement.to_dict())


@cli.command(short_help="Score a bundle on folds of a data set.")
@_model
@_data
@_split
@_lenient
@click.option("--folds", metavar="K,K", help="Folds to score; default: all.")
@click.option("--out", type=_path, metavar="FILE", help="Report file (JSON).")
@click.option("--against", metavar="M", help="Second bundle: print how often both name the same label.")
@_threads
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a table.")
def evaluate(
    model: str | None,
    data: str | None,
    split_file: str | None,
    lenient: bool,
    folds: str | None,
    out: Path | None,
    against: str | None,
    threads: int,
    as_json: bool,
) -> int:
    """Score a bundle on folds of a data set: accuracy with its interval, top-3, macro F1, per class, confusion."""
    chosen = _folds(folds)
    dataset = _dataset(data, lenient)
    from soundmark import evaluate as evaluation
    from soundmark import render
    from soundmark.classifier import Classifier

    classifiers = [
        Classifier.load(name, threads=threads) for name in ([model, against] if against else [model])
    ]
    if split_file or dataset.has_folds or chosen or any(map(evaluation.split_of, classifiers)):
        from soundmark.splits import folded

        dataset, _ = folded(dataset, split_file, allow_leak=True)
    reports = []
    for classifier in classifiers:
        n_clips = len((dataset.in_folds(chosen) if chosen else dataset).clips)
        with render.clip_progress(f"evaluate {classifier.name}", n_clips) as on_clip:
            reports.append(evaluation.evaluate(classifier, dataset, folds=chosen, on_clip=on_clip))
    equal = evaluation.agreement(*reports) if against else None
    if as_json:
        extra = {"against": {**reports[1].to_dict(), "equal_top_labels": equal}} if against else {}
        render.print_json({**reports[0].to_dict(), **extra})
    else:
        for report in reports:
            render.print_report(report)
        if equal is not None:
            render.print_note(f"equal top labels: {equal:.2%}")
    if out:  # after printing: a full disk must not cost the figures
        reports[0].write(out)
        click.echo(f"report: {out}", err=as_json)
    return errors.EXIT_SOME_FAILED if any(report.failures for report in reports) else errors.EXIT_OK


@cli.command(short_help="Show what a bundle is.")
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print bundle.json.")
def info(model: str | None, as_json: bool) -> None:
    """Show what a bundle is: labels, front end, training, export, licence, hashes."""
    from soundmark import bundle, render

    render.print_bundle(bundle.read(model), as_json=as_json)


@cli.command(short_help="Make sounds in code and let the model name them.")
@click.option(
    "--out",
    type=_path,
    metavar="DIR",
    default="soundmark-demo",
    show_default=True,
    help="Folder of the WAV files.",
)
@_model
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Another seed, other sounds.",
)
def demo(out: Path, model: str | None, seed: int) -> int:
    """Make everyday sounds in code, write them as WAV files, and let the model name them, right or wrong."""
    from soundmark import batch, render
    from soundmark.classifier import Classifier
    from soundmark.demo import demo_clips

    classifier = Classifier.load(model)
    clips = demo_clips(seed=seed)
    rows = classifier.classify_many(batch.write_wavs(clips, out))
    failed = render.print_demo(clips, rows, model=classifier.name, out=out)
    return errors.EXIT_SOME_FAILED if failed else errors.EXIT_OK


def _dataset(data: str | None, lenient: bool) -> Dataset:
    from soundmark.sources import open_dataset

    return open_dataset(data, strict=False if lenient else None)


def _folds(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise click.UsageError(
            f"{text!r} is not a list of folds such as 5 or 1,2", click.get_current_context()
        ) from None


def _overrides(section: str, fields: dict[str, str | None]) -> list[str]:
    return [f"{section}.{key}={value}" for key, value in fields.items() if value is not None]
