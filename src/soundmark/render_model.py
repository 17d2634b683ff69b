"""What a model is and how good it is, as lines for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from soundmark import breakdowns, config
from soundmark.render import Column, Lines, print_json

if TYPE_CHECKING:
    from soundmark.bundle import Bundle
    from soundmark.evaluate import Report

WORST_CLASSES = 5


def print_report(report: Report) -> None:
    """Print a report: headline with its interval, folds, worst classes, most frequent confusions."""
    made, figures = report.provenance, report.figures
    low, high = figures["accuracy_interval_95"]
    folds = figures["per_fold"]
    whole = ",".join(folds)
    lines = Lines(
        [
            Column("fold", max(4, len(whole))),
            Column("accuracy", 8, True),
            Column("95 % interval", 15, True),
            Column("top 3", 7, True),
            Column("macro F1", 8, True),
        ]
    )
    for stamp in report.stamps:
        lines.say(stamp, style="bold red")
    lines.say(f"{made['model']} on {made['data']}, {made['n_clips']} clips")
    lines.heads()
    if len(folds) > 1:
        for fold, accuracy in folds.items():
            lines.row([fold, f"{accuracy:.2%}"])
    lines.row(
        [
            whole,
            f"{figures['accuracy']:.2%}",
            f"{low:.1%} - {high:.1%}",
            f"{figures['top3']:.2%}",
            f"{figures['macro_f1']:.3f}",
        ],
        style="bold",
    )
    worst = sorted((row for row in figures["per_class"] if row["clips"]), key=lambda row: row["recall"])
    lines.say("lowest recall: " + ", ".join(f"{r['label']} {r['recall']:.0%}" for r in worst[:WORST_CLASSES]))
    lines.say("confused most: " + (", ".join(_worst_pairs(figures)) or "none"))
    lines.say(
        f"{made['seconds']:.1f} s, {1e3 * made['seconds'] / max(1, made['n_clips']):.1f} ms per clip, "
        f"{figures['failed']} failed, model {made['model_digest'][:12]}, data {made['data_digest'][:12]}"
    )


def print_bundle(bundle: Bundle, *, as_json: bool) -> None:
    """Print what a bundle says of itself."""
    manifest = bundle.manifest
    if as_json:
        print_json(config.to_dict(manifest))
        return
    training, made = (manifest.provenance.get(name, {}) for name in ("training", "export"))
    frontend = manifest.frontend
    rows = {
        "digest": bundle.digest[:12],
        "file": f"{len(bundle.model):,} bytes ONNX, {made.get('arithmetic', '?')}",
        "labels": f"{len(manifest.labels)}: {', '.join(manifest.labels)}",
        "front end": f"{frontend.kind}, {frontend.sample_rate} Hz, n_fft {frontend.n_fft}, "
        f"hop_length {frontend.hop_length}, {frontend.n_rows} rows, {manifest.frontend_fingerprint[:12]}",
        "window": f"{manifest.window.window_s:g} s, hop {manifest.window.hop_s:g} s",
        "decision": f"temperature {manifest.decision.temperature:g}, threshold {manifest.decision.threshold:g} "
        f"on {manifest.decision.unknown_score}",
        "trained on": f"{training.get('data', '?')}, folds {training.get('train_folds', '?')}, "
        f"{_aside(training)} kept aside",
        "written by": manifest.created_by,
        "licence": manifest.licence,
        "where": str(bundle.path),
    }
    lines = Lines()
    lines.pair("model", manifest.name)
    for name, value in rows.items():
        lines.pair(name, value)


def _aside(training: dict[str, Any]) -> str:
    """Return which fold a model was not trained on; one that learnt from all clips names no fold."""
    fold = training.get("test_fold", None if "train_folds" in training else "?")
    return "no fold" if fold is None else f"fold {fold}"


def print_export(bundle: Bundle, agreement: dict[str, Any]) -> None:
    """Print what an export wrote and how well it agrees with the network."""
    lines = Lines()
    lines.say(f"wrote {bundle.path} ({len(bundle.model):,} bytes ONNX)")
    text = f"torch and ONNX differ by at most {agreement['torch_onnx_max_difference']:.1e} in a score"
    if bundle.manifest.provenance["export"]["arithmetic"] == "int8":
        text += f"; int8 keeps {agreement['int8_top1_agreement']:.1%} of the top labels"
    lines.say(f"{text} (on {agreement['windows']} training windows)")


def _worst_pairs(figures: dict[str, Any], most: int = 3) -> list[str]:
    labels = figures["labels"]
    return [
        f"{labels[i]} as {labels[j]} {n}x" for i, j, n in breakdowns.worst_pairs(figures["confusion"], most)
    ]
