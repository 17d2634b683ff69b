"""From a 5-s 44.1 kHz WAV file to a label, one thread: our bundles against YAMNet's TFLite on the same file.

YAMNet takes 0.975-s patches at 16 kHz; 9 patches with its usual half-overlap cover 5 s. Both read the same WAV from
disk and resample it with the same library. The YAMNet file is its publisher's; name it with --yamnet or
$SOUNDMARK_YAMNET.

    python benchmarks/latency.py --yamnet yamnet_classification.tflite [--model default] [--out latency.json]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
from pathlib import Path

import timing

timing.one_thread()

import numpy as np  # noqa: E402
import soundfile  # noqa: E402
import soxr  # noqa: E402

from soundmark import Classifier  # noqa: E402
from soundmark.demo import demo_clips  # noqa: E402

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--yamnet", default=os.environ.get("SOUNDMARK_YAMNET"), help="YAMNet .tflite file")
    parser.add_argument("--model", action="append", help="bundle to time; may be given several times")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("docs/results/latency.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "rain.wav")
        clip = demo_clips()[0]
        soundfile.write(path, clip.samples, clip.sample_rate, subtype="PCM_16")
        classifiers = {name: Classifier.load(name) for name in args.model or ["default"]}
        runs = {name: (lambda c=c: c.classify(path)) for name, c in classifiers.items()}
        if args.yamnet:
            yamnet = Yamnet(args.yamnet)
            runs["yamnet (9 patches)"] = lambda: yamnet(path)
        times = timing.paired_ms(runs, rounds=args.rounds)
        rows = []
        for name, ms in times.items():
            row = {"what": name, "median_ms": round(statistics.median(ms), 3), "min_ms": round(min(ms), 3)}
            if args.yamnet:
                row["ratio_to_yamnet"] = round(timing.ratio(times, name, "yamnet (9 patches)"), 3)
            if name in classifiers:
                stages = [classifiers[name].classify(path).timing_ms for _ in range(args.rounds)]
                row["stages_ms"] = {k: round(statistics.median(s[k] for s in stages), 3) for k in stages[0]}
            rows.append(row)
    print(f"{'5-s WAV to label, one thread':<32}{'median ms':>10}{'min ms':>9}{'ratio':>8}")
    for row in rows:
        print(f"{row['what']:<32}{row['median_ms']:>10}{row['min_ms']:>9}{row.get('ratio_to_yamnet', ''):>8}")
        if "stages_ms" in row:
            print("    " + ", ".join(f"{k} {v}" for k, v in row["stages_ms"].items()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    timing.write(
        args.out, {"machine": timing.machine(), "rounds": args.rounds, "rows": rows, "peak_rss_mb": peak}
    )


if __name__ == "__main__":
    main()
