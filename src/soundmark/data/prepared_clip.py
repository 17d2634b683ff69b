"""One cleaned recording: mono, one rate, trimmed, levelled, as the bytes of a file, with its before and after."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from soundmark import __version__, audio
from soundmark.config import AudioLimits, PrepareConfig
from soundmark.data.loudness import FLOOR_DB, loudness, power_db, spectrum
from soundmark.dataset import Clip

Samples = npt.NDArray[np.float32]

FULL_SCALE = 32767 / 32768  # the highest 16-bit value
KEEP_S = 0.1  # trimming leaves at least this much, or the whole of a shorter recording
TAGS = ("title", "artist", "album", "copyright", "comment", "date", "license", "genre")


@dataclass(frozen=True, slots=True)
class Row:
    """One recording before and after; with ``error`` there is no after. Levels: dB re full scale, mono mix."""

    name: str  # of the clip
    file: str  # relative to the source folder
    written: str = ""  # relative to the copy
    sha256: str = ""  # of the source file
    container: str = ""
    rate_hz: int = 0  # of the source, like the next two
    channels: int = 0
    before_s: float = 0.0
    after_s: float = 0.0
    trimmed_start_s: float = 0.0
    trimmed_end_s: float = 0.0
    before_peak_db: float = 0.0
    after_peak_db: float = 0.0
    before_rms_db: float = 0.0
    after_rms_db: float = 0.0
    gain_db: float = 0.0
    flags: str = ""  # of the loader, and "gain_limited" (full scale came before the loudness), "clamped"
    error: str = ""
    message: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def prepared(
    clip: Clip, *, file: str, written: str, sha256: str, config: PrepareConfig, limits: AudioLimits
) -> tuple[bytes, Row]:
    """Return the cleaned recording as the bytes of a file, and its row.

    A silent recording is kept whole and as it is, with the flag ``silent``.

    Raises:
        AudioError: it cannot be read.
    """
    rate = config.sample_rate
    heard = audio.load(clip.path, sample_rate=rate, limits=limits)
    samples, flags = heard.samples, list(heard.flags)
    start, stop, gain = 0, samples.size, 1.0
    if "silent" not in flags:
        if config.trim:
            start, stop = trimmed(samples, trim_db=config.trim_db, keep=round(KEEP_S * rate))
        gain, limited = gain_of(samples[start:stop], config)
        flags += ["gain_limited"] * limited
    after = samples[start:stop] * np.float32(gain)
    if np.abs(after).max(initial=0.0) > 1:
        flags.append("clamped")
        after = np.clip(after, -1.0, 1.0)
    row = Row(
        name=clip.name,
        file=file,
        written=written,
        sha256=sha256,
        container=heard.container,
        rate_hz=heard.source_rate,
        channels=heard.channels,
        before_s=round(samples.size / rate, 6),
        after_s=round(after.size / rate, 6),
        trimmed_start_s=round(start / rate, 6),
        trimmed_end_s=round((samples.size - stop) / rate, 6),
        before_peak_db=_peak_db(samples),
        after_peak_db=_peak_db(after),
        before_rms_db=_rms_db(samples),
        after_rms_db=_rms_db(after),
        gain_db=round(20 * float(np.log10(gain)), 2),
        flags=" ".join(flags),
    )
    return _encoded(after, config, {"title": clip.name, "genre": clip.label, **_tags(clip.path)}), row


def trimmed(samples: Samples, *, trim_db: float, keep: int) -> tuple[int, int]:
    """Return first and last-plus-one sample of what stays: from the first to the last one above the threshold.

    ``trim_db`` is relative to the peak; at least ``keep`` samples stay (fewer only if there are fewer).
    """
    level = np.abs(samples)
    loud = np.flatnonzero(level >= level.max(initial=0.0) * 10 ** (trim_db / 20))
    if not loud.size:
        return 0, samples.size
    start, stop = int(loud[0]), int(loud[-1]) + 1
    keep = min(keep, samples.size)
    missing = keep - (stop - start)
    if missing > 0:
        start = min(max(0, start - missing // 2), samples.size - keep)
        stop = start + keep
    return start, stop


def gain_of(samples: Samples, config: PrepareConfig) -> tuple[float, bool]:
    """Return the factor that ``config.normalise`` asks for, and whether full scale limited it."""
    peak = float(np.abs(samples).max(initial=0.0))
    if config.normalise == "none" or peak <= 0:
        return 1.0, False
    most = FULL_SCALE / peak
    if config.normalise == "peak":
        return most, False
    found = loudness(spectrum(samples, config.sample_rate), config.sample_rate)
    if found <= FLOOR_DB:
        return 1.0, False
    asked = 10 ** ((config.loudness_lufs - found) / 20)
    return float(min(asked, most)), bool(asked > most)


def _encoded(samples: Samples, config: PrepareConfig, tags: dict[str, str]) -> bytes:
    values = np.clip(np.rint(samples * np.float32(32768)), -32768, 32767).astype(np.int16)
    file = io.BytesIO()
    form = config.format.upper()
    with soundfile.SoundFile(file, "w", config.sample_rate, 1, subtype="PCM_16", format=form) as sound:
        for name, text in tags.items():
            with contextlib.suppress(soundfile.SoundFileError, UnicodeError, ValueError):
                setattr(sound, name, text)
        sound.software = f"soundmark {__version__}"
        sound.write(values)
    return file.getvalue()


def _tags(path: Path) -> dict[str, str]:
    """Return what a recording says of itself (who recorded it, under which licence), as far as it says so."""
    try:
        with soundfile.SoundFile(path) as sound:
            return {name: text for name in TAGS if (text := getattr(sound, name, ""))}
    except (soundfile.SoundFileError, OSError, UnicodeError, ValueError):
        return {}


def _peak_db(samples: Samples) -> float:
    return round(power_db(float(np.abs(samples).max(initial=0.0)) ** 2), 2)


def _rms_db(samples: Samples) -> float:
    return round(power_db(float(np.mean(np.square(samples, dtype=np.float64)))), 2)
