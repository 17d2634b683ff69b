"""Which layers of YAMNet a head of cosines should hear: every choice on five folds, and one that looks at none of them.

The trunk is that of the preset yamnet-cosine, as it is, in float; all clips go through it once, and every choice of
taps and shrinkage is a closed form on what it gave. In the nested row the choice for each outer fold is the best on the
other four, each of which was left out in turn: so much is the accuracy of whoever chooses like that.

    python benchmarks/cosines.py --data ESC50 --weights yamnet_classification.tflite

Writes docs/ablations/yamnet-cosine.json.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import timing
import torch

import soundmark
from soundmark.config import NetworkConfig
from soundmark.frontend import Frontend
from soundmark.learn import cosine, networks, pretrained
from soundmark.learn.features import extract
from soundmark.learn.networks.yamnet import PLAN
from soundmark.learn.side_by_side import embeddings
from soundmark.preset import load_preset
from soundmark.sources import open_dataset

TAPS: tuple[tuple[int, ...], ...] = ((), (15,), (13,), (9, 11), (13, 15))
"""1x1 convolutions beside the 17th."""
SHRINKS = (0.1, 0.2, 0.4)
WIDEST = tuple(sorted({tap for taps in TAPS for tap in taps}))

Matrix = npt.NDArray[np.float64]


def right(x: Matrix, targets: npt.NDArray[np.int64], shrink: float, learnt: Matrix, heard: Matrix) -> float:
    """Return the accuracy on the clips ``heard`` (n,) of a head fitted on those ``learnt`` (n,), both bool."""
    n_labels = int(targets.max()) + 1
    found = cosine.fit(x[learnt], targets[learnt], n_labels, shrink=shrink)
    head = cosine.CosineHead(x.shape[1], n_labels).become(found, cosine.SCALE)
    with torch.no_grad():
        logits = head(torch.from_numpy(x[heard]).float()).numpy()
    return float((logits.argmax(axis=1) == targets[heard]).mean())


def columns(config: NetworkConfig, taps: Sequence[int]) -> npt.NDArray[np.intp]:
    """Return the places of ``taps`` and the last layer in an embedding of all of `WIDEST`."""
    widths = [2 * PLAN[tap // 2][0] for tap in (*WIDEST, config.keep)]
    starts = np.concatenate([[0], np.cumsum(widths)])
    kept = [place for place, tap in enumerate((*WIDEST, config.keep)) if tap in (*taps, config.keep)]
    return np.concatenate([np.arange(starts[place], starts[place + 1]) for place in kept])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("SOUNDMARK_ESC50"))
    parser.add_argument("--weights", default=os.environ.get("SOUNDMARK_YAMNET"), type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/ablations/yamnet-cosine.json"))
    args = parser.parse_args()
    preset = load_preset("yamnet-cosine", [f"network.taps={list(WIDEST)}"])
    dataset = open_dataset(args.data)
    store = extract(dataset, preset.frontend, preset.window)
    shape = Frontend(preset.frontend).shape(round(preset.window.window_s * preset.frontend.sample_rate))
    network = networks.build(preset.network, shape, len(dataset.labels))
    pretrained.load_into(network, args.weights)
    names = [clip.name for clip in dataset.clips]
    found = embeddings(network.eval(), store, names)
    x = torch.stack([found[name] for name in names]).double().numpy()
    targets, fold = np.array(dataset.targets), np.array([clip.fold for clip in dataset.clips])
    choices = [(taps, shrink) for taps in TAPS for shrink in SHRINKS]
    parts = {taps: x[:, columns(preset.network, taps)] for taps in TAPS}

    def score(choice: tuple[tuple[int, ...], float], aside: int, beside: int | None = None) -> float:
        taps, shrink = choice
        learnt = ~np.isin(fold, [aside] if beside is None else [aside, beside])
        return right(parts[taps], targets, shrink, learnt, fold == aside)

    rows = []
    for taps, shrink in choices:
        of_folds = {k: score((taps, shrink), k) for k in dataset.folds}
        mean = float(np.mean([*of_folds.values()]))
        rows.append({"taps": taps, "shrink": shrink, "per_fold": of_folds, "accuracy": mean})
        print(f"taps {taps!s:12} shrink {shrink}  {mean:.2%}", flush=True)
    nested = {}
    for outer in dataset.folds:
        others = [k for k in dataset.folds if k != outer]
        best = max(choices, key=lambda choice: np.mean([score(choice, k, outer) for k in others]))
        nested[outer] = {"taps": best[0], "shrink": best[1], "accuracy": score(best, outer)}
        print(f"fold {outer}: taps {best[0]}, shrink {best[1]}  {nested[outer]['accuracy']:.2%}", flush=True)
    whole = float(np.mean([row["accuracy"] for row in nested.values()]))
    print(f"nested {whole:.2%}")
    tree = {
        "report": "benchmarks/cosines.py",
        "protocol": "fp32, five folds; nested: taps and shrinkage of each fold chosen on the other four alone",
        "soundmark": soundmark.__version__,
        "data": dataset.name,
        "rows": rows,
        "nested": {"accuracy": whole, "per_fold": nested},
        "machine": timing.machine(),
    }
    timing.write(args.out, tree)


if __name__ == "__main__":
    main()
