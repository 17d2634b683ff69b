"""A head of cosines, fitted once more: to what the layers before it give in int8, which is what it will hear."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import onnx
from torch import nn

from soundmark.errors import ConfigError
from soundmark.learn.cosine import CosineHead
from soundmark.learn.features import FeatureStore
from soundmark.learn.quantize import heard


def refit(model: onnx.ModelProto, network: nn.Module, store: FeatureStore, targets: Sequence[int]) -> None:
    """Replace the head's weights in ``model``, whose head is still in float, by those that fit its other layers.

    Args:
        model: to change; the head has the names of ``network``'s parameters.
        network: what it was exported from.
        store: windows of the training clips.
        targets: label of every clip.

    Raises:
        ConfigError: the head is not one of cosines.
    """
    head = getattr(network, "head", None)
    if not isinstance(head, CosineHead):
        raise ConfigError(
            f"`export.refit_head` for a {type(network).__name__} without cosines",
            wanted="`network.head` cosine, or false",
        )
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    first = next(node for node in model.graph.node if "head.projection.weight" in node.input)
    windows = (store.frontend.finish(np.asarray(linear)) for linear in store.linear)
    x = heard(model, [first.input[0]], windows)[first.input[0]]
    fitted = copy.deepcopy(head).fitted(x, np.array(targets)[store.clip_of])
    for name, values in fitted.state_dict().items():
        stored[f"head.{name}"].CopyFrom(onnx.numpy_helper.from_array(values.numpy(), f"head.{name}"))
