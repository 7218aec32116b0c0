"""How far a long work is: a bar on a terminal, a line now and then in a file."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

FIRST_LINE = 10.0  # s without a terminal until the first line: what is shorter needs none
BETWEEN_LINES = 30.0  # s between two lines there
_LINE = "{desc}{n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class _Lines:
    """A stream that gets the states of a bar, and writes each on a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def flush(self) -> None:
        self._stream.flush()


def progress(items: Any = None, **options: Any) -> tqdm:
    """Make a bar of standard error, as of :class:`tqdm.tqdm`; plain lines where it is no terminal.

    The first line comes after FIRST_LINE seconds, the others BETWEEN_LINES apart, so a short work
    says nothing and a long one is not silent.

    Args:
        items: what is iterated over; None for a bar that is updated by hand.
        options: of tqdm: total, unit, desc, initial, disable.
    """
    if sys.stderr is None or sys.stderr.isatty():
        return tqdm(items, dynamic_ncols=True, **options)
    return tqdm(
        items,
        file=_Lines(sys.stderr),
        bar_format=_LINE,
        delay=FIRST_LINE,
        mininterval=BETWEEN_LINES,
        maxinterval=BETWEEN_LINES,
        miniters=1,
        **options,
    )
