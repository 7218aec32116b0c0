"""config.py: dataclasses to and from dictionaries, JSON and YAML, strictly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from flowfuse import config as c


@dataclass(frozen=True)
class Inner:
    fusion: Literal["guided", "concatenation"] = "guided"
    widths: tuple[int, ...] = (8, 16)

    def __post_init__(self) -> None:
        if min(self.widths) < 1:
            raise ValueError(f"widths must be positive, got {self.widths}")


@dataclass(frozen=True)
class Outer:
    rate: float
    inner: Inner = Inner()
    crop: tuple[int, int] = (128, 160)
    cache: str | None = None
    folder: Path = Path("runs")
    bf16: bool = False


EVERY_FIELD_CHANGED = Outer(
    1e-4, Inner("concatenation", (1, 2, 3)), (16, 24), "there", Path("a/b"), True
)


def test_round_trips(tmp_path):
    assert c.config_from_dict(Outer, c.config_to_dict(EVERY_FIELD_CHANGED)) == EVERY_FIELD_CHANGED
    assert c.config_from_json(Outer, c.config_to_json(EVERY_FIELD_CHANGED)) == EVERY_FIELD_CHANGED
    c.write_yaml(tmp_path / "x.yaml", EVERY_FIELD_CHANGED)
    read = c.config_from_dict(Outer, c.read_yaml(tmp_path / "x.yaml"))
    assert read == EVERY_FIELD_CHANGED


def test_defaults_and_integers_as_floats():
    built = c.config_from_dict(Outer, {"rate": 1})
    assert built == Outer(1.0) and isinstance(built.rate, float)


def test_yaml_reads_exponents_without_a_dot_as_numbers(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: 1e-4\nb: 4E3\nc: 1.5e+2\nd: e4\ne: 12\n")
    assert c.read_yaml(path) == {"a": 1e-4, "b": 4000.0, "c": 150.0, "d": "e4", "e": 12}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 1.0, "crops": [1, 2]}, "recipe: unknown key crops; did you mean crop"),
        ({"rate": 1.0, "zzz": 1}, "unknown key zzz; known: rate, inner"),
        (
            {"rate": 1.0, "inner": {"fusio": 1}},
            "unknown key inner.fusio; did you mean inner.f",
        ),
        ({}, "missing key rate"),
        ({"rate": "fast"}, "rate must be float, got 'fast'"),
        ({"rate": True}, "rate must be float, got True"),
        ({"rate": 1.0, "inner": {"fusion": "sum"}}, "inner.fusion must be guided or concatenation"),
        ({"rate": 1.0, "inner": 3}, "inner must be a mapping"),
        ({"rate": 1.0, "inner": {"widths": [0]}}, r"recipe: inner\.widths must be positive"),
        ({"rate": 1.0, "crop": [1, 2, 3]}, r"crop must be a list of 2 values \(int\), got \["),
        ({"rate": 1.0, "crop": 3}, r"crop must be a list of 2 values \(int\), got 3"),
        ({"rate": 1.0, "crop": [1, 2.5]}, r"crop\[1\] must be int, got 2.5"),
        ({"rate": 1.0, "cache": 3}, "cache must be str or null, got 3"),
        ({"rate": 1.0, "bf16": "yes"}, "bf16 must be bool, got 'yes'"),
    ],
)
def test_errors_name_the_key(values, message):
    with pytest.raises(c.ConfigError, match=message):
        c.config_from_dict(Outer, values, where="recipe")


def test_text_of_a_command_line_is_refused_as_in_a_file():
    for key, text in [
        ("rate", "1e-4"), ("crop", ["3", "4"]), ("crop", "[3, 4]"), ("cache", "3"),
        ("bf16", "true"), ("inner.widths", "[1, 2]"), ("nonsense", "1"),
    ]:  # fmt: skip
        c.check_text(Outer, key, text)
    for key, text, message in [
        ("rate", "fast", "^rate must be float, got 'fast'"),
        ("crop", ["3", "x"], r"crop\[1\] must be int, got 'x'"),
        ("bf16", "maybe", "bf16 must be bool, got 'maybe'"),
        ("inner.fusion", "sum", "inner.fusion must be guided or concatenation, got 'sum'"),
        ("rate", "[1", "rate must be float, got '\\[1'"),
        ("inner", "3", "inner must be a mapping of keys, got 3"),
    ]:
        with pytest.raises(c.ConfigError, match=message):
            c.check_text(Outer, key, text)


def test_file_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such configuration file"):
        c.read_yaml(tmp_path / "absent.yaml")
    path = tmp_path / "x.yaml"
    path.write_text("- a\n- b\n")
    with pytest.raises(c.ConfigError, match="got a list"):
        c.read_yaml(path)
    for text in ("a: 1\nb:\n  c: 1\n  c: 2\n", "{a: 1, b: 2, a: 3}"):
        path.write_text(text)
        with pytest.raises(c.ConfigError, match=r"x.yaml: key [ac] is given twice, in lines"):
            c.read_yaml(path)
    path.write_text("a: 2024-99-99\n")
    with pytest.raises(c.ConfigError, match=r"x\.yaml: not YAML"):
        c.read_yaml(path)
    path.write_text("a: [1\n")
    with pytest.raises(c.ConfigError, match="not YAML"):
        c.read_yaml(path)
    path.write_text("")
    assert c.read_yaml(path) == {}
    with pytest.raises(c.ConfigError, match="not JSON"):
        c.config_from_json(Outer, "{")


def test_changed_keys():
    other = Outer(1e-4, Inner(widths=(1, 2, 3)), cache="there")
    before, after = c.config_to_dict(other), c.config_to_dict(EVERY_FIELD_CHANGED)
    assert c.changed_keys(before, after) == {
        "inner.fusion": ("guided", "concatenation"),
        "crop": ([128, 160], [16, 24]),
        "folder": ("runs", "a/b"),
        "bf16": (False, True),
    }


def test_overlay_goes_into_nested_mappings():
    below = {"a": {"b": 1, "c": 2}, "d": 3}
    merged = c.overlay(below, {"a": {"c": 4}, "d": {"e": 5}})
    assert merged == {"a": {"b": 1, "c": 4}, "d": {"e": 5}}
    assert below == {"a": {"b": 1, "c": 2}, "d": 3}
    assert c.flatten({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}
