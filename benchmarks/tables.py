"""Writes the figures of docs/results/*.json into the marked block of README.md; nothing there is typed by hand.

    make results        # evaluates, times, then runs this

With --check it writes nothing and fails if the README is not what the files say.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def read(name: str) -> dict[str, Any]:
    """Return one result file."""
    tree: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return tree


def accuracy() -> list[str]:
    """Return the accuracy table: the shipped int8 bundle and the same network in fp32."""
    lines = [
        "| model | file | protocol | accuracy | 95 % interval | top 3 | macro F1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, arithmetic in (("edge-int8-fold5.json", "int8 (ships)"), ("edge-fp32-fold5.json", "fp32")):
        report = read(name)
        if report["stamps"]:
            raise SystemExit(f"{name} is stamped {report['stamps']}: it does not belong in a table")
        figures, training = report["figures"], report["training"]
        low, high = figures["accuracy_interval_95"]
        lines.append(
            f"| `{report['model']}` {arithmetic} | {report['model_bytes'] / 1e3:.0f} KB "
            f"| {report['data']} fold {', '.join(map(str, report['folds']))}, trained on folds "
            f"{', '.join(map(str, training['train_folds']))}, last epoch, nothing chosen on the test fold "
            f"| **{figures['accuracy']:.1%}** | {low:.1%} to {high:.1%} | {figures['top3']:.1%} "
            f"| {figures['macro_f1']:.3f} |"
        )
    return lines


def speed() -> list[str]:
    """Return the sentence on speed, a ratio to a peer in the same run."""
    latency, frontend = read("latency.json"), read("frontend.json")
    ours = next(row for row in latency["rows"] if "stages_ms" in row)
    peer = next((row for row in latency["rows"] if row["what"].startswith("yamnet")), None)
    if peer is None:
        raise SystemExit("latency.json has no peer in it: SOUNDMARK_YAMNET has to name YAMNet's .tflite file")
    edge = frontend["rows"][0]
    return [
        f"Speed, one thread of {latency['machine']['processor'].split(' Processor')[0]}: a 5-s 44.1 kHz WAV file "
        f"becomes a label in {ours['median_ms']:.1f} ms, "
        f"**{ours['ratio_to_yamnet']:.2f} times** what YAMNet's TFLite takes for the same file in the same run "
        f"({peer['median_ms']:.1f} ms, 9 patches). Its log-mel front end takes {edge['ours_ms']:.2f} ms, librosa "
        f"{edge['librosa_ms']:.2f} ms for equal output.",
        "",
        "Regenerate: `make results` (files in `docs/results/`).",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    new = f"{before}{BEGIN}\n" + "\n".join([*accuracy(), "", *speed()]) + f"\n{END}{after}"
    if args.check:
        sys.exit(0 if new == text else "README.md is not what docs/results/*.json say; run: make results")
    readme.write_text(new)
    print("README.md written")


if __name__ == "__main__":
    main()
