"""A recording and options to the JSON of an answer, through `Classifier`. Runs in a worker."""

from __future__ import annotations

import io
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np
import soundfile

from soundmark import bundle
from soundmark.audio import Audio
from soundmark.classifier import Classifier
from soundmark.config import AudioLimits
from soundmark.errors import BundleError, ConfigError
from soundmark.explain import Explainer, tree
from soundmark.postprocess import Prediction, decide
from soundmark.serve_config import ServeConfig
from soundmark.server.pictures import array, picture
from soundmark.server.schemas import Options
from soundmark.server.uploads import Content

GOLDEN_SCORE = 0.05
"""Largest accepted change of a score on the golden clip while a worker lives; int8 on one machine gives 0."""


class Answers:
    """Answers of one classifier.

    Args:
        classifier: loaded and verified.
        config: limits on recordings.
    """

    def __init__(self, classifier: Classifier, config: ServeConfig) -> None:
        self.classifier = classifier
        self.limits = AudioLimits(max_seconds=config.max_seconds, max_bytes=config.max_bytes)
        signal = bundle.golden_signal(classifier.sample_rate, classifier.window_samples)
        memory = io.BytesIO()
        soundfile.write(memory, signal, classifier.sample_rate, format="WAV", subtype="FLOAT")
        self._golden = memory.getvalue()
        self._golden_scores = self._classify_golden().scores

    @cached_property
    def explainer(self) -> Explainer:
        """Made when it is first asked for: it holds the model once more."""
        return Explainer(self.classifier, threads=self.classifier.runtime.threads)

    def info(self) -> dict[str, Any]:
        """Return what answers; no path of this machine."""
        manifest = self.classifier.manifest
        try:
            layers = tree(self.explainer.layers)
        except ConfigError:  # no convolution
            layers = {}
        del self.__dict__["explainer"]
        training = manifest.provenance.get("training", {})
        shown = ("data", "train_folds", "test_fold", "preset", "network")
        return {
            "model": self.classifier.name,
            "model_digest": self.classifier.digest,
            "n_labels": len(self.classifier.labels),
            "labels": list(self.classifier.labels),
            "sample_rate": self.classifier.sample_rate,
            "window_s": manifest.window.window_s,
            "hop_s": manifest.window.hop_s,
            "unknown_score": manifest.decision.unknown_score,
            "threshold": manifest.decision.threshold,
            "provider": self.classifier.runtime.provider,
            "provider_fallback": self.classifier.runtime.fallback,
            "licence": manifest.licence,
            "created_by": manifest.created_by,
            "provenance": {key: training[key] for key in shown if key in training},
            "layers": layers,
        }

    def verify(self) -> None:
        """Raise `BundleError` unless the golden clip is heard as it was when the model was exported and loaded."""
        self.classifier.verify()
        if np.abs(self._classify_golden().scores - self._golden_scores).max() > GOLDEN_SCORE:
            raise BundleError(
                "the golden clip is heard differently than at the start", code="golden_mismatch"
            )

    def _classify_golden(self) -> Prediction:
        return self.classifier.classify(self._golden)

    def answer(self, content: Content, options: Options) -> dict[str, Any]:
        """Return what was heard, with everything that was asked for.

        Raises:
            AudioError: the recording cannot be used.
            ConfigError: an option that this model does not have: a layer, a label, a window.
        """
        classifier = self.classifier
        if options.label is not None and options.label not in classifier.labels:
            raise ConfigError(
                "`label` is no label of the model", wanted="one of /v1/labels", code="no_such_label"
            )
        heard: Content | Audio = content
        started = perf_counter()
        asked = (
            options.envelope,
            options.feature_maps,
            options.mel != "none",
            options.class_activation != "none",
        )
        if any(asked):  # decoded once, for both
            heard = classifier.hear(content, limits=self.limits, strict=options.strict)
        decode_ms = 1e3 * (perf_counter() - started)
        row = classifier.classify(
            heard, top_k=options.top_k, limits=self.limits, strict=options.strict, name=""
        )
        tree = row.to_dict()
        del tree["path"]
        if options.timeline:
            tree["timeline"] = self._timeline(row, options.top_k)
        if isinstance(heard, Audio):
            for name in ("decode", "total"):
                tree["timing_ms"][name] = round(tree["timing_ms"][name] + decode_ms, 3)
            self._explain(tree, heard, options)
        return tree

    def _timeline(self, row: Prediction, top_k: int) -> list[dict[str, Any]]:
        """Return the decision on every window alone."""
        classifier, rate = self.classifier, self.classifier.sample_rate
        decision = classifier.manifest.decision
        silent = [flag for flag in row.flags if flag == "silent"]
        out = []
        for k, logits in enumerate(row.logits):
            one = decide(logits[None], labels=classifier.labels, decision=decision, flags=silent, top_k=top_k)
            start = k * classifier.hop_samples / rate
            out.append(
                {
                    "start_s": round(start, 6),
                    "end_s": round(min(start + classifier.window_samples / rate, row.duration_s), 6),
                    "label": one.label,
                    "unknown": one.unknown,
                    "labels": [label.to_dict() for label in one.labels],
                }
            )
        return out

    def _explain(self, tree: dict[str, Any], heard: Audio, options: Options) -> None:
        if options.envelope:
            tree["envelope"] = envelope(heard, options.envelope)
        if not options.feature_maps and options.mel == options.class_activation == "none":
            return
        windows = self.classifier.windows(heard.samples)
        if options.window >= len(windows):
            raise ConfigError(f"`window` {options.window}", wanted=f"0 to {len(windows) - 1}")
        features = self.classifier.frontend(windows[options.window])
        draw = {"array": array, "png": picture}
        if options.mel != "none":
            tree["mel"] = draw[options.mel](features)
        if options.feature_maps:
            maps = self.explainer.feature_maps(features, options.feature_maps)
            tree["feature_maps"] = {name: draw[options.maps](one) for name, one in maps.items()}
        if options.class_activation != "none":
            found = self.explainer.class_activation(features, options.label)
            shown = draw[options.class_activation](found.shares)
            tree["class_activation"] = {"label": found.label, "logit": found.logit, "map": shown}


def envelope(heard: Audio, points: int) -> dict[str, Any]:
    """Return lowest and highest sample of up to ``points`` stretches, which differ in length by one at most."""
    n = len(heard.samples)
    points = min(points, n)
    starts = np.arange(points, dtype=np.int64) * n // points
    return {
        "low": [round(float(value), 4) for value in np.minimum.reduceat(heard.samples, starts)],
        "high": [round(float(value), 4) for value in np.maximum.reduceat(heard.samples, starts)],
        "duration_s": round(heard.duration_s, 6),
    }
