"""What the commands and the scripts of data_tools share: how they are told, and how they end."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jsonargparse
import torch
from tqdm import tqdm

from flowfuse import __version__

Config = TypeVar("Config")

MAX_THREADS = 1024
INTERRUPTED = 130  # exit codes, as shells have them: after Ctrl-C,
CLOSED_PIPE = 141  # and when the reader of what is printed has gone
_ERRORS = (
    OSError,
    ValueError,
    MemoryError,
    torch.OutOfMemoryError,
    ImportError,  # an optional package, named in the message
)


class ListedError(ValueError):
    """An error of several things, with a line for each; others are told in one line."""


def run_command(
    name: str,
    action: Callable[[], int | None],
    *,
    interrupted: str = "",
    output: Path | None = None,
) -> int:
    """Run what a command does, and end in one line, without a traceback, where it cannot.

    Args:
        name: of the command.
        action: prints what it has to say; returns an exit code, None for 0.
        interrupted: what Ctrl-C leaves.
        output: what is written, for errors of the system that know no file name.

    Returns:
        The exit code: the action's, 1 after an error, INTERRUPTED, or CLOSED_PIPE.
    """
    try:
        with plain_warnings(name), plain_log(name):
            code = action() or 0
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        told = f"{name}: interrupted"
        print(f"{told}; {interrupted}" if interrupted else told, file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return CLOSED_PIPE
    except _ERRORS as error:
        print(f"{name}: error: {_describe(error, output)}", file=sys.stderr)
        return 1


def run_with_arguments(
    parser: jsonargparse.ArgumentParser,
    argv: Sequence[str] | None,
    parse: Callable[[Any, Sequence[str]], Config],
    start: Callable[[Config, Sequence[str]], int],
    missing: str,
) -> int:
    """Read a command line and start what it asks for.

    Args:
        parser: prints its usage where there are no arguments, and then ``missing``.
        argv: arguments without the command's name; None takes those of the process.
        parse: parser and arguments -> what they ask for.
        start: given this and the arguments, the exit code of the command.
        missing: what is to be given at least, with an example.

    Returns:
        What ``start`` does; 2 on wrong usage, which is told; 0 after ``--help``.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments:
        parser.print_usage(sys.stderr)
        print(f"{parser.prog}: error: no arguments, {missing}", file=sys.stderr)
        return 2
    try:
        config = parse(parser, arguments)
    except SystemExit as stop:  # --help, or wrong usage after its message
        return int(stop.code or 0)
    return start(config, arguments)


@contextmanager
def called_as(name: str) -> Iterator[None]:
    """Let parsers call themselves so, in their help and their errors."""
    before, sys.argv[0] = sys.argv[0], name
    try:
        yield
    finally:
        sys.argv[0] = before


def list_subcommands(command: str, kind: str, texts: Mapping[str, str]) -> str:
    """The help of a command that has others.

    Args:
        command: its name.
        kind: what it calls the others, such as "tool".
        texts: what each does, by its name.
    """
    width = max(map(len, texts))
    lines = [f"usage: {command} {kind.upper()} ...", "", f"{kind}s (each has --help):"]
    return "\n".join(lines + [f"  {name:<{width}}  {text}" for name, text in texts.items()])


def leave(code: int) -> NoReturn:
    """End the process with the exit code of :func:`run_command`."""
    if code == CLOSED_PIPE:  # or Python fails again, and says so, when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


@contextmanager
def plain_warnings(name: str) -> Iterator[None]:
    """Show warnings as lines of the command, beside a progress bar."""

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        tqdm.write(f"{name}: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def plain_log(name: str) -> Iterator[None]:
    """Show what the library logs as lines of the command, beside a progress bar."""
    handler, logger = _Lines(name), logging.getLogger("flowfuse")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Lines(logging.Handler):
    def __init__(self, command: str) -> None:
        super().__init__()
        self._command = command

    def emit(self, record: logging.LogRecord) -> None:
        kind = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        tqdm.write(f"{self._command}: {kind}{record.getMessage()}", file=sys.stderr)


class CommandParser(jsonargparse.ArgumentParser):
    """A command line whose options are written by hand: flowfuse-infer's and those of the tools.

    Args:
        description: the first lines of ``--help``.
        kwargs: of :class:`jsonargparse.ArgumentParser`. Unless stated, the help shows defaults, and
            ``--version`` is that of flowfuse.
    """

    def __init__(self, description: str, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        # The tools have always taken --ground for --ground-truth; unless told, jsonargparse warns.
        kwargs.setdefault("allow_abbrev", True)
        kwargs.setdefault("version", __version__)
        super().__init__(description=description, **kwargs)
        self._former_names: dict[str, str] = {}

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        """Add an option; ``type`` is a function of its text."""
        if "type" in kwargs:
            kwargs["type"] = _read_once(kwargs["type"])
        return super().add_argument(*args, **kwargs)

    def accept_former_name(self, former: str, option: str) -> None:
        """Let an option that was renamed keep its former name for one release, with a notice.

        Args:
            former: such as "--truth".
            option: such as "--ground-truth".
        """
        self._former_names[former] = option

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *others: Any, **kwargs: Any
    ) -> jsonargparse.Namespace:
        """Read the arguments, those of the process by default; wrong ones end in :meth:`error`."""
        words = list(sys.argv[1:] if args is None else args)
        for index, word in enumerate(words):
            former, equals, value = word.partition("=")
            if former in self._former_names:
                option = self._former_names[former]
                print(f"{self.prog}: warning: {former} is now called {option}", file=sys.stderr)
                words[index] = f"{option}{equals}{value}"
        return super().parse_args(words, *others, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with the usage, the message in one line and exit code 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def _read_once(read: Callable[[str], Any]) -> Callable[[Any], Any]:
    """The same for text; what has been read stays, as jsonargparse reads a value once more."""

    @functools.wraps(read)
    def read_once(value: Any) -> Any:
        return read(value) if isinstance(value, str) else value

    return read_once


def parse_count(text: str) -> int:
    """Read a whole number of at least 1 from a command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _describe(error: BaseException, output: Path | None) -> str:
    if isinstance(error, ListedError):
        return str(error)
    if isinstance(error, FileExistsError) and error.filename:
        return f"{error.filename}: exists, but is no directory"  # as mkdir says it
    if isinstance(error, OSError) and error.strerror:
        # A write to a full disk knows no file name.
        where = error.filename or output
        return f"{where}: {error.strerror}" if where else error.strerror
    return " ".join(str(error).split()) or type(error).__name__
