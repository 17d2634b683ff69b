"""`Model`: whatever gives labels for recordings, one bundle or an ensemble of them; and a row for each of many."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from soundmark import audio
from soundmark.config import AudioLimits, DecisionConfig
from soundmark.errors import AudioError, SoundmarkError
from soundmark.postprocess import Failure, Prediction, source_name
from soundmark.scan import Found

_log = logging.getLogger(__name__)


class Model(Protocol):
    """What evaluation, calibration and ensembles need of a `Classifier` or an `Ensemble`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names in the order of the scores."""

    @property
    def name(self) -> str:
        """What it is called in results."""

    @property
    def digest(self) -> str:
        """SHA-256 over all that can change an answer."""

    @property
    def path(self) -> Path:
        """Its directory."""

    @property
    def n_bytes(self) -> int:
        """Size of its weights."""

    @property
    def decision(self) -> DecisionConfig:
        """How the logits of a prediction become its scores."""

    @property
    def training(self) -> dict[str, Any]:
        """What it was trained on, for reports."""

    @property
    def trainings(self) -> tuple[dict[str, Any], ...]:
        """One record for everything in it that was learnt or fitted, each with ``train_folds`` and ``test_fold``."""

    def classify(
        self,
        source: audio.Source,
        *,
        top_k: int = 3,
        limits: AudioLimits | None = None,
        strict: bool = False,
        array_rate: int | None = None,
        name: str | None = None,
    ) -> Prediction:
        """Return what is heard in one recording; see `Classifier.classify`."""

    def classify_many(
        self,
        sources: Iterable[audio.Source | Found],
        *,
        top_k: int = 3,
        limits: AudioLimits | None = None,
        strict: bool = False,
        array_rate: int | None = None,
    ) -> Iterator[Prediction | Failure]:
        """Yield one row per source; see `Classifier.classify_many`."""


def rows(
    classify: Callable[[audio.Source], Prediction], sources: Iterable[audio.Source | Found]
) -> Iterator[Prediction | Failure]:
    """Yield ``classify(source)`` lazily and in order; an `AudioError`, or a fault of our own, is a `Failure` row.

    Raises:
        SoundmarkError: what is wrong for every row.
    """
    for source in sources:
        if isinstance(source, Found):
            if source.error is not None:
                yield Failure.of(source_name(source.path), source.error)
                continue
            source = source.path
        try:
            yield classify(source)
        except AudioError as error:
            yield Failure.of(source_name(source), error)
        except SoundmarkError:
            raise
        except Exception as error:
            _log.exception("a fault of Soundmark at %r; please report it", source_name(source))
            yield Failure(source_name(source), "internal", f"{type(error).__name__}: {error}")
