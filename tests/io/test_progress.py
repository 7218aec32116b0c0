"""Progress in lines, where there is no terminal; nothing of what is short."""

from __future__ import annotations

import io
import sys

from flowfuse.io import progress as module
from flowfuse.io.progress import progress


def test_a_file_gets_lines(monkeypatch, capsys):
    monkeypatch.setattr(module, "SHORT", 0)
    monkeypatch.setattr(module, "BETWEEN_LINES", 0)
    for _ in progress(range(3), unit=" pairs", desc="video: "):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" [")[0] for line in lines] == [
        f"video: {i}/3 pairs" for i in (0, 1, 2, 3, 3)
    ]


def test_short_work_says_nothing(capsys):
    assert list(progress(range(3))) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress(range(3))) == [0, 1, 2]
    assert "\r" in terminal.getvalue() and "3/3" in terminal.getvalue()
