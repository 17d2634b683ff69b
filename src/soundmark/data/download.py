"""ESC-50 or ESC-10 in its official layout, fetched from its publisher and checked clip by clip.

The archive is the publisher's repository as GitHub packs it (no promise of equal bytes), so what is checked is what it
holds: every clip of our manifest (esc50-manifest.csv, made from the official table) with its fold, label and length,
and nothing else. A data set appears at its place in one step, checked, or not at all.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Literal

import soundfile

from soundmark import storage
from soundmark.data.transfer import discard, fetch
from soundmark.data.unpack import unpack
from soundmark.dataset import Dataset, load_esc50
from soundmark.errors import DatasetError, SoundmarkError, StorageError
from soundmark.sources import open_dataset

URL = "https://github.com/karolpiczak/ESC-50/archive/master.zip"
LICENCES = {
    "esc50": "CC BY-NC 3.0: not for commercial use; who recorded what is in LICENSE",
    "esc10": "CC BY 3.0; who recorded what is in LICENSE",
}
MAX_ARCHIVE_BYTES = 1 << 30
"""The archive has about 0.6 GB."""

MANIFEST = resources.files("soundmark.data").joinpath("esc50-manifest.csv")
TOLERANCE_S = 0.001
Name = Literal["esc50", "esc10"]
Progress = Callable[[str, int | None], AbstractContextManager[Callable[..., None]]]


@dataclass(frozen=True, slots=True)
class Entry:
    """What the manifest knows of a clip; ``length_s`` is that of the official WAV file."""

    name: str
    fold: int
    label: str
    esc10: bool
    length_s: float


def manifest(name: Name = "esc50") -> dict[str, Entry]:
    """Return clip name -> entry for every clip of the data set."""
    lines = [line for line in MANIFEST.read_text("utf-8").splitlines() if not line.startswith("#")]
    entries = [
        Entry(row["name"], int(row["fold"]), row["label"], row["esc10"] == "1", float(row["length_s"]))
        for row in csv.DictReader(lines)
    ]
    return {entry.name: entry for entry in entries if entry.esc10 or name == "esc50"}


def download(
    name: Name,
    to: Path,
    *,
    url: str = URL,
    progress: Progress | None = None,
) -> Dataset:
    """Fetch, unpack and check a data set, put it at ``to``, and return it.

    Where ``to`` holds it already, it is checked and returned. An interrupted transfer goes on where it stopped; an
    archive that is not what it should be is deleted.

    Args:
        name: ESC-10 is 400 clips out of the same archive, with its own table.
        to: a new or empty folder; ``.NAME.download`` beside it is used meanwhile.
        url: of the archive, for a mirror.
        progress: called with what is counted and how many there are, for a function that counts on
            (`render.clip_progress` is one).

    Raises:
        DatasetError: ``download_failed``, ``bad_archive`` or ``wrong_clips``.
        MissingExtraError: pooch is not installed.
        StorageError: ``to`` holds something else, is being downloaded to, or cannot be written.
    """
    to, progress = to.absolute(), progress or (lambda *_: nullcontext(lambda *_: None))
    if to.is_file() or (to.is_dir() and any(to.iterdir())):
        try:
            return verified(name, to)
        except SoundmarkError as error:
            raise StorageError(
                f"{to} holds something else ({error.saw})", wanted="a new or empty folder for --to"
            ) from None
    work = to.with_name(f".{to.name}.download")
    with _claimed(work):
        part = work / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.part"
        with progress("download, MB", None) as on_mb:
            fetch(
                url,
                part,
                max_bytes=MAX_ARCHIVE_BYTES,
                on_bytes=lambda n, total: on_mb(n / 1e6, total and total / 1e6),
            )
        known = manifest(name)

        def fill(scratch: Path) -> None:
            with progress("unpack", len(known)) as on_file:
                unpack(part, scratch, lambda path: _wanted(path, name, known), on_file=on_file)
            if name == "esc10":
                _keep_esc10(scratch / "meta" / "esc50.csv")
            verified(name, scratch)

        try:
            storage.write_folder(to, fill, overwrite=True, within=work)
        except DatasetError:
            discard(part)
            raise
        shutil.rmtree(work, ignore_errors=True)
    return open_dataset(to)


def verified(name: Name, root: Path) -> Dataset:
    """Return the data set at ``root``, in which every clip is there and as the manifest says.

    Raises:
        DatasetError: ``wrong_clips``, with the first problems and their number, or the table is wrong.
    """
    dataset, known = load_esc50(root), manifest(name)
    found = {clip.name: clip for clip in dataset.clips}
    spare = {path.stem for path in (root / "audio").iterdir()} - known.keys()
    problems = [f"{clip} is missing" for clip in sorted(known.keys() - found.keys())]
    problems += [f"{clip} is not part of it" for clip in sorted((found.keys() | spare) - known.keys())]
    both = sorted(known.keys() & found.keys())
    for clip in both:
        entry = known[clip]
        if (entry.fold, entry.label) != (found[clip].fold, found[clip].label):
            problems.append(f"{clip} is {found[clip].label[:40]!r} in fold {found[clip].fold}")
    with ThreadPoolExecutor() as pool:
        lengths = pool.map(_length_s, [found[clip].path for clip in both])
        for clip, length_s in zip(both, lengths, strict=True):
            if abs(length_s - known[clip].length_s) > TOLERANCE_S:
                problems.append(f"{clip} has {length_s:g} s instead of {known[clip].length_s:g} s")
    if problems:
        more = f" ... and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DatasetError(
            f"{len(problems)} of {len(known)} clips are not those of the official data set: "
            f"{'; '.join(problems[:5])}{more}",
            wanted="every clip with its fold, label and length, as in the manifest",
            code="wrong_clips",
        )
    return open_dataset(root)


def _wanted(path: PurePosixPath, name: Name, known: dict[str, Entry]) -> bool:
    if path.parent == PurePosixPath("audio"):
        return name == "esc50" or path.stem in known
    return str(path) in ("meta/esc50.csv", "LICENSE", "README.md")


def _keep_esc10(table: Path) -> None:
    lines = table.read_text("utf-8").splitlines(keepends=True) if table.exists() else []
    column = lines[0].strip().split(",").index("esc10") if lines and "esc10" in lines[0] else -1
    kept = [line for line in lines[1:] if line.split(",")[column].strip() == "True"]
    if lines:
        table.write_text("".join([lines[0], *kept]), "utf-8")


def _length_s(path: Path) -> float:
    try:
        header = soundfile.info(str(path))
        return float(header.frames / header.samplerate)
    except (RuntimeError, OSError, ZeroDivisionError):
        return 0.0


@contextmanager
def _claimed(work: Path) -> Iterator[None]:
    """Hold ``work`` for this process, with nothing in it but transfers of the past."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        handle = os.open(work / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StorageError(
            f"{work} cannot be written ({error.strerror})", wanted="a writable folder for --to"
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for path in work.iterdir():
            if path.is_dir():  # unpacked by a process that was killed
                shutil.rmtree(path, ignore_errors=True)
        yield
    except BlockingIOError:
        raise StorageError(f"{work} is in use by another download", wanted="one at a time") from None
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):  # nothing to go on with: leave nothing behind
            if [path.name for path in work.iterdir()] == ["lock"]:
                shutil.rmtree(work)
