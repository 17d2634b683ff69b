"""Decoded clips in memory: every view of a fold reads its clips anew, and decoding them is a third of making a view."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from soundmark import audio
from soundmark.dataset import Clip

KEPT_SAMPLES = 128 << 20
"""Samples (512 MB) that one `Recordings` keeps."""


class Recordings:
    """The samples of some clips: read when they are asked for, and kept as long as there is room.

    Attributes:
        clips: whose samples; asked for by index.
    """

    def __init__(self, clips: Sequence[Clip]) -> None:
        self.clips = clips
        self._kept: dict[tuple[int, int], npt.NDArray[np.float32]] = {}
        self._room = KEPT_SAMPLES

    def __call__(self, clip: int, sample_rate: int) -> npt.NDArray[np.float32]:
        """Return the samples of a clip, read-only: ``(n_samples,)``; any number of threads may ask.

        Raises:
            AudioError: the clip cannot be read.
        """
        kept = self._kept.get((clip, sample_rate))
        if kept is not None:
            return kept
        samples = audio.load(self.clips[clip].path, sample_rate=sample_rate).samples
        samples.flags.writeable = False
        if len(samples) <= self._room:
            self._room -= len(samples)  # two threads may count a clip twice: a little less is kept then
            self._kept[clip, sample_rate] = samples
        return samples
