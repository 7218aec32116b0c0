"""How commands and tools end: errors, Ctrl-C and closed pipes, each in one line."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from flowfuse.cli.console import (
    CLOSED_PIPE,
    INTERRUPTED,
    CommandParser,
    ListedError,
    parse_count,
    run_command,
)
from flowfuse.config import parse_size
from flowfuse.data.recording_writer import write_recording
from flowfuse.events import Events

ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted(path.stem for path in (ROOT / "data_tools").glob("*.py"))
# Arguments of each tool, and what is called first of all that takes time.
FIRST_STEPS = {
    "check_submission": (["OUT", "IN"], "list_predictions"),
    "convert": (["IN", "OUT"], "open_recording"),
    "download_dsec": (["OUT"], "fetch"),
    "evaluate_mvsec": (["IN", "-o", "OUT"], "open_mvsec"),
    "generate_recording": (["OUT"], "generate_scene"),
    "inspect_recording": (["IN"], "open_recording"),
    "simulate_events": (["IN", "OUT"], "open_source"),
    "write_dsec": (["OUT", "thun_00_a"], "generate_scene"),
    "write_mvsec": (["OUT"], "generate_scene"),
}


def load_tool(name: str, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "data_tools"))
    return importlib.import_module(name)


def raising(error):
    def action(*args, **kwargs):
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("a.txt: two\nlines"), "a.txt: two lines"),
        (ListedError("2 things:\n  a\n  b"), "2 things:\n  a\n  b"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), "a.txt: No such file or"),
        (OSError(28, "No space left on device"), "OUT: No space left on device"),
        (ImportError("install h5py"), "install h5py"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_errors_are_told_without_a_traceback(error, said, capsys):
    assert run_command("tool", raising(error), output=Path("OUT")) == 1
    assert capsys.readouterr().err.startswith(f"tool: error: {said}")


def test_ends_and_warnings(capsys):
    assert run_command("tool", lambda: None) == 0
    assert run_command("tool", lambda: 1) == 1
    assert run_command("tool", raising(BrokenPipeError(32, "Broken pipe"))) == CLOSED_PIPE
    assert capsys.readouterr().err == ""
    assert run_command("tool", raising(KeyboardInterrupt), interrupted="go on") == INTERRUPTED
    assert run_command("tool", raising(KeyboardInterrupt)) == INTERRUPTED
    assert capsys.readouterr().err == "tool: interrupted; go on\ntool: interrupted\n"
    run_command("tool", lambda: warnings.warn("of this kind", stacklevel=1))
    assert capsys.readouterr().err == "tool: warning: of this kind\n"
    with pytest.raises(AssertionError):  # a fault of ours is no fault of the user's
        run_command("tool", raising(AssertionError()))


def test_counts():
    assert parse_count("12") == 12
    for text in ("0", "-1", "1.5", "many", ""):
        with pytest.raises(Exception, match="expected a whole number of at least 1, got"):
            parse_count(text)


def test_options_are_read_once_and_keep_former_names(capsys):
    parser = CommandParser("Try it.", prog="tool")
    parser.add_argument("--size", type=parse_size, default="4x3", help="px")
    parser.add_argument("--count", type=int, help="of them")
    parser.accept_former_name("--extent", "--size")
    assert parser.parse_args([]).size == (4, 3)
    assert parser.parse_args(["--extent=5x6", "--count", "-2"]).as_dict() == {
        "size": (5, 6),
        "count": -2,
    }
    assert capsys.readouterr().err == "tool: warning: --extent is now called --size\n"
    for words, message in (
        (["--count", "1.5"], "argument --count: invalid int value: '1.5'"),
        (["--extent", "5"], "argument --size: expected WIDTHxHEIGHT, got '5'"),
        (["--colour"], "unrecognized arguments: --colour"),
    ):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(words)
        assert stop.value.code == 2
        said = capsys.readouterr().err.splitlines()
        assert said[-1] == f"tool: error: {message}" and "usage: tool [-h]" in " ".join(said)


def test_all_tools_are_tried():
    assert TOOLS == sorted(FIRST_STEPS)


@pytest.mark.parametrize("name", TOOLS)
def test_tools_end_with_one_line_after_ctrl_c(name, tmp_path, monkeypatch, capsys):
    tool = load_tool(name, monkeypatch)
    arguments, step = FIRST_STEPS[name]
    arguments = [str(tmp_path / a) if a in ("IN", "OUT") else a for a in arguments]
    monkeypatch.setattr(tool, step, raising(KeyboardInterrupt))
    assert tool.main(arguments) == INTERRUPTED
    said = capsys.readouterr().err
    assert said.startswith(f"{name}: interrupted") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TOOLS)
def test_tools_explain_themselves(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        load_tool(name, monkeypatch).main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and text.startswith("usage: ") and len(text.splitlines()) > 8


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("convert EMPTY new", "EMPTY: neither events (events.h5, "),
        (
            "convert FILE new",
            "FILE, line 1: names of the columns t, x, y and p expected, found 'text'",
        ),
        ("convert REC FILE/new", "FILE: exists, but is no directory"),
        ("convert REC new.h5 --events-format npz", "new.h5: its name says .h5, events_format says"),
        ("convert REC new_data.hdf5 --events-format h5", "its name says MVSEC, events_format says"),
        ("convert REC new --frames EMPTY", "EMPTY: no images in this folder"),
        ("inspect_recording none", "none: no such recording"),
        ("inspect_recording REC --sheet new", "--sheet: a name with one of .png, .jpg,"),
        ("inspect_recording REC --sheet none/a.png", "none/a.png: cannot write, none is not an"),
        ("simulate_events EMPTY new", "EMPTY: no images in this folder"),
        ("simulate_events REC/images REC --rate 9", "REC: exists already, expected a new or empty"),
        ("simulate_events REC/images new --seed -1", "--seed must not be negative, got -1"),
        ("write_dsec FILE a --size 32x32 --image-size 32x32", "FILE: exists, but is no directory"),
        ("write_dsec new a/b", "name must be one of a folder in new, got 'a/b'"),
        ("write_dsec new a --image-size 0x0", "--image-size: expected WIDTHxHEIGHT, got '0x0'"),
        ("write_mvsec new/a --frames 3", "--frames must be at least 4 for two maps between them, "),
        ("write_mvsec EMPTY", "EMPTY: is a directory; name a sequence in it"),
        ("generate_recording REC", "REC: exists already, expected a new or empty directory"),
        (
            "generate_recording new --times 0.5,2",
            "expected numbers in (0, 1) and commas, got '0",
        ),
        ("evaluate_mvsec EMPTY", "EMPTY: no such file, expected <sequence>_data.hdf5"),
        ("check_submission FILE EMPTY", "EMPTY: no schedules SEQ.csv there"),
        ("check_submission FILE EMPTY --size 0x9", "--size: expected WIDTHxHEIGHT, got '0x9'"),
        ("download_dsec new --split test --parts flow", "the test split have no ground truth"),
    ],
)
def test_bad_arguments_are_told_at_once(line, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FILE.txt").write_text("text\n")
    frames = np.zeros((2, 16, 16), np.uint8)
    write_recording(tmp_path / "REC", Events.empty(16, 16), frames, [0, 1000])
    before = sorted(tmp_path.rglob("*"))
    line, message = (text.replace("FILE", "FILE.txt") for text in (line, message))
    name, *arguments = line.split()
    tool = load_tool(name, monkeypatch)
    if "FILE" not in line:
        for step in {"generate_scene", "count_events", "estimate_motion"} & vars(tool).keys():
            monkeypatch.setattr(tool, step, raising(AssertionError("this takes time")))
    try:
        assert tool.main(arguments) == 1
        *_, said = capsys.readouterr().err.splitlines()  # after what was told of the recording
    except SystemExit as stop:
        assert stop.code == 2
        said = capsys.readouterr().err.splitlines()[-1]
    assert message in said and ": error: " in said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_process_ends_with_the_code(tmp_path):
    """Also one that cannot print what it has to say."""
    script = tmp_path / "tool.py"
    script.write_text(
        "import sys\nfrom flowfuse.cli.console import leave, run_command\n"
        "def action():\n    if sys.argv[1:]: raise KeyboardInterrupt\n    print('x' * 100_000)\n"
        "leave(run_command('tool', action))\n"
    )
    command = [sys.executable, str(script)]
    places = [str(ROOT), os.environ.get("PYTHONPATH", "")]  # the package, installed or not
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env) as closed:
        closed.stdout.close()
        assert closed.stderr.read() == "" and closed.wait() == CLOSED_PIPE
    stopped = subprocess.run([*command, "stop"], capture_output=True, text=True, env=env)
    assert (stopped.returncode, stopped.stderr) == (INTERRUPTED, "tool: interrupted\n")
