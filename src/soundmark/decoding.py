"""Blocks of frames, float32 `(n, channels)`, out of an opened file through libsndfile, or out of an array.

The block size is one constant because damaged Ogg decodes differently by block size (RELIABILITY, section 2). On
damaged MP3, libmpg123 writes lines to stderr from C; they are left alone: redirecting a descriptor of the whole process
is not safe with threads. Of chained Ogg, libsndfile gives the first stream only; `containers` flags it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile

from soundmark.errors import ConfigError
from soundmark.inputs import Input
from soundmark.quality import COARSE

Samples: TypeAlias = npt.NDArray[np.float32]
Array: TypeAlias = npt.NDArray[Any]

BLOCK_FRAMES = 65_536
"""Frames decoded at once, everywhere."""
_DTYPES = tuple(map(np.dtype, ("f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4")))
_FORMATS = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "FLAC", "OGG", "MP3"})
_SUBTYPES = COARSE | {"PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "VORBIS", "OPUS", "MPEG_LAYER_III"}
_SYSTEM_ERROR = 2  # libsndfile's code where the operating system would not read


class Stream(soundfile.SoundFile):  # type: ignore[misc]
    """A `SoundFile` read strictly forwards: soundfile seeks after every read of a seekable file.

    Attributes:
        failure: why the decoder gave up, None where it did not.
    """

    def __init__(self, data: Input) -> None:
        """Open ``data``; what soundfile raises on a damaged header is passed on."""
        self.failure: str | None = None
        self._data = data
        descriptor = data.descriptor()
        super().__init__(data if descriptor is None else descriptor, closefd=False)

    def seekable(self) -> bool:
        """Return False, whatever the file can do."""
        return False

    @property
    def container(self) -> str:
        """Format and subtype, for example "WAV/PCM_16"."""
        return f"{self.format}/{self.subtype}"

    @property
    def supported(self) -> bool:
        """Whether both are what Soundmark reads."""
        return self.format in _FORMATS and self.subtype in _SUBTYPES

    def decoded(self, room: Callable[[], Samples | None]) -> Iterator[Samples]:
        """Yield blocks ``(n, channels)``, each valid until the next one is asked for.

        Args:
            room: returns where the next block may be decoded to, ``(BLOCK_FRAMES, channels)``; None: nowhere.
        """
        own = np.empty((BLOCK_FRAMES, self.channels), np.float32)
        integers = (
            np.empty(own.shape, np.int16) if self.subtype == "PCM_16" and self.format != "FLAC" else None
        )
        while self.failure is None:
            given = room()
            block = own if given is None else given
            count = self._read(block if integers is None else integers)
            if count == 0:
                return
            if integers is not None:  # scaled as libsndfile does it, 8 times faster
                np.multiply(integers[:count], np.float32(1 / 32768), out=block[:count])
            yield block[:count]

    def _read(self, buffer: Array) -> int:
        """Return how many good frames are now in ``buffer``; sets `failure` where the decoder gave up."""
        recoverable = self.format in ("FLAC", "OGG", "MP3")
        if recoverable:
            buffer.fill(np.nan)  # what a failing read leaves untouched stays NaN
        try:
            return int(self.buffer_read_into(buffer, dtype=buffer.dtype.name))  # quicker than `read`
        except (soundfile.SoundFileError, ValueError, OverflowError) as error:
            self.failure = str(getattr(error, "error_string", error))
            if getattr(error, "code", 0) == _SYSTEM_ERROR:
                self._data.error = OSError(self.failure)
            unread = np.isnan(buffer[:, -1])
            return int(np.argmax(unread)) if recoverable and unread.any() else 0


def framed(samples: object) -> Array:
    """Return an array ``(n,)`` or ``(n, channels)`` as frames, ``(n, channels)``.

    Raises:
        ConfigError: it is something else.
    """
    wanted = "an array of float or 8- to 32-bit integers, (n,) or (n, channels)"
    if not isinstance(samples, np.ndarray):
        raise ConfigError(f"an array source of type {type(samples).__name__}", wanted=wanted)
    if samples.ndim not in (1, 2) or samples.dtype.newbyteorder("=") not in _DTYPES:
        raise ConfigError(f"an array of {samples.dtype}, shape {samples.shape}", wanted=wanted)
    return samples[:, np.newaxis] if samples.ndim == 1 else samples


def sliced(array: Array) -> Iterator[Samples]:
    """Yield copies of an array ``(n, channels)`` that `framed` gave, block after block; integers come to [-1, 1)."""
    for start in range(0, len(array), BLOCK_FRAMES):
        yield _float_block(array[start : start + BLOCK_FRAMES])


def _float_block(block: Array) -> Samples:
    """Return a new float32 copy; integers are scaled to [-1, 1)."""
    kind, size = block.dtype.kind, block.dtype.itemsize
    if kind == "f":
        with np.errstate(over="ignore", under="ignore"):
            return block.astype(np.float32, order="C")
    half = 1 << (8 * size - 1)
    wide: Array = block.astype(np.float64 if size == 4 else np.float32, order="C")
    return ((wide - (half if kind == "u" else 0)) * (1 / half)).astype(np.float32, copy=False)
