"""``flowfuse``: all commands under one name; ``flowfuse infer`` is ``flowfuse-infer``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from flowfuse import __version__
from flowfuse.cli.console import leave

COMMAND = "flowfuse"
COMMANDS = {  # each is a module of flowfuse.cli
    "doctor": "say what runs on this machine, and what to install for what",
    "infer": "flow of a recording: files, pictures, video, errors",
    "live": "flow of cameras and network streams, as they come in",
    "train": "train on synthetic scenes or data sets, finetune on a recording",
    "data": "inspect, convert, simulate, write and download recordings",
    "export": "write a network as one file",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the name of a command and its arguments; None takes those of the process.

    Returns:
        The command's exit code; 2 after wrong usage.
    """
    name, *arguments = (list(sys.argv[1:]) if argv is None else list(argv)) or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name == "--version":
        print(f"{COMMAND} {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"{COMMAND}: unknown command {name!r}: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    before = sys.argv[0]
    sys.argv[0] = f"{COMMAND}-{name}"  # what its help and its errors call it
    try:
        return importlib.import_module(f"flowfuse.cli.{name}").main(arguments)
    finally:
        sys.argv[0] = before


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"usage: {COMMAND} COMMAND ...", "", "commands (each has --help):"]
    lines += [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(lines)


def command() -> None:
    """Entry point of flowfuse."""
    leave(main())
