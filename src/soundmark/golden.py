"""Golden values of a model: what its exporter saw on one fixed signal, and whether it comes out here as well."""

from __future__ import annotations

import numpy as np

from soundmark import bundle
from soundmark.bundle import Golden, Manifest
from soundmark.config import FrontendConfig, WindowConfig, to_dict
from soundmark.errors import BundleError
from soundmark.frontend import FRONTEND_VERSION, Frontend, fingerprint
from soundmark.postprocess import softmax
from soundmark.runtime import Runtime

FEATURE_TOLERANCE = 1e-3
"""Largest accepted difference of a golden feature, absolute and relative: BLAS builds round differently."""
LOGIT_TOLERANCE = 0.5
"""Largest accepted difference of the golden logits, as a share of their spread (int8 differs between CPUs)."""


def golden(frontend: FrontendConfig, window: WindowConfig, model: bytes, *, n_labels: int) -> Golden:
    """Return the golden values of a model, for its `Manifest`; called once, by export.

    Raises:
        BundleError: the model does not fit the front end or the labels.
    """
    stage = Frontend(frontend)
    signal = bundle.golden_signal(frontend.sample_rate, round(window.window_s * frontend.sample_rate))
    features = stage(signal)
    runtime = Runtime(model, input_shape=stage.shape(signal.size), n_labels=n_labels, name="exported model")
    return Golden(
        features=tuple(features.ravel()[bundle.golden_indices(features.size)].tolist()),
        logits=tuple(runtime.logits(features[None])[0].tolist()),
    )


def check_fingerprint(manifest: Manifest) -> None:
    """Refuse a bundle whose front end is not computed here as where it was trained (``frontend_mismatch``)."""
    here = fingerprint(manifest.frontend)
    if here != manifest.frontend_fingerprint:
        raise BundleError(
            f"{manifest.name}: front end {manifest.frontend_fingerprint[:12]} in the bundle (by "
            f"{manifest.created_by}), {here[:12]} here (front end version "
            f"{FRONTEND_VERSION}), for the parameters {to_dict(manifest.frontend)}",
            wanted="the front end that the model was trained with",
            cause="the parameters were changed after training, or the code computes other features: export again",
            code="frontend_mismatch",
        )


def check_golden(manifest: Manifest, frontend: Frontend, runtime: Runtime) -> None:
    """Refuse a bundle whose features or answers on the golden window are not what its exporter saw."""

    def refuse(saw: str, wanted: str) -> BundleError:
        cause = "damaged or mixed-up weights or labels, or a library that computes differently here"
        return BundleError(f"{manifest.name}: {saw}", wanted=wanted, cause=cause, code="golden_mismatch")

    expected = manifest.golden
    features = frontend(bundle.golden_signal(frontend.config.sample_rate, manifest.window_samples))
    found = features.ravel()[bundle.golden_indices(features.size)]
    wanted = np.asarray(expected.features)
    off = np.abs(found - wanted) / (1.0 + np.abs(wanted))
    worst = int(off.argmax())
    if not off[worst] <= FEATURE_TOLERANCE:
        raise refuse(f"golden feature {worst} is {found[worst]:.6g}", f"{wanted[worst]:.6g}")
    try:
        logits = runtime.logits(features[None])[0].astype(np.float64)
    except BundleError as error:
        if error.code != "nonfinite_logits":
            raise
        raise refuse("the golden window gives logits that are not finite", "finite logits") from None
    aim = np.asarray(expected.logits)
    scores, aim_scores = softmax(logits), softmax(aim)
    difference = float(np.abs(scores - aim_scores).max())
    if scores.argmax() != aim_scores.argmax() or difference > expected.tolerance:
        raise refuse(
            f"the golden window is {manifest.labels[scores.argmax()]!r}, scores differ by {difference:.3f}",
            f"{manifest.labels[aim_scores.argmax()]!r}, within {expected.tolerance:g}",
        )
    spread = float(np.linalg.norm(aim - aim.mean()))
    if float(np.linalg.norm((logits - logits.mean()) - (aim - aim.mean()))) > LOGIT_TOLERANCE * spread + 1e-3:
        raise refuse("the logits of the golden window have another scale", "the exported model's logits")
