"""Checked values from plain data: what every config type is made of, and the ways in and out of it.

Unknown keys, wrong types, impossible values and numbers that are not finite are refused by name. The types themselves,
with all defaults, are in `soundmark.config`, which hands these names on.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar, get_type_hints

import msgspec
import tomli_w

from soundmark.errors import ConfigError

Positive = Annotated[int, msgspec.Meta(gt=0, le=2**63 - 1)]
NonNegative = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
NonNegativeFloat = Annotated[float, msgspec.Meta(ge=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]


def numbers(values: Any) -> tuple[Any, ...]:
    """Return the values of one field as a tuple."""
    if isinstance(values, dict):
        return tuple(values.values())
    return values if isinstance(values, tuple) else (values,)


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all config types: frozen, keyword-only, unknown keys refused, every number finite."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            values = getattr(self, name)
            for value in numbers(values):
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(f"`{name}` is {value}, a finite number is wanted")
        self.check()

    def check(self) -> None:
        """Raise `ValueError` naming every key of an impossible combination."""


Choice = bool | int | float | str | tuple[int | float | str, ...]


class Search(Config, frozen=True, kw_only=True):
    """Where `soundmark tune` may look for the value of one preset field: between two ends, or among choices."""

    low: int | float | None = None  # smallest value
    high: int | float | None = None  # largest value
    log: bool = False  # equally often in every decade
    choices: tuple[Choice, ...] = ()  # instead of low and high; with none of them the field stays as it is

    def check(self) -> None:
        """Refuse a range that is not one."""
        if (self.low is None) != (self.high is None) or (self.low is not None and self.choices):
            raise ValueError("`low` and `high` are wanted, or `choices` alone")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"`low` {self.low:g} is above `high` {self.high:g}")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError("`log` needs a `low` above 0")
        if len({repr(choice) for choice in self.choices}) != len(self.choices):
            raise ValueError("`choices` holds one value twice")


C = TypeVar("C", bound=Config)


def overridden(config: C, overrides: Iterable[str], *, where: str = "command line") -> C:
    """Return ``config`` with ``key=value`` overrides on top; errors are those of `from_dict`."""
    tree = to_dict(config)
    for override in overrides:
        apply_override(tree, override)
    return from_dict(tree, type(config), where=where)


def from_dict(tree: Mapping[str, Any], kind: type[C], *, where: str = "config", text: bool = False) -> C:
    """Return ``tree`` as a checked config of type ``kind``; `ConfigError` names the key and the nearest known one.

    With ``text``, numbers may be written as text, as on a command line.
    """
    _refuse_unknown(tree, kind, where, "")
    try:
        return msgspec.convert(tree, kind, strict=not text)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        message = str(error).replace(" - at `$.", " at `").replace(" - at `$`", "")
        raise ConfigError(f"{where}: {message}", wanted=f"a valid {kind.__name__}") from None


def from_options(options: Mapping[str, str | None], kind: type[C]) -> C:
    """Return a config from options of the command line, None for one that was not given; errors as `from_dict`."""
    tree: dict[str, Any] = {}
    for key, value in options.items():
        if value is not None:
            apply_override(tree, f"{key}={value}")
    return from_dict(tree, kind, where="command line")


def to_dict(config: Config) -> dict[str, Any]:
    """Return the config as plain data, without keys that are ``None`` (TOML has no null)."""
    return _drop_none(msgspec.to_builtins(config))  # type: ignore[no-any-return]


def to_toml(config: Config) -> str:
    """Return the whole config as TOML: what ``--print-config`` shows and every output has beside it."""
    return tomli_w.dumps(to_dict(config))


def fields(kind: type[Config]) -> dict[str, Any]:
    """Return field name -> type hint of a config type, for command line options and documentation."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: hints[name] for name in kind.__struct_fields__}


def describe(kind: type[Config]) -> dict[str, str]:
    """Return field name -> the comment behind it in its file, for command line help and documentation."""
    pattern = re.compile(r"^    (\w+): .*?  # (.+)$", re.MULTILINE)
    return dict(pattern.findall(inspect.getsource(kind)))


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set the value that ``section.key=value`` names in ``tree``; `ConfigError` if it is not of that form."""
    key, sign, value = override.partition("=")
    path = key.strip().split(".")
    if not sign or not all(path):
        raise ConfigError(f"override {override!r}", wanted="section.key=value, for example train.epochs=20")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"] if "\n" not in value else value
    except (ValueError, RecursionError):
        parsed = value.strip()
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override {override!r}: {part!r} is not a section", wanted="section.key=value")
    tree[path[-1]] = parsed


def _refuse_unknown(tree: Mapping[str, Any], kind: type[Config], where: str, prefix: str) -> None:
    known = fields(kind)
    for key, value in tree.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ConfigError(
                f"{where}: unknown key `{prefix}{key}`",
                wanted=f"one of: {', '.join(known)}",
                cause=f"did you mean `{prefix}{near[0]}`?" if near else "",
                code="unknown_key",
            )
        hint = known[key]
        if isinstance(hint, type) and issubclass(hint, Config) and isinstance(value, Mapping):
            _refuse_unknown(value, hint, where, f"{prefix}{key}.")


def _drop_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _drop_none(v) for k, v in value.items() if v is not None}
    return value
