"""How commands and tools end: errors, Ctrl-C and closed pipes, each in one line."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from flowfuse.command_line import CLOSED_PIPE, INTERRUPTED, ListedError, parse_count, run_command

ROOT = Path(__file__).resolve().parent.parent
TOOLS = sorted(path.stem for path in (ROOT / "data_tools").glob("*.py"))
# Arguments of each tool, and what is called first of all that takes time.
FIRST_STEPS = {
    "check_submission": (["OUT", "IN"], "list_predictions"),
    "convert": (["IN", "OUT"], "open_recording"),
    "download_dsec": (["OUT"], "fetch"),
    "evaluate_mvsec": (["IN", "-o", "OUT"], "open_mvsec"),
    "generate_recording": (["OUT"], "generate_scene"),
    "inspect_recording": (["IN", "--sheet", "OUT"], "open_recording"),
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


def test_a_process_ends_with_the_code(tmp_path):
    """Also one that cannot print what it has to say."""
    script = tmp_path / "tool.py"
    script.write_text(
        "import sys\nfrom flowfuse.command_line import leave, run_command\n"
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
