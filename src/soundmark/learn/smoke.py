"""A first check of a preset: a few clips, two epochs, export, evaluation; shapes and one loss for a newcomer's eye.

It says that the road is whole, nothing about accuracy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from msgspec.structs import replace as with_fields
from torch import nn

from soundmark.classifier import Classifier
from soundmark.dataset import Clip, Dataset
from soundmark.errors import DatasetError
from soundmark.evaluate import evaluate
from soundmark.learn import networks
from soundmark.learn.batches import Batches
from soundmark.learn.export import export
from soundmark.learn.run_folder import EpochReport
from soundmark.learn.train import train
from soundmark.preset import Preset

LABELS, TRAIN_CLIPS, EPOCHS = 8, 3, 2
"""Labels of a smoke run, training clips of each (one is tested), epochs."""


@dataclass(frozen=True, slots=True)
class Smoke:
    """What a smoke run saw."""

    preset: str
    labels: int
    train_clips: int
    features: tuple[int, ...]  # (batch, n_rows, n_frames)
    logits: tuple[int, ...]  # (batch, n_labels)
    parameters: int
    loss: float  # before the first step; about ln(labels)
    model_bytes: int
    int8_agreement: float
    accuracy: float  # on the few test clips: a sign of life
    test_clips: int
    seconds: float

    def lines(self) -> list[str]:
        """Return it as text for a terminal."""
        return [
            f"features {self.features}, logits {self.logits}, {self.parameters:,} parameters",
            f"first loss {self.loss:.3f} (ln({self.labels}) = {math.log(self.labels):.3f} is knowing nothing)",
            f"bundle {self.model_bytes:,} bytes; same label from int8 and fp32: {self.int8_agreement:.0%}",
            f"{self.accuracy:.0%} of {self.test_clips} test clips, learnt from {self.train_clips} clips: "
            "a sign of life",
            f"{self.preset}: the whole road in {self.seconds:.0f} s",
        ]


def smoke(
    preset: Preset,
    dataset: Dataset,
    *,
    test_fold: int,
    out: Path,
    weights: Path | None = None,
    on_clip: Callable[[int], None] | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Smoke:
    """Train, export and evaluate ``preset`` on a few clips and return what was seen.

    Args:
        preset: as it is, but for epochs, batch size, labels and calibration.
        dataset: with folds.
        test_fold: the fold of the test clips.
        out: a new folder: ``run`` and ``bundle``.
        weights: see `train`.
        on_clip: see `train`.
        on_epoch: see `train`.
        on_note: see `train`.

    Raises:
        DatasetError: fewer than two labels have clips on both sides.
        SoundmarkError: what training, export and evaluation raise.
    """
    began = time.perf_counter()
    few = few_clips(dataset.narrowed(preset.labels), test_fold)
    short = with_fields(
        preset,
        labels=(),
        train=with_fields(preset.train, epochs=EPOCHS, batch_size=8, inner=0.34),
        export=with_fields(preset.export, calibration_clips=8, golden_windows=8, max_int8_disagreement=1.0),
    )
    folds = tuple(fold for fold in few.folds if fold != test_fold)
    features, logits, parameters, loss = _first_step(short, few.in_folds(folds))
    run = train(
        short,
        few,
        test_fold=test_fold,
        out=out / "run",
        weights=weights,
        rehearsal=True,
        on_clip=on_clip,
        on_epoch=on_epoch,
        on_note=on_note,
    )
    bundle, agreement = export(run, out / "bundle", data=few)
    report = evaluate(Classifier.load(out / "bundle"), few, folds=[test_fold])
    return Smoke(
        preset=preset.name,
        labels=len(few.labels),
        train_clips=run.info["n_clips"],
        features=features,
        logits=logits,
        parameters=parameters,
        loss=loss,
        model_bytes=len(bundle.model),
        int8_agreement=agreement.int8_top1_agreement,
        accuracy=report.figures["accuracy"],
        test_clips=len(report.answers) + len(report.failures),
        seconds=time.perf_counter() - began,
    )


def few_clips(dataset: Dataset, test_fold: int) -> Dataset:
    """Return up to `LABELS` labels, each with `TRAIN_CLIPS` clips of different sources and one of ``test_fold``."""
    dataset.in_folds([test_fold])  # or it says which there are
    chosen: dict[str, list[Clip]] = {}
    for label in dataset.labels:
        mine = [clip for clip in dataset.clips if clip.label == label]
        sources = {clip.source: clip for clip in mine if clip.fold != test_fold}
        tests = [clip for clip in mine if clip.fold == test_fold and clip.source not in sources][:1]
        if sources and tests:
            chosen[label] = [*list(sources.values())[:TRAIN_CLIPS], *tests]
        if len(chosen) == LABELS:
            break
    if len(chosen) < 2:
        raise DatasetError(
            f"{len(chosen)} labels of {dataset.name} have clips both in fold {test_fold} and out of it",
            wanted="two or more",
            code="one_label",
        )
    clips = tuple(clip for some in chosen.values() for clip in some)
    return replace(dataset, name=f"{dataset.name} (smoke)", labels=tuple(chosen), clips=clips)


def _first_step(preset: Preset, dataset: Dataset) -> tuple[tuple[int, ...], tuple[int, ...], int, float]:
    """Return shapes of features and logits, the number of parameters, and the loss before any learning."""
    batches = Batches(preset, dataset)
    torch.manual_seed(preset.train.seed)
    network = networks.build(preset.network, batches.shape, len(dataset.labels)).eval()
    rows = torch.arange(min(len(batches), preset.train.batch_size))
    features, _ = batches(rows, torch.Generator().manual_seed(preset.train.seed))
    with torch.no_grad():
        logits = network(features)
        loss = nn.functional.cross_entropy(logits, batches.targets[rows])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return tuple(features.shape), tuple(logits.shape), parameters, float(loss)
