"""Own data, by the commands a person types: synth to report, folder of folders to bundle, rare labels, leaks."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

pytest.importorskip("sklearn")

import synthetic
from soundmark import config
from soundmark.config import WindowConfig
from soundmark.dataset import Clip, Dataset
from soundmark.preset import Preset
from soundmark.sources import open_dataset
from soundmark.splits import class_weights, folded

ROOT = Path(__file__).parents[2]


def write_preset(path: Path, window_s: float = 1.0, **train: Any) -> Path:
    from msgspec.structs import replace

    preset: Preset = synthetic.tiny_preset(**train)
    window = WindowConfig(window_s=window_s, hop_s=window_s)
    path.write_text(config.to_toml(replace(preset, window=window)))
    return path


def write_folder(root: Path, labels: tuple[str, ...], clips: int = 10, *, seconds: float = 1.0) -> Path:
    """Write ``label/<n>.wav``, every file a source of its own."""
    for label in labels:
        (root / label).mkdir(parents=True)
        for i in range(clips):
            soundfile.write(
                root / label / f"{i}.wav", synthetic.sound(label, i, 0, seconds=seconds), synthetic.RATE
            )
    return root


@pytest.mark.train
def test_synth_train_evaluate(call: Callable[..., Any], tmp_path: Path) -> None:
    """B5: 160 made clips, a small network, a fold of sources that it never heard; chance is 25 %."""
    data, run, made = tmp_path / "synth", tmp_path / "run", tmp_path / "bundle"
    preset = write_preset(tmp_path / "small.toml", window_s=2.0)
    options = ("--classes", 4, "--clips", 40, "--seconds", 2, "--sample-rate", synthetic.RATE)
    assert call("data", "synth", "--out", data, *options).status == 0
    train = call("train", preset, "--data", data, "--test-fold", 5, "--out", run, "--export", made)
    assert train.status == 0, train.err
    done = call("evaluate", "--model", made, "--data", data, "--folds", 5, "--json")
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert report["figures"]["accuracy"] > 0.8
    assert (report["data"], report["n_clips"], report["stamps"]) == ("synthetic", 32, [])


@pytest.mark.train
def test_the_two_commands_of_the_document(
    call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B6: the commands of docs/own-data.md, read from there; fewer epochs than a person would wait for."""
    page = (ROOT / "docs" / "own-data.md").read_text("utf-8")
    commands = [shlex.split(line) for line in re.findall(r"^    soundmark (.*)$", page, re.MULTILINE)]
    train, classify = (
        next(c for c in commands if c[0] == "train"),
        next(c for c in commands if c[0] == "classify"),
    )
    labels = tuple(dict.fromkeys(re.findall(r"^    recordings/(\w+)/", page, re.MULTILINE)))
    assert len(labels) == 3
    monkeypatch.chdir(tmp_path)
    kinds = dict(zip(labels, ("tone", "clicks", "hum"), strict=True))
    for label, kind in kinds.items():
        write_folder(tmp_path / "made", (kind,), seconds=2.0).joinpath(kind).rename(tmp_path / label)
    (tmp_path / "recordings").mkdir()
    for label in labels:
        (tmp_path / label).rename(tmp_path / "recordings" / label)
    patient = bool(os.environ.get("CI"))
    done = call(*train, *([] if patient else ["--epochs", "20"]))
    assert done.status == 0, done.err
    assert "int8 keeps" in done.out
    right = 0
    for label, kind in kinds.items():
        soundfile.write("new.wav", synthetic.sound(kind, 77, 0, seconds=2.0), synthetic.RATE)
        done = call(
            *[part if not part.endswith(".wav") else "new.wav" for part in classify], "--format", "json"
        )
        assert done.status == 0, done.err
        right += json.loads(done.out)[0]["label"] == label
    assert right >= (3 if patient else 2)
    others = [c for c in commands if c[0] not in ("train", "classify")]
    assert {c[0] for c in others} == {"evaluate", "data"}
    for command in others:
        done = call(*command)
        assert done.status == 0, (command, done.err)
        assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.train
def test_a_leaking_split_stamps_all_that_comes_from_it(call: Callable[..., Any], tmp_path: Path) -> None:
    """D24: refused; with --allow-leak run, bundle, card and every report say LEAKY, also under other folds."""
    data = synthetic.write_esc50(tmp_path / "data", {0: "tone", 3: "chirp"})
    file, preset = tmp_path / "split.json", write_preset(tmp_path / "tiny.toml", epochs=1)
    split = ("data", "split", data, "--strategy", "stratified", "--out", file)
    done = call(*split)
    assert done.status == 2
    assert "leak: " in done.err
    assert "--allow-leak" in done.err
    assert not file.exists()
    done = call(*split, "--allow-leak")
    assert done.status == 0
    assert done.out.startswith("LEAKY: ")
    made = tmp_path / "bundle"
    train = ("train", preset, "--data", data, "--split", file, "--test-fold", 2, "--out", tmp_path / "run")
    done = call(*train, "--export", made, "--set", "export.max_int8_disagreement=1")
    assert done.status == 0, done.err
    assert "LEAKY" in done.err
    assert "LEAKY" in (made / "README.md").read_text()
    for options in (("--split", file), ()):
        done = call("evaluate", "--model", made, "--data", data, "--folds", 2, *options, "--json")
        stamps = json.loads(done.out)["stamps"]
        assert stamps[0].startswith("LEAKY: ")
        assert (len(stamps) == 2) == (not options)  # then also OTHER SPLIT
    shown = call("evaluate", "--model", made, "--data", data, "--split", file, "--folds", 2)
    assert shown.out.startswith("LEAKY: ")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["stamps"]


def imbalanced(rare: int = 1) -> list[int]:
    return [0] * 90 + [1] * (10 * rare)


def test_class_weights_are_inverse_to_the_clips(tmp_path: Path) -> None:
    clips = tuple(Clip(f"c{i}", tmp_path, "ab"[t], 1, f"s{i}") for i, t in enumerate(imbalanced()))
    data = Dataset("x", tmp_path, ("a", "b", "none"), clips)
    a, b, none = class_weights(data)
    assert b == pytest.approx(9 * a)
    assert (90 * a + 10 * b) / 100 == pytest.approx(1)
    assert none == 1


@pytest.mark.train
def test_the_balanced_sampler_draws_labels_evenly() -> None:
    import torch

    from soundmark.config import TrainConfig
    from soundmark.learn.train import _order

    targets = torch.tensor(imbalanced() * 20)
    weights = torch.tensor([100 / 180, 5.0])[targets]
    rows = _order(TrainConfig(balance="sampler"), weights, torch.Generator().manual_seed(0))
    assert len(rows) == len(targets)
    assert 0.45 < targets[rows].float().mean().item() < 0.55  # 4 standard deviations of 2000 fair draws
    again = _order(TrainConfig(balance="none"), weights, torch.Generator().manual_seed(0))
    assert sorted(again.tolist()) == list(range(len(targets)))


@pytest.mark.train
def test_weights_and_sampler_reach_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from soundmark.learn import train as module

    root = write_folder(tmp_path / "own", ("tone",), 24)
    write_folder(root, ("hum",), 8)
    data, split = folded(open_dataset(root))
    seen: list[Any] = []
    drawn: list[Any] = []
    loss, order = torch.nn.functional.cross_entropy, module._order

    def watched(*args: Any, weight: Any = None, **options: Any) -> Any:
        seen.append(weight)
        return loss(*args, weight=weight, **options)

    def watched_order(*args: Any) -> Any:
        drawn.append(order(*args))
        return drawn[-1]

    monkeypatch.setattr(module.nn.functional, "cross_entropy", watched)
    monkeypatch.setattr(module, "_order", watched_order)
    finals = []
    for balance in ("none", "weights", "sampler"):
        seen.clear(), drawn.clear()
        preset = synthetic.tiny_preset(epochs=1, balance=balance)
        run = module.train(preset, data, test_fold=5, out=tmp_path / balance, split=split)
        finals.append((run.path / "weights.safetensors").read_bytes())
        assert all((weight is not None) == (balance == "weights") for weight in seen)
        assert (len(set(drawn[0].tolist())) < len(drawn[0])) == (balance == "sampler")
        if balance == "weights":
            n = Counter(c.label for c in data.clips if c.fold != 5)
            hum, tone = seen[0].tolist()
            assert hum / tone == pytest.approx(n["tone"] / n["hum"])
    assert len(set(finals)) == 3


@pytest.mark.train
def test_rare_and_broken_recordings(call: Callable[..., Any], tmp_path: Path) -> None:
    """D11, D15: a label of one clip is warned of, a broken file is left out and named, and training goes on."""
    root = write_folder(tmp_path / "own", ("tone", "hum"), 10)
    (root / "hum" / "3.wav").write_bytes(b"\x89PNG\r\n\x1a\n")
    write_folder(root, ("clicks",), 1)
    preset = write_preset(tmp_path / "tiny.toml", epochs=1)
    fold_of = {clip.name: clip.fold for clip in folded(open_dataset(root))[0].clips}
    aside = min({1, 2, 3, 4, 5} - {fold_of["hum/3.wav"], fold_of["clicks/0.wav"]})
    done = call("train", preset, "--data", root, "--test-fold", aside, "--out", tmp_path / "run")
    assert done.status == 0, done.err
    assert "label with one source only (it cannot be both learnt and tested): clicks" in done.err
    assert f"label without a clip in fold {aside}: clicks" in done.err
    assert "1 of " in done.err
    assert "are left out: hum/3.wav (unsupported_format)" in done.err
    info = call("data", "info", root, "--json")
    assert json.loads(info.out)["labels"] == {"clicks": 1, "hum": 10, "tone": 10}


def test_a_table_of_ones_own_keeps_its_folds(call: Callable[..., Any], tmp_path: Path) -> None:
    root = write_folder(tmp_path / "own", ("tone", "hum"), 4, seconds=0.1)
    with (root / "clips.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filename", "label", "fold", "source", "remark"])
        for label in ("tone", "hum"):
            rows.writerows([f"{label}/{i}.wav", label, 1 + i % 2, f"{label}{i % 2}", "="] for i in range(4))
    done = call("data", "info", root / "clips.csv", "--json")
    facts = json.loads(done.out)
    assert (done.status, facts["layout"], facts["folds"], facts["sources"]) == (
        0,
        "table",
        {"1": 4, "2": 4},
        4,
    )
    assert facts["hours"] == pytest.approx(8 * 0.1 / 3600, abs=1e-4)
    assert np.isfinite(facts["hours"])
