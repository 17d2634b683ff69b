"""Which layers of YAMNet a head of cosines should hear: every choice on five folds, and one that looks at none of them.

The trunk is that of a preset, as it is, in float and with whole convolutions, their weights on the levels that the
preset asks for; all clips go through it once, and every choice of layers, pooling and shrinkage is a closed form on
what it gave. In the nested row the choice for each outer fold is the best on the other four, each of which was left out
in turn: so much is the accuracy of whoever chooses like that.

    python benchmarks/cosines.py --data ESC50 --weights yamnet_classification.tflite

Writes docs/ablations/PRESET-layers.json.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import timing
import torch

import soundmark
from soundmark.dataset import Dataset
from soundmark.frontend import Frontend
from soundmark.learn import cosine, networks, pretrained
from soundmark.learn.features import extract
from soundmark.learn.networks.edge import SalientPool, StatisticsPool
from soundmark.learn.networks.yamnet import PLAN
from soundmark.learn.side_by_side import embeddings
from soundmark.preset import load_preset
from soundmark.sources import open_dataset

LAYERS: tuple[tuple[int, ...], ...] = ((17,), (13, 17), (13, 17, 21), (13, 17, 23))
"""1x1 convolutions that are pooled, the last of them the end of the network."""
POOLS = {"salient": SalientPool.parts, "statistics": StatisticsPool.parts}
"""`network.pool`, and its numbers per channel."""
SHRINKS = (0.1, 0.2, 0.4)
ALL = tuple(sorted({layer for layers in LAYERS for layer in layers}))

Choice = tuple[tuple[int, ...], str, float]
Matrix = npt.NDArray[np.float64]


def right(x: Matrix, targets: npt.NDArray[np.int64], shrink: float, learnt: Matrix, heard: Matrix) -> float:
    """Return the accuracy on the clips ``heard`` (n,) of a head fitted on those ``learnt`` (n,), both bool."""
    n_labels = int(targets.max()) + 1
    found = cosine.fit(x[learnt], targets[learnt], n_labels, shrink=shrink)
    head = cosine.CosineHead(x.shape[1], n_labels).become(found, cosine.SCALE)
    with torch.no_grad():
        logits = head(torch.from_numpy(x[heard]).float()).numpy()
    return float((logits.argmax(axis=1) == targets[heard]).mean())


def columns(pool: str, layers: Sequence[int]) -> npt.NDArray[np.intp]:
    """Return the places of ``layers`` in an embedding of `ALL`."""
    widths = [POOLS[pool] * PLAN[layer // 2][0] for layer in ALL]
    starts = np.concatenate([[0], np.cumsum(widths)])
    return np.concatenate([np.arange(*starts[[k, k + 1]]) for k, layer in enumerate(ALL) if layer in layers])


def pooled(name: str, pool: str, dataset: Dataset, weights: Path) -> Matrix:
    """Return what is pooled of `ALL` layers for every clip, ``(n, width)``."""
    widest = [
        f"network.keep={ALL[-1]}",
        f"network.taps={list(ALL[:-1])}",
        f"network.pool={pool}",
        "network.rank=0",
    ]
    preset = load_preset(name, widest)
    store = extract(dataset, preset.frontend, preset.window)
    shape = Frontend(preset.frontend).shape(round(preset.window.window_s * preset.frontend.sample_rate))
    network = networks.build(preset.network, shape, len(dataset.labels))
    pretrained.load_into(network, weights)
    names = [clip.name for clip in dataset.clips]
    found = embeddings(network.eval(), store, names)
    return torch.stack([found[name] for name in names]).double().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=("edge", "yamnet-cosine"), default="edge")
    parser.add_argument("--data", default=os.environ.get("SOUNDMARK_ESC50"))
    parser.add_argument("--weights", default=os.environ.get("SOUNDMARK_YAMNET"), type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    dataset = open_dataset(args.data)
    heard = {pool: pooled(args.preset, pool, dataset, args.weights) for pool in POOLS}
    targets, fold = np.array(dataset.targets), np.array([clip.fold for clip in dataset.clips])
    choices = [*itertools.product(LAYERS, POOLS, SHRINKS)]

    @functools.cache
    def score(choice: Choice, aside: int, beside: int | None = None) -> float:
        layers, pool, shrink = choice
        learnt = ~np.isin(fold, [aside] if beside is None else [aside, beside])
        return right(heard[pool][:, columns(pool, layers)], targets, shrink, learnt, fold == aside)

    rows = []
    for choice in choices:
        layers, pool, shrink = choice
        of_folds = {k: score(choice, k) for k in dataset.folds}
        mean = float(np.mean([*of_folds.values()]))
        rows.append(
            {"layers": layers, "pool": pool, "shrink": shrink, "per_fold": of_folds, "accuracy": mean}
        )
        print(f"layers {layers!s:12} {pool:10} shrink {shrink}  {mean:.2%}", flush=True)
    nested = {}
    for outer in dataset.folds:
        others = [k for k in dataset.folds if k != outer]
        best = max(choices, key=lambda choice: np.mean([score(choice, k, outer) for k in others]))
        layers, pool, shrink = best
        nested[outer] = {"layers": layers, "pool": pool, "shrink": shrink, "accuracy": score(best, outer)}
        print(f"fold {outer}: {layers}, {pool}, shrink {shrink}  {nested[outer]['accuracy']:.2%}", flush=True)
    whole = float(np.mean([row["accuracy"] for row in nested.values()]))
    print(f"nested {whole:.2%}")
    tree = {
        "report": "benchmarks/cosines.py",
        "preset": args.preset,
        "protocol": "fp32, whole convolutions, five folds; nested: each choice made on the other four alone",
        "soundmark": soundmark.__version__,
        "data": dataset.name,
        "rows": rows,
        "nested": {"accuracy": whole, "per_fold": nested},
        "machine": timing.machine(),
    }
    timing.write(args.out or Path(f"docs/ablations/{args.preset}-layers.json"), tree)


if __name__ == "__main__":
    main()
