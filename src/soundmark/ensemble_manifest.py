"""What ``ensemble.json`` says: the members, how they are combined, and what that was fitted on.

It is canonical JSON with the digest of every member and one over itself, as ``bundle.json`` is.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import msgspec

from soundmark import bundle
from soundmark.config import Config, DecisionConfig, NonNegativeFloat, PositiveFloat, from_dict, to_dict
from soundmark.errors import BundleError, ConfigError

MANIFEST, MEMBERS = "ensemble.json", "members"
FORMAT = 1
MAX_MEMBERS = 64
Combine = Literal["log-probabilities", "logits"]


class Member(Config, frozen=True, kw_only=True):
    """One model in an ensemble."""

    name: str  # its folder below members/
    digest: str  # of the model
    weight: NonNegativeFloat = 1.0  # factor on what it says
    temperature: PositiveFloat = 1.0  # its logits are divided by it ("logits": 1)


class EnsembleManifest(Config, frozen=True, kw_only=True):
    """What ``ensemble.json`` holds."""

    format: int = FORMAT  # layout of the folder
    name: str  # of the ensemble, for people and result rows
    created_by: str  # program and version that wrote it
    combine: Combine  # what is added up, see `combined`
    members: tuple[Member, ...]  # in the order in which they were given
    decision: DecisionConfig = DecisionConfig()  # the sum to an answer: temperature and thresholds
    provenance: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)  # "weights", "calibration"
    digest: str = ""  # SHA-256 of the canonical JSON of all other fields; filled by `write`

    def check(self) -> None:
        """Refuse a layout of another version, no members, too many, or names that are no folder's."""
        names = [member.name for member in self.members]
        if self.format != FORMAT:
            raise ValueError(f"`format` is {self.format}, this Soundmark reads {FORMAT}")
        if not 1 <= len(names) <= MAX_MEMBERS or len(set(names)) != len(names):
            raise ValueError(
                f"`members` has {len(names)} names, 1 to {MAX_MEMBERS} different ones are wanted"
            )
        for name in (self.name, *names):
            if not bundle.FILE_NAME.fullmatch(name):
                raise ValueError(f"`name` {name[:40]!r} is not made of letters, digits, '.', '_' and '-'")
        if not sum(member.weight for member in self.members) > 0:
            raise ValueError("`members` have no weight at all")
        if self.combine == "logits" and any(member.temperature != 1 for member in self.members):
            raise ValueError(
                "`members.temperature` is for log-probabilities; logits are added up as they are"
            )


def read(path: Path) -> EnsembleManifest:
    """Return the checked manifest of the folder ``path``.

    Raises:
        BundleError: ``bad_bundle``, or ``hash_mismatch`` where it does not match its own digest.
    """
    where = path / MANIFEST
    wanted = f"{MANIFEST} as `soundmark ensemble` wrote it"
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BundleError(f"{path} cannot be opened: {error.strerror}", wanted="a folder") from None
    try:
        data = bundle.read_file(folder, path, MANIFEST)
    finally:
        os.close(folder)
    try:
        tree = json.loads(data.decode("utf-8"))
        if not isinstance(tree, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: not JSON ({str(error)[:200]})", wanted=wanted) from None
    if tree.get("digest") != bundle.digest_of(tree):
        raise BundleError(
            f"{where} does not match its own digest",
            wanted=wanted,
            cause="it was edited or damaged",
            code="hash_mismatch",
        )
    try:
        return from_dict(tree, EnsembleManifest, where=str(where))
    except ConfigError as error:
        raise BundleError(error.saw, wanted=error.wanted, cause=error.cause) from None


def sealed(manifest: EnsembleManifest) -> bytes:
    """Return the bytes of ``ensemble.json``, its digest filled in."""
    tree = to_dict(manifest)
    return bundle.canonical({**tree, "digest": bundle.digest_of(tree)})
