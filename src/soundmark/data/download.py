"""ESC-50 and ESC-10 from their publisher: the archive over HTTPS, checked before anything is written, then verified.

Nothing is taken from an archive but the recordings, the table and the notes that `manifest` names, and nothing is
written before all its members were looked at (RELIABILITY D20, T26). What arrives is built aside, compared with our
own manifest (every clip: name, fold, label, duration) and then renamed: the folder is there whole or not at all.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import struct
import tarfile
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any
from urllib.parse import urljoin, urlsplit

import msgspec

from soundmark import audio, storage
from soundmark.config import Config, Positive, PositiveFloat
from soundmark.data.extract import hold, storage_errors
from soundmark.dataset import ESC50_COLUMNS, ESC50_WANTED, by_stem
from soundmark.errors import AudioError, DatasetError, MissingExtraError
from soundmark.tables import read_table

if TYPE_CHECKING:
    import requests

ESC50_URL = "https://github.com/karoldvl/ESC-50/archive/master.zip"
ESC10_LABELS = frozenset(
    {"dog", "rooster", "rain", "sea_waves", "crackling_fire", "crying_baby", "sneezing", "clock_tick"}
    | {"helicopter", "chainsaw"}
)
NAMES = ("esc50", "esc10")
TABLE = "meta/esc50.csv"
NOTES = ("LICENSE", "README.md")
MANIFEST_COLUMNS = ("name", "fold", "label", "duration")
SLACK_S = 0.05  # a duration may be off by this much
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_REDIRECTS = 5
MIN_RATE = 1024  # bytes a second, over four times the timeout; less is a stalled transfer
MAX_DIRECTORY = 8 << 20  # bytes of a zip's table of contents
MAX_PIECE = 16 << 20  # bytes of one recording, or of one header


class DownloadConfig(Config, frozen=True, kw_only=True):
    """Where from, and what is too much."""

    url: str = ESC50_URL  # zip or tar; HTTPS, or HTTP from this machine
    sha256: Annotated[str, msgspec.Meta(pattern="^([0-9a-fA-F]{64})?$")] = (
        ""  # of the archive, if it is known
    )
    max_bytes: Positive = 2 << 30  # of the archive
    max_unpacked: Positive = 4 << 30  # bytes of all that is in it
    max_entries: Positive = 10_000  # members of the archive
    max_ratio: PositiveFloat = 20.0  # unpacked over packed
    timeout_s: PositiveFloat = 30.0  # without a byte
    attempts: Positive = 3  # connections, each going on where the last one broke off


@dataclass(frozen=True, slots=True)
class Expected:
    """One clip of the manifest."""

    name: str
    fold: int
    label: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class _Member:
    name: str  # as the archive says
    size: int  # bytes, unpacked, as the archive says
    kind: str  # "file", "folder", or what it is instead
    handle: Any


def manifest(name: str) -> dict[str, Expected]:
    """Return stem -> clip of ``esc50`` or ``esc10``, from the manifest that ships with this package.

    Raises:
        DatasetError: another name.
    """
    if name not in NAMES:
        raise DatasetError(f"data set {name!r}", wanted=f"one of: {', '.join(NAMES)}", code="unknown_dataset")
    text = resources.files("soundmark.data").joinpath("manifests", "esc50.csv").read_text("utf-8")
    rows = [
        Expected(r["name"], int(r["fold"]), r["label"], float(r["duration"]))
        for r in csv.DictReader(io.StringIO(text))
    ]
    return {row.name: row for row in rows if name == "esc50" or row.label in ESC10_LABELS}


def make_manifest(table: Path, *, seconds: float = 5.0) -> str:
    """Return the manifest of an official ``esc50.csv``; all clips of the official release last five seconds."""
    rows, _ = read_table(table, ESC50_COLUMNS, wanted=ESC50_WANTED)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(MANIFEST_COLUMNS)
    for _, row in rows:
        writer.writerow((row["filename"].rpartition(".")[0], row["fold"], row["category"], f"{seconds:g}"))
    return text.getvalue()


def download(
    name: str,
    to: Path,
    config: DownloadConfig,
    *,
    on_bytes: Callable[[int, int | None], None] | None = None,
    on_clip: Callable[[int], None] | None = None,
) -> bool:
    """Put the data set ``name`` into the folder ``to``; return False if it was there already, whole.

    Args:
        name: ``esc50`` or ``esc10``.
        to: a new or empty folder, or one with the data set in it.
        config: where from.
        on_bytes: called with the bytes so far and the total, where the server says it.
        on_clip: called with 1 per clip that is written.

    Raises:
        DatasetError: the transfer failed (what came is kept for the next try), or the archive is not safe, not whole
            or not the data set (it is deleted).
        StorageError: the disk refuses.
        MissingExtraError: pooch is not installed.
    """
    expected = manifest(name)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        problems = verify(to, name) if (to / TABLE).is_file() else [f"{to} holds something else"]
        if problems:
            raise _error(f"{to} is not a whole {name}: {_some(problems)}", "exists", wanted="a new folder")
        return False
    aside = to.parent / f".{to.name}.download"
    with storage_errors(to), hold(aside):
        unpacked = aside / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)  # of an interrupted run
        archive = _fetch(aside, config, on_bytes)
        try:
            _unpack(archive, unpacked, name, expected, config, on_clip)
            problems = verify(unpacked, name)
            if problems:
                raise _error(f"the archive is not {name}: {_some(problems)}", "incomplete_archive")
        except BaseException as error:
            shutil.rmtree(unpacked, ignore_errors=True)
            if isinstance(error, DatasetError):
                archive.unlink()
            raise
        if to.exists():
            to.rmdir()  # empty
        os.replace(unpacked, to)
        shutil.rmtree(aside)
    return True


def verify(root: Path, name: str) -> list[str]:
    """Return how the data set at ``root`` differs from the manifest, in words; an empty list if it does not."""
    expected = manifest(name)
    rows, skipped = read_table(root / TABLE, ESC50_COLUMNS, wanted=ESC50_WANTED)
    problems = [problem.message for problem in skipped]
    listed = {row["filename"].rpartition(".")[0]: row for _, row in rows}
    problems += [f"{stem} is not in the table" for stem in expected.keys() - listed.keys()]
    problems += [f"{stem} is not in the manifest" for stem in listed.keys() - expected.keys()]
    files = by_stem(root / "audio")

    def one(clip: Expected) -> str:
        row = listed.get(clip.name)
        if row and (row["fold"], row["category"]) != (str(clip.fold), clip.label):
            return f"{clip.name} is {row['category']} of fold {row['fold']}, not {clip.label} of fold {clip.fold}"
        if clip.name not in files:
            return f"{clip.name} has no recording"
        try:
            duration_s = audio.load(files[clip.name], sample_rate=44_100).duration_s
        except AudioError as error:
            return f"{clip.name}: {error.code}"
        if abs(duration_s - clip.duration_s) > SLACK_S:
            return f"{clip.name} lasts {duration_s:.2f} s, not {clip.duration_s:g} s"
        return ""

    with ThreadPoolExecutor() as threads:
        return sorted(problems) + [text for text in threads.map(one, expected.values()) if text]


def check_members(members: list[_Member], packed: int, config: DownloadConfig) -> None:
    """Look at every member of an archive of ``packed`` bytes.

    Raises:
        DatasetError: a name that leads out of the folder or stands for two files, a link, a device, too many members,
            too much in them; code ``unsafe_archive``.
    """

    def refuse(saw: str) -> DatasetError:
        return _error(
            saw,
            "unsafe_archive",
            wanted="plain files and folders in a folder",
            cause="not the official archive",
        )

    if len(members) > config.max_entries:
        raise refuse(f"more than {config.max_entries} members")
    total = sum(member.size for member in members)
    if total > config.max_unpacked or total > config.max_ratio * max(packed, 1 << 16):
        raise refuse(f"{total} bytes in an archive of {packed}")
    kinds: dict[str, str] = {}
    for member in members:
        shown = repr(member.name[:80])
        parts = member.name.rstrip("/").split("/")
        odd = any(not part or part in (".", "..") or part != part.strip() for part in parts)
        if odd or any(sign in member.name for sign in "\\:\0") or not member.name.isprintable():
            raise refuse(f"a member {shown}")
        if member.kind not in ("file", "folder") or member.size < 0:
            raise refuse(f"a member {shown} that is {member.kind}")
        key = unicodedata.normalize("NFC", "/".join(parts)).casefold()
        if key in kinds and not kinds[key] == member.kind == "folder":
            raise refuse(f"two members {shown} (or differing in case)")
        kinds[key] = member.kind
    for key in kinds:
        above = key.rpartition("/")[0]
        while above:
            if kinds.get(above) == "file":
                raise refuse(f"a file {above[:80]!r} that is also a folder")
            above = above.rpartition("/")[0]


def _unpack(
    archive: Path,
    out: Path,
    name: str,
    expected: dict[str, Expected],
    config: DownloadConfig,
    on_clip: Callable[[int], None] | None,
) -> None:
    """Write what the manifest names into ``out``, after all members were looked at."""
    try:
        with _opened(archive, config) as (members, read):
            check_members(members, archive.stat().st_size, config)
            files = {member.name: member for member in members if member.kind == "file"}
            tops = [path.removesuffix(TABLE) for path in files if f"/{path}".endswith(f"/{TABLE}")]
            if len(tops) != 1:
                raise _error(f"{len(tops)} tables {TABLE} in the archive", "incomplete_archive", wanted="one")
            wanted = (
                {f"audio/{stem}.wav": True for stem in expected} | {TABLE: True} | dict.fromkeys(NOTES, False)
            )
            missing = [path for path, needed in wanted.items() if needed and tops[0] + path not in files]
            if missing:
                raise _error(
                    f"the archive lacks {_some(missing)}", "incomplete_archive", wanted=f"all of {name}"
                )
            chosen = [(path, files[tops[0] + path]) for path in wanted if tops[0] + path in files]
            large = [path for path, member in chosen if member.size > MAX_PIECE]
            if large:
                raise _error(f"{_some(large)}: more than {MAX_PIECE} bytes", "unsafe_archive")
            if isinstance(members[0].handle, tarfile.TarInfo):  # one pass over what is packed as one
                chosen.sort(key=lambda pair: pair[1].handle.offset)
            for path, member in chosen:
                data = read(member)
                if len(data) != member.size:
                    raise _error(f"{path}: {len(data)} bytes, {member.size} announced", "unsafe_archive")
                if path == TABLE and name == "esc10":
                    data = _only(data, expected)
                storage.write_bytes(out / path, data)
                if on_clip and path.startswith("audio/"):
                    on_clip(1)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        EOFError,
        OSError,
        struct.error,
        ValueError,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _error(
            f"the archive is damaged: {error}", "damaged_archive", cause="a broken transfer: try again"
        ) from None
    except (NotImplementedError, RuntimeError, OverflowError) as error:
        raise _error(f"the archive cannot be read: {error}", "unsafe_archive") from None


def _only(table: bytes, expected: dict[str, Expected]) -> bytes:
    rows = list(csv.reader(io.StringIO(table.decode("utf-8-sig"), newline="")))
    text = io.StringIO(newline="")
    kept = [row for row in rows[1:] if row and row[0].rpartition(".")[0] in expected]
    csv.writer(text, lineterminator="\n").writerows([rows[0], *kept])
    return text.getvalue().encode()


@contextlib.contextmanager
def _opened(
    archive: Path, config: DownloadConfig
) -> Iterator[tuple[list[_Member], Callable[[_Member], bytes]]]:
    """Yield the members of a zip or tar, and a function that reads one, never beyond its announced size."""
    with archive.open("rb") as file:
        head = file.read(4)
        file.seek(0)
        if head[:2] == b"PK":
            _check_directory(file)
            with zipfile.ZipFile(file) as zipped:
                members = [_zip_member(info) for info in zipped.infolist()]
                if sum(info.compress_size for info in zipped.infolist()) > archive.stat().st_size:
                    raise _error("members that overlap", "unsafe_archive", cause="a zip bomb")

                def read(member: _Member) -> bytes:
                    with zipped.open(member.handle) as packed:
                        return packed.read(member.size + 1)

                yield members, read
            return
        packers: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open}
        plain = packers.get(head[:2], lambda same: same)(file)
        with tarfile.open(fileobj=_Capped(plain, config), mode="r:") as tar:
            found: list[_Member] = []
            total = 0
            for info in tar:
                found.append(_tar_member(info))
                total += max(0, info.size)
                if len(found) > config.max_entries or total > config.max_unpacked:
                    break  # `check_members` says what is wrong

            def read_tar(member: _Member) -> bytes:
                packed = tar.extractfile(member.handle)
                assert packed is not None
                return packed.read(member.size + 1)

            yield found, read_tar


class _Capped(io.RawIOBase):
    """What a tar is read through: no read of more than a header or a recording may need."""

    def __init__(self, file: IO[bytes], config: DownloadConfig) -> None:
        self._file, self._left = file, 2 * config.max_unpacked + (1 << 20)

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 0 and offset > self._left:
            raise _error("a tar of endless length", "unsafe_archive")
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_PIECE:
            raise _error(f"a tar header of {size} bytes", "unsafe_archive")
        return self._file.read(size)


def _zip_member(info: zipfile.ZipInfo) -> _Member:
    mode = stat.S_IFMT(info.external_attr >> 16)
    kind = "folder" if info.is_dir() else "file"
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR) or (mode == stat.S_IFDIR) > info.is_dir():
        kind = "a link or a device"
    elif info.flag_bits & 0x41:
        kind = "encrypted"
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        kind = f"packed by method {info.compress_type}"
    return _Member(info.orig_filename, info.file_size, kind, info)


def _tar_member(info: tarfile.TarInfo) -> _Member:
    kind = (
        "folder" if info.isdir() else "file" if info.isreg() and not info.issparse() else "a link or a device"
    )
    return _Member(info.name + "/" * info.isdir(), info.size, kind, info)


def _check_directory(file: IO[bytes]) -> None:
    """Refuse a zip by the size of its table of contents, before that is read into memory."""
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - (1 << 16) - 22))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22:
        raise zipfile.BadZipFile("it ends too early")
    entries, size = struct.unpack("<HI", tail[at + 10 : at + 16])
    if entries == 0xFFFF or size > MAX_DIRECTORY:
        raise _error(
            "a table of contents of a million members", "unsafe_archive", cause="not the official archive"
        )
    file.seek(0)


def _fetch(folder: Path, config: DownloadConfig, on_bytes: Callable[[int, int | None], None] | None) -> Path:
    """Return the archive, in ``folder``; an earlier transfer goes on where it broke off."""
    try:
        import pooch
        import requests
    except ImportError as error:
        raise MissingExtraError.of("data", error.name or "pooch") from None
    pooch.get_logger().setLevel("WARNING")
    _check_url(config.url, before="")

    fname = f"archive-{hashlib.sha256(config.url.encode()).hexdigest()[:12]}"
    part = folder / f"{fname}.part"

    def transfer(url: str, output_file: Any, _: Any) -> None:
        for attempt in range(1, config.attempts + 1):
            try:
                _receive(url, part, config, on_bytes)
                break
            except requests.RequestException as error:
                if attempt < config.attempts:
                    time.sleep(min(attempt, 3) * min(1.0, config.timeout_s))
                    continue
                reason = f"{type(error).__name__}: {error}"[:300]
                cause = "no connection, or a slow one; the same command goes on from here"
                raise _error(
                    f"{url}: {reason}", "download_failed", wanted="the archive", cause=cause
                ) from None
        with part.open("rb") as file:
            head = file.read(512)
        if not head.startswith((b"PK\x03\x04", b"\x1f\x8b", b"BZh")) and head[257:262] != b"ustar":
            part.unlink()
            what = "a web page" if b"<" in head[:64] else "no archive"
            raise _error(
                f"{url} is {what}", "not_an_archive", wanted="a zip or tar", cause="the address has changed"
            )
        os.replace(part, output_file)

    known = f"sha256:{config.sha256}" if config.sha256 else None
    try:
        return Path(
            pooch.retrieve(config.url, known_hash=known, fname=fname, path=folder, downloader=transfer)
        )
    except ValueError as error:
        cause = "another version of the archive, or a damaged one; it was deleted"
        raise _error(str(error)[:300], "wrong_hash", wanted=f"SHA-256 {config.sha256}", cause=cause) from None


def _receive(
    url: str, part: Path, config: DownloadConfig, on_bytes: Callable[[int, int | None], None] | None
) -> None:
    """Bring ``part`` to its end over one connection."""
    import requests

    note = part.with_suffix(".json")
    have, validator = part.stat().st_size if part.exists() else 0, ""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        before = json.loads(note.read_bytes())
        validator = str(before["validator"]) if before["url"] == url else ""
    headers = {"Accept-Encoding": "identity"}  # bytes as they are: what is counted and hashed
    if have and validator:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    with requests.Session() as session, _answer(session, url, headers, config) as answer:
        if answer.status_code == 416:
            part.unlink()
            raise requests.ConnectionError("the server has another file now")
        if answer.status_code not in (200, 206):
            raise _error(
                f"{url}: HTTP {answer.status_code}",
                "download_failed",
                wanted="the archive",
                cause="try later",
            )
        if answer.status_code == 200 or not answer.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        ):
            if answer.status_code == 206:
                raise _error(f"{url}: another part than asked for", "download_failed")
            have = 0
        etag = answer.headers.get("ETag", "")
        validator = etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified", "")
        storage.write_bytes(note, json.dumps({"url": url, "validator": validator}).encode())
        length = answer.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else None
        too_large = _error(f"{url}: more than {config.max_bytes} bytes", "too_large", wanted="less")
        if total and total > config.max_bytes:
            part.unlink(missing_ok=True)
            raise too_large
        with part.open("r+b" if have else "wb") as file:
            file.seek(have)
            file.truncate()
            mark, since = have, time.monotonic()
            for chunk in answer.iter_content(1 << 16):
                have += len(chunk)
                if have > config.max_bytes:
                    part.unlink()
                    raise too_large
                file.write(chunk)
                if on_bytes:
                    on_bytes(have, total)
                passed = time.monotonic() - since
                if passed > 4 * config.timeout_s:
                    if have - mark < MIN_RATE * passed:
                        raise requests.Timeout(f"{have - mark} bytes in {passed:.0f} s")
                    mark, since = have, time.monotonic()
        if total is not None and have != total:
            raise requests.ConnectionError(f"{have} of {total} bytes came")


@contextlib.contextmanager
def _answer(
    session: requests.Session, url: str, headers: dict[str, str], config: DownloadConfig
) -> Iterator[requests.Response]:
    """Yield the answer after redirects, each of which is looked at: HTTPS stays HTTPS, and never ``file:``."""
    session.trust_env = urlsplit(url).hostname not in LOOPBACK  # no proxy for this machine
    for _ in range(MAX_REDIRECTS + 1):
        timeout = (config.timeout_s, config.timeout_s)
        with session.get(url, headers=headers, stream=True, timeout=timeout, allow_redirects=False) as answer:
            if not answer.is_redirect:
                yield answer
                return
            target = urljoin(url, answer.headers["Location"])
        _check_url(target, before=url)
        url = target
    raise _error(f"{url}: more than {MAX_REDIRECTS} redirects", "download_failed")


def _check_url(url: str, *, before: str) -> None:
    parts = urlsplit(url)
    local = parts.scheme == "http" and parts.hostname in LOOPBACK
    if not (parts.scheme == "https" and parts.hostname) and not (local and not before.startswith("https:")):
        saw = f"a redirect to {url[:200]!r}" if before else f"the address {url[:200]!r}"
        raise _error(saw, "bad_address", wanted="https://")


def _error(saw: str, code: str, *, wanted: str = "", cause: str = "") -> DatasetError:
    return DatasetError(saw, wanted=wanted, cause=cause, code=code)


def _some(names: list[str]) -> str:
    return "; ".join(names[:5]) + (f"; and {len(names) - 5} more" if len(names) > 5 else "")
