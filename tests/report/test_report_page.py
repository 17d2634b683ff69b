"""report pages: every figure is in the JSON, nothing is loaded, names are escaped, Chromium has nothing to say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from told import HOSTILE, PUBLISHED, Shown, made, other

from soundmark import comparison, report_files, report_page
from soundmark.dataset import Dataset
from soundmark.errors import DatasetError
from soundmark.report_files import read

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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
