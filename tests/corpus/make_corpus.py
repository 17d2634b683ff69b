"""Write the corpus of odd recordings and its manifest: ``python tests/corpus/make_corpus.py OUT``.

Deterministic, a few seconds, under 30 MB; numpy, soundfile and the standard library only. Each row of
``manifest.json`` has a file, its group (RELIABILITY, section 5.1), the outcome we want ("ok" or error codes,
any of which is right) and the exact flags of an accepted file.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

RATE = 16_000
FLOAT_MAX = float(np.finfo(np.float32).max)


def noise(seconds: float = 1.0, rate: int = RATE, level: float = 0.1, channels: int = 1) -> np.ndarray:
    """Return quiet noise, float64, (n,) or (n, channels)."""
    shape = (round(seconds * rate), channels) if channels > 1 else round(seconds * rate)
    return np.clip(level * np.random.default_rng(7).standard_normal(shape), -0.9, 0.9)


def tone(seconds: float = 1.0, rate: int = RATE, hz: float = 440.0, level: float = 0.3) -> np.ndarray:
    """Return a sine, float64, (n,)."""
    return level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def encode(
    samples: np.ndarray, container: str = "WAV", subtype: str | None = None, rate: int = RATE
) -> bytes:
    """Return a file as libsndfile writes it."""
    out = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with sf.SoundFile(out, "w", rate, channels, subtype, format=container) as file:
        for start in range(
            0, len(samples), RATE
        ):  # libsndfile 1.2.2 crashes writing minutes of Vorbis at once
            file.write(samples[start : start + RATE])
    return settled(out.getvalue())


CRC = [0] * 256
for _value in range(256):
    _crc = _value << 24
    for _ in range(8):
        _crc = (_crc << 1 ^ 0x04C11DB7 if _crc >> 31 else _crc << 1) & 0xFFFFFFFF
    CRC[_value] = _crc


def sealed(data: bytearray, serial: int | None = None) -> bytes:
    """Return Ogg with right page checksums, so that damage reaches the codec; with a new serial if given."""
    at = data.find(b"OggS")
    while at >= 0 and at + 27 <= len(data):
        if serial is not None:
            data[at + 14 : at + 18] = serial.to_bytes(4, "little")
        end = at + 27 + data[at + 26]
        end = min(len(data), end + sum(data[at + 27 : end]))
        data[at + 22 : at + 26] = bytes(4)
        crc = 0
        for value in data[at:end]:
            crc = (crc << 8 & 0xFFFFFFFF) ^ CRC[crc >> 24 ^ value]
        data[at + 22 : at + 26] = crc.to_bytes(4, "little")
        at = data.find(b"OggS", at + 27)
    return bytes(data)


def settled(data: bytes) -> bytes:
    """Return what libsndfile wrote without its random Ogg serial and its clock time in the PEAK chunk."""
    if data[:4] == b"OggS":
        return sealed(bytearray(data), serial=len(data))
    at = data.find(b"PEAK", 0, 200)
    return data if at < 0 else data[: at + 12] + bytes(4) + data[at + 16 :]


def chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    """Return a RIFF chunk, with a false size on request."""
    return name + struct.pack("<I", len(body) if size is None else size) + body + b"\0" * (len(body) & 1)


def fmt(tag: int = 1, channels: int = 1, rate: int = RATE, bits: int = 16, align: int | None = None) -> bytes:
    """Return a format chunk."""
    align = channels * bits // 8 if align is None else align
    fields = struct.pack("<HHIIHH", tag, channels, rate, rate * align & 0xFFFFFFFF, align & 0xFFFF, bits)
    return chunk(b"fmt ", fields)


def riff(*chunks: bytes, size: int | None = None) -> bytes:
    """Return a WAV file of these chunks."""
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def pcm(samples: np.ndarray) -> bytes:
    """Return 16-bit little-endian samples."""
    return np.round(samples * 32767).astype("<i2").tobytes()


def wav(
    samples: np.ndarray | None = None, *, size: int | None = None, extra: bytes = b"", **header: int
) -> bytes:
    """Return a 16-bit WAV, possibly with a false data size, and bytes behind it."""
    data = pcm(noise() if samples is None else samples)
    return riff(fmt(**header), chunk(b"data", data, size)) + extra


def float_wav(samples: Any, *, bits: int = 32, rate: int = RATE) -> bytes:
    """Return a float WAV of exactly these values."""
    data = np.asarray(samples, "<f4" if bits == 32 else "<f8").tobytes()
    return riff(fmt(tag=3, bits=bits, rate=rate), chunk(b"data", data))


def flac_total(data: bytes, total: int) -> bytes:
    """Return a FLAC whose header promises ``total`` samples."""
    fields = int.from_bytes(data[18:26], "big") >> 36 << 36 | total
    return data[:18] + fields.to_bytes(8, "big") + data[26:]


def flipped(data: bytes, *places: float) -> bytes:
    """Return ``data`` with one byte inverted at each share of its length."""
    out = bytearray(data)
    for place in places:
        out[int(place * len(out))] ^= 0xFF
    return bytes(out)


def aiff(rate80: bytes, frames: int = 8000, promised: int | None = None) -> bytes:
    """Return a 16-bit AIFF with this 80-bit sample rate."""
    common = struct.pack(">HIH", 1, frames if promised is None else promised, 16) + rate80
    sound = bytes(8) + pcm(noise(frames / RATE)).ljust(frames * 2, b"\0")
    body = b"AIFFCOMM" + struct.pack(">I", 18) + common + b"SSND" + struct.pack(">I", len(sound)) + sound
    return b"FORM" + struct.pack(">I", len(body)) + body


class Corpus:
    """Cases, collected and written."""

    def __init__(self, out: Path) -> None:
        self.out, self.rows, self.group = out, [], ""
        out.mkdir(parents=True, exist_ok=True)

    def add(
        self, name: str, data: bytes | None, expect: str = "ok", flags: str = "", maybe: str = ""
    ) -> None:
        """Write one case; ``expect`` and ``flags`` are words, ``maybe`` are flags that may be there."""
        path = self.out / name
        if data is not None:
            path.write_bytes(data)
        row = {"name": name, "group": self.group, "expect": expect.split()}
        self.rows.append(row | {"flags": sorted(flags.split()), "maybe": sorted(maybe.split())})


def controls(c: Corpus) -> None:
    c.group = "control"
    c.add("wav16.wav", wav())
    c.add("tone.wav", wav(tone()))
    c.add("stereo.wav", encode(noise(channels=2)))
    for rate in (8000, 22050, 44100, 48000, 96000):
        c.add(f"good_{rate}.wav", encode(noise(0.5, rate), rate=rate))
    c.add("five_seconds.flac", encode(noise(5.0), "FLAC"))
    c.add("loud.wav", encode(tone(level=0.95)))
    c.add("surround.wav", encode(noise(0.3, channels=6)))


def lengths(c: Corpus) -> None:
    c.group = "wav length"
    good = wav()
    c.add("empty.wav", b"", "empty_file")
    c.add("one_byte.wav", b"R", "unsupported_format corrupt_header")
    for cut in (4, 8, 12, 20, 36, 40, 43):
        c.add(f"cut_{cut}.wav", good[:cut], "corrupt_header")
    c.add("cut_44.wav", good[:44], "no_audio")
    c.add("cut_46.wav", good[:46], "too_short")
    c.add("cut_half.wav", good[: len(good) // 2], "ok", "truncated")
    c.add("cut_odd.wav", good[:-1], "ok", "truncated")
    c.add("cut_last_frame.wav", good[:-2], "ok", "truncated")
    c.add("data_size_0.wav", wav(size=0), "ok", "header_length_wrong")
    c.add(
        "data_and_riff_size_0.wav",
        riff(fmt(), chunk(b"data", pcm(noise()), 0), size=0),
        "ok",
        "header_length_wrong",
    )
    c.add("data_size_0_nothing.wav", riff(fmt(), chunk(b"data", b"")), "no_audio")
    c.add(
        "data_size_0_then_list.wav",
        riff(fmt(), chunk(b"data", b""), chunk(b"LIST", b"INFO" + bytes(60))),
        "no_audio",
    )
    c.add("data_too_small.wav", wav(size=8000), "ok", "header_length_wrong")
    c.add(
        "data_too_small_2.wav",
        riff(fmt(), chunk(b"data", pcm(noise()), 8000), size=8036),
        "ok",
        "header_length_wrong",
    )
    c.add("data_too_large.wav", wav(size=64_000), "ok", "truncated")
    for size in (0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        c.add(f"data_{size:x}.wav", wav(size=size), "ok", "length_unknown")
    c.add("data_1gib.wav", wav(size=1 << 30), "ok", "truncated")
    c.add("one_sample.wav", wav(noise()[:1]), "too_short")
    c.add("odd_bytes.wav", riff(fmt(), chunk(b"data", pcm(noise()) + b"\1")))
    c.add("stereo_partial_frame.wav", riff(fmt(channels=2), chunk(b"data", pcm(noise()) + b"\1\0")))
    c.add("riff_size_0.wav", riff(fmt(), chunk(b"data", pcm(noise())), size=0))
    c.add("riff_size_max.wav", riff(fmt(), chunk(b"data", pcm(noise())), size=0xFFFFFFFF))
    c.add("riff_size_small.wav", riff(fmt(), chunk(b"data", pcm(noise())), size=100))


def headers(c: Corpus) -> None:
    c.group = "wav header"
    for rate in (0, 1, 999, 768_001, 0xFFFFFFFF):
        c.add(f"rate_{rate}.wav", wav(rate=rate), "unsupported_sample_rate")
    for rate in (1000, 11_027, 44_053, 384_000, 768_000):
        c.add(f"rate_{rate}.wav", wav(rate=rate))
    c.add("channels_0.wav", wav(channels=0, align=2), "unsupported_channels")
    c.add("channels_8.wav", wav(noise(1, channels=8).reshape(-1), channels=8))
    c.add("channels_32.wav", wav(noise(0.5, channels=32).reshape(-1), channels=32))
    for channels in (33, 256, 65_535):
        c.add(f"channels_{channels}.wav", wav(channels=channels), "unsupported_channels")
    pair = np.stack([tone(), -tone()], 1)
    c.add("antiphase.wav", encode(pair), "ok", "downmix_cancelled silent")
    c.add("antiphase_nearly.wav", encode(pair * (1, 0.9)), "ok", "downmix_cancelled")
    c.add("one_dead_channel.wav", encode(pair * (1, 0)))
    c.add("bits_0.wav", riff(fmt(bits=0, align=2), chunk(b"data", pcm(noise()))), "corrupt_header")
    c.add("bits_65535.wav", riff(fmt(bits=65_535, align=2), chunk(b"data", pcm(noise()))), "corrupt_header")
    c.add("block_align_0.wav", wav(align=0), "ok corrupt_header")
    c.add("block_align_3.wav", wav(align=3), "ok corrupt_header")
    for tag in (0, 0x16, 0x161, 0x7777, 0xFFFF):
        c.add(f"tag_{tag:04x}.wav", wav(tag=tag), "unsupported_format")
    data, junk = chunk(b"data", pcm(noise())), chunk(b"JUNK", bytes(33))
    c.add("junk_before_fmt.wav", riff(junk, fmt(), data))
    c.add("list_behind.wav", riff(fmt(), data, chunk(b"LIST", b"INFOISFT" + b"\4\0\0\0abcd")))
    c.add("data_before_fmt.wav", riff(data, fmt()), "corrupt_header")
    c.add("no_fmt.wav", riff(data), "corrupt_header")
    c.add("no_data.wav", riff(fmt(), junk), "corrupt_header")
    c.add("two_fmt.wav", riff(fmt(), fmt(rate=8000), data), "ok corrupt_header")
    c.add("two_data.wav", riff(fmt(), data, data), "ok corrupt_header")
    c.add("short_fmt.wav", riff(chunk(b"fmt ", b"\1\0\1\0"), data), "corrupt_header")
    c.add("long_fmt.wav", riff(chunk(b"fmt ", fmt()[8:] + bytes(200)), data), "ok corrupt_header")
    c.add("chunk_flood.wav", riff(fmt(), *[chunk(b"junk", b"")] * 50_000, data), "ok corrupt_header")
    c.add("list_size_lie.wav", riff(fmt(), chunk(b"LIST", b"INFO", 0x7FFFFFFF), data), "corrupt_header")
    c.add("fmt_size_lie.wav", riff(fmt()[:4] + b"\xff\xff\xff\x7f" + fmt()[8:], data), "corrupt_header ok")
    c.add("garbage_before.wav", bytes(range(100, 200)) + wav(), "unsupported_format")
    c.add("zeros_before.wav", bytes(64) + wav(), "unsupported_format")
    c.add("garbage_little_behind.wav", wav(extra=b"\1\2\3" * 40))
    c.add("garbage_much_behind.wav", wav(extra=b"\1\2\3\0" * 5000), "ok", "header_length_wrong")
    c.add("id3_before.wav", b"ID3\3\0\0\0\0\0\x14" + bytes(20) + wav())
    c.add("id3_only.mp3", b"ID3\3\0\0\0\0\0\x14" + bytes(20), "no_audio")
    c.add("id3_lies.mp3", b"ID3\3\0\0\x7f\x7f\x7f\x7f" + bytes(20), "no_audio")
    c.add("not_wave.wav", b"RIFF" + struct.pack("<I", 40) + b"XXXX" + bytes(36), "unsupported_format")


def encodings(c: Corpus) -> None:
    c.group = "encoding"
    for subtype in (
        "PCM_U8",
        "PCM_24",
        "PCM_32",
        "FLOAT",
        "DOUBLE",
        "ULAW",
        "ALAW",
        "IMA_ADPCM",
        "MS_ADPCM",
        "GSM610",
    ):
        c.add(f"{subtype}.wav", encode(noise(), "WAV", subtype))
    for container in ("RF64", "W64", "WAVEX", "AIFF", "FLAC", "OGG", "MP3"):
        suffix = {"RF64": "wav", "WAVEX": "wav", "OGG": "ogg"}.get(container, container.lower())
        c.add(f"{container}_mono.{suffix}", encode(noise(), container))
        c.add(f"{container}_stereo.{suffix}", encode(noise(channels=2), container))
    c.add("opus.opus", encode(noise(), "OGG", "OPUS"))
    c.add("flac24.flac", encode(noise(), "FLAC", "PCM_24"))
    c.add("flac8.flac", encode(noise(), "FLAC", "PCM_S8"))
    c.add("aiff_float.aiff", encode(noise(), "AIFF", "FLOAT"))
    c.add("aiff_ulaw.aifc", encode(noise(), "AIFF", "ULAW"))
    out = io.BytesIO()
    sf.write(out, noise(), RATE, format="WAV", subtype="PCM_16", endian="BIG")
    c.add("rifx.wav", out.getvalue())
    for subtype in ("G721_32", "NMS_ADPCM_24"):
        c.add(f"{subtype}.wav", encode(noise(), "WAV", subtype), "unsupported_format")
    for container in (
        "AU",
        "CAF",
        "VOC",
        "NIST",
        "PAF",
        "SVX",
        "IRCAM",
        "MAT4",
        "MAT5",
        "PVF",
        "AVR",
        "HTK",
        "SDS",
        "MPC2K",
    ):
        c.add(f"exotic_{container}.wav", encode(noise(), container, "PCM_16"), "unsupported_format")
    for container in ("RF64", "W64", "AIFF"):
        data = encode(noise(), container)
        suffix = "wav" if container == "RF64" else container.lower()
        c.add(f"{container}_cut.{suffix}", data[: len(data) // 2], "ok", "truncated")
        c.add(f"{container}_cut_30.{suffix}", data[:30], "corrupt_header")
    c.add("aiff_rate_infinite.aiff", aiff(b"\x7f\xff" + bytes(8)), "unsupported_sample_rate corrupt_header")
    c.add("aiff_rate_0.aiff", aiff(bytes(10)), "unsupported_sample_rate corrupt_header")
    c.add("aiff_good.aiff", aiff(b"\x40\x0c\xfa\0\0\0\0\0\0\0"))
    c.add(
        "aiff_promises_0.aiff", aiff(b"\x40\x0c\xfa\0\0\0\0\0\0\0", promised=0), "ok", "header_length_wrong"
    )


def damaged(c: Corpus) -> None:
    c.group = "damaged stream"
    x = noise(5.0)
    flac, ogg, opus, mp3 = encode(x, "FLAC"), encode(x, "OGG"), encode(x, "OGG", "OPUS"), encode(x, "MP3")
    for name, data in (("flac.flac", flac), ("ogg.ogg", ogg), ("opus.opus", opus), ("mp3.mp3", mp3)):
        c.add(f"cut_half_{name}", data[: len(data) // 2], "ok", "truncated")
        c.add(f"cut_3_{name}", data[:-3], "ok", "truncated")
        c.add(f"cut_60_{name}", data[:60], "corrupt_header no_audio unsupported_format")
        c.add(f"zero_head_{name}", bytes(200) + data[200:], "unsupported_format")
        c.add(f"zero_tail_{name}", data + bytes(5000), "ok", maybe="header_length_wrong")
        maybe = "truncated header_length_wrong over_full_scale"
        c.add(f"rot_1_{name}", flipped(data, 0.5), "ok", maybe=maybe)
        c.add(f"rot_5_{name}", flipped(data, 0.4, 0.5, 0.6, 0.7, 0.8), "ok corrupt_audio", maybe=maybe)
    c.add("rot_one_page.ogg", flipped(ogg, 0.5), "ok", "truncated")
    c.add("rot_one_frame.flac", flipped(flac, 0.5), "ok", "truncated")
    for total, flags in (
        (0, "length_unknown"),
        (8000, "header_length_wrong"),
        ((1 << 36) - 1, "header_length_wrong"),
    ):
        c.add(f"total_{total}.flac", flac_total(flac, total), "ok", flags)
    c.add("total_100000.flac", flac_total(flac, 100_000), "ok", "truncated")
    c.add("total_0_cut.flac", flac_total(flac, 0)[: len(flac) // 2], "ok", "length_unknown truncated")
    c.add("header_only.flac", flac[:42], "no_audio corrupt_audio corrupt_header")
    c.add(
        "rate_0.flac",
        flac[:18] + bytes([0, 0, flac[20] & 0x0F]) + flac[21:],
        "unsupported_sample_rate corrupt_header",
    )
    c.add("chained.ogg", ogg + ogg, "ok", "chained")
    c.add("chained_codecs.ogg", ogg + opus, "ok", "chained")
    c.add(
        "page_lost.ogg",
        ogg[: ogg.index(b"OggS", 20_000)] + ogg[ogg.index(b"OggS", ogg.index(b"OggS", 20_000) + 4) :],
        "ok",
        "truncated",
    )
    at = ogg.rindex(b"OggS")
    c.add(
        "granule_lies.ogg",
        ogg[: at + 6] + b"\xff" * 7 + b"\x7f" + ogg[at + 14 :],
        "ok",
        maybe="truncated header_length_wrong",
    )
    for codec in (b"Speex   ", b"\x80theora", b"\x7fFLAC\1\0", b"fishead\0", b"whatever"):
        page = b"OggS\0\2" + bytes(20) + b"\1\x40" + codec + bytes(56)
        c.add(f"inside_{codec.strip(bytes(8)).hex()}.ogg", page, "unsupported_format")
    c.add(
        "two_frames_then_noise.mp3",
        mp3[:2000] + bytes(np.random.default_rng(3).bytes(5000)),
        "ok corrupt_audio",
        maybe="truncated header_length_wrong over_full_scale",
    )
    c.add("xing_lies.mp3", xing(mp3, 0xFFFFFFFF), "ok", "truncated", maybe="header_length_wrong")
    c.add("free_format.mp3", b"\xff\xfb\x00\x00" + bytes(2000), "unsupported_format")


def xing(mp3: bytes, frames: int) -> bytes:
    """Return an MP3 whose Xing header promises this many frames."""
    at = max(mp3.find(b"Xing", 0, 200), mp3.find(b"Info", 0, 200))
    return mp3[: at + 8] + struct.pack(">I", frames) + mp3[at + 12 :]


def values(c: Corpus) -> None:
    c.group = "value"
    x = noise().astype(np.float32)
    for name, value in (("nan", np.nan), ("inf", np.inf), ("minus_inf", -np.inf)):
        for place in (0, 8000, -1):
            bad = x.copy()
            bad[place] = value
            c.add(f"{name}_{place}.wav", float_wav(bad), "nonfinite_samples")
    c.add("all_nan.wav", float_wav(x * np.nan), "nonfinite_samples")
    c.add(
        "signalling_nan.wav",
        riff(fmt(tag=3, bits=32), chunk(b"data", b"\1\0\x80\x7f" * 8000)),
        "nonfinite_samples",
    )
    c.add(
        "overflow64.wav", float_wav(x.astype(float) * 1e300, bits=64), "nonfinite_samples sample_out_of_range"
    )
    for value in (1e30, -1e30, FLOAT_MAX, 2e4):
        bad = x.copy()
        bad[500] = value
        c.add(f"value_{value:.0e}.wav", float_wav(bad), "sample_out_of_range")
    c.add("int_scaled.wav", float_wav(x * 32768), "sample_out_of_range")
    c.add("int24_scaled.wav", float_wav(x * 2.0**23), "sample_out_of_range")
    c.add("nan_late.wav", float_wav(np.r_[noise(10), np.nan]), "nonfinite_samples")
    c.add("over_full_scale.wav", float_wav(x * 20), "ok", "over_full_scale")
    c.add("full_scale.wav", float_wav(tone(level=1.0)))
    c.add("denormal.wav", float_wav(x * 1e-40), "ok", "silent")
    c.add("tiny.wav", float_wav(x * 1e-20), "ok", "silent")
    c.add("minus_zero.wav", float_wav(-0.0 * np.abs(x)), "ok", "silent")
    c.add("zeros.wav", wav(np.zeros(RATE)), "ok", "silent")
    c.add("zeros.flac", encode(np.zeros(RATE), "FLAC"), "ok", "silent")
    c.add("zeros.ogg", encode(np.zeros(RATE), "OGG"), "ok", "silent")
    c.add("zeros.mp3", encode(np.zeros(RATE), "MP3"), "ok", "silent")
    c.add("dc.wav", wav(np.full(RATE, 0.5)), "ok", "dc_offset silent")
    c.add("dc_and_noise.wav", wav(noise() * 0.5 + 0.3), "ok", "dc_offset")
    c.add("clipped.wav", wav(np.clip(tone(level=3), -0.99, 0.99)), "ok", "clipped")
    c.add("clipped_then_turned_down.wav", wav(np.clip(tone(level=3), -1, 1) * 0.5), "ok", "clipped")
    c.add("clipped_one_side.wav", wav(np.minimum(tone(level=0.9), 0.4)), "ok", "clipped", maybe="dc_offset")
    c.add("square.wav", wav(0.9 * np.sign(tone() + 1e-9)), "ok", "clipped", maybe="dc_offset")
    impulse = np.zeros(RATE)
    impulse[5000] = 0.9
    c.add("one_impulse.wav", wav(impulse))
    c.add("one_lsb.wav", riff(fmt(), chunk(b"data", b"\1\0\0\0" * 8000)), "ok", "silent")
    c.add("quiet_but_there.wav", wav(noise(level=1e-3)))
    c.add("u8_tone.wav", encode(tone(level=0.5), "WAV", "PCM_U8"))


def durations(c: Corpus) -> None:
    c.group = "duration"
    for frames in (0, 1, 159):
        c.add(f"frames_{frames}.wav", wav(noise()[:frames]), "too_short" if frames else "no_audio")
    for frames in (160, 161, 65_535, 65_536, 65_537, 79_999, 80_000, 80_001, 120_000, 131_072):
        c.add(f"frames_{frames}.wav", wav(noise(10)[:frames]))
    for container in ("FLAC", "OGG", "MP3"):
        c.add(f"short.{container.lower()}", encode(noise(0.02), container))
        c.add(
            f"nothing.{container.lower()}",
            encode(np.zeros(0), container),
            "no_audio corrupt_header corrupt_audio empty_file unsupported_format",
        )


def bombs(c: Corpus) -> None:
    c.group = "bomb"
    silence = np.zeros(8000 * 700, np.int16)
    flac = encode(silence, "FLAC", rate=8000)
    c.add("silence_700s.flac", flac, "too_long")
    c.add("silence_700s_total_0.flac", flac_total(flac, 0), "too_long")
    c.add("silence_700s_total_1s.flac", flac_total(flac, 8000), "too_long")
    hour = encode(np.zeros(8000 * 3600, np.int16), "FLAC", rate=8000)
    c.add("silence_1h.flac", hour, "too_long")
    c.add("silence_1h_total_0.flac", flac_total(hour, 0), "too_long")
    c.add("silence_700s.mp3", encode(silence, "MP3", rate=8000), "too_long")
    c.add("silence_700s.ogg", encode(silence, "OGG", rate=8000), "too_long")
    c.add("silence_599s.flac", encode(silence[: 8000 * 599], "FLAC", rate=8000), "ok", "silent")
    c.add("rate_1000_700s.wav", wav(np.zeros(700_000), rate=1000), "too_long")
    c.add("rate_1000_590s.wav", wav(tone(590, 1000, 100), rate=1000))
    c.add("rate_1001_prime_ratio.wav", wav(tone(590, 1009, 100), rate=1009))
    c.add(
        "channels_32_long.flac", encode(np.zeros((8000 * 60, 8), np.int16), "FLAC", rate=8000), "ok", "silent"
    )


def content(c: Corpus) -> None:
    c.group = "content"
    c.add("mp3_inside.wav", encode(noise(), "MP3"), "ok", "extension_mismatch")
    c.add("wav_inside.mp3", wav(), "ok", "extension_mismatch")
    c.add("flac_inside.ogg", encode(noise(), "FLAC"), "ok", "extension_mismatch")
    c.add("no_extension", wav())
    c.add("UPPER.WAV", wav())
    html = b"<!DOCTYPE html><html><head><title>404</title></head></html>"
    rest = bytes(100)
    foreign = {
        "html.wav": html,
        "html_bom.mp3": b"\xef\xbb\xbf\n " + html,
        "json.wav": b'{"error": "not found"}',
        "list.wav": b"[1, 2, 3]",
        "xml.wav": b"<?xml version='1.0'?><svg/>",
        "text.wav": b"hello, I am text\n" * 50,
        "utf16.wav": "hello".encode("utf-16"),
        "csv.wav": b"a,b\n1,2\n",
        "pickle.wav": pickle.dumps({"a": list(range(100))}),
        "m3u.wav": b"#EXTM3U\nhttp://evil/x.mp3\n",
        "pls.wav": b"[playlist]\nFile1=/etc/passwd\n",
        "url.wav": b"https://example.org/a.wav\n",
        "lfs.wav": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "avi.wav": b"RIFF\x10\0\0\0AVI LIST" + rest,
        "webp.wav": b"RIFF\x10\0\0\0WEBPVP8 " + rest,
        "m4a.wav": b"\0\0\0\x20ftypM4A \0\0\0\0" + rest,
        "webm.wav": b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\1" + rest,
        "gzip.wav": b"\x1f\x8b\x08" + rest,
        "zip.wav": b"PK\3\4" + rest,
        "tar.wav": b"name".ljust(257, b"\0") + b"ustar" + rest,
        "apple_double.wav": b"\0\5\x16\7\0\2\0\0" + rest,
        "png.wav": b"\x89PNG\r\n\x1a\n" + rest,
        "jpeg.mp3": b"\xff\xd8\xff\xe0\0\x10JFIF" + rest,
        "elf.wav": b"\x7fELF" + rest,
        "pdf.wav": b"%PDF-1.7\n" + rest,
        "numpy.wav": b"\x93NUMPY\1\0" + rest,
        "amr.wav": b"#!AMR\n" + rest,
        "midi.wav": b"MThd\0\0\0\6" + rest,
        "wma.wav": b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + rest,
        "iff.aiff": b"FORM\0\0\0\x408SVX" + rest,
        "bw64.wav": b"BW64" + wav()[4:],
        "aac.mp3": b"\xff\xf1\x50\x80\x03\x9f\xfc" * 50,
        "mp2.mp3": b"\xff\xfd\x84\0" + rest * 9,
        "raw_pcm.wav": pcm(noise()),
        "raw_noise.wav": np.random.default_rng(1).bytes(20_000),
        "raw.raw": pcm(noise()),
        "only_zeros.wav": bytes(20_000),
        "only_ones.wav": b"\xff" * 20_000,
    }
    for name, data in foreign.items():
        c.add(name, data, "unsupported_format")


NAMES = (
    "caf\xe9.wav",
    "cafe\u0301.wav",
    "new\nline.wav",
    "tab\tcr\r.wav",
    "\x1b[31mred\x1b[0m.wav",
    "quote'\"`.wav",
    "=cmd|'calc'!A0.wav",
    "+1+2.wav",
    "@sum.wav",
    "<script>alert(1)<script>.wav",
    "%2e%2e%2fetc.wav",
    "{{7*7}}${x}.wav",
    "n" * 251 + ".wav",
    "-rf.wav",
    "--help.wav",
    " space .wav",
    "\u202eltr\u202d.wav",
    "\U0001f436.wav",
    "not\udcffutf8.wav",
    "star*[a]?.wav",
    "back\\slash.wav",
    "semi;colon&.wav",
    "~.wav",
    ".hidden.wav",
    "CON.wav",
    "\u0437\u0432\u0443\u043a.wav",
)


def names(c: Corpus) -> None:
    c.group = "name"
    for name in NAMES:
        c.add(name, wav(noise(0.1)))


def not_files(c: Corpus) -> None:
    c.group = "not a file"
    (c.out / "folder.wav").mkdir(exist_ok=True)
    c.add("folder.wav", None, "not_regular_file")
    for name, make in (("fifo.wav", os.mkfifo), ("socket.wav", _socket)):
        if not os.path.lexists(c.out / name):
            make(str(c.out / name))
        c.add(name, None, "not_regular_file")
    links = {"loop.wav": "loop.wav", "null.wav": "/dev/null", "zero.wav": "/dev/zero"}
    links |= {"dangling.wav": "nowhere.wav", "link.wav": "wav16.wav"}
    codes = ("symlink_loop", "not_regular_file", "not_regular_file", "not_found", "ok")
    for (name, target), code in zip(links.items(), codes, strict=True):
        if not os.path.lexists(c.out / name):
            os.symlink(target, c.out / name)
        c.add(name, None, code)
    c.add("missing.wav", None, "not_found")
    c.add("wav16.wav/inside.wav", None, "not_found")
    c.add("m" * 300 + ".wav", None, "not_found")
    c.add("unreadable.wav", wav(), "ok" if os.geteuid() == 0 else "permission_denied")
    os.chmod(c.out / "unreadable.wav", 0)


def _socket(path: str) -> None:
    here = os.getcwd()
    os.chdir(os.path.dirname(path))  # socket paths are limited to 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.basename(path))
    finally:
        os.chdir(here)


def make(out: Path) -> list[dict[str, Any]]:
    """Write all files and the manifest below ``out``; return the manifest."""
    corpus = Corpus(out)
    for group in (
        controls,
        lengths,
        headers,
        encodings,
        damaged,
        values,
        durations,
        bombs,
        content,
        names,
        not_files,
    ):
        group(corpus)
    names_seen = [row["name"] for row in corpus.rows]
    twice = {name for name in names_seen if names_seen.count(name) > 1}
    if twice:
        raise ValueError(f"two cases share a file: {sorted(twice)}")
    (out / "manifest.json").write_text(json.dumps(corpus.rows, indent=1), "ascii")
    return corpus.rows


if __name__ == "__main__":
    print(f"{len(make(Path(sys.argv[1])))} cases")
