"""run_folder: whose a folder is, also after Soundmark has learnt new fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

import synthetic  # noqa: E402
from soundmark.config import to_dict  # noqa: E402
from soundmark.errors import TrainingError  # noqa: E402
from soundmark.learn.run_folder import settle  # noqa: E402

pytestmark = pytest.mark.train


def without(tree: dict[str, Any], section: str, field: str) -> dict[str, Any]:
    preset = dict(tree["preset"])
    preset[section] = {key: value for key, value in preset[section].items() if key != field}
    return {**tree, "preset": preset}


def test_a_folder_from_before_a_field_is_the_same_one(tmp_path: Path) -> None:
    info: dict[str, Any] = {"data": "ESC-50", "preset": to_dict(synthetic.tiny_preset())}
    path, old = tmp_path / "cv.json", without(info, "augment", "style_probability")
    info["members"] = [[info["preset"]]]
    path.write_text(json.dumps({**old, "members": [[old["preset"]]]}))
    before = path.read_bytes()
    settle(path, info)
    assert path.read_bytes() == before
    with pytest.raises(TrainingError, match=r"preset\.train\.epochs was 24, now 3") as caught:
        settle(path, {**info, "preset": to_dict(synthetic.tiny_preset(epochs=3))})
    assert caught.value.code == "other_run"


@pytest.mark.parametrize("theirs", [{"preset": {"future": 1}}, {"preset": 3}, {}, []])
def test_what_is_not_understood_is_another_one(tmp_path: Path, theirs: object) -> None:
    path = tmp_path / "cv.json"
    path.write_text(json.dumps(theirs))
    with pytest.raises(TrainingError):
        settle(path, {"data": "ESC-50", "preset": to_dict(synthetic.tiny_preset())})


def test_teachers_of_later_folds_are_written_beside_those_that_are_there(tmp_path: Path) -> None:
    path, info = tmp_path / "cv.json", {"data": "ESC-50", "n_teachers": 1}

    def settled(**teachers: list[str]) -> dict[str, Any]:
        settle(path, {**info, "teachers": teachers}, growing="teachers")
        found: dict[str, Any] = json.loads(path.read_bytes())["teachers"]
        return found

    assert settled(fold1=["a"]) == {"fold1": ["a"]}
    assert settled(fold2=["b"]) == {"fold1": ["a"], "fold2": ["b"]}
    before = path.read_bytes()
    assert settled(fold2=["b"]) == settled()
    with pytest.raises(TrainingError, match=r"teachers\.fold1 was \['a'\], now \['c'\]"):
        settled(fold1=["c"], fold3=["d"])
    with pytest.raises(TrainingError, match="something else: n_teachers was 1, now None; wanted"):
        settle(path, {"data": "ESC-50"}, growing="teachers")
    assert path.read_bytes() == before
