"""Mutated recordings of every container: `load` gives finite float32 or an `AudioError`; nothing else, ever.

The mutants are made and loaded in a child process, so that a crash or hang of a decoder is a failing test.
Mutant i of a seed is the same on every machine: ``python tests/test_mutants.py SEED_NAME I`` loads one.
More: ``SOUNDMARK_MUTANTS=100000 pytest tests/test_mutants.py``.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from soundmark.audio import load
from soundmark.config import AudioLimits
from soundmark.errors import AUDIO_CODES, FLAGS, AudioError

sys.path.insert(0, str(Path(__file__).parent / "corpus"))
from make_corpus import sealed, settled

TOTAL = int(os.environ.get("SOUNDMARK_MUTANTS", "2000"))
LIMITS = AudioLimits(max_seconds=20.0)
KINDS = {
    "wav": ("WAV", "PCM_16", 1),
    "wav24": ("WAV", "PCM_24", 2),
    "float": ("WAV", "FLOAT", 1),
    "ulaw": ("WAV", "ULAW", 1),
    "ima": ("WAV", "IMA_ADPCM", 1),
    "msadpcm": ("WAV", "MS_ADPCM", 2),
    "gsm": ("WAV", "GSM610", 1),
    "rf64": ("RF64", "PCM_16", 1),
    "w64": ("W64", "PCM_16", 1),
    "aiff": ("AIFF", "PCM_16", 2),
    "flac": ("FLAC", "PCM_16", 2),
    "vorbis": ("OGG", "VORBIS", 1),
    "opus": ("OGG", "OPUS", 2),
    "mp3": ("MP3", "MPEG_LAYER_III", 2),
}
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def seed(kind: str) -> bytes:
    """Return a short good recording."""
    container, subtype, channels = KINDS[kind]
    samples = 0.2 * np.random.default_rng(5).standard_normal((4800, channels))
    samples[:, 0] += 0.3 * np.sin(np.arange(4800) / 7)
    out = io.BytesIO()
    sf.write(out, np.clip(samples, -0.9, 0.9), 16_000, format=container, subtype=subtype)
    return settled(out.getvalue())


def mutant(kind: str, index: int) -> bytes:
    """Return mutant ``index`` of a seed: one to four random edits, half of them among the first 200 bytes."""
    rng = np.random.default_rng([zlib.crc32(kind.encode()), index])
    data = bytearray(seed(kind))
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        end = min(len(data), 200) if rng.random() < 0.5 else len(data)
        at, length = int(rng.integers(end)), int(rng.integers(1, 64))
        match rng.integers(8):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[at] = int(rng.integers(256))
            case 2:
                del data[at : len(data) if rng.random() < 0.3 else at + length]
            case 3:
                data[at:at] = rng.bytes(length)
            case 4:  # splice: a part again, elsewhere
                source = int(rng.integers(len(data)))
                data[at:at] = data[source : source + 20 * length]
            case 5:  # a part of another container
                other = seed(list(KINDS)[int(rng.integers(len(KINDS)))])
                data[at : at + length] = other[at : at + length]
            case 6:  # header field
                width = int(rng.choice([1, 2, 4, 8]))
                value = int(rng.choice(INTERESTING)) & ((1 << 8 * width) - 1)
                data[at : at + width] = value.to_bytes(width, str(rng.choice(["little", "big"])))  # type: ignore[arg-type]
            case _:
                data[at : at + length] = bytes([int(rng.choice([0, 255]))]) * length
    return sealed(data) if data[:4] == b"OggS" and rng.random() < 0.7 else bytes(data)


def check(data: bytes) -> str:
    """Load ``data`` and return the outcome; raise if the law is broken."""
    try:
        audio = load(data, sample_rate=8000, limits=LIMITS)
    except AudioError as error:
        if error.code not in AUDIO_CODES or not str(error).isprintable():
            raise RuntimeError(f"bad error {error.code!r}: {error}") from error
        return error.code
    samples, flags = audio.samples, set(audio.flags)
    good = samples.dtype == np.float32 and samples.ndim == 1 and 0 < len(samples) <= 20 * 8000 + 1
    if not good or not np.isfinite(samples).all() or not flags <= FLAGS or audio.duration_s > 20:
        raise RuntimeError(f"{samples.dtype} {samples.shape} {flags} {audio.duration_s}")
    return "ok"


def child(kind: str, count: int) -> None:
    """Check mutants; the index is on stdout before each, so that a crash names its mutant."""
    for index in range(count):
        sys.stdout.write(f"{index}\n")
        sys.stdout.flush()
        check(mutant(kind, index))


@pytest.mark.parametrize("kind", KINDS)
def test_mutants(kind: str) -> None:
    count = -(-TOTAL // len(KINDS))
    command = [sys.executable, __file__, kind, f"0-{count}"]
    limit = 20 + count / 10
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=limit, check=False
        )
    except subprocess.TimeoutExpired as error:
        last = (error.stdout or b"").split()[-1:]
        pytest.fail(f"{kind}: hangs at mutant {last}")
    last = done.stdout.split()[-1:]
    assert done.returncode == 0, f"{kind}, mutant {last}: exit {done.returncode}\n{done.stderr[-1500:]}"
    assert last == [str(count - 1)]


if __name__ == "__main__":
    if "-" in sys.argv[2]:
        child(sys.argv[1], int(sys.argv[2].split("-")[1]))
    else:
        print(check(mutant(sys.argv[1], int(sys.argv[2]))))
