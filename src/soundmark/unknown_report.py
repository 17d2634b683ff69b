"""One report on how models that never heard of some labels tell clips of those from clips of labels that they know.

Each model was trained on a draw of the labels of one data set, on all folds but one; of several such folds each draw
has the next. What it says about the clips of that fold, known and left out, and about sounds made in code
(`soundmark.foreign`) is scored in every way that a bundle can carry (`postprocess.unknown_score`), side by side:
nothing is chosen here.
"""

from __future__ import annotations

import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

import soundmark
from soundmark import unknowns
from soundmark.config import DecisionConfig, UnknownsConfig
from soundmark.cross_validation import refuse_if_seen
from soundmark.dataset import Clip, Dataset
from soundmark.errors import BundleError, ConfigError, DatasetError
from soundmark.evaluate import Answer, answered, bootstrap_interval, missed, stamps
from soundmark.foreign import FOREIGN_KINDS, FOREIGN_VERSION, foreign_clips
from soundmark.held_answers import with_patterns
from soundmark.model import Model
from soundmark.postprocess import Failure, Prediction

LEFT_OUT = "left_out"
"""What clips of labels that a model does not know are called; the other names are `FOREIGN_KINDS`."""
OnClip = Callable[[int], None] | None


def known_labels(labels: Sequence[str], config: UnknownsConfig, number: int) -> tuple[str, ...]:
    """Return the labels that draw ``number`` keeps, in their order: a function of labels, seed and number alone.

    Raises:
        ConfigError: fewer than two would be left.
    """
    if config.left_out > len(labels) - 2:
        raise ConfigError(
            f"`left_out` {config.left_out} of {len(labels)} labels", wanted="at least two that are known"
        )
    rng = np.random.default_rng([config.seed, number])
    out = {*rng.choice(len(labels), config.left_out, replace=False).tolist()}
    return tuple(label for place, label in enumerate(labels) if place not in out)


def fold_of(test_folds: Sequence[int], number: int) -> int:
    """Return the fold that draw ``number`` keeps aside and is scored on: they take turns."""
    return test_folds[(number - 1) % len(test_folds)]


def n_clips(
    dataset: Dataset, test_folds: Sequence[int], config: UnknownsConfig, train_folds: Sequence[int] = ()
) -> int:
    """Return how many clips `unknown_report` is going to count, of draws trained on ``train_folds`` (all others)."""
    total = config.draws * len(FOREIGN_KINDS) * config.made
    for number in range(1, config.draws + 1):
        fold = fold_of(test_folds, number)
        learnt = dataset.in_folds(train_folds or {*dataset.folds} - {fold})
        total += len(learnt.narrowed(known_labels(dataset.labels, config, number)).clips)
        total += len(dataset.in_folds([fold]).clips)
    return total


def unknown_report(
    models: Sequence[Model],
    dataset: Dataset,
    *,
    test_folds: Sequence[int],
    config: UnknownsConfig,
    command: str = "",
    on_clip: OnClip = None,
) -> dict[str, Any]:
    """Return the report as plain data.

    Args:
        models: of draw 1, 2 ...
        dataset: clips of all folds and labels.
        test_folds: those that the models have not seen, in turn (`fold_of`).
        config: which labels were drawn, and how many sounds are made in code.
        command: what the user typed.
        on_clip: called with 1 per clip and model.

    Raises:
        BundleError: a model knows other labels than its draw; code ``mixed_bundles``.
        DatasetError: a model may have been trained on its fold (``leak``), or no clip can be used.
    """
    began = time.perf_counter()
    scored = sorted({fold_of(test_folds, number) for number in range(1, len(models) + 1)})
    found: list[str] = []
    for number, model in enumerate(models, 1):
        if model.labels != known_labels(dataset.labels, config, number):
            raise BundleError(
                f"{model.path} knows other labels than draw {number}",
                wanted="the bundles of this folder, as they were made",
                code="mixed_bundles",
            )
        refuse_if_seen(model, dataset, fold_of(test_folds, number))
        found += stamps(model, dataset, (fold_of(test_folds, number),))
    draws = []
    for number, model in enumerate(models, 1):
        draw = _Draw(
            number, fold_of(test_folds, number), model, with_patterns(model, dataset, on_clip=on_clip)
        )
        draws.append(_of_fold(draw, dataset.in_folds([draw.test_fold]), on_clip))
    for made in foreign_clips(each=config.made, seed=config.seed):
        for draw in draws:  # made once for all of them
            draw.hear(made.label, made.name, made.name, draw.model.classify((made.samples, made.sample_rate)))
            if on_clip:
                on_clip(1)
    rows = [draw.to_dict() for draw in draws]
    return {
        "report": "soundmark unknowns",
        "protocol": f"{len(models)} x {config.left_out} of {len(dataset.labels)} labels left out of each, trained "
        f"on the clips of the others in {_learnt_from(models)}, scored "
        f"on fold {', '.join(map(str, test_folds))}{' in turn' if len(test_folds) > 1 else ''}; nothing chosen, all "
        "scores side by side",
        "soundmark": soundmark.__version__,
        "data": dataset.name,
        "data_digest": dataset.in_folds(scored).digest(),
        "split": dataset.split,
        "test_folds": list(test_folds),
        "n_clips": len(dataset.in_folds(scored).clips),
        "n_labels": len(dataset.labels),
        "n_left_out": config.left_out,
        "seed": config.seed,
        "made": {"each": config.made, "seed": config.seed, "version": FOREIGN_VERSION},
        "stamps": list(dict.fromkeys(found)),
        "figures": _means(rows),
        "draws": rows,
        "seconds": round(time.perf_counter() - began, 2),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "command": command,
    }


def _learnt_from(models: Sequence[Model]) -> str:
    folds = {tuple(model.training.get("train_folds", [])) for model in models}
    return f"folds {', '.join(map(str, *folds))}" if len(folds) == 1 else "all other folds"


@dataclass(slots=True)
class _Draw:
    """One model, and what it said so far."""

    number: int
    test_fold: int
    model: Model
    decision: DecisionConfig  # of the model, with what every score needs
    left_out: list[str] = field(default_factory=list)  # labels of the data that it does not know
    judged: list[Answer] = field(default_factory=list)  # of known clips, those without an answer included
    failed: int = 0
    silent: int = 0
    heard: dict[str, list[tuple[str, str, str, npt.NDArray[np.float32]]]] = field(
        default_factory=lambda: defaultdict(list)
    )  # "known" or what is unknown -> name, source, best label, logits

    def hear(self, what: str, name: str, source: str, row: Prediction) -> None:
        """Keep an answer; silence is unknown without any score, so it is counted and says nothing about them."""
        if "silent" in row.flags:
            self.silent += 1
            return
        self.heard[what].append((name, source, row.labels[0].label, row.logits))

    def to_dict(self) -> dict[str, Any]:
        """Return figures and clips.

        Raises:
            DatasetError: no clip of a known label can be used.
        """
        sides = {
            what: unknowns.Heard([one[3] for one in rows], [one[1] for one in rows])
            for what, rows in self.heard.items()
        }
        known = sides.pop("known", None)
        if known is None:
            raise DatasetError(
                f"draw {self.number}: no clip of a known label can be used", code="bad_dataset"
            )
        return {
            "draw": self.number,
            "test_fold": self.test_fold,
            LEFT_OUT: self.left_out,
            "model": self.model.name,
            "model_digest": self.model.digest,
            "model_bytes": self.model.n_bytes,
            "temperature": self.decision.temperature,
            "training": self.model.training,
            "accuracy": round(float(np.mean([answer.right for answer in self.judged])), 6),
            "accuracy_interval_95": bootstrap_interval(self.judged),
            "failed": self.failed,
            "silent": self.silent,
            "scores": unknowns.figures(known, sides, self.decision),
            "clips": [row for what, rows in self.heard.items() for row in self._rows(what, rows)],
        }

    def _rows(
        self, what: str, rows: Sequence[tuple[str, str, str, npt.NDArray[np.float32]]]
    ) -> Iterable[dict[str, Any]]:
        logits = [one[3] for one in rows]
        of_kind = {kind: unknowns.scores_of(logits, self.decision, kind) for kind in unknowns.SCORES}
        for place, (name, _, heard, _) in enumerate(rows):
            scores: dict[str, float] = {
                kind: round(float(values[place]), 6) for kind, values in of_kind.items()
            }
            yield {"name": name, "is": what, "heard": heard, **scores}


def _of_fold(draw: _Draw, test_set: Dataset, on_clip: OnClip) -> _Draw:
    draw.left_out = [label for label in test_set.labels if label not in draw.model.labels]
    rows = draw.model.classify_many([clip.path for clip in test_set.clips], top_k=1)
    for clip, row in zip(test_set.clips, rows, strict=True):
        _keep(draw, clip, row)
        if on_clip:
            on_clip(1)
    return draw


def _keep(draw: _Draw, clip: Clip, row: Prediction | Failure) -> None:
    known = clip.label in draw.model.labels
    if isinstance(row, Failure):
        draw.failed += 1
        draw.judged += [missed(clip)] if known else []
        return
    draw.judged += [answered(clip, draw.model, row)] if known else []
    draw.hear("known" if known else LEFT_OUT, clip.name, clip.source, row)


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return mean, lowest and highest over draws of every figure; draws without such clips do not count."""
    figures: dict[str, Any] = {"accuracy_known": _spread([row["accuracy"] for row in rows])}
    for kind in unknowns.SCORES:
        figures[kind] = {}
        for what in (LEFT_OUT, *FOREIGN_KINDS):
            of_draws = [row["scores"][kind][what] for row in rows if what in row["scores"][kind]]
            if of_draws:
                figures[kind][what] = {
                    key: _spread([one[key] for one in of_draws]) for key in ("auroc", "fpr_at_95")
                }
    return figures


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "mean": round(float(np.mean(values)), 6),
        "low": round(float(min(values)), 6),
        "high": round(float(max(values)), 6),
    }
