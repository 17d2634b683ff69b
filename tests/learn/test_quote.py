"""quote: the card of a bundle that learnt from all clips says what the folds of the same recipe scored, or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

import synthetic
from soundmark import bundle
from soundmark.classifier import Classifier
from soundmark.dataset import Dataset
from soundmark.errors import ConfigError, DatasetError
from soundmark.evaluate import evaluate
from soundmark.learn import export as module
from soundmark.learn.quote import quote
from soundmark.learn.run_folder import Run
from soundmark.learn.train import train

pytestmark = pytest.mark.train


@pytest.fixture
def whole(dataset: Dataset, tmp_path: Path) -> Run:
    """Return a run that has learnt from all clips."""
    return train(synthetic.tiny_preset(epochs=1), dataset, test_fold=None, out=tmp_path / "whole")


@pytest.fixture
def report(int8_bundle: Path, dataset: Dataset, whole: Run, tmp_path: Path) -> Callable[..., Path]:
    """Return what writes a report that looks like one over all folds of the same recipe."""
    tree = evaluate(Classifier.load(int8_bundle), dataset, folds=[5]).to_dict()
    training = {"preset": whole.preset.name, "network": whole.preset.network.kind, "epochs": 1}
    tree |= {"training": training, "data_digest": whole.info["data_digest"], "members": [{"fold": 5}]}

    def write(**changes: Any) -> Path:
        made = {key: value for key, value in {**tree, **changes}.items() if value is not None}
        (tmp_path / "report.json").write_text(json.dumps(made))
        return tmp_path / "report.json"

    return write


def test_the_card_quotes_the_figure_of_the_folds(
    call: Callable[..., tuple[object, str, str]],
    report: Callable[..., Path],
    whole: Run,
    fp32_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = (fp32_bundle / "model.onnx").read_bytes()
    monkeypatch.setattr(module, "to_onnx", lambda network, shape, path: path.write_bytes(model))
    monkeypatch.setattr(module, "MAX_TORCH_ONNX_DIFFERENCE", 1.0)
    path = report()
    out = tmp_path / "bundle"
    status, _, err = call("export", whole.path, "--out", out, "--quantize", "false", "--quote", path)
    assert status == 0, err
    tree = json.loads(path.read_text())
    said = bundle.read(out).manifest.provenance["folds"]
    assert said["accuracy"] == tree["figures"]["accuracy"]
    assert (said["n_clips"], said["model_digest"], said["report"]) == (
        20,
        tree["model_digest"],
        "report.json",
    )
    card = (out / "README.md").read_text()
    assert f"**{tree['figures']['accuracy']:.2%}** of 20 clips" in card
    assert "has learnt from all of them" in card
    assert "fold kept aside | none" in card

    status, _, err = call("export", whole.path, "--out", tmp_path / "b", "--quote", tmp_path / "none.json")
    assert (status, "cannot be read" in err, (tmp_path / "b").exists()) == (2, True, False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"members": None}, "about one bundle"),
        ({"data_digest": "0" * 64}, "its clips are others"),
        ({"stamps": ["LEAKY split"]}, "stamped LEAKY split"),
        ({"training": {"preset": "other"}}, "preset is other, not"),
    ],
)
def test_a_report_of_something_else_is_not_quoted(
    report: Callable[..., Path], whole: Run, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        quote(report(**changes), whole)


def test_a_run_that_keeps_a_fold_aside_has_its_own_figure(report: Callable[..., Path], run: Run) -> None:
    with pytest.raises(ConfigError, match="keeps fold 5 aside"):
        quote(report(), run)
    with pytest.raises(DatasetError, match="is not a report"):
        quote(run.path / "run.json", run)
