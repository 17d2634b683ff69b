"""Several models as one: each hears a recording in its own way, and what they say is combined.

An ensemble is a folder: ``ensemble.json`` and ``members/<name>/``, each a bundle (or an ensemble) with the same labels.
A single bundle and an ensemble are both a `Model`, and `load_model` tells them apart.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import soundmark
from soundmark import audio, bundle, storage
from soundmark.classifier import Classifier
from soundmark.config import AudioLimits, DecisionConfig
from soundmark.ensemble_manifest import MANIFEST, MEMBERS, Combine, EnsembleManifest, Member, read, sealed
from soundmark.errors import BundleError, ConfigError, StorageError
from soundmark.model import Model, rows
from soundmark.postprocess import Failure, Prediction, decide, log_scores, source_name
from soundmark.scan import Found


class Ensemble:
    """Labels for recordings, from several models: a `Model`, as `Classifier` is. Safe to share between threads.

    Args:
        path: its folder.
        manifest: what ``ensemble.json`` says.
        models: the members, in that order.

    Raises:
        BundleError: the members do not have the same labels; code ``mixed_bundles``.
    """

    def __init__(self, path: Path, manifest: EnsembleManifest, models: Sequence[Model]) -> None:
        first = models[0]
        for model in models:
            if model.labels != first.labels:
                raise BundleError(
                    f"{model.path} has other labels than {first.path}, or in another order",
                    wanted="members that were trained on the same labels",
                    code="mixed_bundles",
                )
        self._path, self._manifest, self._models = path, manifest, tuple(models)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, threads: int = 1, digest: str | None = None) -> Ensemble:
        """Return the ensemble at ``path``, and refuse one whose digest is not ``digest``.

        Raises:
            BundleError: damaged (``bad_bundle``, ``hash_mismatch``), other members than it was made of
                (``mixed_bundles``), or what `Classifier.load` refuses.
        """
        path = Path(path)
        manifest = read(path)
        _refuse_other(path, manifest.digest, digest)
        home = path / MEMBERS
        named = {member.name for member in manifest.members}
        try:
            strangers = sorted({name for name in os.listdir(home) if name[0] != "."} - named)
        except OSError as error:
            raise BundleError(f"{home} cannot be read ({error.strerror})", wanted="its members") from None
        if strangers:
            raise BundleError(f"{home} holds {strangers[0]!r}, which {MANIFEST} does not list")
        models = [load_model(home / m.name, threads=threads, digest=m.digest) for m in manifest.members]
        return cls(path, manifest, models)

    @property
    def manifest(self) -> EnsembleManifest:
        """What ``ensemble.json`` says."""
        return self._manifest

    @property
    def models(self) -> tuple[Model, ...]:
        """The members, in the order of the manifest."""
        return self._models

    @property
    def labels(self) -> tuple[str, ...]:
        """Names in the order of the scores."""
        return self._models[0].labels

    @property
    def name(self) -> str:
        """Name of the ensemble."""
        return self._manifest.name

    @property
    def digest(self) -> str:
        """SHA-256 over the digests of all members, their weights, and the decision."""
        return self._manifest.digest

    @property
    def path(self) -> Path:
        """Its folder."""
        return self._path

    @property
    def n_bytes(self) -> int:
        """Size of all members together."""
        return sum(model.n_bytes for model in self._models)

    @property
    def decision(self) -> DecisionConfig:
        """How the combined logits become an answer."""
        return self._manifest.decision

    @property
    def training(self) -> dict[str, Any]:
        """What the trainings of all members have in common, and which members they are."""
        first, *others = [model.training for model in self._models]
        common = {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}
        networks = [str(model.training.get("network", "?")) for model in self._models]
        names = [member.name for member in self._manifest.members]
        return {**common, "preset": self.name, "network": " + ".join(networks), "members": names}

    @property
    def trainings(self) -> tuple[dict[str, Any], ...]:
        """The trainings of all members, and what weights and temperature were fitted on."""
        fitted = [self._manifest.provenance.get(name) for name in ("weights", "calibration")]
        of_members = [training for model in self._models for training in model.trainings]
        return (*of_members, *(one for one in fitted if one and "train_folds" in one))

    def classify(
        self,
        source: audio.Source,
        *,
        top_k: int = 3,
        limits: AudioLimits | None = None,
        strict: bool = False,
        array_rate: int | None = None,
        name: str | None = None,
    ) -> Prediction:
        """Return what is heard in one recording; see `Classifier.classify`.

        ``logits`` of the prediction are the combined ones, as one window.

        Raises:
            AudioError: the recording cannot be used by a member.
            BundleError: a member failed.
            ConfigError: ``source`` is an open file, which can be read once only.
        """
        if hasattr(source, "read") and len(self._models) > 1:
            raise ConfigError(
                "an open file for an ensemble", wanted="a path, bytes or an array: it is read twice"
            )
        heard = [
            model.classify(source, top_k=1, limits=limits, strict=strict, array_rate=array_rate)
            for model in self._models
        ]
        logits = self.combined(heard).astype(np.float32)[None]
        flags = tuple(sorted({flag for one in heard for flag in one.flags}))
        answer = decide(logits, labels=self.labels, decision=self.decision, flags=flags, top_k=top_k)
        return Prediction(
            source=source_name(source) if name is None else name,
            label=answer.label,
            score=answer.score,
            labels=answer.labels,
            flags=flags,
            unknown=answer.unknown,
            reason=answer.reason,
            duration_s=heard[0].duration_s,
            n_windows=1,
            timing_ms={key: sum(one.timing_ms[key] for one in heard) for key in heard[0].timing_ms},
            model=self.name,
            model_digest=self.digest,
            scores=answer.scores,
            logits=logits,
        )

    def classify_many(
        self,
        sources: Iterable[audio.Source | Found],
        *,
        top_k: int = 3,
        limits: AudioLimits | None = None,
        strict: bool = False,
        array_rate: int | None = None,
    ) -> Iterator[Prediction | Failure]:
        """Yield one row per source, lazily and in order; see `model.rows`."""
        one = partial(self.classify, top_k=top_k, limits=limits, strict=strict, array_rate=array_rate)
        return rows(one, sources)

    def combined(self, heard: Sequence[Prediction]) -> npt.NDArray[np.float64]:
        """Return the logits ``(n_labels,)`` of the ensemble from one prediction per member.

        ``log-probabilities``: the weighted sum of the logarithms of the members' scores, each member with the
        temperature of its entry and the pooling of its own decision. ``logits``: the weighted sum of the members'
        logits, each the mean over windows; with weights 1 the members are parts of one linear layer.
        """
        total = np.zeros(len(self.labels))
        for member, model, one in zip(self._manifest.members, self._models, heard, strict=True):
            if self._manifest.combine == "logits":
                total += member.weight * one.logits.mean(axis=0, dtype=np.float64)
            else:
                total += member.weight * log_scores(one.logits, member.temperature, model.decision.pooling)
        return total


def load_model(
    model: str | os.PathLike[str] | None = None, *, threads: int = 1, digest: str | None = None
) -> Model:
    """Return the model of a bundle, of an ensemble or of a shipped name; refuse one whose digest is not ``digest``.

    Raises:
        BundleError: see `Classifier.load` and `Ensemble.load`.
    """
    path = bundle.find(model)
    if (path / MANIFEST).is_file():
        return Ensemble.load(path, threads=threads, digest=digest)
    found = bundle.read(path)
    _refuse_other(path, found.digest, digest)
    return Classifier(found, threads=threads)


def write(
    directory: str | os.PathLike[str],
    members: Sequence[Model],
    *,
    name: str,
    combine: Combine = "log-probabilities",
    weights: Sequence[float] | None = None,
    temperatures: Sequence[float] | None = None,
    decision: DecisionConfig | None = None,
    provenance: dict[str, dict[str, Any]] | None = None,
    overwrite: bool = False,
) -> Ensemble:
    """Write copies of ``members`` and ``ensemble.json``, and return the ensemble. It appears whole or not at all.

    Args:
        directory: where.
        members: loaded bundles or ensembles.
        name: of the ensemble.
        combine: what is added up.
        weights: default: equal ones, sum 1, for log-probabilities, and 1 each for logits.
        temperatures: of the members; default: those of their own decisions, and 1 each for logits.
        decision: of the ensemble; default: temperature 1, no threshold.
        provenance: "weights": what they were fitted on; further records.
        overwrite: replace an ensemble that is there.

    Raises:
        BundleError: members with other labels, or a member that changed meanwhile.
        StorageError: it exists and ``overwrite`` is False, or the disk refused.
    """
    target = refuse_existing(directory, overwrite=overwrite)
    logits = combine == "logits"
    weights = weights or [1.0 if logits else 1.0 / len(members)] * len(members)
    temperatures = temperatures or [1.0 if logits else member.decision.temperature for member in members]
    entries = zip(_names(members), members, weights, temperatures, strict=True)
    manifest = EnsembleManifest(
        name=name,
        created_by=f"soundmark {soundmark.__version__}",
        combine=combine,
        members=tuple(
            Member(name=folder, digest=m.digest, weight=w, temperature=t) for folder, m, w, t in entries
        ),
        decision=decision or DecisionConfig(),
        provenance=provenance or {},
    )

    def fill(scratch: Path) -> None:
        for entry, member in zip(manifest.members, members, strict=True):
            shutil.copytree(member.path, scratch / MEMBERS / entry.name)
        (scratch / MANIFEST).write_bytes(sealed(manifest))
        Ensemble.load(scratch)

    storage.write_folder(target, fill, overwrite=overwrite)
    return Ensemble.load(target)


def refuse_existing(directory: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Return the absolute path of a folder that an ensemble may be written to; ask before the work, too.

    Raises:
        StorageError: something else is there, or an ensemble and ``overwrite`` is False.
    """
    target = Path(os.path.abspath(Path(directory).expanduser()))
    there = (target / MANIFEST).is_file()
    if target.is_symlink() or target.is_file() or (not there and target.is_dir() and any(target.iterdir())):
        raise StorageError(
            f"{target} is not an ensemble", wanted="a new directory, or an ensemble to replace"
        )
    if there and not overwrite:
        raise StorageError(
            f"{target} exists", wanted="a new directory", cause="give --overwrite to replace it"
        )
    return target


def _names(members: Sequence[Model]) -> list[str]:
    """Return a folder name per member: the name of the model, numbered where it comes again."""
    names: list[str] = []
    for member in members:
        again = sum(other.name == member.name for other in members[: len(names)])
        names.append(f"{member.name}-{again + 1}" if again else member.name)
    return names


def _refuse_other(path: Path, found: str, wanted: str | None) -> None:
    if wanted not in (None, found):
        raise BundleError(
            f"{path} is {found[:12]}, the ensemble was made with {str(wanted)[:12]}",
            wanted="the members that it was made of",
            cause="a member was replaced; make the ensemble again",
            code="mixed_bundles",
        )
