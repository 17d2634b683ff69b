"""What people see in a terminal: tables, bars and progress. Text in, text out; nothing is computed here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import soundfile
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from soundmark import batch, config
from soundmark.errors import StorageError
from soundmark.postprocess import Prediction

if TYPE_CHECKING:
    from soundmark.bundle import Bundle
    from soundmark.classifier import Classifier
    from soundmark.demo import DemoClip
    from soundmark.evaluate import Report

WORST_CLASSES = 5
OnClip = Callable[[int], None]


def show_rows(rows: Iterable[batch.Row], form: str, *, top_k: int, total: int) -> int:
    """Print rows as ``table``, ``json``, ``jsonl`` or ``csv``; return how many failed."""
    if form == "jsonl":
        return batch.write_jsonl(rows, sys.stdout)
    if form == "csv":
        return batch.write_csv(rows, sys.stdout, top_k=top_k)
    with clip_progress("classify", total) as on_clip:
        counted = _counted(rows, on_clip)
        if form == "json":
            listed = list(counted)
        else:
            table, failed = _classified_table(counted, top_k)
    if form == "json":
        return batch.write_json(listed, sys.stdout)
    _console().print(table)
    return failed


@contextmanager
def clip_progress(what: str, total: int) -> Iterator[OnClip]:
    """Yield a function that advances a progress bar over clips; the bar is on stderr and only in a terminal."""
    with _progress() as bar:
        task = bar.add_task(what, total=total)
        yield lambda n: bar.advance(task, n)


@contextmanager
def training_progress(n_clips: int, epochs: int) -> Iterator[tuple[OnClip, Callable[[Any], None]]]:
    """Yield ``(on_clip, on_epoch)`` that draw features and epochs; without a terminal, a line per epoch."""
    with _progress() as bar:
        features = bar.add_task("features", total=n_clips)
        training = bar.add_task("epochs", total=epochs)

        def on_epoch(report: Any) -> None:
            line = f"epoch {report.epoch}/{report.epochs}  loss {report.loss:.4f}  {report.seconds:.1f} s"
            bar.update(training, completed=report.epoch, description=f"loss {report.loss:.3f}")
            if not bar.console.is_terminal:
                bar.console.print(line, highlight=False)

        yield lambda n: bar.advance(features, n), on_epoch


def print_report(report: Report) -> None:
    """Print a report: headline with its interval, folds, worst classes, most frequent confusions."""
    console, made, figures = _console(), report.provenance, report.figures
    low, high = figures["accuracy_interval_95"]
    for stamp in report.stamps:
        console.print(f"[bold red]{escape(stamp)}[/]")
    table = Table(title=f"{made['model']} on {made['data']}, {made['n_clips']} clips", title_justify="left")
    for name in ("fold", "accuracy", "95 % interval", "top 3", "macro F1"):
        table.add_column(name, justify="right")
    folds = figures["per_fold"]
    if len(folds) > 1:
        for fold, accuracy in folds.items():
            table.add_row(fold, f"{accuracy:.2%}")
        table.add_section()
    table.add_row(
        ",".join(folds),
        f"{figures['accuracy']:.2%}",
        f"{low:.1%} - {high:.1%}",
        f"{figures['top3']:.2%}",
        f"{figures['macro_f1']:.3f}",
        style="bold",
    )
    console.print(table)
    worst = sorted((row for row in figures["per_class"] if row["clips"]), key=lambda row: row["recall"])
    console.print(
        "lowest recall: " + ", ".join(f"{r['label']} {r['recall']:.0%}" for r in worst[:WORST_CLASSES])
    )
    console.print("confused most: " + (", ".join(_worst_pairs(figures)) or "none"))
    console.print(
        f"{made['seconds']:.1f} s, {1e3 * made['seconds'] / max(1, made['n_clips']):.1f} ms per clip, "
        f"{figures['failed']} failed, model {made['model_digest'][:12]}, data {made['data_digest'][:12]}"
    )


def print_bundle(bundle: Bundle, *, as_json: bool) -> None:
    """Print what a bundle says of itself."""
    manifest = bundle.manifest
    if as_json:
        print_json(config.to_dict(manifest))
        return
    training = manifest.provenance.get("training", {})
    table = Table(title=f"{manifest.name}  {bundle.digest[:12]}", show_header=False, title_justify="left")
    frontend = manifest.frontend
    rows = {
        "file": f"{len(bundle.model):,} bytes ONNX, {manifest.provenance.get('export', {}).get('arithmetic', '?')}",
        "labels": f"{len(manifest.labels)}: {', '.join(manifest.labels)}",
        "front end": f"{frontend.kind}, {frontend.sample_rate} Hz, n_fft {frontend.n_fft}, "
        f"hop {frontend.hop_length}, {frontend.n_rows} rows, {manifest.frontend_fingerprint[:12]}",
        "window": f"{manifest.window.window_s:g} s, hop {manifest.window.hop_s:g} s",
        "decision": f"temperature {manifest.decision.temperature:g}, threshold {manifest.decision.threshold:g}",
        "trained on": f"{training.get('data', '?')}, folds {training.get('train_folds', '?')}, "
        f"fold {training.get('test_fold', '?')} kept aside",
        "written by": manifest.created_by,
        "licence": manifest.licence,
        "where": str(bundle.path),
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    _console().print(table)


def print_export(bundle: Bundle, agreement: dict[str, Any]) -> None:
    """Print what an export wrote and how well it agrees with the network."""
    console = _console()
    console.print(f"wrote {bundle.path} ({len(bundle.model):,} bytes ONNX)", highlight=False, soft_wrap=True)
    console.print(
        f"torch/ONNX differ by at most {agreement['torch_onnx_max_difference']:.1e} in a score; "
        f"int8 keeps {agreement['int8_top1_agreement']:.1%} of the top labels on {agreement['windows']} training windows",
        highlight=False,
    )


def print_demo(classifier: Classifier, clips: Sequence[DemoClip], out: Path) -> None:
    """Write the demo clips as 16-bit WAV files, classify the files, and print what was meant and what was heard.

    Raises:
        StorageError: ``out`` cannot be written.
    """
    paths = [out / f"{clip.name}.wav" for clip in clips]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, clip in zip(paths, clips, strict=True):
            soundfile.write(path, clip.samples, clip.sample_rate, subtype="PCM_16")
    except (OSError, soundfile.LibsndfileError) as error:
        raise StorageError(f"{out} cannot be written ({error})", wanted="a writable folder") from None
    table = Table(title=f"Sounds made in code, heard by {classifier.name}", title_justify="left")
    for name in ("meant to be", "heard as", "score", "then", "ms"):
        table.add_column(name, justify="right" if name in ("score", "ms") else "left")
    right = 0
    for clip, row in zip(clips, classifier.classify_many(paths), strict=True):
        if not isinstance(row, Prediction):
            table.add_row(clip.label, f"[red]{row.code}[/]")
            continue
        hit = row.label == clip.label
        right += hit
        then = ", ".join(f"{one.label} {one.score:.2f}" for one in row.labels[1:])
        heard = f"[green]{row.label}[/]" if hit else f"[yellow]{row.label or 'unknown'}[/]"
        table.add_row(clip.label, heard, f"{row.score:.2f}", then, f"{row.timing_ms['total']:.1f}")
    console = _console()
    console.print(table)
    console.print(
        f"{right} of {len(clips)} as meant. They are synthesised, not recorded: no measure of accuracy. "
        f"Listen: {out}/*.wav",
        highlight=False,
    )


def print_json(tree: Any) -> None:
    """Print plain data as JSON for machines."""
    sys.stdout.write(json.dumps(tree, indent=1) + "\n")


def _classified_table(rows: Iterable[batch.Row], top_k: int) -> tuple[Table, int]:
    table = Table(show_lines=False)
    table.add_column("recording", overflow="fold")
    table.add_column("sound", no_wrap=True)
    table.add_column("score", justify="right")
    if top_k > 1:
        table.add_column("then")
    table.add_column("flags")
    failed = 0
    for row in rows:
        name = escape(_visible(row.source))
        if isinstance(row, Prediction):
            then = ", ".join(f"{one.label} {one.score:.2f}" for one in row.labels[1:])
            heard = escape(row.label) if row.label is not None else f"[yellow]unknown[/] ({row.reason})"
            middle = [heard, f"{row.score:.2f}"] + ([escape(then)] if top_k > 1 else [])
            table.add_row(name, *middle, " ".join(row.flags))
        else:
            failed += 1
            middle = [f"[red]{row.code}[/]", ""] + ([escape(_visible(row.message))] if top_k > 1 else [])
            table.add_row(name, *middle, "")
    return table, failed


def _worst_pairs(figures: dict[str, Any], most: int = 3) -> list[str]:
    labels, confusion = figures["labels"], figures["confusion"]
    pairs = [
        (count, f"{labels[i]} as {labels[j]} {count}x")
        for i, row in enumerate(confusion)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return [text for _, text in sorted(pairs, reverse=True)[:most]]


def _visible(text: str) -> str:
    """Return ``text`` with control characters and lone surrogates written out, so that no name moves the cursor."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def _counted(rows: Iterable[batch.Row], on_clip: OnClip) -> Iterator[batch.Row]:
    for row in rows:
        yield row
        on_clip(1)


def _console() -> Console:
    return Console(highlight=False)


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
