"""The guides to recordings: every command is one that its parser takes, and what can run is run."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
from dsec_cases import FIRST, OFFSET, write

from flowfuse.cli.infer_options import build_parser, parse_config
from flowfuse.cli.train_options import read_command_line
from flowfuse.data.calibration import read_calibration
from flowfuse.data.registry import FORMATS

REPOSITORY = Path(__file__).resolve().parents[2]
GUIDES = REPOSITORY / "docs" / "guides"
PAGES = ("own_camera", "dsec", "mvsec", "data_sets")
TEXT = "".join((GUIDES / f"{name}.md").read_text(encoding="utf-8") for name in PAGES)
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]


def block_of(kind: str) -> str:
    (found,) = (block for name, block in BLOCKS if name == kind)
    return found


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_taken_by_their_parsers(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").mkdir()
    program, *arguments = shlex.split(line, comments=True)
    if program == "flowfuse-infer":
        parse_config(build_parser(), arguments)
        return
    if program == "flowfuse-train":
        read_command_line(arguments)
        return
    assert program == "python"
    script, *arguments = arguments
    monkeypatch.syspath_prepend(str((REPOSITORY / script).parent))
    parser = importlib.import_module(Path(script).stem).build_parser()
    given = vars(parser.parse_args(arguments))
    assert arguments[0] in {str(value) for value in given.values()}


def test_every_tool_is_told_of():
    for path in sorted((REPOSITORY / "data_tools").glob("*.py")):
        assert f"python data_tools/{path.name} " in TEXT, path.name


TESTS = {  # of each row of the table of formats
    "HDF5": "hdf5_events",
    "HDF5 table": "table",
    "M3ED": "table",
    "Prophesee HDF5": "prophesee_hdf5",
    "npz": "npz_events",
    "npz table": "table",
    "text": "text",
    "zipped text": "zipped_text",
    "Prophesee RAW": "prophesee_raw",
    "Prophesee DAT": "prophesee_dat",
    "AEDAT 4": "aedat4",
    "AEDAT 2": "aedat2",
    "AEDAT 3": "aedat3",
    "ROS bag": "ros_bag",
    "EVIMO2": "table",
    "video": "frames",
    "images": "frames",
}


def test_the_table_has_every_format_and_a_test_is_behind_each_row():
    part = TEXT.partition("## Formats\n")[2].partition("\n##")[0]
    lines = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("|")]
    rows = {name.strip(): files for name, files, _ in lines[2:]}
    own = {item.name: item for item in FORMATS if type(item).__module__.startswith("flowfuse.")}
    assert set(rows) == set(own) == set(TESTS)
    for name, files in rows.items():
        suffixes = tuple(re.findall(r"`(\.\w+)`", files))
        assert suffixes == own[name].suffixes or (name, suffixes) == ("images", (".txt",)), name
        test = REPOSITORY / "tests" / "data" / "formats" / f"test_{TESTS[name]}.py"
        assert "def test_" in test.read_text(encoding="utf-8"), name


def test_the_files_that_are_named_are_there():
    for name in re.findall(r"`((?:flowfuse|benchmarks|data_tools)/\w[\w/.]*)`", TEXT):
        assert (REPOSITORY / name).exists(), name


def test_the_lines_of_python_run(tmp_path):
    write(tmp_path, "zurich_city_01_a")
    write(tmp_path, "thun_00_a")
    names = {"t0": OFFSET + FIRST, "t1": OFFSET + FIRST + 10_000}
    exec(block_of("python").replace("ROOT", str(tmp_path)), names)
    assert len(names["sequence"].events(names["t0"], names["t1"])) > 0


def test_the_calibration_is_one(tmp_path):
    path = tmp_path / "rig.yaml"
    path.write_text(block_of("yaml"))
    rig = read_calibration(path)
    assert (rig.events.width, rig.frames.height) == (640, 1080)
