"""What is laid behind training windows: other training clips, or recordings of a folder of the user's.

Never a clip of the test fold: of the data set only the clips that are learnt from are passed in, and a folder that
holds a copy of any other one is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from soundmark.config import FrontendConfig, WindowConfig
from soundmark.dataset import Clip, Dataset
from soundmark.errors import DatasetError, TrainingError
from soundmark.learn.features import FeatureStore, OnBad, extract
from soundmark.scan import scan

Array = npt.NDArray[np.float32]


def recordings(folder: str | Path) -> Dataset:
    """Return the recordings below ``folder`` as clips that have no label.

    Raises:
        DatasetError: there are none; code ``no_audio``.
        AudioError: a link in it leads out of it, or a folder in it cannot be read.
    """
    root = Path(folder).expanduser()
    clips = []
    for found in scan([root]) if root.is_dir() else ():
        if found.error:
            raise found.error
        name = found.path.relative_to(root).as_posix()
        clips.append(Clip(f"background/{name}", found.path, "", 0, name))
    if not clips:
        raise DatasetError(
            f"`waves.background` {str(folder)!r} has no recording",
            wanted="a folder of recordings, or no folder: then training clips are the background",
            code="no_audio",
        )
    return Dataset(root.name, root, ("",), tuple(clips), layout="backgrounds")


def refuse_copies(hashes: Mapping[str, str], kept_aside: Dataset) -> None:
    """Refuse backgrounds (name -> hash of the file) among which is a clip that a run must not hear.

    Raises:
        TrainingError: there is one; code ``leak``.
    """
    by_hash = {digest: name for name, digest in hashes.items()}
    for clip, digest in kept_aside.hashes().items() if kept_aside.clips else ():
        if digest in by_hash:
            raise TrainingError(
                f"{by_hash[digest]} is the clip {clip}, which is kept aside",
                wanted="backgrounds from elsewhere, or none: then training clips are the background",
                code="leak",
            )


def all_but(dataset: Dataset, learnt: Dataset) -> Dataset:
    """Return the clips of ``dataset`` that are not learnt from."""
    names = {clip.name for clip in learnt.clips}
    return replace(dataset, clips=tuple(clip for clip in dataset.clips if clip.name not in names))


class Backgrounds:
    """Recordings to choose from."""

    def __init__(self, store: FeatureStore, *, own: bool) -> None:
        """Take the waves of ``store``; with ``own`` they are the training clips themselves."""
        self._linear = store.linear  # (n, 1, n_samples), on disk
        self._clip_of = store.clip_of if own else None

    @classmethod
    def of_folder(
        cls, folder: str, frontend: FrontendConfig, window_s: float, *, on_bad: OnBad | None = None
    ) -> Backgrounds:
        """Return windows of ``window_s`` seconds of all recordings in ``folder``; errors as `extract`."""
        window = WindowConfig(window_s=window_s, hop_s=window_s)
        return cls(extract(recordings(folder), frontend, window, on_bad=on_bad), own=False)

    def pick(self, which: float, row: int) -> Array | None:
        """Return wave ``which`` (0 to 1) of those that may stand behind window ``row``: (n_samples,), None of none.

        A training clip never stands behind itself.
        """
        n, first, size = len(self._linear), 0, 0
        if self._clip_of is not None:  # windows of a clip follow one another
            first = int(np.searchsorted(self._clip_of, self._clip_of[row], side="left"))
            size = int(np.searchsorted(self._clip_of, self._clip_of[row], side="right")) - first
        others = n - size
        if others < 1:
            return None
        chosen = min(int(which * others), others - 1)
        return np.asarray(self._linear[chosen if chosen < first else chosen + size][0], dtype=np.float32)
