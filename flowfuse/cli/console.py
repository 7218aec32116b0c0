"""What the commands and the scripts of data_tools share: how they end, and what they then say."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
from tqdm import tqdm

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
        with _plain_warnings(name):
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


def leave(code: int) -> NoReturn:
    """End the process with the exit code of :func:`run_command`."""
    if code == CLOSED_PIPE:  # or Python fails again, and says so, when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


def parse_count(text: str) -> int:
    """Read a whole number of at least 1 from a command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def accept_former_name(parser: argparse.ArgumentParser, former: str, option: str) -> None:
    """Let an option that was renamed keep its former name for one release, with a notice.

    Args:
        parser: has the option under its present name.
        former: such as "--truth".
        option: such as "--ground-truth".
    """
    present = parser._option_string_actions[option]

    class FormerName(argparse.Action):
        def __call__(self, parser, namespace, values, option_string=None) -> None:
            notice = f"{parser.prog}: warning: {former} is now called {option}"
            print(notice, file=sys.stderr)
            present(parser, namespace, values, option)

    parser.add_argument(
        former,
        dest=present.dest,
        action=FormerName,
        type=present.type or str,
        choices=present.choices,
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )


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


@contextmanager
def _plain_warnings(name: str) -> Iterator[None]:
    """Show warnings as lines of the command, beside a progress bar."""

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        tqdm.write(f"{name}: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
