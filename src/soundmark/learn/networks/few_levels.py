"""A convolution that learns with weights of fifteen levels for each channel, of which two fit into a byte of the file.

Source: Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference" (arXiv 1806.08342), sections
2.2 and 3.2: symmetric levels per channel, gradients straight through the rounding.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

LARGEST = 7
"""Levels are whole numbers from its negative to it, times a scale."""
LEVELS = np.round(np.arange(-LARGEST, LARGEST + 1) * 64 / LARGEST).astype(np.int8)
"""The same as int8, in which the largest weight of a channel is 64 (`soundmark.learn.quantize`)."""


class FewLevels(nn.Conv2d):
    """A 1x1 convolution; its own weights are those that learn, what computes is rounded."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the rounded weights give."""
        y: Tensor = self._conv_forward(x, rounded(self.weight), self.bias)
        return y

    def plain(self) -> nn.Conv2d:
        """Return the convolution that has the rounded weights and nothing else."""
        with_bias = self.bias is not None
        made = nn.Conv2d(self.in_channels, self.out_channels, 1, bias=with_bias)
        made.load_state_dict({**self.state_dict(), "weight": rounded(self.weight)})
        return made.to(self.weight.dtype).train(self.training)


def rounded(weight: Tensor) -> Tensor:
    """Return ``weight`` (after, before, 1, 1) on its levels: the largest of a channel is `LARGEST` scales, exactly.

    So what is rounded stays as it is, and a factor on a channel (batch norm that is folded) changes no level.
    """
    scale = weight.detach().abs().amax(dim=(1, 2, 3), keepdim=True) / LARGEST
    level = (weight.detach() / scale.clamp_min(torch.finfo(weight.dtype).tiny)).round()
    return weight + (level * scale - weight).detach()
