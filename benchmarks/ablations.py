"""What each ingredient of edge-taught and tiny is worth: one student per change, taught and scored on an inner split.

Students and their teacher learn from folds 3, 4 and 5 alone and are scored, as int8 bundles, on folds 1 and 2. TEACHERS
is a folder of `soundmark cv frozen-pair --inner`. Each student takes minutes; the same command goes on where it ended.

    python benchmarks/ablations.py edge-taught --teachers TEACHERS [--data ESC50] [--only NAME] [--set ...]
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import timing

from soundmark import comparison, report_files

ROOT = Path(__file__).resolve().parents[1]
TAUGHT_ON, SCORED_ON = "3,4,5", "1,2"
BASE = "as it is"
BOTH: dict[str, list[str] | None] = {
    BASE: [],
    "fp32 instead of int8": None,
    "one view of a clip instead of six": ["distill.views=1"],
    "no embeddings of the teacher": ["distill.embedding=0"],
    "labels instead of the teacher's answers": ["distill.soft=0", "distill.embedding=0"],
    "random start": ["network.pretrained="],
}
CHANGES = {
    "edge-taught": BOTH | {"no masks over time and bands": ["augment.time_masks=0", "augment.freq_masks=0"]},
    "tiny": BOTH,
}
"""Preset -> what is changed -> overrides; None is another export of the first row."""


def run(*words: object) -> None:
    """Run a command of soundmark, or end with its status."""
    command = [str(Path(sys.executable).with_name("soundmark")), *map(str, words)]
    print(shlex.join(command[1:]), flush=True)
    if status := subprocess.run(command, check=False).returncode:
        raise SystemExit(status)


def folder(name: str, args: argparse.Namespace) -> Path:
    """Return where the student of one change lies."""
    runs: Path = args.runs / args.preset
    return runs / name.replace(" ", "-").replace("'", "")


def scored(name: str, args: argparse.Namespace) -> Path:
    """Train, export and score the student of one change, and return its report; what is there already is kept."""
    changes, home = CHANGES[args.preset][name], folder(name, args)
    data = ["--data", args.data] if args.data else []
    overrides = [word for value in [*(changes or []), *args.set] for word in ("--set", value)]
    report = home / "report.json"
    if not report.exists():
        if changes is None:
            run("export", folder(BASE, args) / "run", "--quantize", "false", "--out", home / "bundle")
        else:
            teacher = ["--teacher", args.teachers / "inner-3-4-5" / "bundle"]
            resume = ["--resume"] if (home / "run").exists() else []
            folds = ["--test-fold", 1, "--train-folds", TAUGHT_ON]
            where = ["--out", home / "run", "--export", home / "bundle"]
            run("distill", args.preset, *teacher, *data, *folds, *overrides, *where, *resume)
        run("evaluate", "--model", home / "bundle", *data, "--folds", SCORED_ON, "--out", report)
    return report


def rows(names: list[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per change; differences are from the first, with an interval over clips that both answered."""
    reports = [report_files.read(scored(name, args)) for name in names]
    made = []
    for name, seen, report in zip(names, comparison.compare(names, reports)["reports"], reports, strict=True):
        changes = CHANGES[args.preset][name]
        history = folder(name if changes is not None else BASE, args) / "run" / "history.jsonl"
        epochs = [json.loads(line) for line in history.read_text().splitlines()]
        kept = ("accuracy", "accuracy_interval_95", "difference", "difference_interval_95")
        made.append(
            {
                "change": name,
                "set": changes,
                **{key: seen[key] for key in kept},
                "per_fold": report.figures["per_fold"],
                "epochs": len(epochs),
                "training_s": round(sum(epoch["seconds"] for epoch in epochs)),
                **{key: seen[key] for key in ("model_bytes", "model_digest")},
            }
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", choices=CHANGES)
    parser.add_argument("--teachers", type=Path, required=True, help="folder of `cv frozen-pair --inner`")
    parser.add_argument("--data", help="ESC-50; default: $SOUNDMARK_ESC50")
    parser.add_argument("--runs", type=Path, default=ROOT / "build" / "ablations")
    parser.add_argument("--only", action="append", help="one change of them; again for more")
    parser.add_argument("--set", action="append", default=[], help="override of every student")
    args = parser.parse_args()
    names = args.only or list(CHANGES[args.preset])
    table = rows(names, args)
    for one in table:
        print(f"{one['change']:<50}{one['accuracy']:>8.2%}{one['training_s'] / 60:>8.0f} min")
    if not args.only:
        report = {
            "preset": args.preset,
            "command": f"python benchmarks/ablations.py {args.preset} --teachers TEACHERS "
            + " ".join(f"--set {value}" for value in args.set),
            "taught_on": TAUGHT_ON,
            "scored_on": SCORED_ON,
            "machine": timing.machine(),
            "rows": table,
        }
        timing.write(ROOT / "docs" / "ablations" / f"{args.preset}.json", report)


if __name__ == "__main__":
    main()
