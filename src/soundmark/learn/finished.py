"""What a finished run left: its network with the learnt weights, and the clips that it learnt from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from soundmark.dataset import Dataset
from soundmark.errors import TrainingError
from soundmark.frontend import Frontend
from soundmark.learn import checkpoint, networks, waves
from soundmark.learn.features import FeatureStore, extract
from soundmark.learn.run_folder import SPLIT_FILE, Run
from soundmark.sources import open_dataset
from soundmark.splits import apply_split


def load_network(run: Run) -> nn.Module:
    """Return the network of a finished run, in eval mode.

    Raises:
        TrainingError: the run is not finished.
    """
    if not run.info.get("finished"):
        raise TrainingError(
            f"{run.path} is not finished", wanted="a finished run; start the same command again"
        )
    window_samples = round(run.preset.window.window_s * run.preset.frontend.sample_rate)
    shape = Frontend(run.preset.frontend).shape(window_samples)
    network = networks.build(run.preset.network, shape, len(run.labels))
    network.load_state_dict(checkpoint.load_weights(run.path / "weights.safetensors"))
    return network.eval()


def training_set(run: Run, data: str | Path | Dataset | None = None) -> Dataset:
    """Return the clips that ``run`` was trained on.

    Raises:
        TrainingError: the data are not those; code ``other_data``.
    """
    dataset = (
        data
        if isinstance(data, Dataset)
        else open_dataset(
            data or run.info["data_root"], strict=False
        )  # the digest tells whether it is the same
    )
    if (run.path / SPLIT_FILE).exists():
        dataset = apply_split(dataset, run.path / SPLIT_FILE)
    dataset = dataset.narrowed(run.labels)  # perhaps trained on a choice of labels
    train_set = dataset.in_folds(run.info["train_folds"])
    if train_set.digest() != run.info["data_digest"]:
        raise TrainingError(
            f"the data in {train_set.root} is not what {run.path} was trained on",
            wanted=f"data with digest {run.info['data_digest'][:12]}",
            cause="--data names another copy",
            code="other_data",
        )
    return train_set


def training_features(
    run: Run,
    data: str | Path | Dataset | None,
    on_clip: Callable[[int], None] | None,
    *,
    all_clips: bool = False,
) -> FeatureStore:
    """Return features of the clips that ``run`` was trained on.

    Of a few, unless ``all_clips``, where the cache does not have them.
    """
    train_set = training_set(run, data)
    if waves.active(run.preset.waves) and not all_clips:  # not in the cache: make those of a few clips
        wanted = run.preset.export.calibration_clips + run.preset.export.golden_windows
        clips = train_set.clips[:: max(1, len(train_set.clips) // wanted)]
        train_set = replace(train_set, clips=clips)
    left_out = None if "skipped" not in run.info else lambda *_: None  # the run has named them
    return extract(train_set, run.preset.frontend, run.preset.window, progress=on_clip, on_bad=left_out)
