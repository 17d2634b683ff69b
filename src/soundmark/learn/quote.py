"""What the card of a bundle that learnt from all clips says about accuracy: the figure of its folds, from a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from soundmark.errors import ConfigError
from soundmark.learn.run_folder import Run
from soundmark.report_files import read

SHARED = ("preset", "network", "epochs")
"""What the trainings of the folds and of all clips must have in common to be called one recipe."""


def quote(path: Path, run: Run) -> dict[str, Any]:
    """Return what is quoted of the report at ``path`` for ``run``, which has learnt from all clips.

    Raises:
        ConfigError: the run keeps a fold aside, and so has a figure of its own; or the report is of one bundle, of
            another recipe or data, or stamped.
        DatasetError: not a report.
    """
    report = read(path)
    made = report.provenance
    mine = {"preset": run.preset.name, "network": run.preset.network.kind, **run.info}
    theirs = made["training"]
    differing = [
        f"{key} is {theirs.get(key)}, not {mine.get(key)}"
        for key in SHARED
        if theirs.get(key) != mine.get(key)
    ]
    if made["data_digest"] != run.info["data_digest"]:
        differing.append("its clips are others")
    if "members" not in made:
        differing.append("it is about one bundle")
    if report.stamps:
        differing.append(f"it is stamped {report.stamps[0]}")
    if run.info.get("test_fold") is not None:
        differing = [f"{run.path} keeps fold {run.info['test_fold']} aside"]
    if differing:
        raise ConfigError(
            f"{path} cannot be quoted for {run.path}: {'; '.join(differing)}",
            wanted="the report over all folds (`evaluate --cv`) of the preset that learnt from all clips",
        )
    return {
        "accuracy": report.figures["accuracy"],
        "accuracy_interval_95": list(report.figures["accuracy_interval_95"]),
        "folds": made["folds"],
        "n_clips": made["n_clips"],
        "model_digest": made["model_digest"],
        "report": path.name,
    }
