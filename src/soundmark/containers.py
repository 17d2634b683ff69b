"""What the header of a recording promises, without decoding a sample.

`inspect` tells the container by its first bytes (names are not trusted) and walks chunk, page or frame
headers, so that cut, lying and endless files are found: libsndfile 1.2.2 reads half a WAV, or none of one with data
size 0, without a word (measured: RELIABILITY, section 2).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from soundmark.errors import AudioError
from soundmark.inputs import ACCEPTED, Input

SUFFIXES = {
    "WAV": (".wav", ".wave", ".wavex", ".rf64", ".bwf", ".amb"),
    "RF64": (".wav", ".rf64", ".bwf", ".wave"),
    "W64": (".w64",),
    "AIFF": (".aif", ".aiff", ".aifc"),
    "FLAC": (".flac",),
    "OGG": (".ogg", ".oga", ".opus"),
    "MP3": (".mp3",),
}
AUDIO_SUFFIXES = tuple(sorted({suffix for group in SUFFIXES.values() for suffix in group}))
"""File name endings that a folder scan looks for; what a file is, its content decides."""

MAX_CHUNKS = 200_000  # headers walked in one file
W64_RIFF = bytes.fromhex("2e91cf11a5d628db04c10000")  # the rest of the Wave64 "riff" GUID
WAV_CODECS = {1, 2, 3, 6, 7, 0x11, 0x31}  # PCM, MS ADPCM, float, A-law, mu-law, IMA ADPCM, GSM 6.10
UNKNOWN_LENGTH = 0x7FFF0000  # sox, arecord and ffmpeg write data sizes from here on into a pipe
JUNK_BYTES = 1024  # that much after the audio, and no chunk: the audio is longer than its header says
FLAC_ANY_LENGTH = (1 << 36) - 1

_FOREIGN: dict[str, tuple[tuple[int, bytes], ...]] = {  # content that is refused by its name: (offset, magic)
    "a ZIP archive": ((0, b"PK\x03\x04"), (0, b"PK\x05\x06")),
    "gzip": ((0, b"\x1f\x8b"),),
    "an archive": (
        (0, b"BZh"),
        (0, b"\xfd7zXZ"),
        (0, b"(\xb5/\xfd"),
        (0, b"7z\xbc\xaf"),
        (0, b"Rar!"),
        (257, b"ustar"),
    ),
    "M4A/MP4": ((4, b"ftyp"),),
    "WebM/Matroska": ((0, b"\x1a\x45\xdf\xa3"),),
    "WMA/ASF": ((0, b"\x30\x26\xb2\x75"),),
    "AAC": ((0, b"ADIF"), (0, b"\xff\xf1"), (0, b"\xff\xf9")),
    "a recording in another format": tuple(
        (0, magic)
        for magic in (b"#!AMR", b"caff", b".snd", b"Creative Voice", b"NIST_1A", b"MThd", b"wvpk", b"MAC ")
    ),
    "an image": ((0, b"\x89PNG"), (0, b"\xff\xd8\xff"), (0, b"GIF8"), (8, b"WEBP")),
    "AVI video": ((8, b"AVI "),),
    "a PDF": ((0, b"%PDF"),),
    "a program": ((0, b"\x7fELF"), (0, b"MZ"), (0, b"#!/")),
    "a NumPy array": ((0, b"\x93NUMPY"),),
    "AppleDouble (macOS metadata, not the recording itself)": ((0, b"\x00\x05\x16\x07"),),
    "a pickle": ((0, b"\x80\x02"), (0, b"\x80\x03"), (0, b"\x80\x04"), (0, b"\x80\x05")),
    "a playlist": ((0, b"#EXTM3U"), (0, b"[playlist]"), (0, b"[Playlist]")),
    "a Git LFS pointer": ((0, b"version https://git-lfs"),),
}
_OGG_CODECS = (
    (b"OpusHead", ""),
    (b"\x01vorbis", ""),
    (b"\x7fFLAC", "Ogg FLAC"),
    (b"Speex", "Ogg Speex"),
    (b"\x80theora", "Ogg video"),
    (b"fishead", "Ogg Skeleton"),
)


@dataclass(slots=True)
class Header:
    """What a header says without decoding: container, promised frames (None: nothing that counts), flags."""

    kind: str
    frames: int | None = None
    sample_rate: int | None = None
    channels: int | None = None
    flags: set[str] = field(default_factory=set)


def inspect(data: Input) -> Header:
    """Return what the first bytes and the chunk, page or frame headers say; may patch lengths of ``data``.

    A data size of 0 with audio behind it is replaced by the true one, and FLAC is decoded to its true end.

    Raises:
        AudioError: ``unsupported_format`` (naming what was seen), ``corrupt_header``, ``no_audio``,
            ``unsupported_channels``.
    """
    for _ in range(4):  # ID3 tags may stand before anything
        head = bytes(data.peek(0, 10))
        if head[:3] != b"ID3" or len(head) < 10:
            break
        size = sum((value & 0x7F) << shift for value, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        data.base = min(data.end, data.base + 10 + size + (10 if head[5] & 0x10 else 0))
        if not data.size:
            raise AudioError(f"{data.name}: an ID3 tag and nothing else", wanted=ACCEPTED, code="no_audio")
    head = bytes(data.peek(0, 1024))
    magic, form = head[:4], head[8:12]
    if magic in (b"RIFF", b"RIFX", b"RF64") and form in (b"WAVE", b""):
        return _riff(data, "RF64" if magic == b"RF64" else "WAV", ">" if magic == b"RIFX" else "<")
    if magic == b"riff" and head[4:16] == W64_RIFF:
        return _riff(data, "W64", "<")
    if magic == b"FORM" and form in (b"AIFF", b"AIFC", b""):
        return _aiff(data)
    if magic == b"fLaC":
        return _flac(data, head)
    if magic == b"OggS":
        return _ogg(data, head)
    if mp3_frame(head[:4]):
        header = _mp3(data, head)
        if header:
            return header
    raise AudioError(f"{data.name}: {_name(head)}", wanted=ACCEPTED, code="unsupported_format")


def _name(head: bytes) -> str:
    """Return what content that is no recording seems to be, in words."""
    for name, magics in _FOREIGN.items():
        if any(head[offset : offset + len(magic)] == magic for offset, magic in magics):
            return name
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")):
        return "an HTML page"
    if text.startswith((b"http:", b"https:", b"ftp:")):
        return "a playlist or an address"
    if text.startswith((b"{", b"[")):
        return "JSON"
    if text.startswith(b"<"):
        return "XML"
    if not head.strip(b"\0"):
        return "nothing but zeros"
    if head[:4] in (b"RIFF", b"FORM"):
        return f"a RIFF or IFF file of type {head[8:12]!r}"
    if all(value in b"\t\n\r\f" or value >= 32 for value in head):
        return "text"
    return "unknown content (recordings without a header are refused, their rate cannot be known)"


def _broken(data: Input, saw: str, code: str = "corrupt_header", cause: str = "") -> AudioError:
    return AudioError(
        f"{data.name}: {saw}", wanted=f"an intact recording: {ACCEPTED}", cause=cause, code=code
    )


def _chunks(data: Input, at: int, order: str, wide: bool = False) -> Iterator[tuple[bytes, int, int]]:
    """Yield ``(id, body offset, body size as written)`` of IFF chunks, or of Wave64 chunks if ``wide``."""
    head_bytes, align = (24, 8) if wide else (8, 2)
    for _ in range(MAX_CHUNKS):
        head = bytes(data.peek(at, head_bytes))
        if len(head) < head_bytes:
            return
        size = struct.unpack("<Q", head[16:])[0] - 24 if wide else struct.unpack(order + "I", head[4:])[0]
        yield head[:4], at + head_bytes, max(size, 0)
        at += head_bytes + -(-max(size, 0) // align) * align


def _is_chunk(data: Input, at: int, order: str) -> bool:
    """Tell whether a chunk, rather than sound, starts at ``at``."""
    head = bytes(data.peek(at, 8))
    printable = len(head) == 8 and all(32 <= value < 127 for value in head[:4])
    return printable and struct.unpack(order + "I", head[4:])[0] <= data.size - at


def _riff(data: Input, kind: str, order: str) -> Header:
    """Return the header of WAV, RIFX, RF64 or Wave64; a zero data size with sound behind it is patched."""
    header, seen, ds64 = Header(kind), False, -1
    for name, at, size in _chunks(data, 40 if kind == "W64" else 12, order, kind == "W64"):
        if name == b"fmt ":
            fields = bytes(data.peek(at, min(size, 40)))
            if len(fields) < 16:
                break
            codec, header.channels, header.sample_rate, _, _, bits = struct.unpack(
                order + "HHIIHH", fields[:16]
            )
            if codec == 0xFFFE and len(fields) >= 26:
                codec = struct.unpack(order + "H", fields[24:26])[0]
            if codec not in WAV_CODECS:
                raise _broken(data, f"{kind} with codec 0x{codec:04x}", "unsupported_format")
            if codec in (1, 3) and not 1 <= bits <= 64:
                raise _broken(data, f"{kind} with {bits} bits per sample")
            seen = True
        elif name == b"ds64":
            ds64 = at + 8
        elif name == b"data":
            where, width = (at - 8, "<Q") if kind == "W64" else (at - 4, order + "I")
            if kind == "RF64" and size == 0xFFFFFFFF and ds64 >= 0:
                where, width = ds64, "<Q"
                size = int.from_bytes(data.peek(ds64, 8), "little")
            if not seen:
                break
            _measure(data, header, at, size, order, 0 if kind == "RF64" else UNKNOWN_LENGTH)
            there = data.size - at
            whole_form = kind == "WAV" and struct.unpack(order + "I", data.peek(4, 4))[0] + 9 >= data.size
            if "header_length_wrong" in header.flags and (size == 0 or whole_form):
                data.patches[where] = struct.pack(
                    width, there + 24 if kind == "W64" else min(there, 0xFFFFFFFF)
                )
            return header
    raise _broken(
        data, f"{kind} without sound: its format or data chunk is missing", cause="a cut or damaged file"
    )


def _measure(data: Input, header: Header, at: int, size: int, order: str, unknown_from: int) -> None:
    """Compare the promised data bytes with those that are there, and set flags."""
    there = data.size - at
    if size > there:
        header.flags.add("length_unknown" if 0 < unknown_from <= size < 1 << 32 else "truncated")
    elif there - size > (JUNK_BYTES if size else 0) and not (
        _is_chunk(data, at + size, order) or _is_chunk(data, at + size + size % 2, order)
    ):
        header.flags.add("header_length_wrong")


def _aiff(data: Input) -> Header:
    header = Header("AIFF")
    for name, at, size in _chunks(data, 12, ">"):
        if name == b"COMM" and size >= 18:
            fields = bytes(data.peek(at, 18))
            if len(fields) < 18:
                break
            header.channels, header.frames, _ = struct.unpack(">HIH", fields[:8])
        elif name == b"SSND":
            _measure(data, header, at, size, ">", 0)
            if header.channels is not None and size <= 8 and data.size - at > 8 + JUNK_BYTES:
                raise _broken(
                    data, "AIFF that promises no samples, with sound behind", cause="an unfinished file"
                )
            return header
    raise _broken(
        data, "AIFF without sound: its COMM or SSND chunk is missing", cause="a cut or damaged file"
    )


def _flac(data: Input, head: bytes) -> Header:
    if len(head) < 42 or head[4] & 0x7F or int.from_bytes(head[5:8], "big") != 34:
        raise _broken(data, "FLAC without stream information")
    fields = int.from_bytes(head[18:26], "big")
    header = Header("FLAC", fields & FLAC_ANY_LENGTH or None, fields >> 44, (fields >> 41 & 7) + 1)
    if header.frames is None:
        header.flags.add("length_unknown")
    data.patches[18] = (fields | FLAC_ANY_LENGTH).to_bytes(
        8, "big"
    )  # decoded to its end, whatever it promises
    return header


def _ogg(data: Input, head: bytes) -> Header:
    """Return the header of Ogg: `truncated` without an end mark, `chained` with a second stream."""
    for magic, name in _OGG_CODECS:
        if magic in head[:128]:
            if name:
                raise _broken(data, name, "unsupported_format")
            break
    else:
        raise _broken(data, "Ogg with an unknown codec", "unsupported_format")
    header = Header("OGG")
    tail_at = max(0, data.size - (1 << 17))
    tail = bytes(data.peek(tail_at, 1 << 17))
    last = tail.rfind(b"OggS\0")
    page = tail[last:] if last >= 0 else b""
    complete = len(page) >= 27 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    if not complete or not page[5] & 4:
        header.flags.add("truncated")
    if data.data is not None and re.search(b"OggS\x00\x02", data.data[data.base + 4 :]):
        header.flags.add("chained")
    return header


_KBPS = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)


def mp3_frame(head: bytes | memoryview) -> tuple[int, int] | None:
    """Return ``(bytes, samples)`` of the MPEG layer III frame with this 4-byte header, None if it is none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2 or head[1] & 0x18 == 0x08:
        return None
    low = head[1] & 0x18 != 0x18  # MPEG 2 or 2.5
    rate_index, kbps_index = head[2] >> 2 & 3, head[2] >> 4
    if rate_index == 3 or kbps_index in (0, 15):
        return None
    rate = (44100, 48000, 32000)[rate_index] >> (0 if not low else 1 if head[1] & 0x10 else 2)
    return (72 if low else 144) * 1000 * _KBPS[low][kbps_index] // rate + (
        head[2] >> 1 & 1
    ), 576 if low else 1152


def _mp3(data: Input, head: bytes) -> Header | None:
    """Return the header of MP3 after a walk over its frames, None if no second one follows the first."""
    header, at, count = Header("MP3"), 0, 0
    samples = 0
    for _ in range(MAX_CHUNKS):
        frame = mp3_frame(data.peek(at, 4))
        if frame is None:
            break
        count, samples = count + 1, samples + frame[1]
        at += frame[0]
        if at > data.size:
            header.flags.add("truncated")
    if count < 2 and at < data.size:
        return None
    if at < data.size and bytes(data.peek(at, 3)) not in (b"TAG", b"APE", b"LYR", b"ID3"):
        return header  # damaged or oddly tagged: nothing is promised
    found = max(head.find(b"Xing", 0, 64), head.find(b"Info", 0, 64))
    if found > 0 and head[found + 7] & 1:
        promised = int.from_bytes(head[found + 8 : found + 12], "big")
        if promised > count:
            header.flags.add("truncated")
        elif promised < count - 2:
            header.flags.add("header_length_wrong")
    header.frames = samples
    return header
