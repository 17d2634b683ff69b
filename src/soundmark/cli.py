"""The command line: verbs that parse, call and print. Everything heavy is imported inside the verb that needs it.

Exit statuses and codes are in docs/reference/outcomes.md, options in docs/reference/cli.md (made from this file).
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from soundmark import (
    __version__,
    cli_data,
    cli_distill,
    cli_ensemble,
    cli_features,
    cli_inspect,
    cli_learn,
    cli_options,
    cli_report,
    cli_serve,
    cli_tune,
    cli_unknowns,
    cli_weights,
    config,
    errors,
)

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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="soundmark")
def cli() -> None:
    """Recognise environmental sounds on small machines: train, judge honestly, compress, classify."""


for verb in (cli_inspect.inspect, cli_features.prepare):
    cli_data.data.add_command(verb)
for verb in (
    cli_learn.train,
    cli_distill.distill,
    cli_learn.export,
    cli_learn.evaluate,
    cli_ensemble.calibrate,
    cli_ensemble.ensemble,
    cli_ensemble.side_by_side,
    cli_report.report,
    cli_report.compare,
    cli_data.data,
    cli_features.features,
    cli_serve.serve,
    cli_weights.weights,
):
    cli.add_command(verb)
for verb in (cli_tune.cv, cli_tune.tune, cli_unknowns.unknowns):
    cli.add_command(verb)


@cli.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@cli_options.model
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
@cli_options.threads
@click.option(
    "--server", metavar="URL", help="Let a `soundmark serve` elsewhere do the work; its model counts."
)
@cli_options.token
def classify(
    paths: tuple[str, ...],
    model: str | None,
    top_k: int,
    form: str,
    max_seconds: float | None,
    strict: bool,
    threads: int,
    server: str | None,
    token: str | None,
) -> int:
    """Name the sounds in recordings. PATH is a file, a folder, a glob pattern, or - for standard input."""
    if server is not None:
        if model is not None or max_seconds is not None:
            raise click.UsageError(
                "--model and --max-seconds are up to the server", click.get_current_context()
            )
        return cli_serve.classify_there(server, token, paths, form, top_k=top_k, strict=strict)
    given = {} if max_seconds is None else {"max_seconds": max_seconds}
    limits = config.from_dict(given, config.AudioLimits, where="command line")
    from soundmark import batch, render
    from soundmark.ensemble import load_model

    classifier = load_model(model, threads=threads)
    found = batch.expand(paths)
    rows = classifier.classify_many(found, top_k=top_k, limits=limits, strict=strict)
    names = [os.fspath(one.path) for one in found]
    failed = render.show_rows(rows, form, top_k=top_k, paths=names, labels=classifier.labels)
    return errors.EXIT_SOME_FAILED if failed else errors.EXIT_OK


@cli.command(short_help="Show what a bundle is.")
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print bundle.json.")
def info(model: str | None, as_json: bool) -> None:
    """Show what a bundle is: labels, front end, training, export, licence, hashes."""
    from soundmark import bundle, render_model

    render_model.print_bundle(bundle.read(model), as_json=as_json)


@cli.command(short_help="Make sounds in code and let the model name them.")
@click.option(
    "--out",
    type=cli_options.path,
    metavar="DIR",
    default="soundmark-demo",
    show_default=True,
    help="Folder of the WAV files.",
)
@cli_options.model
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
    from soundmark.demo import demo_clips
    from soundmark.ensemble import load_model

    classifier = load_model(model)
    clips = demo_clips(seed=seed)
    rows = classifier.classify_many(batch.write_wavs(clips, out))
    failed = render.print_demo(clips, rows, model=classifier.name, out=out)
    return errors.EXIT_SOME_FAILED if failed else errors.EXIT_OK
