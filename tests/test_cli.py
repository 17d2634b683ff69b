"""cli: statuses, formats, hostile names and surroundings, pipes and Ctrl-C; most of it in processes of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import soundfile

from soundmark import bundle, cli, cli_learn, cli_options, cli_tune, config, errors, render_model
from soundmark.config import TrainConfig
from soundmark.dataset import ESC50_VARIABLE
from soundmark.preset import Preset, load_preset
from synthetic import table_rows, tiny_preset, write_esc50, write_table
from tiny import TINY_LABELS

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
SOUNDMARK = [sys.executable, "-m", "soundmark"]
RATE = 16_000
VERBS = ["classify", "cv", "demo", "evaluate", "export", "info", "train", "tune"]


def environment(**variables: str) -> dict[str, str]:
    kept = {
        k: v for k, v in os.environ.items() if k not in (ESC50_VARIABLE, "COLUMNS", "NO_COLOR", "FORCE_COLOR")
    }
    return {**kept, "PYTHONPATH": str(ROOT / "src"), **variables}


def run(
    *args: object, env: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own, as a shell would."""
    command = [*SOUNDMARK, *(arg if isinstance(arg, bytes) else str(arg) for arg in args)]
    variables = environment(**(env or {}))
    return subprocess.run(command, capture_output=True, env=variables, timeout=120, **options)


class Called:
    """What a call of `main` in this process gave."""

    def __init__(self, status: object, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Called]:
    """Run the command in this process: no new interpreter, so fast."""
    monkeypatch.delenv(ESC50_VARIABLE, raising=False)

    def called(*args: object) -> Called:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main(list(map(str, args)))
        return Called(left.value.code, *capsys.readouterr())

    return called


def noise(seconds: float = 0.5, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.fixture
def wav(make_wav: Callable[..., bytes]) -> bytes:
    return make_wav(noise(), RATE, "PCM_16")


@pytest.fixture
def folder(tmp_path: Path, wav: bytes) -> Path:
    here = tmp_path / "in"
    here.mkdir()
    (here / "a.wav").write_bytes(wav)
    (here / "b.wav").write_bytes(wav)
    return here


def small_esc50(root: Path) -> Path:
    """Write two clips of each of the tiny bundle's labels into each of two folds, in the layout of ESC-50."""
    rows = table_rows(
        dict(zip((0, 10, 36, 42), sorted(TINY_LABELS), strict=True)), folds=2, sources=2, takes=1
    )
    write_table(root, rows)
    (root / "audio").mkdir()
    for i, row in enumerate(rows):
        soundfile.write(root / "audio" / row["filename"], noise(seed=i), RATE)
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return small_esc50(tmp_path / "esc50")


# --- statuses ----------------------------------------------------------------------------------------------------


def test_no_arguments_is_wrong_use_with_help(call: Callable[..., Called]) -> None:
    done = call()
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("Usage: soundmark")
    assert all(verb in done.err for verb in VERBS)


def test_help_and_version(call: Callable[..., Called]) -> None:
    for args in (["--help"], ["-h"], *([verb, "--help"] for verb in VERBS)):
        done = call(*args)
        assert (done.status, done.err) == (0, "")
        assert done.out.startswith("Usage: soundmark")
    assert call("--version").out == "soundmark, version 0.1.0\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["clasify"], "No such command 'clasify'"),
        (["classify", "--modle", "x"], "No such option '--modle'"),
        (["classify"], "Missing argument 'PATH...'"),
        (["classify", "--top-k", "0", "x"], "--top-k"),
        (["classify", "--format", "xml", "x"], "'xml'"),
        (["classify", "--max-seconds", "nan", "x"], "max_seconds"),
        (["classify", "--max-seconds", "0.001", "x"], "`min_seconds` must be below `max_seconds`"),
        (["classify", "--threads", "x", "x"], "--threads"),
        (["evaluate", "--folds", "one"], "'one' is not a list of folds"),
        (["evaluate"], ESC50_VARIABLE),
        (["evaluate", "--cv", "x", "--model", "y"], "--cv goes without --model"),
        (["cv", "edge"], "Missing option '--out'"),
        (["cv", "edg", "--out", "x"], "did you mean 'edge'?"),
        (["tune", "edge", "--out", "x"], "Missing option '--trials'"),
        (["tune", "edge", "--out", "x", "--trials", "0"], "--trials"),
        (["train", "edg"], "did you mean 'edge'?"),
        (["train", "edge"], "--test-fold and --out are wanted"),
        (["train", "edge", "--set", "train.epoch=3"], "did you mean `train.epochs`?"),
        (["train", "edge", "--set", "epochs"], "'epochs'"),
        (["train", "edge", "--epochs", "-5"], "`train.epochs`"),
        (["train", "edge", "--lr", "fast"], "`train.lr`"),
        (["train", "edge", "--optimizer", "adamm"], "'adamm' is not one of 'adamw', 'adam'"),
        (
            ["train", "edge", "--test-fold", "5", "--out", "x", "--train-folds", "a"],
            "'a' is not a list of folds",
        ),
        (["demo", "--seed", "-1"], "--seed"),
    ],
)
def test_wrong_use_is_2_and_named(call: Callable[..., Called], args: list[str], said: str) -> None:
    done = call(*args)
    assert (done.status, done.out) == (2, "")
    assert said in done.err
    assert done.err.startswith("soundmark: ")


def test_a_bad_model_is_5(call: Callable[..., Called], tmp_path: Path, folder: Path) -> None:
    for verb in (["classify", folder, "--model"], ["info"], ["demo", "--out", tmp_path / "demo", "--model"]):
        for model in (tmp_path, tmp_path / "nowhere", folder / "a.wav"):
            done = call(*verb, model)
            assert (done.status, done.out) == (5, ""), (verb, model)
    assert not (tmp_path / "demo").exists()


def test_nothing_matched_is_3(call: Callable[..., Called], tmp_path: Path, tiny_bundle: Path) -> None:
    done = call("classify", tmp_path, "--model", tiny_bundle)
    assert (done.status, done.out) == (3, "")
    assert "nothing matched" in done.err


def test_control_characters_in_arguments_do_not_reach_the_terminal(call: Callable[..., Called]) -> None:
    for args in (
        ["\x1b[31m"],
        ["info", "\x1b]0;x\x07"],
        ["train", "a\nb"],
        ["classify", "--model", "\x9b", "x"],
    ):
        assert all(line.isprintable() for line in call(*args).err.splitlines())


# --- classify ----------------------------------------------------------------------------------------------------


def test_jsonl(call: Callable[..., Called], folder: Path, tiny_bundle: Path) -> None:
    (folder / "empty.wav").touch()
    done = call("classify", folder, "gone.wav", "--model", tiny_bundle, "--format", "jsonl", "--top-k", "2")
    assert (done.status, done.err) == (3, "")
    assert [row["path"] for row in done.rows] == [
        *(str(folder / n) for n in ("a.wav", "b.wav", "empty.wav")),
        "gone.wav",
    ]
    for row in done.rows[:2]:
        assert [one.keys() for one in row["labels"]] == [{"label", "score"}] * 2
        assert row["flags"] == ["short"]
        assert "error" not in row
    assert [row["error"]["code"] for row in done.rows[2:]] == ["empty_file", "not_found"]
    assert all(row["error"]["message"] for row in done.rows[2:])


def test_json_csv_and_table(call: Callable[..., Called], folder: Path, tiny_bundle: Path) -> None:
    done = call("classify", folder / "a.wav", "--model", tiny_bundle, "--format", "json")
    assert done.status == 0
    assert [row["path"] for row in json.loads(done.out)] == [str(folder / "a.wav")]
    done = call("classify", folder, "--model", tiny_bundle, "--format", "csv")
    assert done.status == 0
    assert done.out.splitlines()[0].startswith("path,decision,label_1,score_1")
    assert len(done.out.splitlines()) == 3
    done = call("classify", folder, "--model", tiny_bundle)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[0] == f"in {folder}{os.sep}"
    assert done.out.splitlines()[-1] == "2 recordings"


def test_the_same_file_is_one_row(call: Callable[..., Called], folder: Path, tiny_bundle: Path) -> None:
    done = call(
        "classify", folder / "a.wav", folder, folder / "*.wav", "--model", tiny_bundle, "--format", "jsonl"
    )
    assert done.status == 0
    assert [Path(row["path"]).name for row in done.rows] == ["a.wav", "b.wav"]


def test_max_seconds_and_strict(
    call: Callable[..., Called], folder: Path, tiny_bundle: Path, wav: bytes
) -> None:
    (folder / "cut.wav").write_bytes(wav[: len(wav) // 2])
    base = ("classify", folder, "--model", tiny_bundle, "--format", "jsonl")
    assert call(*base, "--max-seconds", "0.5").status == 0  # the limit itself is allowed
    done = call(*base, "--max-seconds", "0.4")
    assert done.status == 3
    assert [row.get("error", {}).get("code") for row in done.rows] == [
        "too_long"
    ] * 3 or "too_long" in done.out
    assert "at most 0.4 s" in done.rows[0]["error"]["message"]
    assert "truncated" in call(*base).rows[2]["flags"]
    strict = call(*base, "--strict")
    assert (strict.status, strict.rows[2]["error"]["code"]) == (3, "corrupt_audio")


def test_stdin(folder: Path, wav: bytes, tiny_bundle: Path) -> None:
    args = (
        "classify",
        folder / "a.wav",
        "-",
        "-",
        folder / "b.wav",
        "--model",
        tiny_bundle,
        "--format",
        "jsonl",
    )
    done = run(*args, input=wav)
    assert (done.returncode, done.stderr) == (0, b"")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"] for row in rows] == [str(folder / "a.wav"), "-", str(folder / "b.wav")]
    assert rows[1]["labels"] == rows[0]["labels"]
    empty = run("classify", "-", "--model", tiny_bundle, input=b"")
    assert empty.returncode == 3
    assert b"empty_file" in empty.stdout


HOSTILE = [
    b"new\nline.wav",
    b"\x1b[31mred\x1b]0;t\x07.wav",
    b"[bold]x[red].wav",
    "ünï-中文.wav".encode(),
    b"raw-\xff\xe9.wav",
    b"-dash.wav",
    b"=cmd.wav",
    b" space .wav",
]


@pytest.fixture
def hostile(tmp_path: Path, wav: bytes) -> Path:
    here = tmp_path / "hostile"
    here.mkdir()
    for i, name in enumerate(HOSTILE):
        path = os.fsencode(here) + b"/" + name
        with open(path, "wb") as file:
            file.write(wav if i % 2 else b"")
    return here


@pytest.mark.parametrize(
    "surroundings",
    [
        {},
        {"LC_ALL": "C", "LANG": "C"},
        {"PYTHONIOENCODING": "ascii", "NO_COLOR": "1", "COLUMNS": "60", "TERM": "dumb"},
    ],
    ids=["plain", "C", "ascii-60"],
)
@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv"])
def test_hostile_names(hostile: Path, tiny_bundle: Path, form: str, surroundings: dict[str, str]) -> None:
    args = ("classify", "--model", tiny_bundle, "--format", form, "--", *HOSTILE)
    done = run(*args, env=surroundings, cwd=hostile)
    assert (done.returncode, done.stderr) == (3, b"")
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)
    if form.startswith("json"):
        text = done.stdout.decode("ascii")
        rows = json.loads(text) if form == "json" else [json.loads(line) for line in text.splitlines()]
        assert [os.fsencode(row["path"]) for row in rows] == HOSTILE
        assert [i for i, row in enumerate(rows) if "error" in row] == [0, 2, 4, 6]
    else:
        text = done.stdout.decode("ascii" if "PYTHONIOENCODING" in surroundings else "utf-8")
        assert "new\\nline.wav" in text
        assert "[bold]x[red].wav" in text
        assert ("'=cmd.wav" if form == "csv" else "=cmd.wav") in text
        if form == "table":
            assert max(map(len, text.splitlines())) <= int(surroundings.get("COLUMNS", 80))


# --- pipes, disks, terminals, Ctrl-C -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["jsonl", "table", "csv", "json"])
def test_a_closed_pipe_is_141_without_a_word(folder: Path, wav: bytes, tiny_bundle: Path, form: str) -> None:
    for i in range(300):
        (folder / f"{i}.wav").write_bytes(wav)
    command = [*SOUNDMARK, "classify", str(folder), "--model", str(tiny_bundle), "--format", form]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "args", [["--help"], ["classify", "FOLDER", "--format", "jsonl"], ["classify", "FOLDER"]]
)
def test_a_full_disk_behind_stdout_is_4(folder: Path, tiny_bundle: Path, args: list[str]) -> None:
    args = [str(folder) if arg == "FOLDER" else arg for arg in args]
    model = [] if args == ["--help"] else ["--model", str(tiny_bundle)]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*SOUNDMARK, *args, *model], stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=60
        )
    assert done.returncode == 4
    assert done.stderr.startswith(b"soundmark: storage: standard output cannot be written")
    assert len(done.stderr.splitlines()) == 1


def test_closed_standard_streams_do_not_crash(folder: Path, tiny_bundle: Path) -> None:
    command = f"{' '.join(SOUNDMARK)} classify {folder} --model {tiny_bundle}"
    for closed in (">&-", ">&- 2>&-"):
        done = subprocess.run(
            ["sh", "-c", f"{command} {closed}"], capture_output=True, env=environment(), timeout=60
        )
        assert b"Traceback" not in done.stderr, closed


def terminal(command: list[str], *, both: bool, **variables: str) -> tuple[bytes, bytes, int]:
    """Run with standard error (and standard output, if ``both``) on a terminal; return both, and the status."""
    ours, theirs = pty.openpty()
    out: int = theirs if both else subprocess.PIPE
    with subprocess.Popen(
        command, stdout=out, stderr=theirs, env=environment(TERM="xterm-256color", **variables)
    ) as process:
        os.close(theirs)
        seen = bytearray()
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not chunk:
                break
            seen += chunk
        rows = process.stdout.read() if process.stdout else b""
        status = process.wait(60)
    os.close(ours)
    return rows, bytes(seen), status


def test_the_bar_is_for_a_terminal_on_stderr_alone(folder: Path, tiny_bundle: Path) -> None:
    command = [*SOUNDMARK, "classify", str(folder), "--model", str(tiny_bundle), "--format", "jsonl"]
    rows, seen, status = terminal(command, both=False)
    assert status == 0
    assert len([json.loads(line) for line in rows.splitlines()]) == 2
    assert b"classify" in seen
    _, seen, status = terminal(command, both=True)
    assert status == 0
    assert len([json.loads(line) for line in seen.splitlines()]) == 2  # rows, and nothing else


def test_no_color(folder: Path, tiny_bundle: Path) -> None:
    command = [*SOUNDMARK, "classify", str(folder), "gone.wav", "--model", str(tiny_bundle)]
    assert b"\x1b[31mfailed" in terminal(command, both=True)[1]
    assert b"\x1b[31" not in terminal(command, both=True, NO_COLOR="1")[1]


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_ctrl_c_is_130_and_rows_are_kept(folder: Path, wav: bytes, tiny_bundle: Path, form: str) -> None:
    for i in range(3000):
        (folder / f"{i}.wav").write_bytes(wav)
    command = [*SOUNDMARK, "classify", str(folder), "--model", str(tiny_bundle), "--format", form]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background job ignores it
    ) as process:
        assert process.stdout
        assert process.stderr
        head = b"".join(process.stdout.readline() for _ in range(20))
        process.send_signal(signal.SIGINT)
        text, said = head + process.stdout.read(), process.stderr.read()
        assert process.wait(60) == 130
    assert said == b"soundmark: interrupted: what is finished is kept\n"
    rows = json.loads(text) if form == "json" else [json.loads(line) for line in text.splitlines()]
    assert 19 <= len(rows) < 3002
    assert all("error" not in row for row in rows)


# --- train, export, config ---------------------------------------------------------------------------------------


def test_printed_config_is_a_preset(call: Callable[..., Called], tmp_path: Path) -> None:
    done = call(
        "train",
        "edge",
        "--print-config",
        "--set",
        "frontend.n_mels=40",
        "--set",
        "train.lr=0.5",
        "--lr",
        "1e-3",
    )
    assert (done.status, done.err) == (0, "")
    assert tomllib.loads(done.out)["frontend"]["n_mels"] == 40
    path = tmp_path / "mine.toml"
    path.write_text(done.out)
    assert load_preset(path) == load_preset("edge", ["frontend.n_mels=40", "train.lr=1e-3"])  # the option won
    assert call("train", path, "--print-config").out == done.out


def test_every_field_is_an_option(call: Callable[..., Called]) -> None:
    given = {"epochs": 7, "optimizer": "sgd", "ema": 0.5, "seed": 3, "precision": "bf16-mixed"}
    options = [part for name, value in given.items() for part in (f"--{name}", value)]
    merged = config.from_dict(tomllib.loads(call("train", "edge", "--print-config", *options).out), Preset)
    assert {name: getattr(merged.train, name) for name in given} == given
    for verb, kind in ((cli_learn.train, TrainConfig), (cli_learn.export, config.ExportConfig)):
        documented = {option.name: option.help for option in verb.params if isinstance(option, click.Option)}
        assert config.describe(kind).items() <= documented.items()
        assert set(config.fields(kind)) <= set(documented)


BLOCKED = """
import sys
for name in ("torch", "lightning_fabric", "onnx", "safetensors"):
    sys.modules[name] = None
from soundmark.cli import main
for args in {args!r}:
    try:
        main(args)
    except SystemExit as left:
        heavy = {{"numpy", "onnxruntime", "soundfile", "rich"}} & set(sys.modules)
        print(args, "->", left.code, sorted(heavy), file=sys.stderr)
"""


def blocked(*calls: list[str]) -> subprocess.CompletedProcess[str]:
    """Run commands in a process that has no torch."""
    code = BLOCKED.format(args=list(calls))
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60
    )


def test_help_needs_nothing_heavy() -> None:
    done = blocked(["--help"], ["--version"], ["nonsense"], *([verb, "--help"] for verb in VERBS))
    ends = [line for line in done.stderr.splitlines() if "->" in line]
    assert [line.split(" -> ")[1] for line in ends] == ["0 []", "0 []", "2 []", *["0 []"] * len(VERBS)], (
        done.stderr
    )


def test_training_without_its_extra_names_the_command(tmp_path: Path) -> None:
    done = blocked(["train", "edge", "--test-fold", "5", "--out", str(tmp_path / "run")])
    assert "-> 2 " in done.stderr
    assert "soundmark: missing_extra: " in done.stderr
    assert "pip install 'soundmark[train]'" in done.stderr
    done = blocked(["export", str(tmp_path), "--out", str(tmp_path / "bundle")])
    assert "pip install 'soundmark[train]'" in done.stderr
    assert "-> 2 " in done.stderr


def test_import_time_has_no_numpy() -> None:
    command = [sys.executable, "-X", "importtime", *SOUNDMARK[1:], "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"numpy", "onnxruntime", "soundfile", "soxr", "torch", "rich"}


@pytest.mark.train
def test_train_export_evaluate(call: Callable[..., Called], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    preset, run_folder, made = tmp_path / "tiny.toml", tmp_path / "run", tmp_path / "bundle"
    preset.write_text(config.to_toml(tiny_preset()))
    root = write_esc50(tmp_path / "esc50", sources=1)
    train = ("train", preset, "--data", root, "--test-fold", "5", "--out", run_folder, "--epochs", "2")
    done = call(*train)
    assert (done.status, done.out) == (
        0,
        f"trained {run_folder}; next: soundmark export {run_folder} --out BUNDLE\n",
    )
    assert "epoch 2/2" in done.err
    assert tomllib.loads((run_folder / "preset.toml").read_text())["train"]["epochs"] == 2
    again = call(*train)
    assert (again.status, again.out) == (1, "")
    assert "run_exists" in again.err
    export = ("export", run_folder, "--out", made, "--max-int8-disagreement", "1")
    done = call(*export, "--calibration-clips", "8", "--golden-windows", "8")
    assert done.status == 0
    assert done.out.split()[:2] == ["wrote", str(made)]
    assert call(*export).status == 4  # it is there
    done = call("evaluate", "--model", made, "--data", root, "--folds", "5", "--json")
    assert done.status == 0
    assert json.loads(done.out)["stamps"] == []


@pytest.mark.train
def test_a_model_may_learn_from_all_clips_and_then_nothing_judges_it(
    call: Callable[..., Called], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    preset, made = tmp_path / "tiny.toml", tmp_path / "bundle"
    preset.write_text(config.to_toml(tiny_preset()))
    root = write_esc50(tmp_path / "esc50", sources=1)
    base = ("train", preset, "--data", root, "--out", tmp_path / "run", "--epochs", "1")
    made_small = ("--set", "export.max_int8_disagreement=1", "--set", "export.golden_windows=8")
    for wrong, said in (("never", "--test-fold never is no fold"), ("6", "unknown_fold")):
        assert said in call(*base, "--test-fold", wrong).err
    assert call(*base, "--test-fold", "none", "--export", made, *made_small).status == 0
    training = json.loads((made / "bundle.json").read_text())["provenance"]["training"]
    assert training["train_folds"] == [1, 2, 3, 4, 5]
    assert "test_fold" not in training
    assert "| fold kept aside | none: it has learnt from every clip |" in (made / "README.md").read_text()
    assert "no fold kept aside" in " ".join(call("info", made).out.split())
    done = call("evaluate", "--model", made, "--data", root, "--folds", "5", "--json")
    assert json.loads(done.out)["stamps"] == ["TRAINED ON fold 5: not a test figure"]


# --- evaluate, info, demo ----------------------------------------------------------------------------------------


def closed_pipe(*_: object) -> None:
    """What a print gives when whoever read the output has gone (``| head``)."""
    raise BrokenPipeError


def test_evaluate(call: Callable[..., Called], data: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "reports" / "tiny.json"
    base = ("evaluate", "--model", tiny_bundle, "--data", data)
    done = call(*base, "--out", out)
    assert (done.status, done.err) == (0, "")
    assert "tiny on esc50 (ESC-50 layout), 16 clips" in done.out
    assert "UNKNOWN TRAINING" in done.out
    assert max(map(len, done.out.splitlines()[:-1])) <= 80
    assert done.out.splitlines()[-1] == f"report: {out}"
    written = json.loads(out.read_text())
    assert len(written["clips"]) == 16
    out.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render_model, "print_report", closed_pipe)
        assert call(*base, "--out", out).out == ""
    assert len(json.loads(out.read_text())["clips"]) == 16
    done = call(*base, "--folds", "2", "--json", "--out", out)
    assert (done.status, done.err) == (0, f"report: {out}\n")
    report = json.loads(done.out)
    assert (report["folds"], report["n_clips"]) == ([2], 8)
    assert json.loads(out.read_text())["clips"] == report["clips"]
    assert call(*base, "--folds", "3").status == 2


def test_known_labels_scores_the_clips_of_the_model_alone(
    call: Callable[..., Called], data: Path, tiny_bundle: Path
) -> None:
    table = data / "meta" / "esc50.csv"
    table.write_text(table.read_text().replace("siren", "whale"))
    base = ("evaluate", "--model", tiny_bundle, "--data", data, "--json")
    refused = call(*base)
    assert (refused.status, refused.out) == (2, "")
    assert "unknown_label" in refused.err
    assert "--known-labels" in refused.err
    report = json.loads(call(*base, "--known-labels").out)
    assert report["n_clips"] == 12
    assert "(3 classes)" in report["data"]
    assert "whale" not in {clip["label"] for clip in report["clips"]}


def test_smoke_prints_shapes_and_leaves_nothing_behind(
    call: Callable[..., Called], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from soundmark.learn import smoke as module

    seen = module.Smoke("tiny", 5, 15, (8, 32, 51), (8, 5), 1234, 1.6, 5678, 1.0, 0.2, 5, 3.0)
    given: dict[str, Any] = {}
    monkeypatch.setattr(module, "smoke", lambda preset, data, **options: given.update(options) or seen)
    root = write_esc50(tmp_path / "esc50", sources=1)
    done = call("train", "edge-scratch", "--smoke", "--data", root)
    assert done.status == 0
    assert call("train", "edge-scratch", "--fast-dev-run", "--data", root).out == done.out
    assert done.out.splitlines() == seen.lines()
    assert max(map(len, seen.lines())) <= 80
    assert given["test_fold"] == 5
    assert not given["out"].exists()
    assert (
        call(
            "train", "edge-scratch", "--smoke", "--data", root, "--test-fold", "2", "--out", tmp_path / "x"
        ).status
        == 0
    )
    assert (given["test_fold"], given["out"]) == (2, tmp_path / "x")
    assert call("train", "edge", "--data", root).status == 2


def test_a_report_says_the_command_and_no_folder(
    call: Callable[..., Called], data: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r.json"
    call(
        "evaluate",
        "--model",
        tiny_bundle,
        "--data",
        data,
        "--lenient",
        "--folds",
        "1",
        "--json",
        "--out",
        out,
    )
    said = json.loads(out.read_text("utf-8"))["command"]
    assert said.startswith(f"soundmark evaluate --model {tiny_bundle.name} --data {data.name} --lenient")
    assert sorted(said.split()[7:]) == sorted(["--folds", "1", "--out", "r.json", "--json"])
    context = click.Context(cli_learn.evaluate, info_name="evaluate")
    with context:
        cli_learn.evaluate.parse_args(context, ["--data", "esc10:/some/where/ESC-50", "--folds", "2"])
    assert cli_options.command(context) == "evaluate --data esc10:ESC-50 --folds 2"
    context = click.Context(cli_tune.cv, info_name="cv")
    with context:
        cli_tune.cv.parse_args(
            context, ["p", "--out", "o", "--teacher", "/some/a", "--teacher", "/some/b=0.5"]
        )
    assert sorted(shlex.split(cli_options.command(context))) == sorted(
        ["cv", "p", "--out", "o", "--teacher", "a", "--teacher", "b=0.5"]
    )


def test_evaluate_against(call: Callable[..., Called], data: Path, tiny_bundle: Path) -> None:
    base = ("evaluate", "--model", tiny_bundle, "--data", data, "--against", tiny_bundle)
    done = call(*base)
    assert (done.status, done.out.count("tiny on "), done.err) == (0, 2, "")
    assert done.out.splitlines()[-1] == "equal top labels: 100.00%"
    report = json.loads(call(*base, "--json").out)
    assert report["against"]["equal_top_labels"] == 1.0
    assert report["against"]["figures"] == report["figures"]


def test_a_clip_that_fails_is_counted_and_is_3(
    call: Callable[..., Called], data: Path, tiny_bundle: Path
) -> None:
    next((data / "audio").iterdir()).write_bytes(b"RIFF")
    done = call("evaluate", "--model", tiny_bundle, "--data", data, "--json")
    assert done.status == 3
    assert json.loads(done.out)["figures"]["failed"] == 1


def test_labels_are_text(call: Callable[..., Called], data: Path, tiny_bundle: Path) -> None:
    table = data / "meta" / "esc50.csv"
    table.write_text(table.read_text().replace("siren", "[bold]\x1b[31m"))
    done = call("evaluate", "--model", tiny_bundle, "--data", data)
    assert done.status == 2
    assert "\x1b" not in done.err


def test_a_report_that_cannot_be_written_is_4_and_printed(
    data: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.json"
    out.write_text("old")
    done = run(
        *("evaluate", "--model", tiny_bundle, "--data", data, "--json", "--out", out),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512)),
    )
    assert done.returncode == 4
    assert done.stderr.startswith(b"soundmark: storage: ")
    assert json.loads(done.stdout)["n_clips"] == 16
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.glob(".report*")] == []


def test_info(call: Callable[..., Called], tiny_bundle: Path) -> None:
    done = call("info", tiny_bundle)
    assert (done.status, done.err) == (0, "")
    assert "4: dog, rain, siren, vacuum cleaner" in done.out
    assert json.loads(call("info", tiny_bundle, "--json").out)["labels"] == list(TINY_LABELS)
    read = config.from_dict(json.loads(call("info", tiny_bundle, "--json").out), bundle.Manifest)
    assert read == bundle.read(tiny_bundle).manifest


def test_demo(call: Callable[..., Called], tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = call("demo", "--out", out, "--model", tiny_bundle)
    assert (done.status, done.err) == (0, "")
    waves = sorted(path.name for path in out.iterdir())
    assert len(waves) >= 10
    assert all(soundfile.info(out / name).subtype == "PCM_16" for name in waves)
    assert f"of {len(waves)} as meant" in done.out
    lines = done.out.splitlines()
    assert len(lines) == len(waves) + 4  # title, heads, one row each, and the last two lines
    assert max(map(len, lines)) <= 80
    shutil.rmtree(out)
    out.touch()
    blocked = call("demo", "--out", out, "--model", tiny_bundle)
    assert (blocked.status, blocked.out) == (4, "")


# --- reference ---------------------------------------------------------------------------------------------------


def verbs(group: click.Group, before: str = "") -> list[tuple[str, click.Command]]:
    """Return every command with its full name, those of a group behind the group."""
    found: list[tuple[str, click.Command]] = []
    for name, verb in sorted(group.commands.items()):
        found.append((before + name, verb))
        if isinstance(verb, click.Group):
            found += verbs(verb, f"{before}{name} ")
    return found


def reference() -> str:
    """Return docs/reference/cli.md: every verb with its arguments and options."""
    page = [
        "# The command `soundmark`",
        "",
        "Made from the program by `pytest tests/test_cli.py --update-golden`. Codes, flags and exit statuses are in",
        "[outcomes.md](outcomes.md). `--help` works after every verb.",
        "",
    ]
    for name, verb in verbs(cli.cli):
        context = click.Context(verb, info_name=f"soundmark {name}")
        usage = "COMMAND" if isinstance(verb, click.Group) else "[OPTIONS] "
        usage += " ".join(p.make_metavar(context) for p in verb.params if isinstance(p, click.Argument))
        page += [f"## soundmark {name}", "", f"    soundmark {name} {usage}".rstrip(), ""]
        page += [line.strip() for line in (verb.help or "").splitlines()]
        if not isinstance(verb, click.Group):
            page += ["", "| option | |", "|---|---|"]
        for param in verb.params:
            record = param.get_help_record(context) if isinstance(param, click.Option) else None
            if record:
                option, text = (" ".join(part.split()).replace("|", "\\|") for part in record)
                page.append(f"| `{option}` | {text} |")
        page.append("")
    return "\n".join(page)


def test_the_reference_is_current(update_golden: bool) -> None:
    path = REFERENCE / "cli.md"
    if update_golden:
        path.write_text(reference(), "utf-8")
    assert path.read_text("utf-8") == reference(), "run: pytest tests/test_cli.py --update-golden"


def test_the_reference_has_every_outcome() -> None:
    text = (REFERENCE / "outcomes.md").read_text("utf-8")
    recording, flags, rest = (
        text.split(f"\n## {title}\n")[1].split("\n## ")[0]
        for title in (
            "Codes of a recording",
            "Flags",
            "Codes of everything else",
        )
    )
    first = re.compile(r"^\| `(\w+)`", re.MULTILINE)
    assert set(first.findall(recording)) == errors.AUDIO_CODES | {"internal"}
    assert set(first.findall(flags)) == errors.FLAGS
    statuses = {int(n) for n in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    named = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert statuses == named | {1, cli.EXIT_PIPE}
    raised = set()
    for path in (ROOT / "src" / "soundmark").rglob("*.py"):
        raised |= set(re.findall(r'code="(\w+)"', path.read_text("utf-8")))
    defaults = {kind.default_code for kind in errors.SoundmarkError.__subclasses__()}
    missing = (
        (raised | defaults) - set(re.findall(r"`(\w+)`", rest)) - errors.AUDIO_CODES - {"usage", "internal"}
    )
    assert not missing
