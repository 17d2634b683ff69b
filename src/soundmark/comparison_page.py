"""A comparison as one HTML page that needs nothing else, see `soundmark.pages`; every figure in it is in its JSON."""

from __future__ import annotations

from typing import Any

from soundmark.pages import FOOT, Figures, head, table
from soundmark.plots import bars, escape, matrix


def page(tree: dict[str, Any]) -> bytes:
    """Return the page of `comparison.compare`, UTF-8; the same comparison gives the same bytes."""
    given, rows = Figures(tree), tree["reports"]
    names = [row["name"] for row in rows]
    parts = [head("Comparison"), f"<h1>{escape(', '.join(names))}</h1>"]
    parts += [
        f'<p class="stamp">{escape(row["name"])}: {given.show(f"reports.{i}.stamps.{j}")}</p>'
        for i, row in enumerate(rows)
        for j in range(len(row["stamps"]))
    ]
    if not tree["same_clips"]:
        parts.append('<p class="warning">These reports are not about the same clips.</p>')
    shown = [(row["name"], row["accuracy"], f"{row['accuracy']:.2%}") for row in rows]
    parts.append(f"<h2>Accuracy</h2>{bars(shown, title='accuracy')}{_table(given)}{_costs(given)}")
    recalls = [
        (
            escape(row["label"]),
            *(
                given.show(f"recall.{i}.recall.{j}", ".1%") if value is not None else "-"
                for j, value in enumerate(row["recall"])
            ),
        )
        for i, row in enumerate(tree["recall"])
    ]
    parts.append(f"<h2>Recall</h2>{table(['class', *names], recalls)}")
    for i, row in enumerate(rows):
        pairs = [
            (escape(pair["label"]), escape(pair["heard"]), given.show(f"reports.{i}.worst_pairs.{j}.clips"))
            for j, pair in enumerate(row["worst_pairs"])
        ]
        drawn = matrix(row["confusion"], row["labels"], title=f"confusion matrix of {row['name']}")
        parts.append(
            f"<h2>Confusions of {escape(row['name'])}</h2>{table(['is', 'heard as', 'clips'], pairs, names=2)}"
            f"<details><summary>matrix</summary>{drawn}</details>"
        )
    return "\n".join([*parts, FOOT]).encode("utf-8")


def _table(given: Figures) -> str:
    rows = []
    for i, row in enumerate(given.tree["reports"]):
        at, difference = f"reports.{i}", "-"
        if row["difference"] is not None:
            interval = f"{at}.difference_interval_95"
            difference = (
                f"{given.show(f'{at}.difference', '+.2%')} "
                f"({given.show(f'{interval}.0', '+.1%')} to {given.show(f'{interval}.1', '+.1%')})"
            )
        rows.append(
            (
                given.show(f"{at}.name"),
                given.show(f"{at}.accuracy", ".2%"),
                given.interval(f"{at}.accuracy_interval_95"),
                difference,
                given.show(f"{at}.top3", ".1%"),
                given.show(f"{at}.macro_f1", ".3f"),
                given.show(f"{at}.ece", ".3f"),
            )
        )
    heads = [
        "report",
        "accuracy",
        "95 % interval",
        "against the first",
        "top 3",
        "macro F1",
        "calibration error",
    ]
    return table(heads, rows)


def _costs(given: Figures) -> str:
    rows = [
        (
            given.show(f"reports.{i}.name"),
            given.show(f"reports.{i}.model"),
            escape(f"{row['data']}, fold {', '.join(map(str, row['folds']))}"),
            given.show(f"reports.{i}.clips", ","),
            given.show(f"reports.{i}.model_bytes", ","),
            given.show(f"reports.{i}.ms_per_clip", ".1f"),
            "-" if row["training_seconds"] is None else given.show(f"reports.{i}.training_seconds", ",.0f"),
        )
        for i, row in enumerate(given.tree["reports"])
    ]
    heads = ["report", "model", "data", "clips", "bytes", "ms per clip, files read", "training, s"]
    return f"<h2>Cost</h2>{table(heads, rows, names=3)}"
