"""README.md, CONTRIBUTING.md, CHANGELOG.md: links lead somewhere, code and commands are right."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import flowfuse
from flowfuse.cli import live_options
from flowfuse.cli.export import build_parser as build_export_parser
from flowfuse.cli.infer_options import build_parser, parse_config
from flowfuse.cli.main import COMMANDS
from flowfuse.cli.train_options import read_command_line

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_it_is_short():
    assert len(README.splitlines()) <= 120
    prose = [line for line in README.splitlines() if not line.startswith("|")]
    assert max(map(len, prose)) <= 120


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / link).exists(), link


@pytest.mark.usefixtures("one_thread")
def test_the_lines_of_python_run(capsys):
    (block,) = (block for kind, block in BLOCKS if kind == "python")
    assert len(block.strip().splitlines()) <= 9  # eight, and a blank one
    names: dict = {}
    sample = str(flowfuse.sample_recording())
    exec(block.replace('"auto"', '"cpu"').replace("RECORDING", sample), names)
    assert names["result"].flow.shape == (2, 192, 256)


def commands() -> list[str]:
    lines = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]
    return [line for line in lines if line.startswith("flowfuse")]


@pytest.mark.parametrize("line", commands())
def test_commands_are_taken_by_their_parsers(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RECORDING").mkdir()
    program, *arguments = shlex.split(line, comments=True)
    if program == "flowfuse":
        assert arguments[0] in COMMANDS
    elif program == "flowfuse-infer":
        parse_config(build_parser(), arguments)
    elif program == "flowfuse-live":
        live_options.parse_config(live_options.build_parser(), arguments)
    elif program == "flowfuse-export":
        build_export_parser().parse_args(arguments)
    else:
        assert program == "flowfuse-train"
        read_command_line(arguments)
