"""Configuration: every impossible value is refused by name, every default is valid and has a comment."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soundmark import checked
from soundmark import config as module
from soundmark.config import (
    AudioLimits,
    Config,
    DecisionConfig,
    FrontendConfig,
    TrainConfig,
    WindowConfig,
    fields,
    from_dict,
    to_dict,
    to_toml,
)
from soundmark.errors import EXIT_USAGE, ConfigError
from soundmark.preset import Preset, load_preset, preset_names

TYPES = [
    t for t in vars(module).values() if isinstance(t, type) and issubclass(t, Config) and t is not Config
]


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "preset.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# --- refused by name ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tree", "names"),
    [
        (FrontendConfig, {"n_fft": 1023}, ["n_fft"]),
        (FrontendConfig, {"win_length": 4097}, ["win_length", "n_fft"]),
        (FrontendConfig, {"hop_length": 1025}, ["hop_length", "n_fft"]),
        (FrontendConfig, {"win_length": 400, "hop_length": 401}, ["hop_length", "win_length"]),
        (FrontendConfig, {"fmax": 22_051.0}, ["fmax", "sample_rate"]),
        (FrontendConfig, {"fmin": 22_050.0}, ["fmin", "fmax"]),
        (FrontendConfig, {"fmin": 300.0, "fmax": 300.0}, ["fmin", "fmax"]),
        (FrontendConfig, {"n_mels": 514}, ["n_mels", "n_fft"]),
        (FrontendConfig, {"kind": "mfcc", "n_mfcc": 65}, ["n_mfcc", "n_mels"]),
        (FrontendConfig, {"kind": "mfcc", "scale": "linear"}, ["kind", "scale"]),
        (FrontendConfig, {"scale": "db", "offset": 0.0}, ["scale", "offset"]),
        (FrontendConfig, {"scale": "ln", "offset": 0.0}, ["scale", "offset"]),
        (FrontendConfig, {"offset": 1e-50}, ["offset", "float32"]),
        (FrontendConfig, {"gain": 1e31}, ["gain", "float32"]),
        (FrontendConfig, {"std": 1e-31}, ["std", "float32"]),
        (FrontendConfig, {"mean": [0.0] * 63 + [1e60]}, ["mean", "float32"]),
        (FrontendConfig, {"mean": [0.0, 1.0]}, ["mean", "64 rows"]),
        (FrontendConfig, {"kind": "spectrogram", "std": [1.0] * 512}, ["std", "513 rows"]),
        (FrontendConfig, {"kind": "wave", "std": [1.0, 1.0]}, ["std", "1 rows"]),
        (FrontendConfig, {"std": 0.0}, ["std"]),
        (FrontendConfig, {"std": [1.0] * 63 + [-1.0]}, ["std"]),
        (FrontendConfig, {"mean": [], "n_mels": 1}, ["mean"]),
        (FrontendConfig, {"std": []}, ["std"]),
        (FrontendConfig, {"n_fft": 65_536}, ["n_fft"]),
        (FrontendConfig, {"sample_rate": 768_001}, ["sample_rate"]),
        (FrontendConfig, {"kind": "melspec"}, ["kind"]),
        (FrontendConfig, {"power": 3}, ["power"]),
        (FrontendConfig, {"window": "blackman"}, ["window"]),
        (WindowConfig, {"window_s": 1.0, "hop_s": 1.5}, ["hop_s", "window_s"]),
        (WindowConfig, {"window_s": 0.0}, ["window_s"]),
        (AudioLimits, {"min_sample_rate": 800_000}, ["min_sample_rate", "max_sample_rate"]),
        (AudioLimits, {"min_seconds": 600.0}, ["min_seconds", "max_seconds"]),
        (AudioLimits, {"max_bytes": 0}, ["max_bytes"]),
        (DecisionConfig, {"threshold": 1.01}, ["threshold"]),
        (DecisionConfig, {"unknown_score": "energy", "threshold": float("inf")}, ["threshold"]),
        (DecisionConfig, {"unknown_score": "energy", "label_thresholds": {"dog": float("nan")}}, ["label"]),
        (DecisionConfig, {"unknown_score": "distance"}, ["unknown_score"]),
        (DecisionConfig, {"temperature": 0.0}, ["temperature"]),
        (DecisionConfig, {"label_thresholds": {"dog": -0.1}}, ["label_thresholds"]),
        (DecisionConfig, {"label_thresholds": {"dog": float("nan")}}, ["label_thresholds"]),
        (TrainConfig, {"batch_size": 1}, ["batch_size"]),
        (TrainConfig, {"lr": 0.0}, ["lr"]),
        (TrainConfig, {"lr": 1e9}, ["lr"]),
        (TrainConfig, {"lr": -1e-3}, ["lr"]),
        (TrainConfig, {"ema": 1.0}, ["ema"]),
        (TrainConfig, {"label_smoothing": 1.0}, ["label_smoothing"]),
        (TrainConfig, {"warmup": 1.5}, ["warmup"]),
        (TrainConfig, {"optimizer": "lion"}, ["optimizer"]),
        (TrainConfig, {"seed": 2**63}, ["seed"]),
    ],
)  # fmt: skip
def test_impossible_values_are_refused_by_name(
    kind: type[Config], tree: dict[str, Any], names: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(tree, kind, where="here")
    message = str(caught.value)
    assert message.startswith("here: ")
    assert all(name in message for name in names), message
    assert caught.value.code == "bad_config"
    assert caught.value.exit_status == EXIT_USAGE


def test_the_edges_of_what_is_possible_are_accepted() -> None:
    for tree in (
        {"hop_length": 1024},
        {"win_length": 4096},
        {"fmax": 22_050.0},
        {"kind": "mfcc", "n_mfcc": 64},
        {"scale": "linear", "offset": 0.0},
        {"scale": "log10", "offset": 0.0},
        {"kind": "wave", "mean": [0.0]},
        {"mean": 0, "std": 1},
    ):
        from_dict(tree, FrontendConfig)


@pytest.mark.parametrize(
    "value", ["'10'", "true", "1.5", "[1]", "{}", "1979-05-27", "-1", "0", "nan", "inf", "1e309"]
)
@pytest.mark.parametrize(
    "key", ["train.epochs", "frontend.n_fft", "frontend.win_length", "export.calibration_clips"]
)
def test_not_a_whole_number_above_zero(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"`{key}`")):
        load_preset("edge-scratch", [f"{key}={value}"])


@pytest.mark.parametrize(
    "value", ["'0.5'", "true", "[]", "{}", "nan", "inf", "-inf", "-1.0", "12:00:00", "1e400"]
)
@pytest.mark.parametrize("key", ["train.lr", "frontend.offset", "augment.mix_alpha", "decision.threshold"])
def test_not_a_usable_fraction(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(key.split(".")[1])):
        load_preset("edge", [f"{key}={value}"])


@pytest.mark.parametrize("value", ["1", "0", "'true'", "1.0", "[true]"])
def test_not_a_truth_value(value: str) -> None:
    with pytest.raises(ConfigError, match=r"`frontend\.center`"):
        load_preset("edge", [f"frontend.center={value}"])


def test_every_float_field_refuses_what_is_not_finite() -> None:
    for kind in TYPES:
        for name, value in to_dict(kind()).items():
            if isinstance(value, float):
                for bad in (float("nan"), float("inf"), float("-inf")):
                    with pytest.raises(ConfigError, match=name):
                        from_dict({name: bad}, kind)
                    with pytest.raises(ValueError, match=name):
                        kind(**{name: bad})


def test_null_is_refused_where_a_number_is_due() -> None:
    with pytest.raises(ConfigError, match="`n_fft`"):
        from_dict({"n_fft": None}, FrontendConfig)
    assert from_dict({"fmax": None}, FrontendConfig).fmax is None


def test_a_section_must_be_a_table() -> None:
    for value in (3, "x", [], [{}], None, True):
        with pytest.raises(ConfigError, match="`train`"):
            from_dict({"train": value}, Preset)


# --- unknown keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "key", "meant"),
    [
        ({"trian": {}}, "trian", "train"),
        ({"train": {"epoch": 3}}, "train.epoch", "train.epochs"),
        ({"frontend": {"hop_lenght": 3}}, "frontend.hop_lenght", "frontend.hop_length"),
        ({"frontend": {"n_mel": 3}}, "frontend.n_mel", "frontend.n_mels"),
        ({"train": {"N_EPOCHS_zzz": 3}}, "train.N_EPOCHS_zzz", None),
    ],
)
def test_unknown_keys_are_refused_with_a_suggestion(
    tree: dict[str, Any], key: str, meant: str | None
) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(tree, Preset)
    assert f"unknown key `{key}`" in str(caught.value)
    assert (
        (f"did you mean `{meant}`?" in str(caught.value))
        if meant
        else ("did you mean" not in str(caught.value))
    )
    assert caught.value.code == "unknown_key"


def test_labels_are_free_keys() -> None:
    tree = {"decision": {"label_thresholds": {"any label": 0.4, "ünï": 1}}}
    assert from_dict(tree, Preset).decision.label_thresholds == {"any label": 0.4, "ünï": 1.0}


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "saw"),
    [
        ("[train]\nepochs = 1\nepochs = 2\n", "not TOML"),
        ("[train]\n[train]\n", "not TOML"),
        ("train.epochs = 1\n[train]\nlr = 0.1\n", "not TOML"),
        ("[train\n", "not TOML"),
        ("epochs: 3\n", "not TOML"),
        ("[train]\nepochs = 3\t\x00\n", "not TOML"),
        ("[train]\nepochs = " + "9" * 5000, "not TOML"),
        ("x = " + "[" * 20_000, "not TOML"),
        ("name = 'edge'\n".encode("utf-16"), "cannot be read"),
        (b"name = '\xff\xfe'\n", "cannot be read"),
        (b"\x00" * 4096, "not TOML"),
        ("", "empty"),
        ("# nothing but a comment\n", "empty"),
        ("# " + "x" * (2 << 20), "larger than 1 MiB"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value)[:20],
)
def test_files_that_are_no_preset(tmp_path: Path, content: str | bytes, saw: str) -> None:
    with pytest.raises(ConfigError, match=saw) as caught:
        load_preset(write(tmp_path, content))
    assert "preset.toml" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_byte_order_mark_is_no_harm(tmp_path: Path) -> None:
    assert load_preset(write(tmp_path, "\ufeffname = 'mine'\r\n")).name == "mine"


def test_no_such_preset() -> None:
    with pytest.raises(ConfigError, match=r"no preset 'egde'.*did you mean 'edge'"):
        load_preset("egde")
    with pytest.raises(ConfigError, match="no preset"):
        load_preset("a\x00b")


def test_a_folder_is_no_preset(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no preset"):
        load_preset(tmp_path)


# --- overrides ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.epochs=20", "train.epochs", 20),
        (" train.epochs = 20 ", "train.epochs", 20),
        ("train.lr=1e-4", "train.lr", 1e-4),
        ("train.lr=1", "train.lr", 1.0),
        ("export.quantize=false", "export.quantize", False),
        ("name=plain text", "name", "plain text"),
        ("name='quoted = x'", "name", "quoted = x"),
        ("summary=a=b", "summary", "a=b"),
        ("network.channels=[8, 16]", "network.channels", (8, 16)),
        ("frontend.mean=-3", "frontend.mean", -3.0),
        ("frontend.fmax=8000.0", "frontend.fmax", 8000.0),
        ("decision.label_thresholds.dog=0.4", "decision.label_thresholds", {"dog": 0.4}),
        ("decision.label_thresholds={dog = 0.4}", "decision.label_thresholds", {"dog": 0.4}),
    ],
)
def test_overrides(override: str, path: str, value: Any) -> None:
    found: Any = load_preset("edge", [override])
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_the_last_override_wins_and_the_preset_is_below() -> None:
    made = load_preset("edge", ["train.epochs=3", "train.epochs=4"])
    assert made.train.epochs == 4
    assert made.frontend == load_preset("edge").frontend


@pytest.mark.parametrize(
    "override",
    [
        "train.epochs", "=3", "train..epochs=3", ".=3", "", "train.=3", "train=3", "name.x=3", "train.epochs.x=3",
        "train.epochs=", "train.epochs=null", "train.epochs=3\nname='x'", "train.epoch=3",
        "train.epochs=" + "[" * 20_000, "train.epochs=" + "9" * 5000,
    ],
)  # fmt: skip
def test_overrides_that_are_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        load_preset("edge", [override])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=60))
def test_any_text_is_an_override_or_a_config_error(text: str) -> None:
    try:
        load_preset("edge", [text])
    except ConfigError:
        return


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([*fields(Preset), *fields(FrontendConfig), "x"]), inner, max_size=4
            )
        ),
        max_leaves=8,
    )
)
def test_any_tree_is_a_preset_or_a_config_error(tree: Any) -> None:
    try:
        made = from_dict(tree if isinstance(tree, dict) else {"frontend": tree}, Preset)
    except ConfigError:
        return
    assert from_dict(to_dict(made), Preset) == made


# --- defaults, presets, round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_defaults_are_valid(kind: type[Config]) -> None:
    assert from_dict({}, kind) == kind() == from_dict(to_dict(kind()), kind)


def test_a_preset_exists_and_is_named_after_its_file() -> None:
    assert "edge" in preset_names()
    assert preset_names() == sorted(preset_names())
    for name in preset_names():
        assert load_preset(name).name == name
        assert load_preset(name).summary


@pytest.mark.parametrize("name", preset_names())
def test_round_trip(name: str, tmp_path: Path) -> None:
    made = load_preset(name)
    text = to_toml(made)
    assert load_preset(write(tmp_path, text)) == made
    assert from_dict(tomllib.loads(text), Preset) == made
    assert to_toml(load_preset(write(tmp_path, text))) == text


def test_configs_are_frozen_keyword_only_and_compare_by_value() -> None:
    made = FrontendConfig()
    with pytest.raises(AttributeError):
        made.n_fft = 512  # type: ignore[misc]
    with pytest.raises(TypeError):
        FrontendConfig("mfcc")  # type: ignore[misc]
    assert made == FrontendConfig()
    assert made != msgspec.structs.replace(made, n_mels=32)


def test_defaults_are_not_shared() -> None:
    a, b = DecisionConfig(), DecisionConfig()
    a.label_thresholds["dog"] = 0.5
    assert b.label_thresholds == {}


def test_every_field_has_a_comment() -> None:
    """A section of `Preset` is explained by the docstring of its type instead."""
    lines, nodes = [], []
    for file in (module.__file__, checked.__file__):
        source = Path(file).read_text("utf-8")
        nodes += [(node, len(lines)) for node in ast.parse(source).body]
        lines += source.splitlines()
    kinds = {t.__name__ for t in TYPES}
    seen = 0
    for node, start in nodes:
        if not isinstance(node, ast.ClassDef) or node.name not in kinds:
            continue
        assert ast.get_docstring(node), node.name
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                seen += 1
                line = "\n".join(lines[start + item.lineno - 1 : start + item.end_lineno])
                assert ast.unparse(item.annotation) in kinds or re.search(r"  # \S.{3,}", line), line
    assert seen == sum(len(fields(kind)) for kind in TYPES)


def test_fields_of_a_preset_are_its_sections() -> None:
    assert fields(Preset)["frontend"] is FrontendConfig
    assert list(fields(WindowConfig)) == ["window_s", "hop_s"]
