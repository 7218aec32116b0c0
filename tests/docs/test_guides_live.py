"""docs/guides/live.md: every command is one that its parser takes, and every name is there."""

from __future__ import annotations

import importlib
import re
import shlex
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

import flowfuse
from flowfuse.cli import live_options
from flowfuse.stream.policy import POLICIES, StreamStats

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = (REPOSITORY / "docs" / "guides" / "live.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_taken_by_their_parsers(line, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(line, comments=True)
    if program == "flowfuse-live":
        config = live_options.parse_config(live_options.build_parser(), arguments)
        assert config.source == arguments[0]
        return
    assert (program, arguments[0]) == ("python", "benchmarks/live.py")
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    importlib.import_module("live").build_parser().parse_args(arguments[1:])


def test_what_is_counted_is_told():
    names = {entry.name for entry in fields(StreamStats)} - {"events", "frames", "intervals"}
    assert {name for name in names if f"`{name}`" not in TEXT} == {"events_thinned"}
    for policy in POLICIES:
        assert f'`"{policy}"`' in TEXT
    for view in live_options.VIEWS:
        assert f"`{view}`" in TEXT


@pytest.mark.usefixtures("one_thread")
def test_the_code_runs(monkeypatch):
    """The blocks of Python, on the shipped recording."""
    recording = flowfuse.open_recording(flowfuse.sample_recording())
    size = {"height": recording.height, "width": recording.width, "policy": "all"}
    made = []

    class SmallStream(flowfuse.Stream):
        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, **{**options, **size, "device": "cpu"})
            made.append(self)
            for index in (0, 1):
                self.push_frame(recording.frame(index), int(recording.frame_times[index]), 7_191)

        def __iter__(self):
            self.close()
            return super().__iter__()

    monkeypatch.setattr(flowfuse, "Stream", SmallStream, raising=False)
    events = recording.events(0, 60_000)
    names = {
        "x": events.x, "y": events.y, "t": events.t, "p": events.p,
        "image": recording.frame(2),
    }  # fmt: skip
    first, settings, second = (block for kind, block in BLOCKS if kind == "python")
    first = first.replace("push_frame(image, t,", "push_frame(image, 61_420,")
    exec(compile(first, "docs/guides/live.md", "exec"), names)
    assert made[0].stats.intervals == 2 and np.isfinite(names["result"].flow).all()
    exec(compile(f"import flowfuse\n{settings}", "docs/guides/live.md", "exec"), names)
    assert (made[1].settings.memory, made[1].settings.offset) == (5_000_000, -3_000)
    names["stream"] = [names["result"]]
    exec(compile(second, "docs/guides/live.md", "exec"), names)
    assert len(names["step"].ids) > 10 and torch.is_grad_enabled()
