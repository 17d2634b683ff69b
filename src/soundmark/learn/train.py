"""One training loop for every network: a schedule, averaged weights, checkpoints, bit-identical resume.

All randomness of epoch e is a function of (seed, e, rank), so a checkpoint at an epoch's end needs no generator state
and a resumed run equals the uninterrupted one. Nothing here looks at the test fold; what stops a run early
(``train.patience``) is an inner split of the training clips, by source.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import soundmark
from soundmark import storage
from soundmark.config import TrainConfig
from soundmark.dataset import Clip, Dataset
from soundmark.errors import ConfigError, DatasetError, TrainingError
from soundmark.frontend import Frontend
from soundmark.learn import backgrounds, checkpoint, frozen, networks, pretrained
from soundmark.learn.batches import Batches, Judge, Lesson, Source, share_right
from soundmark.learn.board import summary_writer
from soundmark.learn.inner import Patience, inner_split
from soundmark.learn.run_folder import BEST_FILE, EpochReport, Run, claim, lock, training_seconds
from soundmark.learn.schedule import learning_rate, make_optimizer
from soundmark.preset import Preset
from soundmark.splits import Split


def train(
    preset: Preset,
    dataset: Dataset,
    *,
    test_fold: int | None,
    out: Path,
    train_folds: tuple[int, ...] = (),
    split: Split | None = None,
    weights: Path | None = None,
    resume: bool = False,
    rehearsal: bool = False,
    lesson: Lesson | None = None,
    on_clip: Callable[[int], None] | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Run:
    """Train ``preset`` on every fold but ``test_fold`` and return the finished run.

    Args:
        preset: the whole configuration.
        dataset: clips of all folds; those of ``test_fold`` are dropped before anything is read.
        test_fold: the fold that the result will be judged on; None: learn from all clips, judge by nothing.
        out: run folder: preset.toml, run.json, history.jsonl, checkpoints/, tensorboard/, weights.safetensors.
        train_folds: narrower choice of training folds (an inner split), default all but ``test_fold``.
        split: what gave ``dataset`` its folds (`splits.folded`), kept as split.json in ``out``.
        weights: file of pretrained weights to start from (`pretrained.load_into`); default: `pretrained.at_hand`.
        resume: go on where ``out`` stands; without it, a folder that holds a run is refused.
        rehearsal: learn without weights even what makes no sense without them.
        lesson: what makes something else than `Batches` of the training clips.
        on_clip: called with 1 per clip while features are extracted.
        on_epoch: called after every epoch.
        on_note: called with a line for a person: clips that are left out, weights that are not there.

    Raises:
        DatasetError: one label alone, too many bad clips, nothing but equal clips, no background where one is named.
        TrainingError: ``out`` holds another run or is in use; the loss is not finite too often; weights are wanted;
            a background is a clip that is kept aside.
        StorageError: the disk refuses; the last checkpoint is intact.
    """
    folds = train_folds or tuple(fold for fold in dataset.folds if fold != test_fold)
    if test_fold in folds:
        raise TrainingError(
            f"fold {test_fold} is both trained and tested on", wanted="disjoint folds", code="leak"
        )
    if preset.ensemble.members:
        raise ConfigError(
            f"{preset.name} is an ensemble", wanted=f"one of {', '.join(preset.ensemble.members)}"
        )
    dataset = dataset.narrowed(preset.labels)
    dataset.in_folds([test_fold] if test_fold is not None else folds)  # or it says which there are
    train_set = dataset.in_folds(folds)
    if len(dataset.labels) < 2:
        raise DatasetError(
            f"{dataset.name} has one label alone", wanted="two or more labels", code="one_label"
        )
    frozen.check(preset.train)
    weights = weights or pretrained.at_hand(preset.network)
    network = _network(
        preset, len(dataset.labels)
    )  # what cannot be built, or loaded, is said before work begins
    frozen.first_layers(network, preset.train.frozen_layers)
    digest = pretrained.load_into(network, weights) if weights else ""
    info: dict[str, Any] = {
        "soundmark": soundmark.__version__,
        "torch": torch.__version__.split("+")[0],
        "data": dataset.name,
        "data_root": str(dataset.root.absolute()),
        "data_digest": train_set.digest(),
        "labels": list(dataset.labels),
        "train_folds": list(folds),
        "test_fold": test_fold,
        "n_clips": len(train_set.clips),
        "seed": preset.train.seed,
    }
    if lesson:
        info |= lesson.info
    if dataset.split:
        info["split"] = dataset.split
    if dataset.stamps:
        info["stamps"] = list(dataset.stamps)
    wanted = preset.network.pretrained
    still = preset.train.frozen_epochs or preset.train.frozen_layers or not preset.train.epochs
    if wanted and not weights and still and not rehearsal:
        raise pretrained.missing(preset)
    if wanted or weights:
        info["start"] = f"weights {digest}" if weights else f"random weights, not {wanted}"
    if wanted and not weights and on_note:
        how = pretrained.advice(preset.network)
        on_note(f"starts from random weights: {wanted} weights are wanted ({how})")
    behind: dict[str, str] = {}  # name -> hash of what is laid behind clips, from a folder
    if preset.waves.background:
        others = backgrounds.recordings(preset.waves.background)
        behind = others.hashes()
        backgrounds.refuse_copies(behind, backgrounds.all_but(dataset, train_set))
        info["background"] = {"recordings": len(behind), "digest": others.digest(behind)}
    skipped: list[dict[str, str]] = []

    def on_bad(clip: Clip, code: str) -> None:
        skipped.append({"path": clip.name, "code": code})

    with lock(out):
        claim(out, preset, info, resume, split)
        fit, held = train_set, None
        if preset.train.patience:
            fit, held = inner_split(train_set, preset.train.inner, preset.train.seed)
            info["inner"] = {"clips": len(held.clips), "digest": held.digest()}
            if behind:
                backgrounds.refuse_copies(behind, held)
        make: Callable[..., Source] = lesson or functools.partial(Batches, preset)
        batches = make(fit, progress=on_clip, on_bad=on_bad)
        judge = Judge(preset, held, on_bad=on_bad) if held else None
        if skipped:
            info["skipped"] = skipped
            if on_note:
                names = ", ".join(f"{bad['path']} ({bad['code']})" for bad in skipped)
                n_clips = len(train_set.clips) + len(behind)
                on_note(f"{len(skipped)} of {n_clips} clips cannot be used and are left out: {names}")
        return _fit(preset, batches, judge, weights, out, info, on_clip, on_epoch)


def _fit(
    preset: Preset,
    batches: Source,
    judge: Judge | None,
    weights: Path | None,
    out: Path,
    info: dict[str, Any],
    on_clip: Callable[[int], None] | None,
    on_epoch: Callable[[EpochReport], None] | None,
) -> Run:
    config, began = preset.train, time.perf_counter()
    fabric = Fabric(
        accelerator="auto", devices=config.devices, num_nodes=config.num_nodes, precision=config.precision
    )
    fabric.launch()
    torch.manual_seed(config.seed)
    network = _network(preset, len(info["labels"]))
    if weights:
        pretrained.load_into(network, weights)
        if isinstance(network, frozen.Settling):
            network.settle(_some(batches, config))
    frozen.fit_head(network, batches, config.batch_size, on_clip)
    network = batches.learner(network)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(network, config)
    steps = max(1, len(batches) // (config.batch_size * fabric.world_size))
    decay = min(config.ema, 1 - 3 / max(3, steps * config.epochs))  # a short run averages its last third
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    averaged = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
    patience = Patience(config.patience)
    start = _restore(out, network, optimizer, averaged, patience)
    frozen.to_train(network, frozen=False, layers=config.frozen_layers)  # before gradients are shared out
    model, optimizer = fabric.setup(network, optimizer)
    averaged.to(fabric.device)
    source = batches
    forward: Callable[[Tensor], Tensor] = model
    if config.epochs and frozen.Embedded.fits(network, batches, config):
        source = frozen.Embedded(network.eval(), batches, config.batch_size, fabric.device, on_clip)
        model.mark_forward_method("classify")
        forward = model.classify

    bad = 0
    with summary_writer(
        out, start, fabric.is_global_zero, preset=preset, labels=info["labels"], batches=batches
    ) as write:
        for epoch in range(start, config.epochs):
            if patience.spent:
                break
            losses, lr, right = [], 0.0, torch.zeros((), device=fabric.device)
            seed = _epoch_seed(config.seed, epoch)
            torch.manual_seed(seed + fabric.global_rank)  # dropout
            generator = torch.Generator().manual_seed(seed + fabric.global_rank)
            frozen.to_train(network, frozen=epoch < config.frozen_epochs, layers=config.frozen_layers)
            order = _order(config, batches.weights[batches.targets], torch.Generator().manual_seed(seed))
            order = order[fabric.global_rank :: fabric.world_size]
            for step in range(steps):
                rows = order[step * config.batch_size : (step + 1) * config.batch_size]
                x, told = (given.to(fabric.device) for given in source(rows, generator))
                lr = learning_rate(config, (epoch * steps + step) / (config.epochs * steps))
                for group in optimizer.param_groups:
                    group["lr"] = lr * group["share"]
                before = [buffer.clone() for buffer in network.buffers()]  # batch norm's running statistics
                answer = forward(x)
                loss = source.loss(answer, told)
                optimizer.zero_grad(set_to_none=True)
                fabric.backward(loss)
                norm = nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm or math.inf)
                if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
                    bad += 1
                    for buffer, value in zip(network.buffers(), before, strict=True):
                        buffer.copy_(value)
                    if bad > config.max_bad_batches:
                        raise TrainingError(
                            f"the loss was not finite in {bad} batches (epoch {epoch + 1})",
                            wanted="finite losses",
                            cause="train.lr is too high; the last checkpoint is kept",
                            code="loss_not_finite",
                        )
                    continue
                optimizer.step()
                averaged.update_parameters(network)
                losses.append(loss.item())
                right += share_right(answer.detach(), told, len(info["labels"]))
            mean = sum(losses) / len(losses) if losses else math.nan
            result = _bare(averaged.module if config.ema else network)
            inner = judge(result, fabric.device) if judge else None  # every process finds the same
            better = inner is not None and patience.see(epoch + 1, inner.loss)
            began, before_it = time.perf_counter(), began
            report = EpochReport(
                epoch=epoch + 1,
                epochs=config.epochs,
                loss=mean,
                lr=lr,
                seconds=began - before_it,
                bad_batches=bad,
                inner_loss=inner.loss if inner else None,
                accuracy=float(right) / len(losses) if losses else None,
                inner_accuracy=inner.accuracy if inner else None,
            )
            if fabric.is_global_zero:
                last = epoch + 1 == config.epochs or patience.spent
                write(report, inner, last)  # first: a resumed run drops what is later than its checkpoint
                if better:  # before the checkpoint that says so
                    checkpoint.save_weights(out / BEST_FILE, result.state_dict())
                state = _state(network, optimizer, averaged, patience)
                checkpoint.save(out / "checkpoints", epoch + 1, state)
            if on_epoch and fabric.is_global_zero:
                on_epoch(report)
            fabric.barrier()
    final = _bare(averaged.module if config.ema else network).cpu()
    finished = {**info, "finished": True, "epochs": config.epochs, "seconds": training_seconds(out)}
    if judge:
        if not patience.epoch:
            raise TrainingError("the inner loss was never finite", cause="train.lr is too high")
        final.load_state_dict(checkpoint.load_weights(out / BEST_FILE))
        finished["epochs"] = patience.epoch
        finished["inner"] = {
            **info["inner"],
            "loss": patience.loss,
            "stopped": patience.epoch + patience.stale,
        }
    if config.refit_head:
        frozen.fit_head(final, batches, config.batch_size, on_clip)
    if fabric.is_global_zero:
        checkpoint.save_weights(out / "weights.safetensors", final.state_dict())
        storage.write_bytes(out / "run.json", json.dumps(finished, indent=2).encode())
    fabric.barrier()
    return Run(out, preset, finished)


def _network(preset: Preset, n_labels: int) -> nn.Module:
    """Return the network of a preset, fresh, for the features of one window."""
    window_samples = round(preset.window.window_s * preset.frontend.sample_rate)
    return networks.build(preset.network, Frontend(preset.frontend).shape(window_samples), n_labels)


def _bare(learner: nn.Module) -> nn.Module:
    """Return the network without what was around it only to learn (`Source.learner`)."""
    inside = getattr(learner, "network", learner)
    assert isinstance(inside, nn.Module)
    return inside


def _some(source: Source, config: TrainConfig, n: int = 256) -> Iterator[Tensor]:
    """Yield features of about ``n`` windows, evenly spread, a batch at a time; the same in every run of one seed."""
    generator = torch.Generator().manual_seed(config.seed)
    rows = torch.arange(0, len(source), max(1, len(source) // n))
    for first in range(0, len(rows), config.batch_size):
        yield source(rows[first : first + config.batch_size], generator)[0]


def _order(config: TrainConfig, weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return the windows of one epoch: each once, or, for the balanced sampler, drawn by weight."""
    if config.balance == "sampler":
        return torch.multinomial(weights, len(weights), replacement=True, generator=generator)
    return torch.randperm(len(weights), generator=generator)


def _state(
    network: nn.Module, optimizer: torch.optim.Optimizer, averaged: nn.Module, patience: Patience
) -> checkpoint.State:
    return {
        "network": network.state_dict(),
        "averaged": averaged.state_dict(),
        "optimizer": optimizer.state_dict()["state"],
        "patience": patience.state(),
    }


def _restore(
    out: Path, network: nn.Module, optimizer: torch.optim.Optimizer, averaged: nn.Module, patience: Patience
) -> int:
    """Load the newest checkpoint, if any; return how many epochs are done."""
    found = checkpoint.latest(out / "checkpoints")
    if found is None:
        return 0
    epoch, state = found
    network.load_state_dict(state["network"])
    averaged.load_state_dict(state["averaged"])
    groups = optimizer.state_dict()["param_groups"]
    moments = {int(index): values for index, values in state["optimizer"].items()}
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    patience.restore(state["patience"])
    return epoch


def _epoch_seed(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) * 1024  # room for the rank
