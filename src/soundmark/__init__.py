"""Soundmark recognises environmental sounds on small machines.

>>> from soundmark import Classifier
>>> Classifier.load().classify("dog.wav").label
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from soundmark.classifier import Classifier as Classifier
    from soundmark.errors import SoundmarkError as SoundmarkError
    from soundmark.postprocess import Failure as Failure
    from soundmark.postprocess import Prediction as Prediction

_HOME = {
    "Classifier": "soundmark.classifier",
    "Prediction": "soundmark.postprocess",
    "Failure": "soundmark.postprocess",
    "SoundmarkError": "soundmark.errors",
}
__all__ = ["Classifier", "Failure", "Prediction", "SoundmarkError", "__version__"]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used, so that ``import soundmark`` stays instant (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'soundmark' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
