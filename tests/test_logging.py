"""What the library has to say goes to the logger "flowfuse"; only commands print."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest

import flowfuse
from flowfuse.cli.console import run_command

PACKAGE = Path(flowfuse.__file__).resolve().parent
COMMANDS = (PACKAGE / "cli", PACKAGE / "ops" / "__main__.py")


def test_nothing_but_commands_prints():
    printing = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if COMMANDS[0] in path.parents or path == COMMANDS[1] or "data_tools" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
                printing.append(f"{path}:{node.lineno}")
    assert not printing


def test_loading_and_opening_are_logged(caplog):
    with caplog.at_level(logging.INFO, "flowfuse"):
        flowfuse.load("small")
    assert "small.safetensors: network small on cpu" in caplog.text
    assert all(name.startswith("flowfuse.") for name, *_ in caplog.record_tuples)


@pytest.mark.parametrize(("level", "kind"), [("warning", "warning: "), ("info", "")])
def test_a_command_shows_what_is_logged_in_its_own_lines(level, kind, capsys):
    logger = logging.getLogger("flowfuse.some.module")
    logger.setLevel(logging.INFO)
    try:
        assert run_command("flowfuse-x", lambda: getattr(logger, level)("%d lost", 3)) == 0
    finally:
        logger.setLevel(logging.NOTSET)
    assert capsys.readouterr().err == f"flowfuse-x: {kind}3 lost\n"
    assert not logging.getLogger("flowfuse").handlers


def test_importing_sets_up_no_handler():
    logger = logging.getLogger("flowfuse")
    assert not logger.handlers and logger.level == logging.NOTSET and logger.propagate
