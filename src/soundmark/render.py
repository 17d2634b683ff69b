"""What people see in a terminal: aligned lines and progress. Text in, text out; nothing is computed here.

Tables are plain columns, printed line by line: they can be piped, searched and copied, need no line-drawing characters,
and hold no more than one row in memory. Text from outside (file names, labels, manifests) passes `batch.visible` and is
never read as markup.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from soundmark import batch
from soundmark.batch import visible
from soundmark.postprocess import LabelScore, Prediction

if TYPE_CHECKING:
    from soundmark.scene import DemoClip

OnClip = Callable[..., None]  # (how many more, the new total where it was not known before)
GAP, INDENT = "  ", "    "
MIN_WIDTH, MIN_NAME, MIN_REST = 40, 20, 20
MAX_SOUND = 24
FITTED_TOP_K = 3
"""Up to this many labels, those that do not fit on the line are left out; if more were asked for, they are wrapped."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave the status to `cli.main`; rich would exit with 1."""
        raise BrokenPipeError


class Column(NamedTuple):
    """A title and a fixed width in terminal cells."""

    title: str
    width: int
    right: bool = False


class Lines:
    """Aligned lines on standard output: fixed columns, then free text; continuation lines are indented."""

    def __init__(self, columns: Sequence[Column] = ()) -> None:
        self.console = _Console(highlight=False)
        self.width = max(MIN_WIDTH, self.console.width)
        self.columns = columns

    @property
    def taken(self) -> int:
        """Cells that the columns take, the gap after the last one included."""
        return sum(column.width + len(GAP) for column in self.columns)

    def heads(self, rest: str = "") -> None:
        """Print the titles."""
        self.row([column.title for column in self.columns], rest, style="bold")

    def row(
        self, cells: Sequence[str], rest: str = "", *, styles: dict[int, str] | None = None, style: str = ""
    ) -> None:
        """Print cells, each cut in the middle to its column, and ``rest`` behind them."""
        line = Text(style=style)
        for i, (text, (_, width, right)) in enumerate(zip(cells, self.columns, strict=False)):
            text = elide(self.writable(text), width)
            space = " " * (width - cell_len(text))
            line.append(space + text if right else text + space, (styles or {}).get(i, ""))
            line.append(GAP)
        line.append(self.writable(rest))
        line.rstrip()
        self._print(line)

    def say(self, text: str, *, style: str = "", indent: str = "") -> None:
        """Print text, wrapped at the width between words; a path stays whole, to be copied."""
        wrapper = textwrap.TextWrapper(
            self.width,
            initial_indent=indent,
            subsequent_indent=indent,
            break_on_hyphens=False,
            break_long_words=False,
        )
        for line in wrapper.wrap(self.writable(text)) or [""]:
            self._print(Text(line, style=style))

    def pair(self, name: str, value: str, *, indent: int = 14) -> None:
        """Print a name and its value, wrapped behind the name."""
        lines = textwrap.wrap(self.writable(value), self.width - indent, break_on_hyphens=False) or [""]
        self._print(Text.assemble((name.ljust(indent), "bold"), lines[0]))
        for line in lines[1:]:
            self._print(Text(" " * indent + line))

    def writable(self, text: str) -> str:
        """Return ``text`` without control characters and with what the terminal's encoding lacks written out."""
        encoding = self.console.encoding
        return visible(text).encode(encoding, "backslashreplace").decode(encoding)

    def _print(self, line: Text) -> None:
        self.console.print(line, soft_wrap=True)


def show_rows(
    rows: Iterable[batch.Row], form: str, *, top_k: int, paths: Sequence[str], labels: Sequence[str]
) -> int:
    """Print rows as ``table``, ``json``, ``jsonl`` or ``csv``, each as it comes; return how many failed.

    Args:
        rows: what `Classifier.classify_many` yields.
        form: how.
        top_k: labels that were asked for.
        paths: where the rows come from, for the widths of the table.
        labels: of the model, for the widths of the table.
    """
    with clip_progress("classify", len(paths), beside_rows=True) as on_clip:
        counted = _counted(rows, on_clip)
        if form == "jsonl":
            return batch.write_jsonl(counted, sys.stdout)
        if form == "json":
            return batch.write_json(counted, sys.stdout)
        if form == "csv":
            return batch.write_csv(counted, sys.stdout, top_k=top_k)
        return _table(counted, top_k, paths, labels)


@contextmanager
def clip_progress(what: str, total: int | None, *, beside_rows: bool = False) -> Iterator[OnClip]:
    """Yield a function that counts clips on a bar and lets a delayed Ctrl-C through (`batch.stoppable`).

    The bar is on standard error, and only where that is a terminal. With ``beside_rows``, rows are printed meanwhile:
    where they go to a terminal too, they are the progress, and there is no bar.
    """
    with several_progress({what: total}, beside_rows=beside_rows) as on:
        yield on[what]


@contextmanager
def several_progress(
    totals: Mapping[str, int | None], *, beside_rows: bool = False
) -> Iterator[dict[str, OnClip]]:
    """Yield name -> function, as `clip_progress` does, with a bar for each of ``totals``."""
    with batch.stoppable() as check, _progress(beside_rows=beside_rows) as bar:

        def counter(what: str, total: int | None) -> OnClip:
            task = bar.add_task(what, total=total)

            def on_clip(n: float, total: float | None = None) -> None:
                bar.update(task, advance=n, total=total)
                check()

            return on_clip

        yield {what: counter(what, total) for what, total in totals.items()}


@contextmanager
def training_progress(
    n_clips: int, epochs: int, *, what: str = "features"
) -> Iterator[tuple[OnClip, Callable[[Any], None]]]:
    """Yield ``(on_clip, on_epoch)`` that draw ``what`` and epochs; without a terminal, a line per epoch."""
    with batch.stoppable() as check, _progress() as bar:
        features = bar.add_task(what, total=n_clips)
        training = bar.add_task("epochs", total=epochs)

        def on_clip(n: int) -> None:
            bar.advance(features, n)
            check()

        def on_epoch(report: Any) -> None:
            inner = "" if report.inner_loss is None else f"  inner {report.inner_loss:.4f}"
            line = f"epoch {report.epoch}/{report.epochs}  loss {report.loss:.4f}{inner}"
            bar.update(training, completed=report.epoch, description=f"loss {report.loss:.3f}")
            if not bar.console.is_terminal:
                bar.console.print(f"{line}  {report.seconds:.1f} s", highlight=False)

        yield on_clip, on_epoch


def print_demo(clips: Sequence[DemoClip], rows: Iterable[batch.Row], *, model: str, out: Path) -> int:
    """Print what each demo clip was meant to be and what was heard, as the rows come; return how many failed."""
    meant = max((len(clip.label) for clip in clips), default=0)
    lines = Lines([Column("meant to be", max(11, meant)), Column("heard as", 16), Column("score", 5, True)])
    lines.say(f"Sounds made in code, heard by {model}:")
    rest = lines.width - lines.taken
    lines.heads("then" if rest >= MIN_REST else "")
    right = failed = 0
    for clip, row in zip(clips, rows, strict=True):
        if not isinstance(row, Prediction):
            failed += 1
            lines.row([clip.label, row.code], styles={1: "red"})
            lines.say(row.message, indent=INDENT)
            continue
        right += (hit := row.label == clip.label)
        then = _fitted(row.labels[1:], rest) if rest >= MIN_REST else ""
        lines.row(
            [clip.label, row.label or "unknown", f"{row.score:.2f}"],
            then,
            styles={1: "green" if hit else "yellow"},
        )
    lines.say(
        f"{right} of {len(clips)} as meant. They are synthesised, not recorded: no measure of accuracy."
    )
    lines.say(f"Listen: {out}{os.sep}*.wav")
    return failed


def print_note(text: str, *, aside: bool = False) -> None:
    """Print one line, unwrapped; aside, on standard error, where standard output is for machines."""
    print(visible(text), file=sys.stderr if aside else sys.stdout)


def print_json(tree: Any) -> None:
    """Print plain data as JSON for machines."""
    sys.stdout.write(json.dumps(tree, indent=1) + "\n")


def elide(text: str, width: int) -> str:
    """Return ``text`` in at most ``width`` cells, ``...`` in the middle where something was left out."""
    if cell_len(text) <= width:
        return text
    room = max(0, width - 3)
    tail = set_cell_size(text[::-1], room - room // 2).rstrip()[::-1]
    return f"{set_cell_size(text, room // 2).rstrip()}...{tail}"[: max(width, 0)]


def common_folder(paths: Sequence[str]) -> str:
    """Return the folder, with a separator at its end, that all of several paths lie in; "" where there is none."""
    files = [path for path in paths if path != batch.STDIN]
    if len(files) < 2:
        return ""
    try:
        folder = os.path.commonpath([os.path.dirname(path) for path in files])
    except ValueError:  # absolute and relative ones
        return ""
    start = folder.rstrip(os.sep) + os.sep
    return start if folder and all(path.startswith(start) for path in files) else ""


def _table(rows: Iterable[batch.Row], top_k: int, paths: Sequence[str], labels: Sequence[str]) -> int:
    folder = common_folder(paths)
    lines = Lines()
    sound = min(MAX_SOUND, max([7, *map(cell_len, labels)]))
    room = lines.width - sound - 5 - 2 * len(GAP)
    if (with_rest := room - MIN_REST - len(GAP)) >= MIN_NAME:
        room = with_rest
    longest = max((cell_len(lines.writable(path.removeprefix(folder))) for path in paths), default=0)
    lines.columns = [
        Column("recording", max(9, min(longest, room))),
        Column("sound", sound),
        Column("score", 5, True),
    ]
    rest = lines.width - lines.taken
    if folder:
        lines.say(f"in {folder}")
    lines.heads("then" if top_k > 1 and rest >= MIN_REST else "")
    total = failed = 0
    for row in rows:
        total += 1
        failed += not row.ok
        name = row.source if row.source == batch.STDIN else row.source.removeprefix(folder)
        _print_row(lines, row, name, rest=rest, wrap=top_k > FITTED_TOP_K)
    if total > 1:
        lines.say(f"{total} recordings, {failed} failed" if failed else f"{total} recordings")
    return failed


def _print_row(lines: Lines, row: batch.Row, name: str, *, rest: int, wrap: bool) -> None:
    if not isinstance(row, Prediction):
        message = row.message.removeprefix(f"{row.source!r}: ")
        lines.row([name, "failed"], styles={1: "red"})
        lines.say(f"{row.code}: {message}", indent=INDENT)
        return
    notes = [row.reason] if row.reason and row.reason not in row.flags else []
    marks = f"[{', '.join([*notes, *row.flags])}]" if notes or row.flags else ""
    behind = len(marks) <= rest
    then = (
        ""
        if wrap or rest < MIN_REST
        else _fitted(row.labels[1:], rest - (len(marks) + len(GAP) if marks and behind else 0))
    )
    tail = GAP.join(part for part in (then, marks if behind else "") if part)
    unknown = row.label is None
    lines.row(
        [name, row.label or "unknown", f"{row.score:.2f}"], tail, styles={1: "yellow"} if unknown else None
    )
    if marks and not behind:
        lines.say(marks, indent=INDENT)
    if wrap and len(row.labels) > 1:
        lines.say(", ".join(map(_pair, row.labels[1:])), indent=INDENT)


def _pair(one: LabelScore) -> str:
    return f"{one.label} {one.score:.2f}"


def _fitted(labels: Iterable[LabelScore], width: int) -> str:
    """Return as many ``label score`` pairs as fit into ``width`` cells, best first, none cut."""
    text = ""
    for one in labels:
        longer = f"{text}, {_pair(one)}" if text else _pair(one)
        if cell_len(visible(longer)) > width:
            break
        text = longer
    return text


def _counted(rows: Iterable[batch.Row], on_clip: OnClip) -> Iterator[batch.Row]:
    for row in rows:
        yield row
        on_clip(1)


def _progress(*, beside_rows: bool = False) -> Progress:
    console = Console(stderr=True)
    hidden = not console.is_terminal or (beside_rows and sys.stdout.isatty())
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,  # rich would send redirected rows to the terminal
        disable=hidden,
    )
