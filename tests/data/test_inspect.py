"""data inspect: every fault is a finding with the name of its clip; nothing is said of good clips; leaks; statuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from damaged import DAMAGES, EXTRA, write_damaged

from soundmark import errors
from soundmark.config import to_toml
from soundmark.data import inspect as inspection_module
from soundmark.data.findings import CODES, SEVERITIES
from soundmark.data.inspect import Inspection, inspect, measure_all
from soundmark.dataset import ESC50_SHARED_SOURCES, Clip, Dataset
from soundmark.sources import open_dataset
from synthetic import RATE, sound, tiny_preset, write_esc50

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("damaged") / "set"
    return root, write_damaged(root)


@pytest.fixture(scope="module")
def report(damaged: tuple[Path, dict[str, str]]) -> Inspection:
    return inspect(open_dataset(damaged[0], strict=False), processes=1)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_esc50(tmp_path_factory.mktemp("good") / "set", folds=2, takes=1)


# --- B2 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", DAMAGES)
def test_every_damage_is_named(damaged: tuple[Path, dict[str, str]], report: Inspection, what: str) -> None:
    name, code = damaged[1][what], DAMAGES[what][1]
    texts = [f"{f.clip} {f.message} {' '.join(f.others)}" for f in report.of(code)]
    assert any(name in text for text in texts), texts


def test_a_file_without_a_row_is_named_and_only_that(report: Inspection) -> None:
    assert [f.clip for f in report.of("file_without_row")] == [f"audio{os.sep}{EXTRA}"]


def test_nothing_is_said_of_good_clips(damaged: tuple[Path, dict[str, str]], report: Inspection) -> None:
    touched = set(damaged[1].values())
    touched |= {name for f in report.findings if "duplicate_across" in f.code for name in f.others}
    touched |= {name for f in report.of("leak") for name in f.others}
    clips = {clip.name for clip in report.dataset.clips}
    assert not [f for f in report.findings if f.clip in clips - touched]
    assert len(clips - touched) > 20


def test_a_leak_names_source_folds_and_clips(
    damaged: tuple[Path, dict[str, str]], report: Inspection
) -> None:
    (leak,) = report.of("leak")
    name = damaged[1]["source in two folds"]
    assert leak.clip == f"source {name.split('-')[1]}"
    assert name in leak.others
    leaks = report.leaks()
    assert list(leaks["sources"]) == [name.split("-")[1]]
    assert not leaks["known_sources"]
    assert {name for copy in leaks["copies"] for name in copy["clips"]} >= {
        damaged[1]["duplicate in another fold"],
        damaged[1]["nearly a duplicate"],
    }


def test_the_status_is_3_and_everything_is_named(
    damaged: tuple[Path, dict[str, str]], call: Callable[..., tuple[object, str, str]], tmp_path: Path
) -> None:
    status, out, err = call(
        "data",
        "inspect",
        damaged[0],
        "--processes",
        1,
        "--html",
        tmp_path / "r.html",
        "--out",
        tmp_path / "r.json",
    )
    assert (status, err) == (errors.EXIT_SOME_FAILED, "")
    paths = ("report: ", "page: ")
    assert max(len(line) for line in out.splitlines() if not line.startswith(paths)) <= 80
    report = json.loads((tmp_path / "r.json").read_bytes())
    html = (tmp_path / "r.html").read_text("utf-8")
    whole = json.dumps(report["findings"])
    for name in damaged[1].values():
        assert name in out.replace("\n  ", "")  # names are wrapped
        assert name in html
        assert name in whole
    assert report["counts"]["error"] > 10
    assert report["unreadable"] == 4
    assert len(report["measures"]) == report["clips"] == len(open_dataset(damaged[0], strict=False).clips)


@pytest.mark.train
def test_training_goes_on_without_the_corrupt_ones_and_says_so(
    damaged: tuple[Path, dict[str, str]],
    call: Callable[..., tuple[object, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    monkeypatch.setenv("SOUNDMARK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.toml").write_text(to_toml(tiny_preset(epochs=2)), "utf-8")
    run = tmp_path / "run"
    status, out, err = call(
        "train", tmp_path / "tiny.toml", "--data", damaged[0], "--lenient", "--test-fold", 3, "--out", run
    )
    assert status == 0, err
    assert "trained" in out
    corrupt = {damaged[1][what] for what in ("NaN", "PNG named .wav", "empty file", "damaged header")}
    assert corrupt == {bad["path"] for bad in json.loads((run / "run.json").read_bytes())["skipped"]}
    assert all(name in err for name in corrupt)
    assert "LEAKY" in err
    assert (run / "weights.safetensors").is_file()


# --- good data ---------------------------------------------------------------------------------------------------


def test_good_data_has_no_errors_and_the_status_is_0(
    good: Path, call: Callable[..., tuple[object, str, str]]
) -> None:
    status, out, err = call("data", "inspect", good, "--json")
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report["counts"]["error"] == 0
    assert report["clips"] == 20
    assert report["formats"]["sample_rates"] == {str(RATE): 20}
    assert report["classes"][0] == {"label": "tone", "clips": 4, "sources": 4, "folds": {"1": 2, "2": 2}}
    assert report["distributions"]["duration_s"]["p50"] == 1.0
    assert report["leaks"] == {"sources": {}, "known_sources": {}, "copies": []}
    assert report["hours"] == pytest.approx(20 / 3600, abs=1e-4)


def test_the_known_sources_of_esc50_are_told_from_leaks(good: Path) -> None:
    dataset = open_dataset(good)
    clips = list(dataset.clips)
    source = min(ESC50_SHARED_SOURCES)
    clips[0], clips[2] = (Clip(c.name, c.path, c.label, c.fold, source) for c in (clips[0], clips[2]))
    assert clips[0].fold != clips[2].fold
    shared = Dataset("ESC-50", dataset.root, dataset.labels, tuple(clips), layout="ESC-50")
    found = inspect(shared, processes=1)
    assert [f.clip for f in found.of("known_shared_source")] == [f"source {source}"]
    assert not found.of("leak")
    assert list(found.leaks()["known_sources"]) == [source]
    elsewhere = Dataset("own", dataset.root, dataset.labels, tuple(clips), layout="table")
    assert [f.clip for f in inspect(elsewhere, processes=1).of("leak")] == [f"source {source}"]


def test_a_folder_of_folders(tmp_path: Path) -> None:
    for label, n in (("Dog", 7), ("dog ", 2), ("rain", 3)):
        (tmp_path / label).mkdir()
        for i in range(n):
            soundfile.write(
                tmp_path / label / f"{i}.wav", sound("hum", 10 * n + i, 0, seconds=0.3 * (1 + i)), RATE
            )
    (tmp_path / "loose.wav").write_bytes(b"")
    found = inspect(open_dataset(tmp_path, strict=False), processes=1)
    assert {f.code for f in found.findings} >= {
        "no_folds",
        "no_sources",
        "similar_labels",
        "imbalance",
        "few_clips",
    }
    assert [f.clip for f in found.of("skipped")] == ["loose.wav"]
    assert not found.of("file_without_row")
    assert [f.clip for f in found.of("durations_differ")] == ["(all clips)"]
    assert found.shortcut is None
    assert found.of("shortcut_unknown")


@pytest.mark.parametrize(("samples", "said"), [(np.zeros(RATE), "silent"), (sound("hum", 1, 1), "the same")])
def test_data_without_information_is_an_error(tmp_path: Path, samples: np.ndarray, said: str) -> None:
    for i in range(4):
        (tmp_path / f"label{i % 2}").mkdir(exist_ok=True)
        soundfile.write(tmp_path / f"label{i % 2}" / f"{i}.wav", samples, RATE)
    (finding,) = inspect(open_dataset(tmp_path), processes=1).of("no_information")
    assert said in finding.message


def test_nothing_readable_at_all_still_gives_a_report(
    tmp_path: Path, call: Callable[..., tuple[object, str, str]]
) -> None:
    for i in range(3):
        (tmp_path / f"label{i}").mkdir()
        (tmp_path / f"label{i}" / "a.wav").write_bytes(b"RIFF")
    status, out, _ = call("data", "inspect", tmp_path, "--html", tmp_path / "r.html")
    assert status == 3
    assert "no_information" in out
    assert "label2/a.wav" in (tmp_path / "r.html").read_text("utf-8")


def test_without_scikit_learn_the_rest_is_reported(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    monkeypatch.setitem(__import__("sys").modules, "sklearn.ensemble", None)
    (note,) = inspect(open_dataset(good), processes=1).of("shortcut_unknown")
    assert "pip install 'soundmark[data]'" in note.message


# --- parallel ----------------------------------------------------------------------------------------------------


class Bomb(type(Path())):  # type: ignore[misc]
    """A path that ends the process which opens it, unless that is the one of the tests."""

    def __fspath__(self) -> str:
        if os.getpid() != int(os.environ["SOUNDMARK_TEST_PARENT"]):
            os._exit(1)
        return super().__fspath__()


def test_processes_give_the_same_and_a_crash_is_one_error(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection_module, "IN_THIS_PROCESS", 1)
    monkeypatch.setattr(inspection_module, "IN_FLIGHT", 1)
    monkeypatch.setenv("SOUNDMARK_TEST_PARENT", str(os.getpid()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    paths = [clip.path for clip in open_dataset(good).clips[:3]]
    counted: list[int] = []
    measures, failed = measure_all(
        [paths[0], Bomb(paths[1]), *paths[2:]], processes=2, on_clip=counted.append
    )
    alone, _ = measure_all(paths, processes=1)
    assert {index: error.code for index, error in failed.items()} == {1: "decoder_crashed"}
    assert measures[1] is None
    assert sum(counted) == 3
    for index in (0, 2):
        one, other = measures[index], alone[index]
        assert one is not None
        assert other is not None
        assert one.to_dict() == other.to_dict()
        np.testing.assert_array_equal(one.fingerprint, other.fingerprint)


# --- command line ------------------------------------------------------------------------------------------------


def test_a_report_that_cannot_be_written_is_4_and_printed(
    good: Path, call: Callable[..., tuple[object, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    status, out, err = call("data", "inspect", good, "--out", tmp_path / "file" / "r.json")
    assert status == errors.EXIT_DISK
    assert "findings" in out
    assert "storage" in err


def test_wrong_use_is_2(call: Callable[..., tuple[object, str, str]], tmp_path: Path) -> None:
    assert call("data", "inspect", tmp_path / "nowhere")[0] == errors.EXIT_USAGE
    assert call("data", "inspect", tmp_path, "--processes", "0")[0] == errors.EXIT_USAGE


# --- codes -------------------------------------------------------------------------------------------------------


def test_every_code_is_documented_and_raised() -> None:
    text = (ROOT / "docs" / "data.md").read_text("utf-8")
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "src" / "soundmark" / "data").glob("*.py"))
    own = {code for code in CODES if code not in errors.AUDIO_CODES}
    assert {code for code in own if f"| `{code}` |" not in text} == set()
    elsewhere = {"bad_row", "duplicate_row"}  # what `soundmark.dataset` says of rows
    made = {f"{a}{b}" for a in ("duplicate", "near_duplicate") for b in ("", "_across_folds", "_labels")}
    raised = {code for code in own if source.count(f'"{code}"') > 1}  # in CODES, and once more
    assert own - raised - elsewhere - made == set()
    assert {severity for severity, _ in CODES.values()} == set(SEVERITIES)


# --- the real one ------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_official_esc50_has_four_cross_fold_sources_and_silence_is_found() -> None:
    root = os.environ.get("SOUNDMARK_ESC50")
    if not root:
        pytest.skip("SOUNDMARK_ESC50 is not set")
    whole = open_dataset(root, strict=False)
    keep = [clip for i, clip in enumerate(whole.clips) if i % 25 == 0 or clip.source in ESC50_SHARED_SOURCES]
    found = inspect(Dataset("ESC-50", whole.root, whole.labels, tuple(keep)), processes=1)
    assert set(found.leaks()["known_sources"]) == {"131943", "134049", "209698", "234879"}
    assert not found.of("leak")
    from soundmark.dataset import leaking_sources, sources_across_folds

    assert set(sources_across_folds(whole)) == set(ESC50_SHARED_SOURCES)
    assert not leaking_sources(whole)
    silent = {f.clip for f in found.of("mostly_silence")}
    for clip in keep:  # an independent count: samples that 16 bits hold as zero, in runs or not
        samples, _ = soundfile.read(clip.path, dtype="float32", always_2d=True)
        share = float(np.mean(np.abs(samples.mean(axis=1)) < 0.5 / 32768))
        assert (clip.name in silent) == (share > 0.5) or abs(share - 0.5) < 0.05, (clip.name, share)
