"""``soundmark distill``: a small network learns what big ones say."""

from __future__ import annotations

from pathlib import Path

import click

from soundmark import cli_options, config, errors
from soundmark.preset import load_preset


@click.command(short_help="Train a preset on what teachers say about views of the clips.")
@click.argument("preset")
@click.option(
    "--teacher",
    "teachers",
    type=cli_options.teacher,
    multiple=True,
    metavar="DIR[=W]",
    help="Bundle that teaches, with its weight; several share their answers. fp32 ones serve all folds sooner.",
)
@cli_options.data
@cli_options.split
@cli_options.lenient
@cli_options.test_fold("Fold kept aside: no teacher may know it. none: learn from all clips.")
@click.option("--train-folds", metavar="K,K", help="Narrower choice of training folds; default: all others.")
@click.option("--out", type=cli_options.path, metavar="DIR", help="Run folder.")
@click.option("--resume", is_flag=True, help="Go on where the run folder stands.")
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override any preset value."
)
@click.option(
    "--export",
    "bundle_dir",
    type=cli_options.path,
    metavar="DIR",
    help="Write the bundle when training is done.",
)
@click.option("--weights", type=cli_options.path, metavar="FILE", help="Pretrained weights to start from.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that make views and ask teachers.",
)
@click.option("--print-config", is_flag=True, help="Print the merged preset as TOML and stop.")
@cli_options.config_options(config.DistillConfig)
@cli_options.config_options(config.TrainConfig)
def distill(
    preset: str,
    teachers: tuple[tuple[Path, float], ...],
    data: str | None,
    split_file: str | None,
    lenient: bool,
    test_fold: str | None,
    train_folds: str | None,
    out: Path | None,
    resume: bool,
    overrides: tuple[str, ...],
    bundle_dir: Path | None,
    weights: Path | None,
    jobs: int,
    print_config: bool,
    **fields: str | None,
) -> None:
    """Train PRESET on what teachers say about many changed and mixed views of the clips, as `train` trains it.

    A view is mixed within its fold, and a teacher may know training folds alone. Views and answers are stored in the
    cache folder, for other folds and runs too; a command that was ended goes on there.
    """
    of_distill = {key: fields[key] for key in config.fields(config.DistillConfig)}
    of_train = {key: fields[key] for key in config.fields(config.TrainConfig)}
    given = [
        *cli_options.overrides("distill", of_distill),
        *cli_options.overrides("train", of_train),
    ]
    merged = load_preset(preset, [*overrides, *given])
    if print_config:
        click.echo(config.to_toml(merged), nl=False)
        return
    context = click.get_current_context()
    if out is None or not teachers:
        raise click.UsageError("--teacher and --out are wanted", context)
    if bundle_dir is not None and bundle_dir.exists():
        raise errors.StorageError(f"{bundle_dir} exists", wanted="a new folder for --export")
    chosen = cli_options.folds(train_folds) or ()
    import soundmark.learn  # noqa: F401 - says at once which extra is missing
    from soundmark import render, render_model
    from soundmark.learn.distill import distill as run_distillation
    from soundmark.learn.export import export as run_export
    from soundmark.sources import open_dataset
    from soundmark.splits import folded

    dataset = open_dataset(data, strict=False if lenient else None)
    dataset, split = folded(dataset, split_file, allow_leak=lenient)
    aside = cli_options.held_out(test_fold, dataset.folds)
    for text in (*dataset.stamps, *dataset.warnings, *(split.warnings if split else ())):
        render.print_note(text, aside=True)
    n_clips = len(dataset.in_folds(chosen or set(dataset.folds) - {aside}).clips)
    n_views = n_clips * merged.distill.views
    with render.training_progress(n_views, merged.train.epochs, what="views") as (on_clip, on_epoch):
        run = run_distillation(
            merged,
            dataset,
            teachers=teachers,
            test_fold=aside,
            out=out,
            train_folds=chosen,
            split=split,
            weights=weights,
            resume=resume,
            jobs=jobs,
            on_clip=on_clip,
            on_epoch=on_epoch,
            on_note=lambda text: render.print_note(text, aside=True),
        )
    if bundle_dir is None:
        render.print_note(f"trained {run.path}; next: soundmark export {run.path} --out BUNDLE")
        return
    with render.clip_progress("features", n_clips) as on_clip:
        written, agreement = run_export(run, bundle_dir, data=data, on_clip=on_clip)
    render_model.print_export(written, agreement.to_dict())
