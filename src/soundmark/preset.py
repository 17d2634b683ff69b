"""A preset: one whole configuration of a system, from a TOML file with overrides on top.

A preset has some of the sections of `soundmark.config`; what it leaves out has the default written there.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from soundmark.checked import Config, Search, apply_override, from_dict
from soundmark.config import (
    AugmentConfig,
    DecisionConfig,
    DistillConfig,
    EnsembleConfig,
    ExportConfig,
    FrontendConfig,
    NetworkConfig,
    TrainConfig,
    WaveConfig,
    WindowConfig,
)
from soundmark.errors import ConfigError

MAX_PRESET_BYTES = 1 << 20
"""A preset larger than this is refused before it is parsed."""


class Provenance(Config, frozen=True, kw_only=True):
    """Where a preset comes from; copied into the model card."""

    reimplements: str = ""  # paper or repository that the preset follows
    ambiguous: str = ""  # what the source left open
    different: str = ""  # what is done differently here, and why
    pretrained: str = ""  # pretrained weights it starts from or learns from, with their licence


class Preset(Config, frozen=True, kw_only=True):
    """A named, whole configuration of one system."""

    name: str = "edge"  # what outputs are called
    summary: str = ""  # one line for people
    labels: tuple[str, ...] = ()  # the labels of the data that it learns, empty for all
    frontend: FrontendConfig = FrontendConfig()
    window: WindowConfig = WindowConfig()
    decision: DecisionConfig = DecisionConfig()
    network: NetworkConfig = NetworkConfig()
    waves: WaveConfig = WaveConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    distill: DistillConfig = DistillConfig()
    export: ExportConfig = ExportConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    tune: dict[str, Search] = {}  # "section.field" -> where to look, beside `learn.search.DEFAULTS`
    provenance: Provenance = Provenance()

    def check(self) -> None:
        """Refuse what a wave has not (rows), what only a wave has, and a search for fields that are not there."""
        for section, _, field in (path.partition(".") for path in self.tune):
            if field not in getattr(getattr(self, section, None), "__struct_fields__", ()):
                raise ValueError(f"`tune` names the unknown field `{section}.{field}`")
        rows = {"tilt_db": 0.0, "shift_bands": 0, "stretch": 1.0, "freq_masks": 0, "style_probability": 0.0}
        odd = [name for name, off in rows.items() if getattr(self.augment, name) != off]
        if self.frontend.kind == "wave" and odd:
            raise ValueError(f"`augment.{odd[0]}` is for spectra; off for a wave: {rows[odd[0]]}")
        if self.frontend.kind != "wave" and self.augment.mix_loudness == "a-weighted":
            raise ValueError("`augment.mix_loudness` a-weighted needs `frontend.kind` wave")
        if self.frontend.scale == "linear" and self.augment.style_probability:
            raise ValueError("`augment.style_probability` needs a logarithmic `frontend.scale`")
        if self.waves.clip_s and self.waves.clip_s < self.window.window_s:
            raise ValueError("`waves.clip_s` is shorter than `window.window_s`")
        if not self.train.epochs and self.network.head != "cosine":
            raise ValueError(
                "`train.epochs` 0 needs `network.head` cosine: another head has nothing to begin with"
            )
        for section, again in {"train": self.train.refit_head, "export": self.export.refit_head}.items():
            if again and self.network.head != "cosine":
                raise ValueError(
                    f"`{section}.refit_head` needs `network.head` cosine: another is only learnt"
                )


def preset_names() -> list[str]:
    """Return the names of the presets that ship with the package, sorted."""
    files = resources.files("soundmark").joinpath("presets").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def load_preset(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Preset:
    """Return the preset of that name, or from that TOML file, with ``section.key=value`` overrides on top.

    Order: defaults in this file < preset < overrides.

    Raises:
        ConfigError: no such preset, not TOML, unknown key, wrong type, impossible value.
    """
    where = str(name_or_path)
    if where in preset_names():
        text = resources.files("soundmark").joinpath("presets", f"{where}.toml").read_text("utf-8")
    else:
        text = _read_text(Path(where).expanduser())
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of more than 4300 digits
        raise ConfigError(f"{where} is not TOML: {error}", wanted="a TOML preset") from None
    if not tree:
        raise ConfigError(f"{where} is empty", wanted="at least one key", cause="an interrupted write")
    for override in overrides:
        apply_override(tree, override)
    return from_dict(tree, Preset, where=where)


def _read_text(path: Path) -> str:
    try:
        if not path.is_file():
            near = difflib.get_close_matches(str(path), preset_names(), n=1)
            raise ConfigError(
                f"no preset {str(path)!r}",
                wanted=f"a TOML file or one of: {', '.join(preset_names())}",
                cause=f"did you mean {near[0]!r}?" if near else "",
            )
        if path.stat().st_size > MAX_PRESET_BYTES:
            raise ConfigError(f"{path} is larger than 1 MiB", wanted="a TOML preset")
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", wanted="a UTF-8 TOML preset") from None
