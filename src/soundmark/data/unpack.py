"""Chosen files of a zip archive from the network, or a refusal before anything is written.

Refused as a whole: names that lead out of the folder, links, devices, encryption, names that are equal on some file
systems, more entries or bytes than a data set has, and methods of compression other than the usual two. What an entry
unpacks to is bounded by what its directory entry says, and that is bounded here. See RELIABILITY.md D20.
"""

from __future__ import annotations

import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from soundmark.errors import DatasetError

MAX_ENTRIES = 10_000
MAX_BYTES = 2 << 30
"""Of all entries, unpacked; ESC-50 has 0.9 GB."""

MAX_DIRECTORY_BYTES = 4 << 20
_END = b"PK\x05\x06"  # end of central directory record, 22 bytes and a comment (APPNOTE.TXT 4.3.16)
_END_64 = b"PK\x06\x07"


def unpack(
    archive: Path,
    out: Path,
    keep: Callable[[PurePosixPath], bool],
    *,
    on_file: Callable[[int], None] | None = None,
) -> int:
    """Write the files of ``archive`` that ``keep`` wants below ``out`` and return how many there are.

    Args:
        archive: a zip file with one folder at its top, which is left out of the names.
        out: an existing empty folder.
        keep: called with every name, without the top folder.
        on_file: called with 1 after every file.

    Raises:
        DatasetError: not a zip file, cut short, damaged, or one that is refused; then nothing was written, except where
            the damage is in the data of a file.
        OSError: the disk refuses.
    """
    try:
        _check_size(archive)
        with zipfile.ZipFile(archive) as opened:
            files = _checked(opened.infolist())
            chosen = [(info, name) for info, name in files if keep(name)]
            for info, name in chosen:
                target = out / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(info) as source, target.open("xb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                if on_file:
                    on_file(1)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise _refusal(f"is damaged ({error})", "a transfer that was cut short or changed") from None
    return len(chosen)


def _check_size(archive: Path) -> None:
    """Refuse a directory that is too large to read, looking where `zipfile` looks."""
    with archive.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - (1 << 16) - 22))
        tail = file.read()
    at = len(tail) - 22
    if at < 0 or tail[at : at + 4] != _END or tail[-2:] != b"\0\0":  # there is a comment
        at = tail.rfind(_END)
    if at < 0 or len(tail) < at + 22:
        raise _refusal("is no zip file", "a transfer that was cut short, or a page instead of a file")
    entries, directory_bytes = struct.unpack("<HI", tail[at + 10 : at + 16])
    if tail[max(0, at - 20) :].startswith(_END_64):
        raise _refusal("is a zip64 file, for more than a data set has")
    if entries > MAX_ENTRIES or directory_bytes > MAX_DIRECTORY_BYTES:
        raise _refusal(f"has {entries} entries in a directory of {directory_bytes} bytes")


def _checked(infos: Sequence[zipfile.ZipInfo]) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Return the files and their names without the top folder."""
    files: list[tuple[zipfile.ZipInfo, PurePosixPath]] = []
    seen: dict[str, str] = {}
    for info in infos:
        if problem := _problem(info):
            raise _refusal(f"holds {info.orig_filename[:80]!r}, {problem}")
        key = unicodedata.normalize("NFC", info.filename.rstrip("/")).casefold()
        if key in seen:
            raise _refusal(f"holds {info.filename[:80]!r} and {seen[key][:80]!r}, one name on some systems")
        seen[key] = info.filename
        path = PurePosixPath(info.filename)
        if not info.is_dir() and len(path.parts) > 1:
            files.append((info, PurePosixPath(*path.parts[1:])))
    names = {str(name) for _, name in files}
    if clash := [name for _, name in files if any(str(parent) in names for parent in name.parents)]:
        raise _refusal(f"holds {str(clash[0])[:80]!r} below a file")
    tops = {info.filename.partition("/")[0] for info in infos}
    if len(tops) != 1:
        raise _refusal(f"has {len(tops)} files and folders at its top, not one folder")
    total = sum(info.file_size for info, _ in files)
    if len(infos) > MAX_ENTRIES or total > MAX_BYTES:
        raise _refusal(f"unpacks to {len(infos)} entries, {total} bytes")
    return files


def _problem(info: zipfile.ZipInfo) -> str:
    """Return why one entry is refused, or ""."""
    name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
    if not name or name.startswith("/") or ".." in name.split("/") or name[1:2] == ":":
        return "which leads out of the folder"
    if not name.isprintable() or "\\" in name:
        return "which is no plain name"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link or a device"
    if info.flag_bits & 0x41:
        return "which is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"compressed by method {info.compress_type}"
    return ""


def _refusal(saw: str, cause: str = "") -> DatasetError:
    return DatasetError(
        f"the archive {saw}", wanted="the official archive of the data set", cause=cause, code="bad_archive"
    )
