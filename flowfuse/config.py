"""Frozen dataclasses to and from plain dictionaries, JSON and YAML, strictly.

Every configuration of flowfuse is a frozen dataclass beside the thing that it configures. This
module is the one way by which values from outside (a recipe, a checkpoint, a command line) become
such a dataclass: an unknown key, a missing key or a value of the wrong type is an error that names
the key.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from flowfuse.io.atomic import atomic_path

Config = TypeVar("Config")
_UNITS = {"us": 1, "ms": 1_000, "s": 1_000_000}


class ConfigError(ValueError):
    """A configuration that does not fit: the message names the key, and what was expected."""


def config_to_dict(config: Any) -> dict[str, Any]:
    """Turn a configuration into plain dictionaries, lists, strings, numbers, booleans and None.

    Args:
        config: a dataclass instance; its fields may be dataclasses, tuples, paths and mappings.

    Returns:
        A dictionary that JSON and YAML can hold; `config_from_dict` undoes it.
    """
    return {f.name: _to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def config_from_dict(cls: type[Config], values: Mapping[str, Any], *, where: str = "") -> Config:
    """Build a configuration from a dictionary.

    Args:
        cls: the dataclass to build.
        values: one entry per field; a field with a default may be left out.
        where: what the values come from, for messages (a path, "--model", ...).

    Returns:
        An instance of `cls`.

    Raises:
        ConfigError: an unknown key (near matches are named), a missing key, or a wrong value.
    """
    return _build(cls, values, key="", where=where)


def check_text(cls: type[Config], key: str, text: str | list[str]) -> None:
    """Refuse text that is no value of a key, in the words that it has for the same in a file.

    Args:
        cls: the dataclass.
        key: of one of its fields, dotted for one of a field of it; others are not looked at.
        text: of the value, or of several for a list; read as YAML where text itself will not do.

    Raises:
        ConfigError: naming the key, the value and what was expected.
    """
    hint: Any = cls
    for part in key.split("."):
        hint = typing.get_type_hints(hint).get(part) if dataclasses.is_dataclass(hint) else None
    if hint is None:
        return
    try:
        _convert(text, hint, key, "")
    except ConfigError:
        texts = [text] if isinstance(text, str) else text
        values = [_read_value(each) for each in texts]
        _convert(values[0] if isinstance(text, str) else values, hint, key, "")


def config_to_json(config: Any) -> str:
    """Write a configuration as one line of JSON with sorted keys."""
    return json.dumps(config_to_dict(config), sort_keys=True)


def config_from_json(
    cls: type[Config], text: str, *, where: str = "", earlier: Mapping[str, Any] | None = None
) -> Config:
    """Read what `config_to_json` wrote.

    Args:
        cls: the dataclass.
        text: JSON.
        where: what messages begin with.
        earlier: values of what a text of an earlier version lacks; by default those of `cls`.

    Raises:
        ConfigError: as `config_from_dict`; also for text that is no JSON object.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{_at(where)}not JSON: {error}") from None
    if earlier and isinstance(values, dict):
        values = {**earlier, **values}
    return config_from_dict(cls, values, where=where)


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name what differs between two configurations, given as `config_to_dict` gives them.

    Returns:
        {dotted key: (value before, value after)} for every leaf that differs.
    """
    old, new = flatten(before), flatten(after)
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into one: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Replace entries of nested mappings, key by key; keys that are new are added."""
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = overlay(merged[key], value) if nested else value
    return merged


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Args:
        path: the file. `1e-4` is read as a number (plain YAML 1.1 makes it a string).

    Returns:
        The mapping; {} for an empty file.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: the file is no YAML, holds something else than a mapping, or a key twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such configuration file")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # no UTF-8; a date that is none
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, got a {type(values).__name__}")
    return values


def write_yaml(path: str | Path, config: Any) -> None:
    """Write a configuration as YAML, keys in the order of the fields, whole or not at all."""
    text = yaml.safe_dump(config_to_dict(config), sort_keys=False, default_flow_style=None)
    with atomic_path(path) as beside:
        beside.write_text(text, encoding="utf-8")


def parse_size(text: str) -> tuple[int, int]:
    """Read a size in px from a command line: ``640x480`` as (width, height)."""
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        width = height = 0
    if min(width, height) < 1:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT, got {text!r}")
    return width, height


def parse_duration(text: str) -> int:
    """Read "10ms", "5000us" or "0.01s" as microseconds."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(us|ms|s)\s*", text)
    try:
        value = float(match[1]) * _UNITS[match[2]] if match else -1.0
    except ValueError:
        value = -1.0
    if not 1 <= value < math.inf:
        raise ValueError("expected a time of at least 1us, such as 10ms, 5000us or 0.01s")
    return round(value)


def _read_value(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError):
        return text


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, of which it would take the last.

    It also reads `1e-4` as a float: YAML 1.1 asks for a dot, people do not.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                raise ConfigError(
                    f"key {key.value} is given twice, in lines {lines[key.value]} and {line}"
                )
            lines[key.value] = line
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return config_to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_to_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def _at(where: str) -> str:
    return f"{where}: " if where else ""


def _build(cls: Any, values: Any, key: str, where: str) -> Any:
    prefix = f"{key}." if key else ""
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{_at(where)}{key or cls.__name__} must be a mapping of keys, got {values!r}"
        )
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=3)
            hint = f"known: {', '.join(fields)}"
            if near:
                hint = f"did you mean {' or '.join(prefix + name for name in near)}?"
            raise ConfigError(f"{_at(where)}unknown key {prefix}{name}; {hint}")
    missing = [
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        named = ", ".join(prefix + name for name in missing)
        raise ConfigError(f"{_at(where)}missing key {named}")
    hints = typing.get_type_hints(cls)
    converted = {
        name: _convert(value, hints[name], prefix + name, where) for name, value in values.items()
    }
    try:
        return cls(**converted)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:  # what the class's own __post_init__ refuses
        # It names its own field first, where it speaks of one, and knows no more of the key.
        own = prefix if str(error).split(" ")[0] in fields else ""
        raise ConfigError(f"{_at(where)}{own}{error}") from None


def _convert(value: Any, hint: Any, key: str, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else _build(hint, value, key, where)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, key, where)
    if origin is typing.Literal:
        if value in arguments and type(value) in {type(a) for a in arguments}:
            return value
        raise _wrong(value, " or ".join(map(str, arguments)), key, where)
    if origin is tuple:
        return _convert_tuple(value, arguments, key, where)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(value, "a mapping", key, where)
        return {k: _convert(v, arguments[1], f"{key}.{k}", where) for k, v in value.items()}
    if hint is type(None) and value is None:
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and is_number:
        return float(value)
    if hint is int and is_number and isinstance(value, int):
        return value
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    raise _wrong(value, _name(hint), key, where)


def _convert_union(value: Any, choices: tuple[Any, ...], key: str, where: str) -> Any:
    errors = []
    for choice in choices:
        try:
            return _convert(value, choice, key, where)
        except ConfigError as error:
            errors.append(error)
    raise _wrong(value, " or ".join(map(_name, choices)), key, where) from errors[0]


def _convert_tuple(value: Any, kinds: tuple[Any, ...], key: str, where: str) -> tuple[Any, ...]:
    is_list, any_length = isinstance(value, (list, tuple)), kinds[1:] == (Ellipsis,)
    if not is_list or (not any_length and len(value) != len(kinds)):
        raise _wrong(value, _name(types.GenericAlias(tuple, kinds)), key, where)
    if any_length:
        kinds = (kinds[0],) * len(value)
    return tuple(
        _convert(item, kind, f"{key}[{i}]", where)
        for i, (item, kind) in enumerate(zip(value, kinds, strict=True))
    )


def _name(hint: Any) -> str:
    """What a value of a type is called in messages."""
    kinds = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        count = "any number of" if kinds[1:] == (Ellipsis,) else len(kinds)
        return f"a list of {count} values ({_name(kinds[0])})"
    return "null" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _wrong(value: Any, expected: str, key: str, where: str) -> ConfigError:
    return ConfigError(f"{_at(where)}{key} must be {expected}, got {value!r}")
