"""Log-mel of 5 s on one core: our front end against librosa, equal output required.

python benchmarks/frontend.py [--out frontend.json]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import timing

timing.one_thread()

import librosa  # noqa: E402
import numpy as np  # noqa: E402

from soundmark.config import FrontendConfig  # noqa: E402
from soundmark.frontend import Frontend  # noqa: E402
from soundmark.preset import load_preset  # noqa: E402

SECONDS = 5
LARGEST_DIFFERENCE_DB = 1e-3

CONFIGS = {
    "edge preset": load_preset("edge").frontend,
    "22.05 kHz, 1024/512, 128": FrontendConfig(
        sample_rate=22_050, n_fft=1024, hop_length=512, n_mels=128, fmin=20
    ),
    "16 kHz, 512/160, 64": FrontendConfig(sample_rate=16_000, n_fft=512, hop_length=160, n_mels=64, fmin=60),
    "44.1 kHz, 2048/512, 128": FrontendConfig(sample_rate=44_100, n_fft=2048, hop_length=512, n_mels=128),
}


def by_librosa(samples: np.ndarray, config: FrontendConfig) -> np.ndarray:
    """Return what `librosa.feature.melspectrogram` and `power_to_db`, or a logarithm, give, normalised alike."""
    beyond = config.n_fft - config.window_length  # where librosa would put the window into the middle
    mel = librosa.feature.melspectrogram(
        y=np.pad(samples, (0, beyond)) if beyond else samples,
        sr=config.sample_rate,
        n_fft=config.n_fft,
        hop_length=config.hop_length,
        n_mels=config.n_mels,
        fmin=config.fmin,
        fmax=config.top_hz,
        htk=config.mel_scale == "htk",
        norm=None,
        power=config.power,
        center=config.center,
        window=np.pad(librosa.filters.get_window("hann", config.window_length), (0, beyond)),
    )
    if config.scale == "ln":
        return (np.log(mel + config.offset) - config.mean) / config.std
    db = librosa.power_to_db(mel, ref=1.0, amin=config.offset, top_db=None)
    return (db - config.mean) / config.std


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("docs/results/frontend.json"))
    args = parser.parse_args()
    rows = []
    print(
        f"{'log-mel of 5 s, one core':<28}{'ours ms':>9}{'librosa ms':>12}{'faster':>8}{'difference dB':>15}"
    )
    for name, config in CONFIGS.items():
        rng = np.random.default_rng(0)
        samples = (0.1 * rng.standard_normal(SECONDS * config.sample_rate)).astype(np.float32)
        frontend = Frontend(config)
        unit = 20 / np.log(10) if config.scale == "ln" else 1.0  # of an amplitude, in dB
        difference = float(np.abs(frontend(samples) - by_librosa(samples, config)).max() * config.std) * unit
        assert difference < LARGEST_DIFFERENCE_DB, f"{name}: outputs differ by {difference} dB"
        times = timing.paired_ms(
            {
                "ours": lambda f=frontend, s=samples: f(s),
                "librosa": lambda c=config, s=samples: by_librosa(s, c),
            },
            rounds=args.rounds,
        )
        row = {
            "what": name,
            "ours_ms": round(statistics.median(times["ours"]), 3),
            "librosa_ms": round(statistics.median(times["librosa"]), 3),
            "times_faster": round(1 / timing.ratio(times, "ours", "librosa"), 2),
            "max_difference_db": difference,
        }
        rows.append(row)
        print(
            f"{name:<28}{row['ours_ms']:>9}{row['librosa_ms']:>12}{row['times_faster']:>8}"
            f"{row['max_difference_db']:>15.1e}"
        )
    timing.write(
        args.out,
        {"machine": timing.machine(), "librosa": librosa.__version__, "rounds": args.rounds, "rows": rows},
    )


if __name__ == "__main__":
    main()
