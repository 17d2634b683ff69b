"""TensorBoard of a run: curves in every epoch; recall, confusion and what the network is shown in every tenth.

All of it is about training clips, recall and confusion about the inner split where the run has one. The test fold is
never in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from soundmark.config import FrontendConfig, to_dict, to_toml
from soundmark.frontend import Frontend
from soundmark.learn.batches import Judged, Source
from soundmark.learn.run_folder import EpochReport, history_writer
from soundmark.plots import PALETTE, shades
from soundmark.preset import Preset

EVERY = 10
"""Epochs from one set of pictures to the next; the first and the last epoch have one too."""
EXAMPLES = 6
"""Labels of which one clip is shown, always the same one, as augmentation makes it in that epoch."""
HYPERPARAMETERS = ("network", "waves", "augment", "train")
"""Sections of a preset that TensorBoard's table of hyper-parameters has."""
_CELL = 6  # pixels of a confusion

Write = Callable[[EpochReport, Judged | None, bool], None]


@contextmanager
def summary_writer(
    out: Path, start: int, active: bool, *, preset: Preset, labels: Sequence[str], batches: Source
) -> Iterator[Write]:
    """Yield a function that writes an epoch (its report, what the inner split says, whether it is the last one).

    It goes to history.jsonl and to TensorBoard, behind the first ``start`` epochs; where not ``active``, nowhere.
    """
    if not active:
        yield lambda *_: None
        return
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    board = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)
    append = history_writer(out, start)
    metrics = ["train/loss", "train/accuracy", *(["inner/loss"] if preset.train.patience else [])]
    assert board.file_writer is not None
    for summary in hparams(hyperparameters(preset), dict.fromkeys(metrics, 0)):
        board.file_writer.add_summary(summary)
    board.add_text("preset", f"```toml\n{to_toml(preset)}```", start)
    first = {target: row for row, target in reversed([*enumerate(batches.targets.tolist())])}
    rows = [first[target] for target in sorted(first)][:EXAMPLES]

    def write(report: EpochReport, judged: Judged | None, last: bool) -> None:
        append(report)
        for name, value in (
            ("train/loss", report.loss),
            ("train/accuracy", report.accuracy),
            ("train/lr", report.lr),
            ("inner/loss", report.inner_loss),
            ("inner/accuracy", report.inner_accuracy),
        ):
            if value is not None:
                board.add_scalar(name, value, report.epoch)
        if not (last or report.epoch == 1 or report.epoch % EVERY == 0):
            return
        features, _ = batches(torch.tensor(rows), torch.Generator().manual_seed(report.epoch))
        for row, values in zip(rows, features.numpy(), strict=True):
            picture = coloured(values, preset.frontend)
            board.add_image(
                f"shown/{labels[int(batches.targets[row])]}", picture, report.epoch, dataformats="HWC"
            )
        if judged:
            counts = judged.confusion.numpy()
            for label, row, found in zip(labels, counts, counts.diagonal(), strict=True):
                if row.sum():
                    board.add_scalar(f"inner recall/{label}", found / row.sum(), report.epoch)
            picture = confusion_picture(counts)
            board.add_image("inner/confusion", picture, report.epoch, dataformats="HWC")

    try:
        yield write
    finally:
        board.close()


def hyperparameters(preset: Preset) -> dict[str, Any]:
    """Return ``section.field`` -> value for TensorBoard, which takes numbers, truth values and text."""
    tree = to_dict(preset)
    return {
        f"{section}.{name}": value if isinstance(value, bool | int | float | str) else str(value)
        for section in HYPERPARAMETERS
        for name, value in tree[section].items()
    }


def coloured(features: npt.NDArray[np.float32], frontend: FrontendConfig) -> npt.NDArray[np.uint8]:
    """Return features (n_rows, n_frames) as a picture (height, width, 3), of a wave its log-mel spectrum."""
    if frontend.kind == "wave":
        features = Frontend(FrontendConfig(sample_rate=frontend.sample_rate))(features[0])
    return PALETTE[shades(features)]


def confusion_picture(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return counts (true, heard) as a picture (height, width, 3): brightness is the share of the true label."""
    shares = (counts / np.maximum(1, counts.sum(axis=1, keepdims=True))).astype(np.float32)
    levels = shades(shares[::-1], low=0.0, high=1.0).repeat(_CELL, axis=0).repeat(_CELL, axis=1)
    return PALETTE[levels]
