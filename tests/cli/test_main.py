"""``flowfuse COMMAND``, and where its version comes from."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flowfuse import __version__
from flowfuse.cli.data import TOOLS
from flowfuse.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_every_script_is_a_command():
    scripts = re.findall(r'^flowfuse-(\w+) = "flowfuse\.cli\.(\w+):command"', PROJECT, re.MULTILINE)
    assert sorted([*scripts, ("doctor", "doctor")]) == sorted((name, name) for name in COMMANDS)
    for name in COMMANDS:
        assert callable(importlib.import_module(f"flowfuse.cli.{name}").main), name


def test_a_command_gets_its_arguments_and_returns_its_code(monkeypatch):
    seen = []
    module = importlib.import_module("flowfuse.cli.data")
    monkeypatch.setattr(module, "main", lambda arguments: seen.append(arguments) or 7)
    before = sys.argv[0]
    assert main(["data", "convert", "--help"]) == 7
    assert seen == [["convert", "--help"]] and sys.argv[0] == before


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(argv, capsys):
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", text, re.MULTILINE) for name in COMMANDS)


def test_an_unknown_command_is_refused(capsys):
    assert main(["dance"]) == 2
    assert "unknown command 'dance': doctor, infer" in capsys.readouterr().err


@pytest.mark.parametrize("command", [*COMMANDS, *(f"data {name}" for name in TOOLS)])
def test_every_command_tells_the_version(command, capsys):
    try:
        code = main([*command.split(), "--version"])
    except SystemExit as stop:
        code = stop.code
    name, space, rest = command.partition(" ")
    called = f"flowfuse {name}" if name == "doctor" else f"flowfuse-{name}{space}{rest}"
    assert code == 0 and capsys.readouterr().out == f"{called} {__version__}\n"


def test_the_version_has_one_place(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"flowfuse {__version__}\n"
    assert 'dynamic = ["version"]' in PROJECT and not re.search(r"^version = \"", PROJECT, re.M)
    told = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert told.stdout.split()[-1] == __version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in citation
