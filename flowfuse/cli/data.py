"""``flowfuse-data``: the tools of data_tools/, by short names, also where there is no checkout."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import flowfuse
from flowfuse.cli.console import called_as, leave, list_subcommands

COMMAND = "flowfuse-data"
TOOLS = {  # subcommand -> file in data_tools/
    "convert": "convert",
    "inspect": "inspect_recording",
    "simulate": "simulate_events",
    "generate": "generate_recording",
    "download-dsec": "download_dsec",
    "check-submission": "check_submission",
    "write-dsec": "write_dsec",
    "write-mvsec": "write_mvsec",
    "evaluate": "evaluate_mvsec",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a tool.

    Args:
        argv: the name of a tool and its arguments; None takes those of the process.

    Returns:
        The tool's exit code; 2 after wrong usage.
    """
    name, *arguments = (list(sys.argv[1:]) if argv is None else list(argv)) or [""]
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name == "--version":
        print(f"{COMMAND} {flowfuse.__version__}")
        return 0
    if name not in TOOLS:
        wrong = f"unknown tool {name!r}" if name else "name a tool"
        print(f"{COMMAND}: {wrong}: {', '.join(TOOLS)}; --help says more", file=sys.stderr)
        return 2
    try:
        tool = _load(TOOLS[name])
    except FileNotFoundError as error:
        print(f"{COMMAND}: error: {error}", file=sys.stderr)
        return 1
    try:
        with called_as(f"{COMMAND} {name}"):
            return tool.main(arguments)
    except SystemExit as stop:  # --help, or wrong usage after its message
        return int(stop.code or 0)


def find_tools() -> Path:
    """Return the folder of the tools: that of the wheel, or that of the checkout.

    Raises:
        FileNotFoundError: the installation has neither.
    """
    package = Path(flowfuse.__file__).resolve().parent
    for folder in (package / "data_tools", package.parent / "data_tools"):
        if (folder / "convert.py").is_file():
            return folder
    raise FileNotFoundError(f"{package}: this installation of flowfuse lacks its data tools")


def _load(name: str) -> ModuleType:
    path = find_tools() / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a file that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _usage() -> str:
    texts = {}
    for name, file in TOOLS.items():
        text = (find_tools() / f"{file}.py").read_text(encoding="utf-8")
        texts[name] = text.partition("\n")[0].strip('"')
    return list_subcommands(COMMAND, "tool", texts)


def command() -> None:
    """Entry point of flowfuse-data."""
    leave(main())


if __name__ == "__main__":
    command()
