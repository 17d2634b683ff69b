"""From a 5-s 44.1 kHz WAV file to a label, one thread: our bundles against YAMNet's TFLite on the same file.

YAMNet takes 0.975-s patches at 16 kHz; 9 patches with its usual half-overlap cover 5 s. Both read the same WAV from
disk and resample it with the same library. The YAMNet file is its publisher's; name it with --yamnet or
$SOUNDMARK_YAMNET.

Taken in turn, each timed twice: after a few of itself, as on a device that does nothing else (the ratio is of these),
and right after another one, with caches full of what is not its own. Peak memory is that of a process of its own.

    python benchmarks/latency.py --yamnet yamnet_classification.tflite [--model default] [--out latency.json]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import timing

timing.one_thread()

import numpy as np  # noqa: E402
import soundfile  # noqa: E402
import soxr  # noqa: E402

from soundmark import Classifier  # noqa: E402
from soundmark.demo import demo_clips  # noqa: E402

PEER = "yamnet (9 patches)"
YAMNET_RATE, YAMNET_PATCH, YAMNET_HOP = 16_000, 15_600, 7_680


class Yamnet:
    """YAMNet as people run it: read, resample, 9 patches, mean of the scores."""

    def __init__(self, path: str) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(path, num_threads=1)
        self.interpreter.allocate_tensors()
        self.input = self.interpreter.get_input_details()[0]["index"]
        self.output = self.interpreter.get_output_details()[0]["index"]

    def __call__(self, path: str) -> int:
        """Return the index of the best AudioSet class of a file."""
        samples, rate = soundfile.read(path, dtype="float32")
        samples = soxr.resample(samples, rate, YAMNET_RATE)
        scores = []
        for start in range(0, len(samples) - YAMNET_PATCH + 1, YAMNET_HOP):
            self.interpreter.set_tensor(self.input, samples[start : start + YAMNET_PATCH])
            self.interpreter.invoke()
            scores.append(self.interpreter.get_tensor(self.output)[0])
        return int(np.mean(scores, axis=0).argmax())


def classifying(name: str, path: str) -> Callable[[], object]:
    """Return what makes a label of the file at ``path``: YAMNet from its .tflite file, or a bundle."""
    if name.endswith(".tflite"):
        yamnet = Yamnet(name)
        return lambda: yamnet(path)
    classifier = Classifier.load(name)
    return lambda: classifier.classify(path)


def peak_mb(name: str, path: str) -> int:
    """Return the peak resident memory of a process that loads one model and classifies five times."""
    command = [sys.executable, __file__, "--alone", name, path]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def alone(name: str, path: str) -> None:
    """Be that process: classify, and print the peak in MB."""
    run = classifying(name, path)
    for _ in range(5):
        run()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--yamnet", default=os.environ.get("SOUNDMARK_YAMNET"), help="YAMNet .tflite file")
    parser.add_argument("--model", action="append", help="bundle to time; may be given several times")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("docs/results/latency.json"))
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        alone(*args.alone)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "rain.wav")
        clip = demo_clips()[0]
        soundfile.write(path, clip.samples, clip.sample_rate, subtype="PCM_16")
        models = args.model or ["default"]
        named = {name: name for name in models} | ({PEER: args.yamnet} if args.yamnet else {})
        runs = {what: classifying(name, path) for what, name in named.items()}
        times = timing.paired_ms(runs, rounds=args.rounds, alone=True)
        after_others = timing.paired_ms(runs, rounds=args.rounds)
        rows = []
        for what, ms in times.items():
            row = {"what": what, "median_ms": round(statistics.median(ms), 3), "min_ms": round(min(ms), 3)}
            row["after_others_ms"] = round(statistics.median(after_others[what]), 3)
            if args.yamnet:
                row["ratio_to_yamnet"] = round(timing.ratio(times, what, PEER), 3)
                row["ratio_after_others"] = round(timing.ratio(after_others, what, PEER), 3)
            row["peak_rss_mb"] = peak_mb(named[what], path)
            if what != PEER:
                classifier = Classifier.load(named[what])
                stages = [classifier.classify(path).timing_ms for _ in range(args.rounds)]
                row["stages_ms"] = {k: round(statistics.median(s[k] for s in stages), 3) for k in stages[0]}
                row["model_bytes"] = classifier.n_bytes
            rows.append(row)
    print(
        f"{'5-s WAV to label, one thread':<32}{'median ms':>10}{'ratio':>8}{'after others':>14}{'peak MB':>9}"
    )
    for row in rows:
        print(
            f"{row['what']:<32}{row['median_ms']:>10}{row.get('ratio_to_yamnet', ''):>8}"
            f"{row.get('ratio_after_others', ''):>14}{row['peak_rss_mb']:>9}"
        )
        if "stages_ms" in row:
            print("    " + ", ".join(f"{k} {v}" for k, v in row["stages_ms"].items()))
    timing.write(args.out, {"machine": timing.machine(), "rounds": args.rounds, "rows": rows})


if __name__ == "__main__":
    main()
