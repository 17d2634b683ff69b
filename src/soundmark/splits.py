"""Splits that mean something: every source recording, and every copy of a file, on one side.

A split is a JSON file: the strategy, the seed, the digest of the data, the side or fold of every clip, stamps, and the
SHA-256 of all that. scikit-learn's splitters (extra ``data``) draw it; applying one needs nothing. A split with a leak
is refused, or stamped ``LEAKY`` for good: the stamp goes into every run, bundle and report that is made from it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from soundmark import storage
from soundmark.dataset import ESC50_SHARED_SOURCES, Clip, Dataset
from soundmark.errors import DatasetError
from soundmark.strategies import STRATEGIES, TEST, TRAIN, Strategy, by_time, drawn, groups_of
from soundmark.tables import listed

MAX_SPLIT_BYTES = 256 << 20
_CALLED = {
    "stratified": "random split",
    "group": "grouped split",
    "group-kfold": "grouped split",
    "time": "split by time",
}


@dataclass(frozen=True, slots=True)
class Split:
    """Which clip is on which side; `to_dict` is the file.

    Attributes:
        strategy: how it was drawn.
        seed: of the draw.
        data: name of the data set.
        data_digest: of the data set before the split.
        folds: clip name -> fold, or `TRAIN` / `TEST`.
        holdout: whether there are two sides instead of folds.
        stamps: why a figure made from it is not an honest one.
        warnings: labels that are missing on a side.
    """

    strategy: Strategy
    seed: int
    data: str
    data_digest: str
    folds: dict[str, int]
    holdout: bool
    stamps: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of everything in the split."""
        return hashlib.sha256(json.dumps(self._plain(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"soundmark_split": 1, "sha256": self.sha256, **self._plain()}

    def write(self, path: Path) -> None:
        """Write the split file, atomically.

        Raises:
            StorageError: the disk refuses.
        """
        storage.write_bytes(path, (json.dumps(self.to_dict(), indent=1) + "\n").encode())

    def _plain(self) -> dict[str, Any]:
        sides = {TRAIN: "train", TEST: "test"}
        return {
            "strategy": self.strategy,
            "seed": self.seed,
            "data": self.data,
            "data_digest": self.data_digest,
            "stamps": list(self.stamps),
            "warnings": list(self.warnings),
            "clips": {name: sides[fold] if self.holdout else fold for name, fold in self.folds.items()},
        }


def make_split(
    dataset: Dataset,
    strategy: Strategy = "group-kfold",
    *,
    test_size: float = 0.2,
    folds: int = 5,
    seed: int = 0,
    allow_leak: bool = False,
    hashes: Mapping[str, str] | None = None,
) -> Split:
    """Return a split of ``dataset``; the same arguments give the same split.

    Args:
        dataset: the clips.
        strategy: ``official`` keeps the folds of the data; ``stratified`` is a random test side with every label in
            its share; ``group`` the same with sources and copies kept together; ``group-kfold`` that as folds;
            ``time`` tests on the latest clips (by the times of the table, else by file order within each label).
        test_size: share of the clips on the test side (not for folds).
        folds: number of folds of ``group-kfold``.
        seed: another seed, another draw.
        allow_leak: stamp a split in which a source or a copy is on both sides, instead of refusing it.
        hashes: of the files, where they are known already (`Dataset.hashes`).

    Raises:
        DatasetError: a leak, or too few clips, sources or labels for such a split.
        MissingExtraError: scikit-learn is not installed.
    """
    if strategy not in STRATEGIES or not 0 < test_size < 1 or folds < 2 or not 0 <= seed < 2**32:
        raise DatasetError(
            f"strategy {strategy!r}, test size {test_size}, {folds} folds, seed {seed}",
            wanted=f"one of {', '.join(STRATEGIES)}, a size between 0 and 1, 2 or more folds, a seed below 2^32",
            code="bad_split",
        )
    hashes = dict(hashes or dataset.hashes())
    clips = dataset.clips
    groups = groups_of(clips, hashes)
    if strategy == "official":
        if not dataset.has_folds:
            raise DatasetError(
                f"{dataset.name} has no official folds", wanted="--strategy group-kfold", code="bad_split"
            )
        numbers = [clip.fold for clip in clips]
    elif strategy == "time":
        numbers = by_time(dataset, groups, test_size)
    else:
        numbers = drawn(dataset.targets, groups, strategy, test_size, folds, seed)
    holdout = strategy in ("stratified", "group", "time")
    split = Split(
        strategy=strategy,
        seed=seed,
        data=dataset.name,
        data_digest=dataset.digest(hashes),
        folds={clip.name: fold for clip, fold in zip(clips, numbers, strict=True)},
        holdout=holdout,
        warnings=_missing_labels(dataset, numbers, holdout),
    )
    stamp = leak(_in_folds(dataset, split), hashes, official=strategy == "official")
    if stamp and not allow_leak:
        raise DatasetError(
            f"{strategy} split of {dataset.name}: {stamp}",
            wanted="every source recording and every copy of a file on one side",
            cause="use --strategy group or group-kfold; --allow-leak makes it, and stamps all that comes from it",
            code="leak",
        )
    stamps = {*dataset.stamps, stamp} - {""}
    return replace(split, stamps=tuple(f"LEAKY: {s.removeprefix('LEAKY: ')}" for s in sorted(stamps)))


def read_split(path: str | Path) -> Split:
    """Return the split of a file.

    Raises:
        DatasetError: no such file, not a split, or its hash does not fit (it was edited).
    """
    path = Path(path).expanduser()
    wanted = "a file made by `soundmark data split`"
    try:
        if path.stat().st_size > MAX_SPLIT_BYTES:
            raise ValueError("too large")
        tree = json.loads(path.read_bytes())
        sides = {"train": TRAIN, "test": TEST}
        clips = dict(tree["clips"])
        holdout = any(side in sides for side in clips.values() if isinstance(side, str))
        folds = {str(name): sides[side] if holdout else side for name, side in clips.items()}
        if (
            not all(type(fold) is int and fold > 0 for fold in folds.values())
            or tree["strategy"] not in STRATEGIES
        ):
            raise ValueError("folds")
        split = Split(
            strategy=tree["strategy"],
            seed=tree["seed"],
            data=tree["data"],
            data_digest=tree["data_digest"],
            folds=folds,
            holdout=holdout,
            stamps=tuple(tree["stamps"]),
            warnings=tuple(tree["warnings"]),
        )
        given = tree["sha256"]
    except OSError as error:
        raise DatasetError(
            f"{path} cannot be read ({error.strerror})", wanted=wanted, code="bad_split"
        ) from None
    except (ValueError, LookupError, TypeError, RecursionError):
        raise DatasetError(f"{path} is not a split", wanted=wanted, code="bad_split") from None
    if given != split.sha256:
        raise DatasetError(f"{path} was changed after it was made", wanted=wanted, code="bad_split")
    return split


def apply_split(
    dataset: Dataset, split: Split | str | Path, *, hashes: Mapping[str, str] | None = None
) -> Dataset:
    """Return ``dataset`` with the folds of ``split``, its stamps, and a name that says so.

    Raises:
        DatasetError: the split is damaged, was made for other data, or leaks without being stamped.
    """
    split = split if isinstance(split, Split) else read_split(split)
    hashes = dict(hashes or dataset.hashes())
    names = {clip.name for clip in dataset.clips}
    if names != split.folds.keys() or dataset.digest(hashes) != split.data_digest:
        new, gone = sorted(names - split.folds.keys()), sorted(split.folds.keys() - names)
        changed = [*listed("clip that it does not know", new), *listed("clip that is gone", gone)]
        raise DatasetError(
            f"the split was made for other data: {'; '.join(changed) or 'files, labels, folds or sources changed'}",
            wanted=f"{split.data} with digest {split.data_digest[:12]}",
            cause="make a new split",
            code="bad_split",
        )
    folded = _in_folds(dataset, split)
    stamp = leak(folded, hashes, official=split.strategy == "official")
    if stamp and not split.stamps:
        raise DatasetError(f"the split leaks and does not say so: {stamp}", wanted="a new split", code="leak")
    return folded


def folded(
    dataset: Dataset, split: str | Path | None = None, *, allow_leak: bool = False
) -> tuple[Dataset, Split | None]:
    """Return ``dataset`` with folds, and the split that made them, None for folds of its own.

    With ``split``, that file is applied. Without it, folds of its own are checked for leaks, and data without folds
    gets five, stratified by label and grouped by source, always the same ones.

    Raises:
        DatasetError: a leak (``allow_leak`` stamps one in the data's own folds), or see `make_split`, `apply_split`.
    """
    if split is not None:
        made = read_split(split)
        return apply_split(dataset, made), made
    hashes = dataset.hashes()
    if not dataset.has_folds:
        made = make_split(dataset, hashes=hashes)
        return apply_split(dataset, made, hashes=hashes), made
    stamp = leak(dataset, hashes, official=True)
    if stamp and not allow_leak:
        raise DatasetError(f"{dataset.name}: {stamp}", wanted="no recording in two folds", code="leak")
    stamps = (f"LEAKY: {stamp}",) if stamp else dataset.stamps
    return replace(dataset, stamps=stamps), None


def leak(dataset: Dataset, hashes: Mapping[str, str], *, official: bool = False) -> str:
    """Return what stands in more than one fold, sources and equal files, or "".

    The four sources that ESC-50's official folds are known to share do not count, under those folds.
    """
    known = ESC50_SHARED_SOURCES if official and dataset.layout == "ESC-50" else frozenset()
    sources = _across((clip.source, clip) for clip in dataset.clips if clip.source not in known)
    copies = _across((hashes[clip.name], clip) for clip in dataset.clips)
    found = [
        *listed("source in more than one fold", sorted(sources)),
        *listed("file with copies in more than one fold", sorted(copies[h][0].name for h in copies)),
    ]
    return "; ".join(found)


def class_weights(dataset: Dataset) -> list[float]:
    """Return one weight per label, inverse to its clips, mean 1 over the clips; 1 for a label without clips."""
    sizes = Counter(clip.label for clip in dataset.clips)
    return [
        len(dataset.clips) / (len(sizes) * sizes[label]) if sizes[label] else 1.0 for label in dataset.labels
    ]


def _in_folds(dataset: Dataset, split: Split) -> Dataset:
    clips = tuple(replace(clip, fold=split.folds[clip.name]) for clip in dataset.clips)
    called = _CALLED.get(split.strategy)
    name = f"{dataset.name} ({called})" if called else dataset.name
    return replace(dataset, clips=clips, name=name, stamps=split.stamps, split=split.sha256)


def _across(keyed: Iterable[tuple[str, Clip]]) -> dict[str, list[Clip]]:
    """Return the keys whose clips are in more than one fold."""
    clips: dict[str, list[Clip]] = defaultdict(list)
    for key, clip in keyed:
        clips[key].append(clip)
    return {key: found for key, found in clips.items() if len({clip.fold for clip in found}) > 1}


def _missing_labels(dataset: Dataset, numbers: list[int], holdout: bool) -> tuple[str, ...]:
    has: dict[int, set[str]] = defaultdict(set)
    for clip, number in zip(dataset.clips, numbers, strict=True):
        has[number].add(clip.label)
    found: list[str] = []
    for number, labels in sorted(has.items()):
        missing = [label[:60] for label in dataset.labels if label not in labels]
        side = {TRAIN: "the training side", TEST: "the test side"}[number] if holdout else f"fold {number}"
        found += listed(f"label without a clip in {side}", missing)
    return tuple(found)
