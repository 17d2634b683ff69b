"""A layer over the embeddings of several frozen runs, as an ensemble whose members' logits are added up.

`linear` is multinomial logistic regression on standardised embeddings of the training clips. It is convex, so there is
one answer, and nothing is drawn. Each member gets the columns of its own embedding, standardisation folded in; that
makes weights of very different sizes, so the layer stays in float where the rest of a member is int8. `cosine` gives
each member a head of its own (`soundmark.learn.cosine`), whose cosines are added up.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from msgspec.structs import replace
from torch import Tensor, nn

from soundmark import ensemble
from soundmark.classifier import Classifier
from soundmark.config import EnsembleConfig, ExportConfig
from soundmark.dataset import Dataset
from soundmark.ensemble import Ensemble
from soundmark.errors import ConfigError, TrainingError
from soundmark.learn import cosine
from soundmark.learn.embeddings import Embedder, Embedding
from soundmark.learn.export import write_bundle
from soundmark.learn.features import FeatureStore, extract
from soundmark.learn.finished import load_network, training_set
from soundmark.learn.run_folder import Run

BATCH = 32
_SHARED = ("data_digest", "train_folds", "test_fold", "labels", "split")

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer: ``embedding @ weight.T + bias``, weight ``(n_labels, width)``."""

    weight: Matrix
    bias: Matrix


def side_by_side(
    runs: Sequence[Run],
    out: Path,
    *,
    data: str | Path | Dataset | None = None,
    exports: Sequence[ExportConfig] = (),
    config: EnsembleConfig = EnsembleConfig(),  # noqa: B008 - frozen
    name: str = "side-by-side",
    overwrite: bool = False,
    on_clip: Callable[[int], None] | None = None,
) -> Ensemble:
    """Fit a layer over the embeddings of ``runs`` and write the ensemble ``out``.

    Args:
        runs: finished runs whose trunk is frozen, trained on the same clips.
        out: the ensemble.
        data: see `export`.
        exports: an export section for each run; default: those of the runs.
        config: which layer, and its numbers; fixed values, or chosen on an inner fold.
        name: of the ensemble.
        overwrite: replace an ensemble that is there.
        on_clip: called with 1 per clip and run.

    Raises:
        ConfigError: a run whose trunk learnt, or that is not of two halves; runs of other clips.
        TrainingError: see `export`.
        StorageError: ``out`` exists or cannot be written.
    """
    ensemble.refuse_existing(out, overwrite=overwrite)
    _refuse(runs)
    networks = [load_network(run) for run in runs]
    stores: list[FeatureStore] = []
    parts: list[dict[str, Tensor]] = []
    for run, network in zip(runs, networks, strict=True):
        if not isinstance(network, Embedding):
            raise ConfigError(
                f"the network of {run.path} gives no embedding", wanted="one with embed and classify"
            )
        train_set = training_set(run, data)
        left_out = None if "skipped" not in run.info else lambda *_: None  # the run has named them
        store = extract(train_set, run.preset.frontend, run.preset.window, progress=on_clip, on_bad=left_out)
        stores.append(store)
        parts.append(embeddings(network, store, [clip.name for clip in train_set.clips]))
    target_of = {clip.name: target for clip, target in zip(train_set.clips, train_set.targets, strict=True)}
    clips = [clip for clip in parts[0] if all(clip in part for part in parts)]
    x = [torch.stack([part[clip] for clip in clips]).double().numpy() for part in parts]
    heads, numbers = _heads(x, np.array([target_of[clip] for clip in clips]), len(train_set.labels), config)
    head = {"side_by_side": [run.preset.name for run in runs], **numbers, "clips": len(clips)}
    with tempfile.TemporaryDirectory(prefix="soundmark-side-by-side-") as scratch:
        members = []
        for index, (run, network, store) in enumerate(zip(runs, networks, stores, strict=True)):
            network.head = heads[index]
            export = replace(exports[index] if exports else run.preset.export, float_last=True)
            part = Run(run.path, run.preset, {**run.info, "head": head})
            written, _ = write_bundle(part, network, store, Path(scratch) / str(index), export)
            members.append(Classifier(written))
        return ensemble.write(out, members, name=name, combine="logits", overwrite=overwrite)


def embeddings(network: nn.Module, store: FeatureStore, clips: Sequence[str]) -> dict[str, Tensor]:
    """Return clip -> embedding ``(width,)``, the mean over its windows; clips without windows are not in it."""
    of_windows: dict[str, list[Tensor]] = {}
    embedder = Embedder(network)
    for first in range(0, len(store.linear), BATCH):
        part = slice(first, first + BATCH)
        features = store.frontend.finish(torch.from_numpy(np.array(store.linear[part])), torch)
        for index, row in zip(store.clip_of[part].tolist(), embedder(features), strict=True):
            of_windows.setdefault(clips[index], []).append(row)
    return {clip: torch.stack(some).mean(dim=0) for clip, some in of_windows.items()}


def _heads(
    parts: Sequence[Matrix], targets: npt.NDArray[np.int64], n_labels: int, config: EnsembleConfig
) -> tuple[list[nn.Module], dict[str, float]]:
    """Return the head of each member, and the numbers behind them."""
    if config.layer == "cosine":
        found = [cosine.fit(part, targets, n_labels, shrink=config.shrink) for part in parts]
        heads: list[nn.Module] = [
            cosine.CosineHead(part.shape[1], n_labels).become(one, config.scale)
            for part, one in zip(parts, found, strict=True)
        ]
        return heads, {"shrink": config.shrink, "scale": config.scale}
    layers = fit(parts, targets, n_labels, l2=config.l2)
    return [_linear(layer) for layer in layers], {"l2": config.l2}


def _linear(layer: Layer) -> nn.Linear:
    made = nn.Linear(*reversed(layer.weight.shape))
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(layer.weight))
        made.bias.copy_(torch.from_numpy(layer.bias))
    return made


def fit(parts: Sequence[Matrix], targets: npt.NDArray[np.int64], n_labels: int, *, l2: float) -> list[Layer]:
    """Return a layer for each of ``parts``; the sum of what they give is the jointly fitted layer.

    Args:
        parts: embeddings ``(n, width)`` of the same clips, each of another trunk.
        targets: ``(n,)``.
        n_labels: labels.
        l2: strength of the penalty: the loss is the mean cross-entropy plus ``l2 / 2`` times the sum of squared
            weights.
    """
    x = np.concatenate(parts, axis=1)
    mean, spread = x.mean(axis=0), cosine.spreads(x)
    weight, bias = _regress((x - mean) / spread, targets, n_labels, l2)
    weight = weight / spread
    bias = bias - weight @ mean
    edges = np.cumsum([part.shape[1] for part in parts])[:-1]
    return [Layer(columns, bias / len(parts)) for columns in np.split(weight, edges, axis=1)]


def _regress(x: Matrix, targets: npt.NDArray[np.int64], n_labels: int, l2: float) -> tuple[Matrix, Matrix]:
    """Return weight ``(n_labels, width)`` and bias of the regression, in float64."""
    features, labels = torch.from_numpy(x), torch.from_numpy(targets)
    weight = torch.zeros(n_labels, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(n_labels, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=500,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (
            nn.functional.cross_entropy(features @ weight.T + bias, labels) + l2 / 2 * weight.square().sum()
        )
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach().numpy(), bias.detach().numpy()


def _refuse(runs: Sequence[Run]) -> None:
    if len(runs) < 1:
        raise ConfigError("no run", wanted="one frozen run or more")
    for run in runs:
        if run.preset.train.frozen_epochs < run.preset.train.epochs:
            raise ConfigError(
                f"the trunk of {run.path} learnt on its training clips",
                wanted="runs whose epochs are all frozen (train.frozen_epochs)",
                cause="a layer over embeddings that know the clips already learns too little; "
                "`soundmark ensemble` adds such a run as a member",
            )
        differing = [key for key in _SHARED if run.info.get(key) != runs[0].info.get(key)]
        if differing:
            raise TrainingError(
                f"{run.path} and {runs[0].path} have other {differing[0]}",
                wanted="runs on the same clips, with the same fold kept aside",
                code="other_data",
            )
