"""``soundmark calibrate`` and ``ensemble``: what is fitted on inner answers, and several models as one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from soundmark import cli_options
from soundmark.config import EnsembleConfig, ExportConfig, UnknownScore, fields, to_dict
from soundmark.preset import load_preset

if TYPE_CHECKING:
    from soundmark.dataset import Dataset
    from soundmark.ensemble import Ensemble
    from soundmark.ensemble_manifest import Combine

_inner = click.option(
    "--inner",
    "inner",
    multiple=True,
    type=cli_options.path,
    metavar="DIR",
    help="Model of the same system, trained on fewer folds; again for more.",
)
_folds = click.option(
    "--folds",
    metavar="K,K",
    help="Folds to hear; default: all that neither the inner model nor the judged one needs.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print what was fitted as JSON.")


@click.command(short_help="Fit the temperature of a bundle on inner answers.")
@click.argument("bundle", type=cli_options.path)
@_inner
@cli_options.data
@cli_options.split
@_folds
@click.option(
    "--keep",
    type=float,
    metavar="SHARE",
    help="Also fit the threshold for unknown sounds that this share of inner answers passes, such as 0.95.",
)
@click.option(
    "--score",
    type=click.Choice(get_args(UnknownScore)),
    help="What that threshold is about; default: what BUNDLE has.",
)
@_json
def calibrate(
    bundle: Path,
    inner: tuple[Path, ...],
    data: str | None,
    split_file: str | None,
    folds: str | None,
    keep: float | None,
    score: UnknownScore | None,
    as_json: bool,
) -> None:
    """Fit the temperature of BUNDLE (or an ensemble) on what --inner models say about folds they never saw.

    The fold that BUNDLE is judged on is not heard, and an inner model that was trained on it is refused.
    """
    if not inner:
        raise click.UsageError("--inner is wanted", click.get_current_context())
    if score and keep is None:
        raise click.UsageError("--score goes with --keep", click.get_current_context())
    from soundmark import inner_answers, render

    dataset = _dataset(data, split_file)
    with render.clip_progress("inner answers", None) as on_clip:
        record = inner_answers.calibrate(
            bundle,
            inner,
            dataset,
            folds=cli_options.folds(folds) or (),
            keep=keep,
            score=score,
            on_clip=on_clip,
        )
    if as_json:
        render.print_json(record)
        return
    _print_record(record, "before", "after")
    threshold = ""
    if keep is not None:
        threshold = (
            f", threshold {record['threshold']:g} on {record['unknown_score']} ({record['kept']:.1%} pass)"
        )
    render.print_note(f"temperature {record['temperature']:g}{threshold}, written to {bundle}")


@click.command(short_help="Make one model of several.")
@click.argument("out", type=cli_options.path)
@click.option(
    "--member",
    "members",
    multiple=True,
    required=True,
    type=cli_options.path,
    metavar="DIR",
    help="A bundle or ensemble; again for more.",
)
@_inner
@click.option(
    "--combine",
    type=click.Choice(["log-probabilities", "logits"]),
    default="log-probabilities",
    show_default=True,
    help="What is added up.",
)
@click.option("--name", default="ensemble", show_default=True, metavar="NAME", help="What results call it.")
@cli_options.data
@cli_options.split
@_folds
@click.option("--overwrite", is_flag=True, help="Replace an ensemble that is there.")
@_json
def ensemble(
    out: Path,
    members: tuple[Path, ...],
    inner: tuple[Path, ...],
    combine: Combine,
    name: str,
    data: str | None,
    split_file: str | None,
    folds: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write to OUT one model of several, each --member a bundle or an ensemble with the same labels.

    With --inner (one per member, in the same order; more rounds may follow) temperatures and weights are fitted on what
    those say about folds they never saw. Without it all weights are equal.
    """
    if inner and combine == "logits":
        raise click.UsageError(
            "logits are added as they are: --inner goes without --combine logits", click.get_current_context()
        )
    from soundmark import ensemble as ensembles
    from soundmark import inner_answers, render
    from soundmark.config import DecisionConfig

    ensembles.refuse_existing(out, overwrite=overwrite)  # before the minutes that it takes
    models = [ensembles.load_model(path) for path in members]
    given: dict[str, Any] = {}
    if inner:
        others = [ensembles.load_model(path) for path in inner]
        dataset = _dataset(data, split_file)
        with render.clip_progress("inner answers", None) as on_clip:
            fitted, record = inner_answers.weigh(
                models, others, dataset, folds=cli_options.folds(folds) or (), on_clip=on_clip
            )
        given = {
            "weights": fitted.weights,
            "temperatures": fitted.temperatures,
            "decision": DecisionConfig(temperature=fitted.temperature),
            "provenance": {"weights": record},
        }
    made = ensembles.write(out, models, name=name, combine=combine, overwrite=overwrite, **given)
    if as_json:
        render.print_json(to_dict(made.manifest))
        return
    if inner:
        _print_record(given["provenance"]["weights"], "equal", "fitted")
    _print_members(made)


_LAYER = frozenset({"layer", "l2", "shrink", "scale"})
"""Fields of `EnsembleConfig` that say what stands over runs side by side."""


@click.command("side-by-side", short_help="Fit one layer over the embeddings of several frozen runs.")
@click.argument("runs", nargs=-1, required=True, type=cli_options.path, metavar="RUN...")
@click.option("--out", type=cli_options.path, metavar="DIR", required=True, help="Ensemble to write.")
@click.option("--data", metavar="D", help="The data of the runs, where it has moved.")
@click.option(
    "--name", default="side-by-side", show_default=True, metavar="NAME", help="What results call it."
)
@click.option("--overwrite", is_flag=True, help="Replace an ensemble that is there.")
@cli_options.config_options(EnsembleConfig, but=frozenset(fields(EnsembleConfig)) - _LAYER)
@cli_options.config_options(ExportConfig, but=frozenset({"float_last", "linear_bits", "refit_head"}))
def side_by_side(
    runs: tuple[Path, ...],
    out: Path,
    data: str | None,
    name: str,
    overwrite: bool,
    **given: str | None,
) -> None:
    """Set the embeddings of frozen RUNs side by side and fit one layer on their training clips.

    What comes out is an ensemble whose logits are added up: each member has its part of the layer.
    """
    import soundmark.learn  # noqa: F401 - says at once which extra is missing
    from soundmark import render
    from soundmark.learn import side_by_side as layers
    from soundmark.learn.run_folder import open_run

    opened = [open_run(run) for run in runs]
    options = cli_options.overrides("export", {key: given[key] for key in given.keys() - _LAYER})
    config = load_preset(
        opened[0].path / "preset.toml", cli_options.overrides("ensemble", {key: given[key] for key in _LAYER})
    ).ensemble
    exports = [load_preset(run / "preset.toml", options).export for run in runs]
    with render.clip_progress("embeddings", sum(run.info["n_clips"] for run in opened)) as on_clip:
        made = layers.side_by_side(
            opened,
            out,
            data=data,
            exports=exports,
            config=config,
            name=name,
            overwrite=overwrite,
            on_clip=on_clip,
        )
    _print_members(made)


def _print_record(record: dict[str, Any], before: str, after: str) -> None:
    from soundmark.render import Column, Lines

    lines = Lines([Column("", 8), *(Column(head, 9, True) for head in ("accuracy", "NLL", "ECE"))])
    folds = sorted({fold for one in record["inner"] for fold in one["folds"]})
    lines.say(f"{record['clips']} inner answers, held fold {', '.join(map(str, folds))}")
    lines.heads()
    for key in (before, after):
        accuracy, *others = (record[f"{what}_{key}"] for what in ("accuracy", "nll", "ece"))
        lines.row([key, f"{accuracy:.2%}", *(f"{value:.4f}" for value in others)])


def _print_members(made: Ensemble) -> None:
    from soundmark.render import Column, Lines

    manifest = made.manifest
    lines = Lines([Column("member", 30), Column("weight", 7, True), Column("temperature", 11, True)])
    lines.heads()
    for member in manifest.members:
        lines.row([member.name, f"{member.weight:.3f}", f"{member.temperature:.3f}"])
    if "weights" not in manifest.provenance and manifest.combine != "logits" and len(manifest.members) > 1:
        lines.say("equal weights: nothing was fitted, --inner gives answers to fit them on")
    lines.say(
        f"{manifest.combine}, temperature {manifest.decision.temperature:g}, {made.n_bytes:,} bytes: {made.path}"
    )


def _dataset(data: str | None, split_file: str | None) -> Dataset:
    from soundmark.sources import open_dataset
    from soundmark.splits import folded

    return folded(open_dataset(data), split_file, allow_leak=True)[0]
