"""flowfuse-data finds every tool, and runs it under its own name."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from flowfuse.cli import data
from flowfuse.cli.data import TOOLS, find_tools, main

FOLDER = Path(__file__).parents[2] / "data_tools"


def test_every_tool_has_a_name():
    assert sorted(TOOLS.values()) == sorted(path.stem for path in FOLDER.glob("*.py"))
    assert find_tools() == FOLDER


@pytest.mark.parametrize("name", TOOLS)
def test_each_has_a_help_under_its_own_name(name, capsys):
    before = sys.argv[0]
    assert main([name, "--help"]) == 0
    assert f"usage: flowfuse-data {name} " in capsys.readouterr().out
    assert sys.argv[0] == before


def test_a_tool_runs_and_its_errors_are_told(tmp_path, capsys):
    np.savez(tmp_path / "events.npz", x=[1, 2], y=[0, 1], t=np.array([5, 9]), p=[0, 1])
    (tmp_path / "sensor.txt").write_text("4 3")
    assert main(["convert", str(tmp_path), str(tmp_path / "out.txt")]) == 0
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert lines[-1].split()[1:] == ["2", "1", "1"]
    assert main(["convert", str(tmp_path / "absent"), str(tmp_path / "x")]) == 1
    assert "absent" in capsys.readouterr().err
    assert main(["convert"]) == 2


def test_help_lists_the_tools_and_others_are_refused(capsys, monkeypatch, tmp_path):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in TOOLS) and "Convert a recording" in printed
    assert main([]) == 2 and main(["depth"]) == 2
    assert "unknown tool 'depth': convert, inspect" in capsys.readouterr().err
    monkeypatch.setattr(data.flowfuse, "__file__", str(tmp_path / "flowfuse" / "__init__.py"))
    assert main(["convert"]) == 1
    assert "lacks its data tools" in capsys.readouterr().err
