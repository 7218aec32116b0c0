"""The API reference: every public name is in it, and has a docstring."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import flowfuse
from flowfuse import ops

PAGES = sorted((Path(__file__).resolve().parents[2] / "docs" / "reference").glob("*.md"))
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
NAMES = re.findall(r"^::: (\S+)$", TEXT, re.MULTILINE)
WITHOUT = {"__version__", "ops", "EXAMPLES", "OPERATORS"}  # a text, a module, and tables of tests


def resolve(name: str) -> Any:
    """What a name of the reference stands for: a module, or what is in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def public_members(thing: Any) -> dict[str, Any]:
    """The members that the reference shows: public, and defined here."""
    members = {}
    for name, member in vars(thing).items():
        if name.startswith("_"):
            continue
        if inspect.ismodule(thing):
            shown = getattr(member, "__module__", None) == thing.__name__
            shown = shown and (inspect.isclass(member) or inspect.isfunction(member))
        else:
            kinds = (property, staticmethod, classmethod)
            shown = inspect.isfunction(member) or isinstance(member, kinds)
        if shown:
            members[name] = member
    return members


def is_documented(owner: Any, name: str, member: Any) -> bool:
    """Whether it has a docstring, or overrides what has one."""
    return bool(inspect.getdoc(getattr(owner, name, member)))


@pytest.mark.parametrize("module", [flowfuse, ops])
def test_every_public_name_is_in_the_reference(module):
    shown = {id(resolve(name)) for name in NAMES}
    missing = [
        name
        for name in module.__all__
        if name not in WITHOUT and id(getattr(module, name)) not in shown
    ]
    assert not missing, f"add ::: {module.__name__}.{missing} to docs/reference"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_has_a_docstring(name):
    thing = resolve(name)
    assert inspect.getdoc(thing), name
    if not (inspect.ismodule(thing) or inspect.isclass(thing)):
        return
    for member_name, member in public_members(thing).items():
        assert is_documented(thing, member_name, member), f"{name}.{member_name}"
        if inspect.ismodule(thing) and inspect.isclass(member):
            for inner, value in public_members(member).items():
                assert is_documented(member, inner, value), f"{name}.{member_name}.{inner}"


def test_names_are_shown_once():
    assert len(NAMES) == len(set(NAMES)) > 40
