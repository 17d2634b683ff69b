"""Training: features, networks, augmentation, the loop, export. The only part that imports torch (extra ``train``)."""

from __future__ import annotations

from importlib.util import find_spec

from soundmark.errors import MissingExtraError

for _module in ("torch", "lightning_fabric", "safetensors", "onnx", "onnxscript"):
    if find_spec(_module) is None:
        raise MissingExtraError.of("train", _module)
