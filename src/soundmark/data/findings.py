"""What an inspection says: findings with a severity and a stable code, and what every code means."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from soundmark.errors import AUDIO_CODES, AudioError

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

_ERRORS = {
    "bad_row": "a row of the table is malformed, or contradicts its file name or other rows",
    "duplicate_row": "a clip stands in several rows",
    "leak": "one source recording stands in several folds: its test clips were trained on",
    "duplicate_across_folds": "the same audio stands in several folds: it is tested on what it was trained on",
    "duplicate_labels": "the same audio has several labels: at most one of them is right",
    "no_information": "all recordings are the same, or all are silent",
}
_WARNINGS = {
    "file_without_row": "a recording that no row names; it is not used",
    "skipped": "a path that is not read",
    "duplicate": "the same audio under two names, in one fold and with one label",
    "near_duplicate_across_folds": "nearly the same audio in several folds; listen: a copy is a leak",
    "near_duplicate_labels": "nearly the same audio under several labels",
    "near_duplicate": "nearly the same audio under two names and sources",
    "mostly_silence": "more than half of the clip is digital silence",
    "silent": "nothing to hear: peak below -80 dBFS",
    "odd_sample_rate": "another sample rate than most clips",
    "odd_encoding": "another encoding than most clips: fewer bits, or lossy",
    "odd_channels": "another number of channels than most clips",
    "odd_duration": "another duration than nearly all clips",
    "narrow_band": "less than half of the bandwidth that is usual here",
    "quiet": "far below the usual loudness",
    "truncated": "cut: less audio than its header says",
    "header_length_wrong": "its header says another length than it has",
    "extension_mismatch": "the content is another format than the file name says",
    "dc_offset": "the mean is far from zero: a fault of the recording chain",
    "clipped": "many samples on the extreme value",
    "downmix_cancelled": "its channels cancel each other: nothing is left in mono",
    "chained": "several streams in one file; only the first is heard",
    "imbalance": "the largest class has more than twice the clips of the smallest",
    "few_clips": "a class with fewer than five clips",
    "few_classes": "one label alone: there is nothing to tell apart",
    "few_sources": "a class from one source recording: it cannot be trained on and tested",
    "class_absent": "a class without clips in some fold",
    "similar_labels": "labels that differ by case, spaces or Unicode form only",
    "shortcut": "labels can be guessed from length, silence and bandwidth, without hearing the sound",
}
_NOTES = {
    "known_shared_source": "one of the four sources that official folds of ESC-50 share, under different labels",
    "over_full_scale": "samples above full scale",
    "length_unknown": "its header does not say how long it is",
    "durations_differ": "clips of many lengths: they are cut into windows, or padded, and that may differ by class",
    "index": "what the index of the data set says",
    "no_folds": "the clips are in no folds",
    "no_sources": "nothing says which clips come from one recording, so leaks can only be found as copies",
    "capped": "more was found than was followed up",
    "shortcut_unknown": "the shortcut check could not be made",
}
CODES: dict[str, tuple[Severity, str]] = {
    **{
        code: ("error", "the recording cannot be used: " + code.replace("_", " "))
        for code in sorted(AUDIO_CODES)
    },
    **{code: ("error", text) for code, text in _ERRORS.items()},
    **{code: ("warning", text) for code, text in _WARNINGS.items()},
    **{code: ("note", text) for code, text in _NOTES.items()},
}
"""Code -> severity and meaning: part of the public interface, like the codes of `soundmark.errors`."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a person should know; ``clip`` is a clip, file, row or class, ``others`` are more of them."""

    code: str
    clip: str
    message: str
    others: tuple[str, ...] = ()

    @property
    def severity(self) -> Severity:
        """The severity of the code; a code that is not known here is an error."""
        return CODES.get(self.code, ("error", ""))[0]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "severity": self.severity,
            "code": self.code,
            "clip": self.clip,
            "message": self.message,
            "others": list(self.others),
        }


def without_path(error: AudioError, path: str | os.PathLike[str]) -> str:
    """Return what an error says, without the path at its beginning: the finding has the name of the clip."""
    return str(error).removeprefix(f"{os.fspath(path)!r}: ")


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings, errors first, then in the order of `CODES`, then by clip."""
    rank = {code: i for i, code in enumerate(CODES)}
    return tuple(
        sorted(
            findings, key=lambda f: (SEVERITIES.index(f.severity), rank.get(f.code, -1), f.clip, f.message)
        )
    )


def counts(findings: Iterable[Finding]) -> dict[str, int]:
    """Return severity -> how many."""
    found = Counter(finding.severity for finding in findings)
    return {severity: found[severity] for severity in SEVERITIES}
