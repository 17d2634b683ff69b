"""Soundmark on Modal: training on a GPU of choice, and the HTTP service, scaled to zero. Thin over the package.

    modal run deploy/modal_app.py --preset edge-scratch --test-fold 5 --gpu L4  # data, run, TensorBoard, bundle, report
    SOUNDMARK_MODEL=edge-scratch-fold5 modal deploy deploy/modal_app.py              # the bundle of that run over HTTP

Everything is on the volume "soundmark": data/, runs/NAME/ with its tensorboard/, bundles/NAME/, reports/NAME.json.
What is deployed is read from the environment at that moment: SOUNDMARK_MODEL (a bundle on the volume, or one that
ships; default: the shipped one), SOUNDMARK_GPU (default: none, the model takes 3 ms on a CPU). The service wants the
secret "soundmark" with SOUNDMARK_TOKEN, 16 characters or more; clients send it as a bearer token. See docs/cloud.md.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import modal

ROOT = Path(__file__).resolve().parents[1]
SOURCE, MOUNT = "/opt/soundmark", "/soundmark"
FILES = ("pyproject.toml", "README.md", "LICENSE")
TRAIN_EXTRAS, SERVE_EXTRAS = ("train", "data"), ("serve",)
GPU_RUNTIME = ("pip uninstall --yes onnxruntime", "pip install 'onnxruntime-gpu[cuda,cudnn]'")
"""Both packages write the same folder, so one has to go."""
MODEL, GPU = os.environ.get("SOUNDMARK_MODEL", ""), os.environ.get("SOUNDMARK_GPU", "")
DAY_S = 24 * 3600

app = modal.App("soundmark")
volume = modal.Volume.from_name("soundmark", create_if_missing=True)
token = modal.Secret.from_name("soundmark", required_keys=["SOUNDMARK_TOKEN"])


def image(*extras: str, more: tuple[str, ...] = (), env: dict[str, str] | None = None) -> modal.Image:
    """Return an image with this checkout and its extras: the dependencies are those of pyproject.toml."""
    made = modal.Image.debian_slim(python_version="3.12")
    for name in FILES:
        made = made.add_local_file(ROOT / name, f"{SOURCE}/{name}", copy=True)
    made = made.add_local_dir(ROOT / "src", f"{SOURCE}/src", copy=True, ignore=["**/__pycache__"])
    made = made.run_commands(f"pip install '{SOURCE}[{','.join(extras)}]'", *more)
    return made.env({"SOUNDMARK_CACHE": f"{MOUNT}/cache", **(env or {})})


@app.function(
    image=image(*TRAIN_EXTRAS),
    volumes={MOUNT: volume},
    gpu="L4",
    cpu=4,
    memory=8192,
    timeout=DAY_S,
    retries=3,  # a container can be taken away: the next one goes on at the last checkpoint
)
def train(
    preset: str = "edge-scratch",
    test_fold: int = 5,
    data: str = "esc50",
    name: str = "",
    overrides: list[str] | None = None,
    root: str = MOUNT,
) -> dict[str, Any]:
    """Train a preset on every fold but one, export it, score it on that fold; return where things are, and how good.

    Args:
        preset: a preset that ships, or a TOML file under ``root``.
        test_fold: the fold that is kept aside.
        data: "esc50" or "esc10", fetched from its publisher once; or a folder under ``root``.
        name: of run, bundle and report; default: preset and fold. A run of that name is gone on with.
        overrides: ``section.key=value``.
        root: where the volume is mounted.
    """
    from soundmark import bundle, weights
    from soundmark.classifier import Classifier
    from soundmark.data.download import download
    from soundmark.evaluate import evaluate
    from soundmark.learn import pretrained
    from soundmark.learn.export import export
    from soundmark.learn.train import train as run_training
    from soundmark.preset import load_preset
    from soundmark.sources import open_dataset
    from soundmark.splits import folded

    place = Path(root)
    name = name or f"{Path(preset).stem}-fold{test_fold}"
    known = data in ("esc50", "esc10")
    dataset = download(data, place / "data" / data) if known else open_dataset(place / data)  # type: ignore[arg-type]
    dataset, split = folded(dataset, None)
    keep()
    merged = load_preset(place / preset if preset.endswith(".toml") else preset, overrides or [])
    entry = weights.of_network(merged.network.kind, merged.network.depth)
    if entry is not None and merged.network.pretrained and pretrained.at_hand(merged.network) is None:
        weights.get(entry.name)

    run = run_training(
        merged,
        dataset,
        test_fold=test_fold,
        out=place / "runs" / name,
        split=split,
        resume=True,
        on_epoch=lambda _: keep(),
        on_note=print,
    )
    where = place / "bundles" / name
    if not where.exists():  # it was exported by a container that was taken away
        export(run, where, data=dataset)
        keep()
    report = evaluate(
        Classifier(bundle.read(where)), dataset, folds=[test_fold], command=f"modal run: {name}"
    )
    report.write(place / "reports" / f"{name}.json")
    keep()
    return {
        "run": f"runs/{name}",
        "bundle": f"bundles/{name}",
        "report": f"reports/{name}.json",
        **report.figures,
    }


def keep() -> None:
    """Make what was written to the volume stay, and be seen by others."""
    if not modal.is_local():
        volume.commit()


@app.local_entrypoint()
def main(
    preset: str = "edge-scratch",
    test_fold: int = 5,
    data: str = "esc50",
    gpu: str = "L4",
    name: str = "",
    sets: str = "",
) -> None:
    """Train in the cloud. ``--sets`` takes section.key=value, separated by commas."""
    overrides = [one for one in sets.split(",") if one]
    done = train.with_options(gpu=gpu).remote(preset, test_fold, data, name, overrides)
    low, high = done["accuracy_interval_95"]
    print(f"accuracy on fold {test_fold}: {done['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%})")
    print(
        f"modal volume get soundmark {done['bundle']}   # also {done['run']}/tensorboard and {done['report']}"
    )


def bundle_path(model: str, root: str = MOUNT) -> str | None:
    """Return what `soundmark serve --model` would be told: a bundle on the volume, one that ships, or the default."""
    there = Path(root) / "bundles" / model
    return str(there) if model and there.exists() else model or None


@app.function(
    image=image(
        *SERVE_EXTRAS, more=GPU_RUNTIME if GPU else (), env={"SOUNDMARK_MODEL": MODEL, "SOUNDMARK_GPU": GPU}
    ),
    volumes={MOUNT: volume.with_mount_options(read_only=True)},
    secrets=[token],
    gpu=GPU or None,
    cpu=1,
    memory=1024,
    min_containers=0,
    scaledown_window=300,
)
@modal.concurrent(max_inputs=64)
@modal.asgi_app()
def web() -> Any:
    """Serve what `soundmark serve` serves; no request without the token."""
    from soundmark.serve_config import ServeConfig
    from soundmark.server import logs
    from soundmark.server.app import Service
    from soundmark.server.serve import check

    secret = os.environ.get("SOUNDMARK_TOKEN")
    config = ServeConfig(host="0.0.0.0", provider="cuda" if GPU else "cpu")
    check(config, secret)  # no token, no service: everybody reaches it
    logs.start()
    return Service(bundle_path(MODEL), config, token=secret).app
