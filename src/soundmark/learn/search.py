"""Where tuning looks: the search space of a preset, and the preset that a point of it stands for.

A preset's ``[tune]`` section adds to `DEFAULTS` and replaces entries of it; an entry with neither range nor choices
leaves its field alone. Which kind of number is drawn follows from the field, not from how the range is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from soundmark.checked import Search, from_dict, to_dict
from soundmark.errors import ConfigError
from soundmark.preset import Preset

if TYPE_CHECKING:
    from optuna.trial import Trial

DEFAULTS: dict[str, Search] = {
    "train.optimizer": Search(choices=("adam", "rmsprop", "sgd", "adamw")),
    "train.lr": Search(low=1e-5, high=1e-1, log=True),
    "train.batch_size": Search(choices=(8, 16, 32, 64, 128)),
    "train.weight_decay": Search(low=1e-6, high=1e-1, log=True),
    "train.label_smoothing": Search(low=0.0, high=0.2),
    "network.dropout": Search(low=0.0, high=0.6),
    "augment.mix_probability": Search(low=0.0, high=1.0),
    "augment.gain_db": Search(low=0.0, high=12.0),
    "augment.time_masks": Search(low=0, high=4),
    "augment.freq_masks": Search(low=0, high=4),
    "augment.tilt_db": Search(low=0.0, high=6.0),
    "augment.stretch": Search(low=1.0, high=1.3),
    "augment.shift_bands": Search(low=0, high=4),
}
"""What is searched for every preset; widths and architectures belong to a preset's own ``[tune]``."""

FOR_SPECTRA = frozenset({"augment.freq_masks", "augment.tilt_db", "augment.stretch", "augment.shift_bands"})
"""Entries of `DEFAULTS` that mean nothing for a wave."""


def search_space(preset: Preset) -> dict[str, Search]:
    """Return field path -> where to look, sorted by path.

    Raises:
        ConfigError: a value in it is not one of its field, or nothing is left to search.
    """
    wave = preset.frontend.kind == "wave"
    space = {path: search for path, search in DEFAULTS.items() if not (wave and path in FOR_SPECTRA)}
    space.update(preset.tune)
    space = {path: one for path, one in sorted(space.items()) if one.choices or one.low is not None}
    if not space:
        raise ConfigError(f"{preset.name} has nothing to tune", wanted="a range or choices in [tune]")
    for path, search in preset.tune.items():
        for value in search.choices or (search.low, search.high):
            if value is not None and "." in path:
                section, _, key = path.partition(".")
                kind = type(getattr(preset, section))
                from_dict({key: _plain(preset, path, value)}, kind, where=f"`tune.{path}`")
    return space


def drawn(preset: Preset, trial: Trial) -> dict[str, Any]:
    """Return field path -> value for ``trial``: those it has already, or new ones from its study's sampler."""
    values: dict[str, Any] = {}
    for path, search in search_space(preset).items():
        if search.choices:
            known = {_text(choice): choice for choice in search.choices}
            values[path] = known[trial.suggest_categorical(path, list(known))]
        elif search.low is not None and search.high is not None:
            if isinstance(_current(preset, path), int):
                values[path] = trial.suggest_int(path, round(search.low), round(search.high), log=search.log)
            else:
                values[path] = trial.suggest_float(
                    path, float(search.low), float(search.high), log=search.log
                )
    return values


def as_it_is(preset: Preset) -> dict[str, Any]:
    """Return the preset's own values, as a study knows them: those that are in its search space."""
    values: dict[str, Any] = {}
    for path, search in search_space(preset).items():
        own = _current(preset, path)
        if search.choices and any(own == choice for choice in search.choices):
            values[path] = _text(own)
        elif isinstance(own, int | float) and search.low is not None and search.high is not None:
            values |= {path: own} if search.low <= own <= search.high else {}
    return values


def with_values(preset: Preset, values: Mapping[str, Any]) -> Preset:
    """Return ``preset`` with ``values`` (field path -> value) in it.

    Raises:
        ConfigError: they do not go together.
    """
    tree = to_dict(preset)
    for path, value in values.items():
        section, _, key = path.partition(".")
        tree[section][key] = value
    return from_dict(tree, Preset, where="trial")


def _text(choice: Any) -> Any:
    """Return a choice as Optuna keeps it: a list as JSON."""
    return json.dumps(choice) if isinstance(choice, tuple | list) else choice


def _current(preset: Preset, path: str) -> Any:
    section, _, key = path.partition(".")
    return getattr(getattr(preset, section), key)


def _plain(preset: Preset, path: str, value: Any) -> Any:
    """Return a value as the field's kind of number."""
    whole = isinstance(value, float) and isinstance(_current(preset, path), int) and value.is_integer()
    return int(value) if whole else value
