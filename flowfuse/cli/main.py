"""``flowfuse``: all commands under one name; ``flowfuse infer`` is ``flowfuse-infer``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from flowfuse import __version__
from flowfuse.cli.console import called_as, leave, list_subcommands

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
        print(list_subcommands(COMMAND, "command", COMMANDS))
        return 0
    if name == "--version":
        print(f"{COMMAND} {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"{COMMAND}: unknown command {name!r}: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    with called_as(f"{COMMAND}-{name}"):
        return importlib.import_module(f"flowfuse.cli.{name}").main(arguments)


def command() -> None:
    """Entry point of flowfuse."""
    leave(main())
