"""The one place where audio, front end, runtime and postprocess meet: `Classifier`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from soundmark import audio, bundle
from soundmark.bundle import Bundle, Manifest
from soundmark.config import AudioLimits, DecisionConfig, Provider
from soundmark.errors import AudioError, BundleError
from soundmark.frontend import Frontend
from soundmark.golden import check_fingerprint, check_golden
from soundmark.model import rows
from soundmark.postprocess import Failure, Prediction, decide, source_name
from soundmark.runtime import Runtime
from soundmark.scan import Found

BATCH_WINDOWS = 8
"""Windows whose features are held at once, so that memory does not grow with a recording's features."""

Array = npt.NDArray[np.float32]
_LIMITS = AudioLimits()


class Classifier:
    """Labels for recordings, from one verified bundle. Safe to share between threads.

    >>> Classifier.load().classify("dog.wav").label  # doctest: +SKIP
    'dog'

    Args:
        verified: a bundle from `bundle.read`.
        threads: threads of one model run.
        provider: what runs the model, see `Runtime`; the golden window must give the same on all of them.

    Raises:
        BundleError: ``frontend_mismatch``, ``golden_mismatch``, or what `Runtime` refuses.
    """

    def __init__(self, verified: Bundle, *, threads: int = 1, provider: Provider = "cpu") -> None:
        manifest = verified.manifest
        check_fingerprint(manifest)
        self._bundle, self._labels = verified, manifest.labels
        self._window, self._hop = manifest.window_samples, manifest.hop_samples
        self._frontend = Frontend(manifest.frontend)
        self._runtime = Runtime(
            verified.model,
            input_shape=self._frontend.shape(self._window),
            n_labels=len(manifest.labels),
            threads=threads,
            provider=provider,
            name=manifest.name,
        )
        check_golden(manifest, self._frontend, self._runtime)

    @classmethod
    def load(
        cls, model: str | os.PathLike[str] | None = None, *, threads: int = 1, provider: Provider = "cpu"
    ) -> Classifier:
        """Return the classifier of a bundle directory or of a shipped model; None is the default model.

        Raises:
            BundleError: see `bundle.read` and `Classifier`.
        """
        return cls(bundle.read(model), threads=threads, provider=provider)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names in the order of the scores."""
        return self._labels

    @property
    def name(self) -> str:
        """Name of the model."""
        return self._bundle.manifest.name

    @property
    def digest(self) -> str:
        """SHA-256 that names this model: labels, front end, decision and weights."""
        return self._bundle.digest

    @property
    def manifest(self) -> Manifest:
        """What ``bundle.json`` says."""
        return self._bundle.manifest

    @property
    def bundle(self) -> Bundle:
        """The bundle behind this classifier."""
        return self._bundle

    @property
    def path(self) -> Path:
        """Directory of the bundle."""
        return self._bundle.path

    @property
    def n_bytes(self) -> int:
        """Size of the model in bytes."""
        return len(self._bundle.model)

    @property
    def decision(self) -> DecisionConfig:
        """How logits become an answer."""
        return self._bundle.manifest.decision

    @property
    def training(self) -> dict[str, Any]:
        """What it was trained on, as its bundle says."""
        return self._bundle.manifest.provenance.get("training", {})

    @property
    def trainings(self) -> tuple[dict[str, Any], ...]:
        """See `Model`: the training, and what the temperature was fitted on."""
        fitted = self._bundle.manifest.provenance.get("calibration")
        return (self.training, fitted) if fitted else (self.training,)

    @property
    def sample_rate(self) -> int:
        """Rate in Hz that recordings are brought to."""
        return self._bundle.manifest.frontend.sample_rate

    @property
    def window_samples(self) -> int:
        """Samples of one window at `sample_rate`."""
        return self._window

    @property
    def hop_samples(self) -> int:
        """Samples from one window to the next."""
        return self._hop

    @property
    def frontend(self) -> Frontend:
        """The front end, rebuilt from the bundle."""
        return self._frontend

    @property
    def runtime(self) -> Runtime:
        """The session."""
        return self._runtime

    def hear(
        self,
        source: audio.Source | audio.Audio,
        *,
        limits: AudioLimits | None = None,
        strict: bool = False,
        array_rate: int | None = None,
    ) -> audio.Audio:
        """Return what `audio.load` makes of ``source`` at `sample_rate`; `classify` takes it as well."""
        if isinstance(source, audio.Audio):
            return source
        rate, limits = self.sample_rate, limits or _LIMITS
        return audio.load(source, sample_rate=rate, limits=limits, strict=strict, array_rate=array_rate)

    def verify(self) -> None:
        """Raise `BundleError` (``golden_mismatch``) unless the golden window still gives what its exporter saw."""
        check_golden(self.manifest, self._frontend, self._runtime)

    def classify(
        self,
        source: audio.Source | audio.Audio,
        *,
        top_k: int = 3,
        limits: AudioLimits | None = None,
        strict: bool = False,
        array_rate: int | None = None,
        name: str | None = None,
    ) -> Prediction:
        """Return what is heard in one recording.

        Args:
            source: path, bytes, binary file, array, or what `hear` gave.
            top_k: how many labels to list.
            limits: what the loader accepts; None for `AudioLimits()`.
            strict: refuse damaged recordings instead of flagging them.
            array_rate: sample rate in Hz of an array without one.
            name: what to call the source in the result; None for its path.

        Raises:
            AudioError: the recording cannot be used; see `errors.AUDIO_CODES`.
            BundleError: the model failed.
        """
        start = perf_counter()
        heard = self.hear(source, limits=limits, strict=strict, array_rate=array_rate)
        decoded = perf_counter()
        logits, frontend_s, model_s = self._logits(heard.samples)
        flags = heard.flags
        if heard.samples.size + self._frontend.config.hop_length < self._window:
            flags = tuple(sorted({*flags, "short"}))
        answer = decide(
            logits, labels=self._labels, decision=self._bundle.manifest.decision, flags=flags, top_k=top_k
        )
        return Prediction(
            source=source_name(source) if name is None else name,
            label=answer.label,
            score=answer.score,
            labels=answer.labels,
            flags=flags,
            unknown=answer.unknown,
            reason=answer.reason,
            duration_s=heard.duration_s,
            n_windows=len(logits),
            timing_ms={
                "decode": (decoded - start) * 1e3,
                "frontend": frontend_s * 1e3,
                "model": model_s * 1e3,
                "total": (perf_counter() - start) * 1e3,
            },
            model=self.name,
            model_digest=self.digest,
            scores=answer.scores,
            logits=logits,
        )

    def classify_many(
        self,
        sources: Iterable[audio.Source | Found],
        *,
        top_k: int = 3,
        limits: AudioLimits | None = None,
        strict: bool = False,
        array_rate: int | None = None,
    ) -> Iterator[Prediction | Failure]:
        """Yield one row per source (also from `scan`), lazily and in order; see `model.rows`.

        Raises:
            BundleError: the model failed; no further row would be better.
            ConfigError: the arguments are wrong for every row.
        """
        one = partial(self.classify, top_k=top_k, limits=limits, strict=strict, array_rate=array_rate)
        return rows(one, sources)

    def features(
        self,
        source: audio.Source | audio.Audio,
        *,
        limits: AudioLimits | None = None,
        strict: bool = False,
        array_rate: int | None = None,
    ) -> Array:
        """Return the features ``(n_windows, n_rows, n_frames)`` that `classify` gives to the model."""
        heard = self.hear(source, limits=limits, strict=strict, array_rate=array_rate)
        return self._features(self.windows(heard.samples))

    def windows(self, samples: Array) -> Array:
        """Return ``samples`` (n,) at `sample_rate` cut as the bundle says: ``(n_windows, window_samples)``."""
        return audio.windows(samples, window_samples=self._window, hop_samples=self._hop)

    def logits(self, samples: Array) -> Array:
        """Return ``(n_windows, n_labels)`` for mono ``samples`` (n,) at `sample_rate`."""
        return self._logits(samples)[0]

    def _logits(self, samples: Array) -> tuple[Array, float, float]:
        """Return the logits and the seconds that the front end and the model took."""
        windows = self.windows(samples)
        parts, frontend_s, model_s = [], 0.0, 0.0
        for first in range(0, len(windows), BATCH_WINDOWS):
            start = perf_counter()
            features = self._features(windows[first : first + BATCH_WINDOWS])
            middle = perf_counter()
            parts.append(self._run(features))
            end = perf_counter()
            frontend_s, model_s = frontend_s + middle - start, model_s + end - middle
        return parts[0] if len(parts) == 1 else np.concatenate(parts), frontend_s, model_s

    def _features(self, windows: Array) -> Array:
        features = np.empty((len(windows), *self._runtime.input_shape), dtype=np.float32)
        for row, window in zip(features, windows, strict=True):
            row[...] = self._frontend(window)
        return features

    def _run(self, features: Array) -> Array:
        try:
            return self._runtime.logits(features)
        except BundleError as error:
            if error.code != "nonfinite_logits":
                raise
            # The golden window went well, so it is this recording: one file must not end a batch.
            raise AudioError(
                "samples so large that the model's answer is not finite",
                wanted="samples within about -1 ... 1",
                cause="integers stored as floating point",
                code="sample_out_of_range",
            ) from None
