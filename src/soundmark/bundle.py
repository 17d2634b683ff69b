"""A model as a directory: ``model.onnx``, ``bundle.json``, ``README.md`` (and small text files such as notices).

``bundle.json`` is a `Manifest` in canonical JSON: labels, front end, window, decision, golden values, the SHA-256 of
every other file, and a digest over itself. `read` opens regular files only, with caps, relative to one directory
descriptor, so that a bundle swapped while it is read is either the old one or the new one. `write` is atomic.
Nothing in a bundle is code, and nothing that is not listed is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from soundmark import onnxgraph, pattern, storage
from soundmark.config import (
    Config,
    DecisionConfig,
    FrontendConfig,
    NonNegativeFloat,
    WindowConfig,
    from_dict,
    to_dict,
)
from soundmark.errors import BundleError, ConfigError, StorageError

DEFAULT_MODEL = "edge"
"""The bundle that ships inside the package."""
FORMAT = 1
"""Layout of a bundle; a reader takes its own format only."""
RESAMPLER = "soxr HQ"
"""Two resamplers are two models, so the one that the audio stage uses is part of a bundle."""
GOLDEN_FEATURES = 64
"""How many feature values of the golden window are kept."""

MANIFEST, MODEL, README = "bundle.json", "model.onnx", "README.md"
CAPS = {MANIFEST: 4 << 20, MODEL: 64 << 20, README: 1 << 20}
"""Largest size of each file in bytes."""
_OTHER_CAP, _MAX_FILES, _MAX_LABELS, _MAX_LABEL = 1 << 20, 16, 10_000, 200
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Golden(Config, frozen=True, kw_only=True):
    """What the model answers on `golden_signal`, so that a damaged or mixed-up part shows before the first answer."""

    features: tuple[float, ...]  # GOLDEN_FEATURES values at `golden_indices` of the flat features
    logits: tuple[float, ...]  # one per label
    tolerance: NonNegativeFloat = 0.05  # largest accepted difference of a score; the top label must agree


class Manifest(Config, frozen=True, kw_only=True):
    """What ``bundle.json`` holds."""

    format: int = FORMAT  # layout of the bundle
    name: str  # of the model, for people and result rows
    created_by: str  # program and version that wrote it
    labels: tuple[str, ...]  # in the order of the logits
    frontend: FrontendConfig  # samples to features, every field
    frontend_fingerprint: str  # of that config and the code's FRONTEND_VERSION
    resampler: str = RESAMPLER  # which brings recordings to frontend.sample_rate
    window: WindowConfig  # how recordings are cut
    decision: DecisionConfig  # calibration, pooling, threshold
    golden: Golden  # answers on the golden window
    licence: str  # of the weights
    provenance: dict[str, dict[str, Any]] = msgspec.field(
        default_factory=dict
    )  # "training": ..., "export": ...
    files: dict[str, str] = msgspec.field(default_factory=dict)  # name -> SHA-256; filled by `write`
    digest: str = ""  # SHA-256 of the canonical JSON of all other fields; filled by `write`

    def check(self) -> None:
        """Refuse labels that could not be told apart, or that no terminal or page should print."""
        if self.format != FORMAT:
            raise ValueError(f"`format` is {self.format}, this Soundmark reads {FORMAT}")
        if not FILE_NAME.fullmatch(self.name):
            raise ValueError(f"`name` {self.name[:40]!r} is not made of letters, digits, '.', '_' and '-'")
        if not 1 <= len(self.labels) <= _MAX_LABELS:
            raise ValueError(f"`labels` has {len(self.labels)} names, 1 to {_MAX_LABELS} are wanted")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("`labels` has duplicates")
        for label in self.labels:
            if not 1 <= len(label) <= _MAX_LABEL or not label.isprintable() or label != label.strip():
                raise ValueError(
                    f"`labels` holds {label[:40]!r}: 1 to {_MAX_LABEL} printable characters are wanted"
                )
        for key in ("created_by", "licence", "frontend_fingerprint", "resampler"):
            if len(getattr(self, key)) > 2000:
                raise ValueError(f"`{key}` is longer than 2000 characters")
        strangers = sorted(set(self.decision.label_thresholds) - set(self.labels))
        if strangers:
            raise ValueError(f"`decision.label_thresholds` names {strangers[0][:40]!r}, which is not a label")
        if self.decision.patterns:
            pattern.read(self.decision.patterns, len(self.labels))
        if len(self.golden.logits) != len(self.labels):
            raise ValueError(
                f"`golden.logits` has {len(self.golden.logits)} numbers for {len(self.labels)} labels"
            )
        if len(self.golden.features) != GOLDEN_FEATURES:
            raise ValueError(
                f"`golden.features` has {len(self.golden.features)} numbers, not {GOLDEN_FEATURES}"
            )
        if len(self.files) > _MAX_FILES:
            raise ValueError(f"`files` has {len(self.files)} names, at most {_MAX_FILES} are wanted")
        for name, digest in self.files.items():
            if not FILE_NAME.fullmatch(name) or name == MANIFEST or not _SHA256.fullmatch(digest):
                raise ValueError(f"`files` holds {name[:40]!r}: a plain file name and its SHA-256 are wanted")

    @property
    def window_samples(self) -> int:
        """Length of a window in samples at the front end's rate."""
        return round(self.window.window_s * self.frontend.sample_rate)

    @property
    def hop_samples(self) -> int:
        """Samples from one window to the next."""
        return max(1, round(self.window.hop_s * self.frontend.sample_rate))


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle: every hash matched and the graph is allowed."""

    path: Path
    manifest: Manifest
    model: bytes  # the ONNX file

    @property
    def digest(self) -> str:
        """SHA-256 that names this model: it covers every file of the bundle."""
        return self.manifest.digest


def find(name_or_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the directory of a bundle: a name that ships with the package, or a directory. None is the default.

    Raises:
        BundleError: neither; code ``model_not_found``, and the message lists what exists.
    """
    text = DEFAULT_MODEL if name_or_dir in (None, "default") else os.fspath(name_or_dir or "")
    shipped = Path(str(resources.files("soundmark"))) / "models"
    if FILE_NAME.fullmatch(text) and (shipped / text).is_dir():
        return shipped / text
    path = Path(text).expanduser()
    try:
        if text and path.is_dir():
            return path
        saw = f"{text!r} is a file" if path.exists() else f"no model {text[:200]!r}"
    except (OSError, ValueError) as error:
        saw = f"no model {text[:200]!r} ({type(error).__name__})"
    raise BundleError(
        saw,
        wanted=f"a bundle directory or one of: {', '.join(available()) or '(none is installed)'}",
        cause="a model is a directory with bundle.json, model.onnx and README.md",
        code="model_not_found",
    )


def available() -> list[str]:
    """Return the names of the bundles that ship with the package, sorted."""
    shipped = Path(str(resources.files("soundmark"))) / "models"
    return sorted(path.parent.name for path in shipped.glob(f"[!.]*/{MANIFEST}"))  # no half-written one


def read(name_or_dir: str | os.PathLike[str] | None = None) -> Bundle:
    """Return the verified bundle at a directory or of a shipped name.

    Raises:
        BundleError: ``model_not_found``; ``bad_bundle`` (missing, cut, not regular, too large, not canonical,
            impossible values); ``hash_mismatch``; ``model_not_allowed``.
    """
    path = find(name_or_dir)
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BundleError(f"{path} cannot be opened: {error.strerror}", wanted="a bundle directory") from None
    try:
        manifest = _manifest(read_file(folder, path, MANIFEST), path / MANIFEST)
        contents = {name: read_file(folder, path, name) for name in manifest.files}
        strangers = sorted(
            n for n in os.listdir(folder) if n not in contents and n != MANIFEST and n[0] != "."
        )
    finally:
        os.close(folder)
    if strangers:
        raise BundleError(
            f"{path} holds {strangers[0]!r}, which bundle.json does not list", wanted="listed files only"
        )
    for name, data in contents.items():
        if _sha256(data) != manifest.files[name]:
            raise BundleError(
                f"{path / name} does not match its SHA-256 in bundle.json",
                wanted="the file that was exported",
                cause="the file is damaged, was edited, or belongs to another bundle",
                code="hash_mismatch",
            )
    model = contents[MODEL]
    onnxgraph.check(onnxgraph.parse(model, name=str(path / MODEL)), name=str(path / MODEL))
    return Bundle(path, manifest, model)


def write(
    directory: str | os.PathLike[str],
    *,
    manifest: Manifest,
    model: bytes,
    readme: str,
    extra: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle and return it as `read` sees it. It appears whole or not at all; an old one stays until then.

    Args:
        directory: where; its parent is created.
        manifest: without ``files`` and ``digest``, which are filled in here.
        model: the ONNX file.
        readme: the model card, Markdown.
        extra: more small files, such as the notice that a licence asks for.
        overwrite: replace a bundle that is there.

    Raises:
        BundleError: what was given breaks a rule of `read`.
        StorageError: it exists and ``overwrite`` is False, or the disk refused; what was there is intact.
    """
    target = Path(os.path.abspath(Path(directory).expanduser()))
    files = {MODEL: model, README: readme.encode(), **(extra or {})}
    sealed = seal(manifest, {name: _sha256(data) for name, data in files.items()})
    if target.is_symlink() or (
        target.is_dir() and not (target / MANIFEST).is_file() and any(target.iterdir())
    ):
        raise StorageError(f"{target} is not a bundle", wanted="a new directory, or a bundle to replace")

    def fill(scratch: Path) -> None:
        for name, data in {**files, MANIFEST: canonical(to_dict(sealed))}.items():
            (scratch / name).write_bytes(data)
        read(scratch)

    storage.write_folder(target, fill, overwrite=overwrite)
    return Bundle(target, sealed, model)


def seal(manifest: Manifest, files: Mapping[str, str]) -> Manifest:
    """Return the manifest with the hashes of ``files`` and its digest filled in."""
    tree = {**to_dict(manifest), "files": dict(files)}
    return msgspec.structs.replace(manifest, files=dict(files), digest=digest_of(tree))


def golden_indices(size: int) -> npt.NDArray[np.int64]:
    """Return the flat indices at which golden features are kept: evenly spaced, the first and the last included.

    (A step of size / 64 would always hit the same column of 64 rows.)
    """
    return np.arange(GOLDEN_FEATURES, dtype=np.int64) * max(size - 1, 0) // (GOLDEN_FEATURES - 1)


def golden_signal(sample_rate: int, n_samples: int) -> npt.NDArray[np.float32]:
    """Return the golden window: chirp, clicks and noise, ``(n_samples,)`` float32, peak 0.5.

    Integers, products and sums only, so it is the same on every machine. The noise keeps every band well above the
    rounding of float32, where features would depend on the BLAS.
    """
    n = np.arange(n_samples, dtype=np.float64)
    cycles = n * (50.0 + 0.2 * sample_rate * n / max(n_samples, 1)) / sample_rate  # 50 Hz to 0.4 of the rate
    phase = cycles - np.floor(cycles)
    sine = np.where(phase < 0.5, 16 * phase * (0.5 - phase), -16 * (phase - 0.5) * (1.0 - phase))
    state = np.full(n_samples, 747_796_405, dtype=np.uint32)
    noise = (
        np.multiply.accumulate(state, dtype=np.uint32).view(np.int32) * 2.0**-31
    )  # congruential, modulo 2^32
    swell = np.where((8 * n // max(n_samples, 1)) % 2 == 0, 1.0, 0.25)  # four loud and four soft stretches
    x = swell * (0.3 * sine + 0.1 * noise)
    x[:: max(1, n_samples // 7)] += 1.0
    return np.asarray(0.5 * x / np.max(np.abs(x), initial=1e-9), dtype=np.float32)


def _manifest(data: bytes, where: Path) -> Manifest:
    """Return the checked manifest of the bytes of a ``bundle.json``."""

    def refuse(saw: str, cause: str = "", code: str = "bad_bundle") -> BundleError:
        return BundleError(f"{where}: {saw}", wanted="bundle.json as it was exported", cause=cause, code=code)

    try:
        tree = json.loads(data.decode("utf-8"))
        exact = canonical(tree) == data
    except (ValueError, RecursionError) as error:
        raise refuse(f"not JSON ({str(error)[:200]})", "the file is cut or damaged") from None
    if not isinstance(tree, dict):
        raise refuse("not a JSON object")
    if tree.get("format") != FORMAT:
        raise refuse(f"format {str(tree.get('format'))[:20]}", f"this Soundmark reads format {FORMAT}")
    if not exact or tree.get("digest") != digest_of(tree):
        raise refuse(
            "it does not match its own digest", "it was edited or damaged; export again", "hash_mismatch"
        )
    try:
        manifest = from_dict(tree, Manifest, where=str(where))
    except ConfigError as error:
        raise BundleError(error.saw, wanted=error.wanted, cause=error.cause) from None
    missing = sorted(set(to_dict(manifest.frontend)) - set(tree["frontend"]))
    if missing:  # a default could change between versions; a model's front end must not
        raise refuse(f"`frontend.{missing[0]}` is missing; front end parameters are never defaulted")
    if manifest.resampler != RESAMPLER:
        raise refuse(f"resampler {manifest.resampler!r}", f"this Soundmark resamples with {RESAMPLER}")
    if not {MODEL, README} <= set(manifest.files):
        raise refuse(f"`files` does not list {MODEL} and {README}")
    return manifest


def canonical(tree: Any) -> bytes:
    """Return the bytes of ``tree`` that a digest is taken of."""
    return (json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def digest_of(tree: Mapping[str, Any]) -> str:
    """Return the SHA-256 over everything in ``tree`` but its ``digest``."""
    return _sha256(canonical({key: value for key, value in tree.items() if key != "digest"}))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_file(folder: int, path: Path, name: str) -> bytes:
    """Return a regular file of the open directory ``folder``; follows no link, never waits, keeps to its cap."""
    cap = CAPS.get(name, _OTHER_CAP)
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BundleError(f"{path / name} is not a regular file", wanted="a regular file")
            data = file.read(cap + 1)
    except OSError as error:
        raise BundleError(
            f"{path / name} cannot be read: {error.strerror}", wanted="a regular file"
        ) from None
    if len(data) > cap:
        raise BundleError(f"{path / name} is larger than {cap >> 20} MiB", wanted="a smaller file")
    return data
