"""Learning rate and optimiser of a run: what changes the weights, and how much, as a function of progress."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from soundmark.config import TrainConfig
from soundmark.learn.embeddings import head_of


def learning_rate(config: TrainConfig, progress: float) -> float:
    """Return the learning rate at ``progress`` in [0, 1) of the run.

    ``one-cycle``: linear rise, cosine fall (Smith 2018). ``step``: linear rise, then a tenth at each of ``drops``.
    ``cosine``: a cosine fall from the start to nothing (Loshchilov and Hutter, ICLR 2017, without restarts).
    """
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
    if progress < config.warmup:
        return config.lr * (0.04 + 0.96 * progress / config.warmup)
    if config.schedule == "step":
        return config.lr * 0.1 ** sum(progress >= drop for drop in config.drops)
    fall = (progress - config.warmup) / max(1e-9, 1 - config.warmup)
    return config.lr * (1e-3 + (1 - 1e-3) * 0.5 * (1 + math.cos(math.pi * fall)))


def make_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser over all weights; decay acts on those of two or more dimensions.

    A group's ``share`` is the part of the learning rate that it gets: `TrainConfig.trunk_lr` before the last layer.
    """
    head = head_of(network)
    trunk = [one for one in network.parameters() if not any(one is other for other in head)]
    groups = [
        {
            "params": [p for p in part if (p.ndim > 1) == decays],
            "weight_decay": config.weight_decay if decays else 0.0,
            "share": share,
        }
        for part, share in ((trunk, config.trunk_lr), (head, 1.0))
        for decays in (True, False)
    ]
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "rmsprop": torch.optim.RMSprop,
        "sgd": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True),
    }
    return kinds[config.optimizer](groups, lr=config.lr)
