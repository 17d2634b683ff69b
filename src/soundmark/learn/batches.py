"""Training batches: windows of a data set to augmented features and soft targets, on one road for every preset.

Where a preset changes samples (`WaveConfig`), the cache holds waves and the front end runs in every step; otherwise
it holds linear features. All chance comes from the generator that is passed in, drawn before any work is shared out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from soundmark.config import FrontendConfig, TrainConfig, WindowConfig
from soundmark.dataset import Dataset
from soundmark.errors import DatasetError
from soundmark.frontend import Frontend
from soundmark.learn import waves
from soundmark.learn.augment import active, augment, mask, mix_styles
from soundmark.learn.backgrounds import Backgrounds
from soundmark.learn.features import FeatureStore, OnBad, extract
from soundmark.learn.loudness import Loudness
from soundmark.preset import Preset
from soundmark.splits import class_weights


class Source(Protocol):
    """What the training loop learns from.

    Attributes:
        weights: ``(n_labels,)`` class weights, inverse to the clips of each label.
        targets: ``(n,)`` class index of everything that an epoch goes through.
        steady: whether a window gives the same features every time.
    """

    weights: Tensor
    targets: Tensor

    @property
    def steady(self) -> bool:
        """See above."""

    def __len__(self) -> int: ...

    def plain(self, size: int) -> Iterator[Tensor]:
        """Yield the features of the first windows, each once and as they are, in the order of `targets`, in parts."""

    def __call__(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return what goes into the network and what `loss` compares its answer with, ``(batch, ...)`` both."""

    def learner(self, network: nn.Module) -> nn.Module:
        """Return what learns: ``network`` itself, or a module around it whose attribute ``network`` it is."""

    def loss(self, out: Tensor, told: Tensor) -> Tensor:
        """Return the loss, a number, of what the learner gave."""


class Lesson(Protocol):
    """Makes a `Source` of the training clips, and says what a run's identity owes to it."""

    @property
    def info(self) -> dict[str, Any]:
        """Plain data for run.json."""

    def __call__(
        self, train_set: Dataset, *, progress: Callable[[int], None] | None = None, on_bad: OnBad
    ) -> Source:
        """Return what a run on ``train_set`` learns from."""


def label_loss(logits: Tensor, soft: Tensor, config: TrainConfig, weights: Tensor) -> Tensor:
    """Return the cross-entropy with smoothed labels, weighted by label where ``train.balance`` says so.

    Args:
        logits: ``(batch, n_labels)``.
        soft: labels, rows that sum to 1, ``(batch, n_labels)``.
        config: label smoothing and balance.
        weights: ``(n_labels,)`` of the labels.
    """
    smooth = soft * (1 - config.label_smoothing) + config.label_smoothing / soft.shape[1]
    of_label = weights.to(logits.device) if config.balance == "weights" else None
    return nn.functional.cross_entropy(logits, smooth, weight=of_label)


def share_right(answer: Tensor, told: Tensor, n_labels: int) -> Tensor:
    """Return the share of a batch whose best label is the largest of those it was told: both begin with labels."""
    same = answer[:, :n_labels].argmax(dim=1) == told[:, :n_labels].argmax(dim=1)
    return same.float().mean()


class Batches:
    """Windows to learn from; a `Source`.

    Attributes:
        shape: ``(n_rows, n_frames)`` of the features of one window.
        targets: ``(n_windows,)`` class index.
        weights: ``(n_labels,)`` class weights, inverse to the clips of each label.
    """

    def __init__(
        self,
        preset: Preset,
        dataset: Dataset,
        *,
        progress: Callable[[int], None] | None = None,
        on_bad: OnBad | None = None,
    ) -> None:
        """Read or compute what the cache is to hold.

        Raises:
            DatasetError: all clips are equal; and see `extract`.
        """
        self._preset = preset
        self._live = waves.active(preset.waves)
        frontend, window = (preset.frontend, preset.window)
        if self._live:
            frontend = FrontendConfig(kind="wave", sample_rate=frontend.sample_rate)
            seconds = preset.waves.clip_s or window.window_s
            window = WindowConfig(window_s=seconds, hop_s=preset.waves.clip_s or window.hop_s)
        store = extract(dataset, frontend, window, progress=progress, on_bad=on_bad)
        self._linear = store.linear  # (n_windows, n_linear, n_frames), or waves (n_windows, 1, n_samples)
        if all(np.array_equal(self._linear[0], other) for other in self._linear):
            raise DatasetError("all clips are equal", wanted="sounds that differ", code="no_information")
        self._backgrounds = None
        if preset.waves.background:
            self._backgrounds = Backgrounds.of_folder(
                preset.waves.background, frontend, preset.window.window_s, on_bad=on_bad
            )
        elif preset.waves.background_share:
            self._backgrounds = Backgrounds(store, own=True)
        self._frontend = Frontend(preset.frontend)
        self._window_samples = round(preset.window.window_s * preset.frontend.sample_rate)
        self.shape = self._frontend.shape(self._window_samples)
        self._power = 1 if preset.frontend.kind == "wave" else preset.frontend.power
        weighted = preset.augment.mix_loudness == "a-weighted" and preset.augment.mix_probability > 0
        self._loudness = Loudness(preset.frontend.sample_rate) if weighted else None
        self._pool = ThreadPoolExecutor(torch.get_num_threads()) if self._live or weighted else None
        self.targets = torch.tensor(dataset.targets)[torch.from_numpy(store.clip_of)]
        self._one_hot = nn.functional.one_hot(self.targets, len(dataset.labels)).float()
        clips = tuple(clip for i, clip in enumerate(dataset.clips) if i not in store.skipped)
        self.weights = torch.tensor(class_weights(replace(dataset, clips=clips)))

    @property
    def steady(self) -> bool:
        """Whether a window gives the same features every time."""
        return not self._live and not active(self._preset.augment)

    def __len__(self) -> int:
        return len(self._linear)

    def __call__(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return features ``(batch, n_rows, n_frames)`` and soft targets ``(batch, n_labels)`` of windows ``rows``."""
        config = self._preset.augment
        linear = self._changed(rows, generator)
        level = None
        if self._loudness is not None and self._pool is not None:
            level = torch.tensor(list(self._pool.map(self._loudness, linear[:, 0].numpy())))
        linear, soft = augment(
            linear, self._one_hot[rows], config, power=self._power, generator=generator, level=level
        )
        features = mix_styles(self.finish(linear), config, generator)
        return mask(features, config, generator), soft

    def plain(self, size: int) -> Iterator[Tensor]:
        """Yield the features ``(batch, n_rows, n_frames)`` of all windows, unchanged, ``size`` at a time."""
        for first in range(0, len(self), size):
            linear = np.stack([self._linear[row] for row in range(first, min(first + size, len(self)))])
            if self._live:  # waves, perhaps longer than a window
                linear = np.stack([self._frontend.linear(wave[0, : self._window_samples]) for wave in linear])
            yield self.finish(torch.from_numpy(linear))

    def learner(self, network: nn.Module) -> nn.Module:
        """Return ``network``."""
        return network

    def loss(self, out: Tensor, told: Tensor) -> Tensor:
        """Return the loss of logits on soft targets."""
        return label_loss(out, told, self._preset.train, self.weights)

    def finish(self, linear: Tensor) -> Tensor:
        """Return the features of linear ones."""
        features: Tensor = self._frontend.finish(linear, torch)
        return features

    def _changed(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return linear features, from changed waves where the preset changes them."""
        numbers = rows.tolist()
        stored = [self._linear[row] for row in numbers]  # the cache is on disk: only these are read
        if not self._live or self._pool is None:
            return torch.from_numpy(np.stack(stored))
        changes = waves.decide(self._preset.waves, len(stored), generator)

        def linear(index: int) -> npt.NDArray[np.float32]:
            which, behind = changes[index].behind, None
            if which is not None and self._backgrounds is not None:
                behind = self._backgrounds.pick(which, numbers[index])
            wave = waves.apply(
                stored[index][0],
                changes[index],
                window_samples=self._window_samples,
                sample_rate=self._frontend.config.sample_rate,
                behind=behind,
            )
            return self._frontend.linear(wave)

        return torch.from_numpy(np.stack(list(self._pool.map(linear, range(len(stored))))))


@dataclass(frozen=True, slots=True)
class Judged:
    """What a network made of held clips, counted in windows."""

    loss: float  # mean cross-entropy
    confusion: Tensor  # (n_labels, n_labels) windows, by true and heard label

    @property
    def accuracy(self) -> float:
        """Share of windows whose best label is the true one."""
        return float(self.confusion.diagonal().sum() / self.confusion.sum())


class Judge:
    """A network's answers on held clips, cut and computed as when classifying, nothing changed by chance."""

    def __init__(self, preset: Preset, dataset: Dataset, *, on_bad: OnBad | None = None) -> None:
        self._store: FeatureStore = extract(dataset, preset.frontend, preset.window, on_bad=on_bad)
        self._targets = torch.tensor(dataset.targets)[torch.from_numpy(self._store.clip_of)]
        self._batch = preset.train.batch_size
        self._labels = len(dataset.labels)

    def __call__(self, network: nn.Module, device: torch.device) -> Judged:
        """Return loss and confusion over windows; the network is left in eval mode."""
        network.eval()
        total, n = 0.0, self._labels
        pairs = torch.zeros(n * n, dtype=torch.int64)  # of true and heard label
        with torch.no_grad():
            for features, targets in self._parts():
                logits = network(features.to(device)).float()
                total += float(nn.functional.cross_entropy(logits, targets.to(device), reduction="sum"))
                pairs += torch.bincount(targets * n + logits.argmax(dim=1).cpu(), minlength=n * n)
        return Judged(total / len(self._targets), pairs.view(n, n))

    def _parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, len(self._targets), self._batch):
            part = slice(first, first + self._batch)
            linear = torch.from_numpy(np.array(self._store.linear[part]))
            yield self._store.frontend.finish(linear, torch), self._targets[part]
