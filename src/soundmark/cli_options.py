"""Options that several verbs of the command line share, and options made from the fields of a config."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from click.core import ParameterSource

from soundmark import config


def path(text: str) -> Path:
    """Return a path with ``~`` expanded also in ``--out=~/x``, which shells leave alone."""
    return Path(text).expanduser()


def teacher(text: str) -> tuple[Path, float]:
    """Return folder and weight of ``DIR`` or ``DIR=0.6``; a folder may have a ``=`` in its name."""
    folder, sign, weight = text.rpartition("=")
    try:
        return (path(folder), float(weight)) if sign else (path(text), 1.0)
    except ValueError:
        return path(text), 1.0


def config_options(kind: type[config.Config], *, but: frozenset[str] = frozenset()) -> Callable[[Any], Any]:
    """Return a decorator that adds one option per field of ``kind``, under the name of the field, ``but`` some."""
    comments = config.describe(kind)

    def decorate(verb: Any) -> Any:
        for name, hint in reversed(config.fields(kind).items()):
            if name in but:
                continue
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


model = click.option(
    "--model", metavar="M", help="Bundle or ensemble, or the name of a bundle that ships with the package."
)
bundle = click.option(
    "--model", metavar="M", help="Bundle directory, or the name of one that ships with the package."
)
data = click.option(
    "--data", metavar="D", help="Any data set that `soundmark data` reads; default: $SOUNDMARK_ESC50."
)
split = click.option(
    "--split",
    "split_file",
    metavar="FILE",
    help="Folds from `soundmark data split` instead of the data's own.",
)
lenient = click.option(
    "--lenient",
    is_flag=True,
    help="Leave out bad rows and missing recordings instead of refusing; stamp leaks.",
)
threads = click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Threads of a model run.",
)

overriding = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override any preset value."
)
weights = click.option("--weights", type=path, metavar="FILE", help="Pretrained weights to start from.")
jobs = click.option(
    "--jobs",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    metavar="N",
    help="Trainings at a time; each gets its share of the cores.",
)

token = click.option(
    "--token", envvar="SOUNDMARK_TOKEN", metavar="T", help="Token of the server; better in $SOUNDMARK_TOKEN."
)


def test_fold(help: str) -> Callable[[Any], Any]:
    """Return the option ``--test-fold K``, which may be ``none``; `held_out` reads it."""
    return click.option("--test-fold", metavar="K|none", help=help)


def held_out(text: str | None, known: tuple[int, ...], *, default: int | None = None) -> int | None:
    """Return the fold that ``--test-fold`` keeps aside, None for ``none``; ``default`` where it was not given."""
    if text == "none":
        return None
    try:
        if text is not None or default is not None:
            return default if text is None else int(text)
    except ValueError:
        pass
    saw = "--test-fold is wanted" if text is None else f"--test-fold {text} is no fold"
    raise click.UsageError(
        f"{saw}: one of {', '.join(map(str, known))}, or none to learn from all clips",
        click.get_current_context(),
    )


def folds(text: str | None) -> tuple[int, ...] | None:
    """Return the folds of a list such as ``1,2``, None where nothing was given."""
    try:
        return None if text is None else tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise click.UsageError(
            f"{text!r} is not a list of folds such as 5 or 1,2", click.get_current_context()
        ) from None


def overrides(section: str, fields: dict[str, str | None]) -> list[str]:
    """Return ``section.key=value`` for every option of `config_options` that was given; no section for ""."""
    start = f"{section}." if section else ""
    return [f"{start}{key}={value}" for key, value in fields.items() if value is not None]


def command(context: click.Context) -> str:
    """Return what the user typed, for reports: options that were given, paths shortened to their last part.

    A report is published; where its files lay on the machine that made it is nobody's business.
    """
    words = context.command_path.split()
    for parameter in context.command.params:
        if context.get_parameter_source(parameter.name or "") is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[parameter.name or ""]
        several = value if parameter.multiple or parameter.nargs != 1 else (value,)
        values = [_word(one) for one in several]
        if isinstance(parameter, click.Option):
            flag = parameter.opts[-1]
            words += [flag] if parameter.is_flag else [word for one in values for word in (flag, one)]
        else:
            words += values
    return shlex.join(words)


def _word(value: Any) -> str:
    """Return one value as it was typed; a teacher is a folder and a weight."""
    if isinstance(value, tuple):
        folder, weight = value
        return _last_part(str(folder)) + ("" if weight == 1 else f"={weight:g}")
    return _last_part(str(value))


def _last_part(text: str) -> str:
    start = "esc10:" if text.startswith("esc10:") else ""
    return start + (Path(text.removeprefix(start)).name or text.removeprefix(start))
