"""report and compare: files read back and checked, every figure of a page in its JSON, no stamped report published."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _pytest.outcomes import Failed

from soundmark import cli, comparison, report_files, report_page
from soundmark.dataset import Clip, Dataset
from soundmark.errors import DatasetError
from soundmark.evaluate import Answer, Report, figures, refuse_stamped
from soundmark.pages import Figures
from soundmark.postprocess import Failure
from soundmark.report_files import read
from soundmark.sources import load_esc50
from synthetic import RATE, sound, write_table

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PUBLISHED = ROOT / "docs" / "results" / "edge-int8-fold5.json"
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return eight clips in the layout of ESC-50, two labels, two folds."""
    import soundfile

    root = tmp_path_factory.mktemp("esc50")
    rows = []
    for fold in (1, 2):
        for target, label in ((0, "dog"), (10, "rain")):
            for take in "AB":
                source = str(100 * fold + target)
                name = f"{fold}-{source}-{take}-{target}.wav"
                row = {"filename": name, "fold": fold, "target": target, "category": label}
                rows.append({**row, "esc10": "True", "src_file": source, "take": take})
    write_table(root, [{key: str(value) for key, value in row.items()} for row in rows])
    (root / "audio").mkdir()
    for i, row in enumerate(rows):
        samples = sound("hum", i, 0)
        samples[: 6000 * (i % 3)] = 0
        soundfile.write(root / "audio" / str(row["filename"]), samples, RATE)
    return load_esc50(root)


def made(
    data: Dataset, heard: Callable[[int, Clip], str], *, stamps: tuple[str, ...] = (), failed: int = 0
) -> Report:
    """Return a report on ``data``: what ``heard`` says of clip i; the last ``failed`` have no answer."""
    kept = data.clips[: len(data.clips) - failed]
    answers = tuple(
        Answer(
            c.name, c.fold, c.source, c.label, heard(i, c), 0.3 + 0.08 * i, int(heard(i, c) != c.label), ()
        )
        for i, c in enumerate(kept)
    )
    lost = data.clips[len(kept) :]
    provenance = {
        "report": "soundmark evaluate",
        "soundmark": "0.1.0",
        "model": "told",
        "model_digest": "0" * 64,
        "model_bytes": 1234,
        "temperature": 1.0,
        "data": data.name,
        "data_digest": data.digest(),
        "split": "",
        "folds": list(data.folds),
        "n_clips": len(data.clips),
        "stamps": list(stamps),
        "training": {"train_folds": [3, 4], "data": "ESC-50", "seed": 7, "seconds": 90},
        "seconds": 0.8,
        "machine": "x",
        "onnxruntime": "1",
        "command": "soundmark evaluate",
    }
    failures = tuple(Failure(str(c.path), "corrupt_audio", "broken") for c in lost)
    return Report(figures(answers, lost, data.labels), provenance, answers, failures)


def other(i: int, clip: Clip) -> str:
    """Hear a third of the clips as the other label."""
    return clip.label if i % 3 else {"dog": "rain", "rain": "dog"}[clip.label]


@pytest.fixture
def file(data: Dataset, tmp_path: Path) -> Path:
    path = tmp_path / "told.json"
    made(data, other).write(path)
    return path


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[object, str, str]]:
    monkeypatch.setenv("COLUMNS", "80")

    def called(*args: object) -> tuple[object, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main(list(map(str, args)))
        return (left.value.code, *capsys.readouterr())

    return called


class Shown(HTMLParser):
    """Collects every figure of a page: path, format and text; and every link and tag."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.figures: list[tuple[str, str, str]] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self._now: list[str] | None = None
        self.feed(page.decode("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "data")]
        assert not [name for name in given if name.startswith("on")]
        if "data-of" in given:
            self._now = [given["data-of"] or "", given["data-as"] or "", ""]

    def handle_data(self, data: str) -> None:
        if self._now:
            self._now[2] += data

    def handle_endtag(self, tag: str) -> None:
        if self._now and tag == "span":
            self.figures.append((self._now[0], self._now[1], self._now[2]))
            self._now = None

    def check(self, tree: dict[str, Any]) -> None:
        for path, spec, text in self.figures:
            assert text == format(Figures(tree).at(path), spec), path
        assert {"script", "link", "iframe"}.isdisjoint(self.tags)
        assert all(
            link.startswith(("data:audio/flac;base64,", "data:image/png;base64,")) for link in self.links
        )


# --- reading -----------------------------------------------------------------------------------------------------


def test_a_report_is_read_back_whole(data: Dataset, tmp_path: Path) -> None:
    for failed in (0, 3):
        report = made(data, other, failed=failed)
        report.write(tmp_path / "r.json")
        back = read(tmp_path / "r.json")
        assert back.to_dict() == report.to_dict()
        back.write(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_bytes() == (tmp_path / "r.json").read_bytes()


def test_an_older_report_gets_the_figures_that_follow_from_its_rows(tmp_path: Path) -> None:
    old, path = json.loads(PUBLISHED.read_text("utf-8")), tmp_path / "old.json"
    for name in ("calibration", "coverage", "by_group"):  # as reports of version 0.1.0 began
        old["figures"].pop(name, None)
    for name in ("temperature", "split", "numpy", "command"):
        old.pop(name, None)
    path.write_text(json.dumps(old), "utf-8")
    report = read(path)
    assert b"does not say the temperature" in report_page.page(report)
    assert {name: report.figures[name] for name in old["figures"]} == old["figures"]
    groups = {row["name"]: row for row in report.figures["by_group"]}
    assert sum(row["clips"] for row in groups.values()) == 400
    names = ["dog", "rooster", "pig", "cow", "frog", "cat", "hen", "insects", "sheep", "crow"]
    right = sum(row["rank"] == 0 for row in old["clips"] if row["label"] in names)
    assert groups["animals"]["accuracy"] == right / 80
    assert report.figures["coverage"][-1]["accuracy"] == report.figures["accuracy"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t["figures"].update(accuracy=0.99), "says accuracy 0.99"),
        (lambda t: t["figures"].update(macro_f1=1.0), "says macro_f1"),
        (lambda t: t["figures"]["confusion"][0].__setitem__(0, 99), "says confusion"),
        (lambda t: t["figures"]["per_class"][0].update(recall=1.0), "says per_class"),
        (lambda t: t["figures"]["per_class"][0].update(clips=10**12), "counts other clips"),
        (lambda t: t["clips"].pop(), "counts other clips"),
        (lambda t: t["clips"].append(t["clips"][0]), "twice"),
        (lambda t: t["clips"][0].update(label="violin"), "labels that it does not have"),
        (lambda t: t["figures"].pop("labels"), "labels"),
        (lambda t: t.update(stamps="none"), "stamps"),
        (lambda t: t.pop("model_digest"), "model_digest"),
    ],
)
def test_a_report_whose_figures_do_not_follow_is_refused(
    file: Path, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    tree = json.loads(file.read_text("utf-8"))
    change(tree)
    file.write_text(json.dumps(tree), "utf-8")
    with pytest.raises(DatasetError, match=said) as caught:
        read(file)
    assert caught.value.code == "bad_report"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'{"a":' * 100_000, b"null", b"{}"])
def test_what_is_no_report_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    for wrong in (path, tmp_path / "gone.json", tmp_path):
        with pytest.raises(DatasetError) as caught:
            read(wrong)
        assert caught.value.code == "bad_report"


# --- published ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["docs/results/r.json", "docs/results/2026/r.json", "linked/r.json"])
def test_a_stamped_report_is_not_published(data: Dataset, tmp_path: Path, below: str) -> None:
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "docs" / "results")
    path = tmp_path / below
    with pytest.raises(DatasetError, match="TRAINED ON") as caught:
        made(data, other, stamps=("TRAINED ON fold 1: not a test figure",)).write(path)
    assert caught.value.code == "stamped"
    assert not path.exists()
    made(data, other).write(path)
    refuse_stamped(["LEAKY"], tmp_path / "docs" / "r.json")
    refuse_stamped(["LEAKY"], tmp_path / "docs" / "other" / "results" / "r.json")


def test_a_stamped_report_gives_no_published_page(
    call: Callable[..., tuple[object, str, str]], data: Dataset, tmp_path: Path
) -> None:
    path, html = tmp_path / "r.json", tmp_path / "docs" / "results" / "r.html"
    made(data, other, stamps=("LEAKY: 1 source",)).write(path)
    for args in (("report", path), ("compare", path, path)):
        status, _, err = call(*args, "--html", html)
        assert status == 2
        assert err.startswith("soundmark: stamped: ")
        assert not html.exists()
    status, out, _ = call("report", path, "--html", tmp_path / "r.html")
    assert (status, "LEAKY" in out) == (0, True)
    assert b"LEAKY: 1 source" in (tmp_path / "r.html").read_bytes()


def test_evaluate_refuses_before_it_scores(
    call: Callable[..., tuple[object, str, str]],
    data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from soundmark import classifier, evaluate

    model = SimpleNamespace(
        name="told",
        manifest=SimpleNamespace(provenance={"training": {"train_folds": [1], "data": data.name}}),
    )
    monkeypatch.setattr(classifier.Classifier, "load", lambda name, **options: model)
    monkeypatch.setattr(evaluate, "evaluate", lambda *a, **k: pytest.fail("it was scored"))
    monkeypatch.chdir(tmp_path)
    out = Path("docs", "results", "r.json")
    monkeypatch.setattr("soundmark.sources.open_dataset", lambda *a, **k: data)
    status, _, err = call("evaluate", "--data", data.root, "--folds", "1,2", "--out", out)
    assert (status, err.startswith("soundmark: stamped: "), "fold 1" in err) == (2, True, True)
    with pytest.raises(Failed, match="it was scored"):
        cli.main(["evaluate", "--data", str(data.root), "--folds", "2", "--out", str(out)])


# --- the page ----------------------------------------------------------------------------------------------------


def test_every_figure_of_the_page_is_in_its_json(
    call: Callable[..., tuple[object, str, str]], data: Dataset, file: Path, tmp_path: Path
) -> None:
    html = tmp_path / "out" / "page.html"
    status, out, _ = call("report", file, "--html", html, "--data", data.root, "--processes", 1)
    assert (status, max(map(len, out.splitlines()[:-1])) <= 80) == (0, True)
    tree = json.loads(html.with_suffix(".json").read_text("utf-8"))
    shown = Shown(html.read_bytes())
    shown.check(tree)
    paths = {path for path, _, _ in shown.figures}
    assert {
        "figures.accuracy",
        "figures.accuracy_interval_95.0",
        "figures.top3",
        "figures.macro_f1",
        "figures.calibration.ece",
        "figures.per_fold.1",
        "figures.per_class.1.f1",
        "figures.confusion.0.1",
        "figures.coverage.10.accuracy",
        "figures.by_group.0.accuracy",
        "figures.by_loudness.3.accuracy",
        "figures.by_silence.0.accuracy",
        "model_digest",
        "data_digest",
        "command",
        "page_command",
        "temperature",
    } <= paths
    assert tree["page_command"] == "soundmark report told.json --html page.html --data " + (
        f"{data.root.name} --processes 1"
    )
    assert tree["measured"]["same_files"] is True
    assert sum(row["clips"] for row in tree["figures"]["by_silence"]) == 8
    assert tree["figures"]["by_silence"][0]["clips"] == 3
    n_wrong = sum(row["rank"] > 0 for row in tree["clips"])
    assert (
        html.read_bytes().count(b"<audio") == html.read_bytes().count(b'<img class="picture"') == n_wrong == 3
    )
    assert read(html.with_suffix(".json")).figures == tree["figures"]  # it is a report itself
    assert "default-src 'none'" in html.read_text("utf-8")


def test_mistakes_are_the_most_confident_first(data: Dataset) -> None:
    rows = made(data, other).to_dict()["clips"]
    assert report_page.mistakes(rows) == [6, 3, 0]
    assert report_page.mistakes(rows, 1) == [6]


def test_names_are_escaped_and_the_page_is_repeatable(data: Dataset) -> None:
    report = made(data, other, failed=2)
    report.provenance["model"] = HOSTILE
    report.provenance["training"]["preset"] = HOSTILE
    page = report_page.page(report)
    assert page == report_page.page(report)
    assert b"<script" not in page
    assert b"&lt;script&gt;" in page
    Shown(page).check(report.to_dict())
    assert b"corrupt_audio" in page


def test_a_report_without_any_answer_has_a_page(data: Dataset, tmp_path: Path) -> None:
    report = made(data, other, failed=8)
    report.write(tmp_path / "r.json")
    again = report_files.measured(read(tmp_path / "r.json"), data)
    assert again.figures["by_silence"][-1]["clips"] == 8
    assert again.provenance["measured"]["same_files"] is None
    Shown(report_page.page(again)).check(again.to_dict())
    assert comparison.compare(["a", "b"], [again, made(data, other)])["reports"][1]["difference"] == 0.625


def test_other_data_is_refused(data: Dataset, file: Path) -> None:
    report = read(file)
    fewer = Dataset("garden", data.root, data.labels, data.clips[1:])
    with pytest.raises(DatasetError, match="garden has no clip") as caught:
        report_files.measured(report, fewer)
    assert caught.value.code == "other_clips"


def test_changed_files_are_told(data: Dataset, file: Path) -> None:
    report = read(file)
    report.provenance["data_digest"] = "1" * 64
    again = report_files.measured(report, data, processes=1)
    assert again.provenance["measured"]["same_files"] is False
    assert b"not byte for byte" in report_page.page(again)


def test_usage(call: Callable[..., tuple[object, str, str]], file: Path) -> None:
    assert call("report", file, "--html", file)[0] == 2
    assert call("report", file)[0] == 2
    assert call("compare", file)[0] == 2
    assert call("report", file.with_name("gone.json"), "--html", "x.html")[2].startswith(
        "soundmark: bad_report:"
    )


def run_chromium(page: Path, folder: Path, *more: str) -> tuple[str, list[str]]:
    """Return the document after loading, offline, and what the console said."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder}", *more, "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_page_opens_offline_without_console_errors(
    call: Callable[..., tuple[object, str, str]], data: Dataset, file: Path, tmp_path: Path
) -> None:
    html = tmp_path / "page.html"
    call("report", file, "--html", html, "--data", data.root, "--processes", 1)
    document, said = run_chromium(html, tmp_path / "profile")
    assert said == []
    shown = Shown(document.encode())
    shown.check(json.loads(html.with_suffix(".json").read_text("utf-8")))
    assert len(shown.figures) > 80
    bad = tmp_path / "bad.html"
    bad.write_text(html.read_text("utf-8").replace("</body>", '<img src="https://example.org/x.png"></body>'))
    assert run_chromium(bad, tmp_path / "profile")[1]  # a request would have been seen


@pytest.mark.data
def test_the_published_report_with_its_recordings(
    call: Callable[..., tuple[object, str, str]], tmp_path: Path
) -> None:
    import os

    root = os.environ.get("SOUNDMARK_ESC50")
    if not root:
        pytest.skip("SOUNDMARK_ESC50 is not set")
    html = tmp_path / "page.html"
    assert call("report", PUBLISHED, "--html", html, "--data", root, "--processes", 1)[0] == 0
    tree = json.loads(html.with_suffix(".json").read_text("utf-8"))
    Shown(html.read_bytes()).check(tree)
    assert tree["measured"]["same_files"] is True
    assert html.read_bytes().count(b"<audio") == report_page.MISTAKES
    assert sum(row["clips"] for row in tree["figures"]["by_loudness"]) == 400


# --- compare -----------------------------------------------------------------------------------------------------


def test_compare_by_hand(data: Dataset) -> None:
    one, two = made(data, other), made(data, lambda i, clip: clip.label)
    tree = comparison.compare(["one", "two"], [one, two])
    assert tree["same_clips"]
    first, second = tree["reports"]
    assert first["difference"] is None
    assert second["difference"] == pytest.approx(3 / 8)
    low, high = second["difference_interval_95"]
    assert 0 <= low < 3 / 8 < high <= 1
    assert (second["training_seconds"], second["ms_per_clip"]) == (90, 100.0)
    assert {row["label"]: row["recall"] for row in tree["recall"]} == {
        "dog": [0.75, 1.0],
        "rain": [0.5, 1.0],
    }
    assert comparison.compare(["a", "b"], [one, made(data, other)])["reports"][1][
        "difference_interval_95"
    ] == [
        0.0,
        0.0,
    ]
    lost = comparison.compare(["a", "b"], [two, made(data, lambda i, clip: clip.label, failed=4)])["reports"][
        1
    ]
    assert lost["difference"] == -0.5
    assert lost["difference_interval_95"][0] < -0.5 < lost["difference_interval_95"][1]


def test_compare_of_other_clips_has_no_difference(data: Dataset, call: Any, tmp_path: Path) -> None:
    half = Dataset("ESC-50", data.root, data.labels, data.clips[:4])
    made(data, other).write(tmp_path / "a" / "r.json")
    made(half, other).write(tmp_path / "b" / "r.json")
    status, out, _ = call("compare", tmp_path / "a" / "r.json", tmp_path / "b" / "r.json")
    assert status == 0
    assert "not about the same clips" in out
    status, out, _ = call("compare", "--json", tmp_path / "a" / "r.json", tmp_path / "b" / "r.json")
    assert [row["difference"] for row in json.loads(out)["reports"]] == [None, None]


def test_compare_prints_a_table_and_writes_the_page(
    call: Any, data: Dataset, file: Path, tmp_path: Path
) -> None:
    perfect, html = tmp_path / "perfect.json", tmp_path / "c.html"
    made(data, lambda i, clip: clip.label).write(perfect)
    status, out, _ = call("compare", file, perfect, "--html", html)
    assert status == 0
    assert max(map(len, out.splitlines()[:-1])) <= 80
    assert re.search(r"^told +62\.50%", out, re.MULTILINE)
    assert re.search(r"^perfect +100\.00%", out, re.MULTILINE)
    assert re.search(r"^perfect .*\+37\.50 \(", out, re.MULTILINE)
    tree = json.loads(html.with_suffix(".json").read_text("utf-8"))
    shown = Shown(html.read_bytes())
    shown.check(tree)
    assert {"reports.1.difference", "reports.0.worst_pairs.0.clips", "recall.1.recall.0"} <= {
        path for path, _, _ in shown.figures
    }
