"""MFCCs of ESC-50 clips: `soundmark features extract` against a librosa loop, equal parameters, on the same cores.

The loop is what people write: load, librosa.feature.mfcc, keep. Ours also hashes every clip and writes every file. Both
run in turn on blocks of the same clips, read into the page cache before, each with all cores that this process may use.
The loop is serial, but the matrix products in it use threads; on a machine that does something else meanwhile these
cost more than they bring, so it is timed with one such thread as well, and the faster of the two is what we are
compared with. Once with the files as they are, once with the same clips as 16-bit WAV, because the decoder of a lossy
format is the same library for both and hides the rest.

    python benchmarks/extract.py --data ESC-50 [--clips 200] [--whole] [--out docs/results/extract.json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import soundfile
import timing
from threadpoolctl import threadpool_limits

from soundmark import audio
from soundmark.config import FrontendConfig
from soundmark.data.extract import extract
from soundmark.dataset import Dataset
from soundmark.frontend import Frontend
from soundmark.sources import open_dataset

RATE, N_MFCC = 44_100, 13
CONFIG = FrontendConfig(  # what librosa.feature.mfcc(y=y, sr=44100, n_mfcc=13) computes
    kind="mfcc", sample_rate=RATE, n_fft=2048, hop_length=512, n_mels=128, mel_scale="slaney", mel_norm="slaney"
)  # fmt: skip
EQUAL = 1e-3  # largest difference, relative to the largest coefficient of the clip
CHECKED = 20
SAME = [
    "--n-fft",
    "2048",
    "--hop-length",
    "512",
    "--n-mels",
    "128",
    "--mel-scale",
    "slaney",
    "--mel-norm",
    "slaney",
]


def by_loop(paths: list[Path]) -> list[np.ndarray]:
    """Return what the loop that people write gives."""
    found = []
    for path in paths:
        y, sr = librosa.load(path, sr=RATE)
        found.append(librosa.feature.mfcc(y=y, sr=sr, n_mfcc=N_MFCC))
    return found


def by_librosa(samples: list[np.ndarray]) -> None:
    """Compute librosa's MFCCs with one thread in matrix products."""
    with threadpool_limits(1):
        for y in samples:
            librosa.feature.mfcc(y=y, sr=RATE, n_mfcc=N_MFCC)


def difference(paths: list[Path]) -> float:
    """Return the largest relative difference of our MFCCs to librosa's, without librosa's limit to 80 dB (`top_db`)."""
    front, worst = Frontend(CONFIG), 0.0
    for path in paths:
        y, sr = librosa.load(path, sr=RATE)
        db = librosa.power_to_db(librosa.feature.melspectrogram(y=y, sr=sr), top_db=None)
        theirs = librosa.feature.mfcc(S=db, n_mfcc=N_MFCC)
        ours = front(audio.load(path, sample_rate=RATE).samples)
        worst = max(worst, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
    return worst


def clocks() -> tuple[float, float]:
    """Return seconds on the wall, and of processor time in all threads, which other programs hardly change."""
    return time.perf_counter(), time.process_time()


def paired(dataset: Dataset, *, size: int) -> dict[str, Any]:
    """Return milliseconds per clip of both, over blocks of ``size`` clips, and of their parts."""
    clips = dataset.clips
    blocks = [clips[i : i + size] for i in range(0, len(clips), size)]
    front = Frontend(CONFIG)
    samples = [audio.load(clip.path, sample_rate=RATE).samples for clip in clips[:CHECKED]]
    paths = [clip.path for clip in clips[:CHECKED]]
    parts: dict[str, Callable[[], Any]] = {
        "decode_ours": lambda: [audio.load(path, sample_rate=RATE) for path in paths],
        "decode_librosa": lambda: [librosa.load(path, sr=RATE) for path in paths],
        "mfcc_ours": lambda: [front(y) for y in samples],
        "mfcc_librosa": lambda: by_librosa(samples),
    }
    part_ms = {
        name: statistics.median(ms) / len(paths) for name, ms in timing.paired_ms(parts, rounds=5).items()
    }
    names = ("loop", "loop_one_thread", "ours")
    times: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for i, block in enumerate(blocks):
            paths = [clip.path for clip in block]
            for path in paths:
                path.read_bytes()
            marks = [clocks()]
            by_loop(paths)
            marks.append(clocks())
            with threadpool_limits(1):
                by_loop(paths)
            marks.append(clocks())
            extract(replace(dataset, clips=block), Path(folder) / str(i), CONFIG)
            marks.append(clocks())
            for name, (wall, used) in zip(names, 1e3 / len(block) * np.diff(marks, axis=0), strict=True):
                times[name].append(float(wall))
                cpu[name].append(float(used))
    ms = {name: statistics.median(one) for name, one in times.items()}
    best = min(("loop", "loop_one_thread"), key=lambda name: ms[name])
    n_cores = len(os.sched_getaffinity(0))
    return {
        "clips": len(clips),
        "librosa_ms": {name: round(ms[name], 3) for name in ("loop", "loop_one_thread")},
        "ours_ms": round(ms["ours"], 3),
        "processor_ms": {name: round(statistics.median(one), 3) for name, one in cpu.items()},
        "times_faster": round(1 / timing.ratio(times, "ours", best), 2),
        "one_core_ms": {name: round(one, 3) for name, one in part_ms.items()},
        "limit_if_features_were_free": round(ms[best] / (part_ms["decode_ours"] / n_cores), 2),
    }


def whole(data: str, kind: str, options: list[str]) -> dict[str, Any]:
    """Return seconds and peak memory of the command over all clips, of a first and of a second run."""
    report: dict[str, Any] = {"kind": kind}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "soundmark", "features", "extract", data, "--kind", kind, *options]
        for run in ("first", "again"):
            code = (
                "import resource, subprocess, sys; r = subprocess.run(sys.argv[1:], check=True, stdout=2); "
            )
            code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", code, *command, "--out", f"{folder}/{kind}", "--json"],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            seconds, peak = time.perf_counter() - start, int(done.stdout) / 1024
            made = json.loads(done.stderr)
            report |= {f"{run}_s": round(seconds, 2), f"{run}_peak_rss_mb": round(peak)}
            report |= {"shape": made["shape"], f"{run}_computed": made["computed"]}
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("SOUNDMARK_ESC50"), help="ESC-50 folder")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--block", type=int, default=20, help="clips that each takes in turn")
    parser.add_argument(
        "--whole", action="store_true", help="also the command over all clips, with its memory"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results/extract.json"))
    args = parser.parse_args()
    if not args.data:
        print("skipped: name ESC-50 with --data or $SOUNDMARK_ESC50")
        return
    load, n_cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load > 0.5 * n_cores:
        print(
            f"busy machine (load {load:.1f} on {n_cores} cores): wall times say little, processor_ms stands"
        )
    dataset = open_dataset(args.data)
    chosen = dataset.clips[:: max(1, len(dataset.clips) // args.clips)][: args.clips]
    worst = difference([clip.path for clip in chosen[:CHECKED]])
    assert worst < EQUAL, f"MFCCs differ by {worst:.1e}"
    rows = []
    print(
        f"{'MFCC, ms per clip':<22}{'librosa loop':>13}{'ours':>8}{'faster':>8}{'if features were free':>23}"
    )
    with tempfile.TemporaryDirectory() as folder:
        wavs = []
        for clip in chosen:
            heard = audio.load(clip.path, sample_rate=RATE)
            wavs.append(replace(clip, path=Path(folder) / f"{clip.name}.wav"))
            soundfile.write(wavs[-1].path, heard.samples, RATE, subtype="PCM_16")
        sets = {
            f"as they are ({chosen[0].path.suffix})": replace(dataset, clips=chosen),
            "as 16-bit WAV": replace(dataset, clips=tuple(wavs), root=Path(folder)),
        }
        for name, one in sets.items():
            row = {"what": name, **paired(one, size=args.block)}
            rows.append(row)
            print(
                f"{name:<22}{min(row['librosa_ms'].values()):>13}{row['ours_ms']:>8}{row['times_faster']:>8}"
                f"{row['limit_if_features_were_free']:>23}"
            )
            print("    one core: " + ", ".join(f"{k} {v}" for k, v in row["one_core_ms"].items()))
    report = {
        "machine": timing.machine(),
        "load_before": round(load, 2),  # above 0.5 per core, wall times say little
        "librosa": librosa.__version__,
        "max_relative_difference": worst,
        "rows": rows,
    }
    if args.whole:
        report["whole"] = [whole(args.data, "mfcc", SAME), whole(args.data, "logmel", SAME)]
        for row in report["whole"]:
            print(json.dumps(row))
    timing.write(args.out, report)


if __name__ == "__main__":
    main()
