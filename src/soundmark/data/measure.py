"""One recording to its measures: silence, level, loudness, bandwidth, noise, flags, hashes and a fingerprint.

The recording is decoded once, by `soundmark.audio`; its spectra come from `soundmark.frontend`. All figures are of the
mono mean of the channels at the rate of the file. Levels are dB relative to full scale 1.0 and end at `FLOOR_DB`.
"""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from soundmark import audio
from soundmark.config import AudioLimits, FrontendConfig
from soundmark.data.loudness import FLOOR_DB, N_FFT, loudness, power_db, spectrum
from soundmark.errors import AudioError
from soundmark.frontend import Frontend

Samples = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]

SILENCE_LEVEL = 0.5 / 32768  # below half a 16-bit step: a zero in 16 bits, also after lossy coding
SILENCE_RUN_S = 0.01  # shorter runs of zeros are waveforms crossing zero, or quiet recordings
BANDWIDTH_RANGE_DB = 100.0  # below the strongest bin: leakage and float noise
BANDWIDTH_OVER_STEP_DB = 6.0  # above rounding noise
SMOOTHED_BINS = 9  # median over these, so that one line or one lucky bin is no bandwidth
LEVEL_FRAME_S = 0.05
FINGERPRINT_RATE_HZ, FINGERPRINT_HOP, FINGERPRINT_BANDS = 16_000, 320, 32
FINGERPRINT_RANGE_DB = 60.0
FINGERPRINT_S = 30.0  # the start of longer recordings
_COARSE_BITS = {
    "PCM_U8": 8,
    "PCM_S8": 8,
    "ULAW": 12,
    "ALAW": 12,
    "IMA_ADPCM": 12,
    "MS_ADPCM": 12,
    "GSM610": 12,
}
_FINGERPRINT = FrontendConfig(
    sample_rate=FINGERPRINT_RATE_HZ,
    n_fft=1024,
    hop_length=FINGERPRINT_HOP,
    n_mels=FINGERPRINT_BANDS,
    fmin=60.0,
    fmax=7600.0,
)


@dataclass(frozen=True, slots=True)
class Measures:
    """What was measured on one recording; `to_dict` leaves the fingerprint out."""

    duration_s: float
    sample_rate: int  # Hz, of the file
    channels: int  # of the file
    container: str
    leading_silence_s: float  # digital silence, see `silent_runs`
    trailing_silence_s: float
    inner_silence_s: float  # sum of the runs between
    longest_silence_s: float
    silent_share: float  # of the duration
    peak_dbfs: float
    rms_dbfs: float
    loudness_lufs: float  # see `loudness`
    clipped_share: float  # of all samples, see `clipped_share`
    dc: float  # mean sample
    bandwidth_hz: float  # see `bandwidth`
    noise_floor_dbfs: float  # see `noise`
    snr_db: float
    flags: tuple[str, ...]  # of the loader, from errors.FLAGS
    audio_hash: str  # SHA-256 of the decoded samples in 16-bit steps, and the rate
    file_hash: str  # SHA-256 of the bytes
    fingerprint: npt.NDArray[np.float16]  # (n_frames, bands), see `fingerprint`

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, numbers rounded to what they are worth."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "fingerprint"}
        rounded = {name: round(v, 4) if isinstance(v, float) else v for name, v in plain.items()}
        return {**rounded, "dc": round(self.dc, 6), "flags": list(self.flags)}


def measure(path: str | os.PathLike[str], *, limits: AudioLimits | None = None) -> Measures:
    """Return the measures of one file, decoded once.

    Raises:
        AudioError: it cannot be used; the code says why.
    """
    return _measures(at_its_rate(path, limits=limits), _file_hash(Path(path)))


def at_its_rate(path: str | os.PathLike[str], *, limits: AudioLimits | None = None) -> audio.Audio:
    """Return a file at its own rate: the header says which, then it is decoded, once."""
    limits = limits or AudioLimits()
    with audio.Reader(path, sample_rate=FINGERPRINT_RATE_HZ, limits=limits) as reader:
        rate = reader.source_rate
    return audio.load(path, sample_rate=rate, limits=limits)


def _measures(heard: audio.Audio, file_hash: str) -> Measures:
    x, rate = heard.samples, heard.source_rate
    runs = silent_runs(x, rate)
    lengths = (runs[:, 1] - runs[:, 0]) / rate
    lead = float(lengths[0]) if len(runs) and runs[0, 0] == 0 else 0.0
    trail = float(lengths[-1]) if len(runs) and runs[-1, 1] == len(x) and runs[-1, 0] > 0 else 0.0
    total = float(lengths.sum())
    power = spectrum(x, rate)  # (1025, n_frames)
    floor, snr = noise(x, rate, runs)
    bits = _COARSE_BITS.get(heard.container.rpartition("/")[2], 16)
    return Measures(
        duration_s=heard.duration_s,
        sample_rate=rate,
        channels=heard.channels,
        container=heard.container,
        leading_silence_s=lead,
        trailing_silence_s=trail,
        inner_silence_s=max(0.0, total - lead - trail),
        longest_silence_s=float(lengths.max(initial=0.0)),
        silent_share=min(1.0, total * rate / len(x)),
        peak_dbfs=power_db(float(np.abs(x).max()) ** 2),
        rms_dbfs=power_db(float(np.mean(np.square(x, dtype=np.float64)))),
        loudness_lufs=loudness(power, rate),
        clipped_share=clipped_share(x),
        dc=float(np.mean(x, dtype=np.float64)),
        bandwidth_hz=bandwidth(power[:, _sounding(power.shape[1], runs)], rate, bits=bits),
        noise_floor_dbfs=floor,
        snr_db=snr,
        flags=heard.flags,
        audio_hash=_audio_hash(x, rate),
        file_hash=file_hash,
        fingerprint=fingerprint(x, rate),
    )


def silent_runs(samples: Samples, rate: int) -> npt.NDArray[np.int64]:
    """Return the runs of digital silence, (n_runs, 2) first and last-plus-one sample.

    Digital silence is a run of at least `SILENCE_RUN_S` of samples below `SILENCE_LEVEL`, half a 16-bit step: zeros
    that an editor put there. A microphone does not give such runs. In ESC-50, read as Ogg, the share of silence found
    this way is within 0.01 of the share of exact zeros in most padded clips, while quiet recordings stay at 0.
    """
    quiet = np.abs(samples) < SILENCE_LEVEL
    edges = np.flatnonzero(np.diff(np.concatenate([[False], quiet, [False]]).astype(np.int8)))
    runs = edges.reshape(-1, 2)
    return runs[runs[:, 1] - runs[:, 0] >= max(2, SILENCE_RUN_S * rate)]


def bandwidth(power: npt.NDArray[np.float32], rate: int, *, bits: int = 16) -> float:
    """Return the frequency in Hz above which the mean spectrum stays at the floor.

    The floor is rounding noise at ``bits`` (variance step^2 / 12, white: Bennett 1948) plus `BANDWIDTH_OVER_STEP_DB`,
    or `BANDWIDTH_RANGE_DB` below the strongest bin, whichever is higher. The spectrum is smoothed by a running median
    over `SMOOTHED_BINS` bins. Noise low-passed at f gives f within the width of the slope; 0 is silence. It finds
    low-pass filters of lossy encoders and recordings that were made at a lower rate.
    """
    mean = power.mean(axis=1, dtype=np.float64) if power.shape[1] else np.zeros(len(power))
    smooth = np.median(
        np.lib.stride_tricks.sliding_window_view(np.pad(mean, SMOOTHED_BINS // 2), SMOOTHED_BINS), 1
    )
    rounding = (2.0 / 2**bits) ** 2 / 12 / len(mean) * 10 ** (BANDWIDTH_OVER_STEP_DB / 10)
    floor = max(rounding, float(mean.max(initial=0.0)) * 10 ** (-BANDWIDTH_RANGE_DB / 10))
    above = np.flatnonzero(smooth > floor)
    return float(above[-1]) * rate / N_FFT if len(above) else 0.0


def noise(samples: Samples, rate: int, runs: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Return ``(noise_floor_dbfs, snr_db)`` from frame levels.

    Frames of `LEVEL_FRAME_S` without digital silence; the noise floor is the 10th percentile of their levels, the SNR
    the distance from there to the 95th, in the manner of the NIST STNR tool. Of steady sounds (rain, engines) the floor
    *is* the sound, and the SNR is near 0: no fault. Without such frames both are at their lowest.
    """
    width = max(1, round(LEVEL_FRAME_S * rate))
    if len(samples) < width:
        width = len(samples)
    frames = samples[: len(samples) // width * width].reshape(-1, width)
    level = np.mean(np.square(frames, dtype=np.float64), axis=1)
    silent = np.zeros(len(frames), dtype=bool)
    for start, stop in runs:
        silent[start // width : -(-stop // width)] = True
    level = level[~silent]
    if not len(level):
        return FLOOR_DB, 0.0
    low, high = np.percentile(10 * np.log10(np.maximum(level, 10 ** (FLOOR_DB / 10))), [10, 95])
    return float(low), float(high - low)


def clipped_share(samples: Samples) -> float:
    """Return the share of samples in runs of three or more on the highest or lowest value, a run less its edges."""
    share = 0
    for extreme in (samples.max(), samples.min()):
        at = np.abs(samples - extreme) <= SILENCE_LEVEL
        share += int(np.count_nonzero(at[2:] & at[1:-1] & at[:-2]))
    return share / len(samples) if samples.max() > samples.min() else 0.0


def fingerprint(samples: Samples, rate: int) -> npt.NDArray[np.float16]:
    """Return what copies have in common, (n_frames, bands) in dB below the loudest cell, at most `FINGERPRINT_S` long.

    Log-mel at 16 kHz (32 bands, 60-7600 Hz, every 20 ms), its range cut at `FINGERPRINT_RANGE_DB`: the same for a copy
    of another rate, gain or coding. Silence gives no frame.
    """
    if not np.abs(samples).max(initial=0.0) > SILENCE_LEVEL:
        return np.empty((0, FINGERPRINT_BANDS), dtype=np.float16)
    start = samples[: int(FINGERPRINT_S * rate)]
    limits = AudioLimits(min_seconds=0.0)
    x = audio.load((start, rate), sample_rate=FINGERPRINT_RATE_HZ, limits=limits).samples
    bands = _fingerprint_front()(x / np.float32(max(float(np.abs(x).max()), 1e-9)))  # (bands, n_frames) in dB
    cut: npt.NDArray[np.float16] = np.maximum(bands - bands.max(), -FINGERPRINT_RANGE_DB).T.astype(np.float16)
    return cut


def _sounding(n_frames: int, runs: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which frames of `spectrum` touch no digital silence (its edges are broadband); all, if none is left."""
    keep = np.ones(n_frames, dtype=bool)
    for start, stop in runs:
        keep[max(0, (start - N_FFT) // (N_FFT // 2) + 1) : -(-stop // (N_FFT // 2))] = False
    return keep if keep.any() else ~keep


@functools.lru_cache(maxsize=1)
def _fingerprint_front() -> Frontend:
    return Frontend(_FINGERPRINT)


def _audio_hash(samples: Samples, rate: int) -> str:
    steps = np.rint(samples * np.float32(32768)).astype("<i4")
    return hashlib.sha256(f"{rate}:{len(samples)}:".encode() + steps.tobytes()).hexdigest()


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AudioError(f"{str(path)!r}: {error.strerror}", code="io_error") from None
