"""Networks by name. A network maps features ``(batch, n_rows, n_frames)`` to logits ``(batch, n_labels)``."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from soundmark.config import NetworkConfig
from soundmark.errors import ConfigError
from soundmark.learn.networks.acdnet import ACDNet
from soundmark.learn.networks.aisfx import AiSFX
from soundmark.learn.networks.edge import Edge
from soundmark.learn.networks.efficientnet_lite import EfficientNetLite
from soundmark.learn.networks.mfcc_cnn import MfccCNN
from soundmark.learn.networks.resnet import ResNet
from soundmark.learn.networks.small_cnn import SmallCNN
from soundmark.learn.networks.yamnet import YAMNet

NETWORKS: dict[str, Callable[[NetworkConfig, tuple[int, int], int], nn.Module]] = {
    "acdnet": ACDNet,
    "aisfx": AiSFX,
    "edge": Edge,
    "efficientnet-lite0": EfficientNetLite,
    "mfcc-cnn": MfccCNN,
    "resnet": ResNet,
    "small-cnn": SmallCNN,
    "yamnet": YAMNet,
}
"""Architecture name -> constructor ``(config, (n_rows, n_frames), n_labels)``."""
OF_YAMNET = ("taps", "rank", "weight_bits", "pool", "head")
"""Settings that the other kinds do not have."""


def build(config: NetworkConfig, shape: tuple[int, int], n_labels: int) -> nn.Module:
    """Return a freshly initialised network (from torch's global generator).

    Raises:
        ConfigError: ``config.kind`` is not a known architecture, or it cannot be built for these features.
    """
    if config.kind not in NETWORKS:
        raise ConfigError(f"`network.kind` {config.kind!r}", wanted=f"one of: {', '.join(sorted(NETWORKS))}")
    plain = NetworkConfig(kind=config.kind)
    odd = [name for name in OF_YAMNET if getattr(config, name) != getattr(plain, name)]
    if config.kind != "yamnet" and odd:
        raise ConfigError(
            f"`network.{odd[0]}` {getattr(config, odd[0])} of the kind {config.kind}",
            wanted=f"the kind yamnet, or no `{odd[0]}`",
        )
    return NETWORKS[config.kind](config, shape, n_labels)
