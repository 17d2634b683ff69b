"""TensorFlow's "same" padding: as many zeros as keep ``ceil(size / stride)`` places, the odd one behind, not before."""

from __future__ import annotations

from torch import nn


def same(
    shape: tuple[int, int], *, kernel: int, stride: int
) -> tuple[tuple[int, int], nn.Module, tuple[int, int]]:
    """Return ``(shape behind, padding layer, padding of the convolution)``; the layer does what the other cannot.

    Source: tf.nn.convolution, "SAME".
    """
    behind = (-(-shape[0] // stride), -(-shape[1] // stride))
    zeros = [max(0, (out - 1) * stride + kernel - size) for size, out in zip(shape, behind, strict=True)]
    if all(n % 2 == 0 for n in zeros):
        return behind, nn.Identity(), (zeros[0] // 2, zeros[1] // 2)
    sides = (zeros[1] // 2, zeros[1] - zeros[1] // 2, zeros[0] // 2, zeros[0] - zeros[0] // 2)
    return behind, nn.ZeroPad2d(sides), (0, 0)
