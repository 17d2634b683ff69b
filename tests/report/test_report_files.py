"""report files: read back whole, completed, refused where they contradict themselves, and no stamped one published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _pytest.outcomes import Failed
from told import PUBLISHED, made, other

from soundmark import cli, report_page
from soundmark.dataset import Dataset
from soundmark.errors import DatasetError
from soundmark.evaluate import refuse_stamped
from soundmark.report_files import read


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
    from soundmark import ensemble, evaluate

    training = {"train_folds": [1], "data": data.name}
    model = SimpleNamespace(name="told", training=training, trainings=(training,))
    monkeypatch.setattr(ensemble, "load_model", lambda name, **options: model)
    monkeypatch.setattr(evaluate, "evaluate", lambda *a, **k: pytest.fail("it was scored"))
    monkeypatch.chdir(tmp_path)
    out = Path("docs", "results", "r.json")
    monkeypatch.setattr("soundmark.sources.open_dataset", lambda *a, **k: data)
    status, _, err = call("evaluate", "--data", data.root, "--folds", "1,2", "--out", out)
    assert (status, err.startswith("soundmark: stamped: "), "fold 1" in err) == (2, True, True)
    with pytest.raises(Failed, match="it was scored"):
        cli.main(["evaluate", "--data", str(data.root), "--folds", "2", "--out", str(out)])
