"""How far a long work is: a bar on a terminal, a line now and then in a file."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

SHORT = 10.0  # s: what is done in less needs no line
BETWEEN_LINES = 30.0  # s between two lines, where there is no terminal
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

    Lines come every BETWEEN_LINES seconds and at the end, but what took less than SHORT says
    nothing.

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
        delay=SHORT,
        mininterval=BETWEEN_LINES,
        maxinterval=BETWEEN_LINES,
        miniters=1,
        **options,
    )
