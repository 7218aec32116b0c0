"""flowfuse-infer on several recordings and in several processes: the files of one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from infer_cases import FIRST, QUIET, STEP, files

from flowfuse import distributed
from flowfuse.cli.infer import main
from flowfuse.data.opening import find_recordings, open_recording
from flowfuse.data.recording_writer import write_recording
from flowfuse.distributed import Processes
from flowfuse.io.lock import directory_lock

ROOT = Path(__file__).parents[2]  # where -m finds the package, installed or not
ALL = ("--times", "0.5", "--write", "backward,control-points", "--html", "--max-pictures", "2")

# The last of two processes ends after its first pair, as if it had been killed.
DYING = """
import os, sys
from flowfuse.cli import infer, infer_outputs
write = infer_outputs.OutputDirectory.write

def dying(self, *args, **kwargs):
    write(self, *args, **kwargs)
    if os.environ.get("RANK") == "1":
        os._exit(9)

infer_outputs.OutputDirectory.write = dying
sys.exit(infer.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, recording, events) -> Path:
    """Two recordings, and things that are none."""
    path = tmp_path_factory.mktemp("many") / "recordings"
    path.mkdir()
    shutil.copytree(recording, path / "a")
    frames = [open_recording(recording).frame(index) for index in (2, 0, 1)]
    write_recording(path / "b", events, frames, [FIRST, FIRST + STEP, FIRST + 2 * STEP])
    (path / "notes").mkdir()
    (path / "notes.txt").write_text("none")
    (path / ".hidden").mkdir()
    return path


def launch(
    count: int, *arguments: object, script: str | None = None
) -> subprocess.CompletedProcess:
    program = ["-m", "flowfuse.infer"] if script is None else [script]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc-per-node={count}", *program, "--threads", "1", "--device", "cpu",
            *map(str, arguments),
        ],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def contents(root: Path) -> dict[str, bytes]:
    """All files but those that tell of each call."""
    names = [name for name in files(root) if Path(name).name != "history.jsonl"]
    return {name: (root / name).read_bytes() for name in names}


def test_a_folder_and_a_list_are_inputs(run, folder, recording, tmp_path, capsys):
    assert run(folder, *QUIET) == 0
    printed = capsys.readouterr().out
    assert f"{folder / 'a'} -> {tmp_path / 'out' / 'a'}" in printed
    assert "all 2 recordings:" in printed
    assert run(recording, *QUIET, out=tmp_path / "alone") == 0
    for name in files(tmp_path / "alone"):
        if name not in ("run.json", "history.jsonl"):  # which name files and commands
            alone = (tmp_path / "alone" / name).read_bytes()
            assert (tmp_path / "out" / "a" / name).read_bytes() == alone, name
    summary = json.loads((tmp_path / "out" / "recordings.json").read_text())
    counts = {one["name"]: one["intervals"] for one in summary["recordings"]}
    assert counts == {"a": 3, "b": 2}
    single = json.loads((tmp_path / "out" / "a" / "metrics.json").read_text())["average"]
    assert summary["recordings"][0]["average"] == single
    errors = [
        pair["photometric_error"]
        for name in "ab"
        for pair in json.loads((tmp_path / "out" / name / "metrics.json").read_text())["pairs"]
    ]
    assert summary["average"]["photometric_error"] == pytest.approx(sum(errors) / 5)
    (tmp_path / "list").write_text(f"{folder / 'b'}\n\n{folder / 'a'}\n")
    assert run(f"@{tmp_path / 'list'}", *QUIET, out=tmp_path / "listed") == 0
    found, expected = contents(tmp_path / "listed"), contents(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(found[k] == expected[k] for k in found if k != "recordings.json")  # another order


def test_what_is_no_list_of_recordings_is_told(run, folder, recording, tmp_path, capsys):
    assert run(folder / "a", folder / "b", "--frames", "x", *QUIET) == 1
    assert "--events, --frames and --frame-times belong to one recording" in capsys.readouterr().err
    assert run(folder / "a", folder, *QUIET) == 1
    assert f"would both be written to {tmp_path / 'out' / 'a'}" in capsys.readouterr().err
    assert run(folder / "notes", *QUIET) == 1
    assert "notes: neither a recording nor a folder of recordings" in capsys.readouterr().err
    parts = ("--events", recording / "events.h5")
    assert run(folder / "notes", *parts, "--every", "40ms", *QUIET, out=tmp_path / "named") == 0
    (tmp_path / "empty").write_text("\n")
    for name, message in (("empty", "the list is empty"), ("absent", "cannot read a list")):
        assert main([f"@{tmp_path / name}", "-o", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_recordings_of_a_folder_are_found(folder, recording, tmp_path):
    assert find_recordings(folder) == [folder / "a", folder / "b"]
    assert find_recordings(recording) == [recording]
    assert find_recordings(tmp_path / "absent") == [tmp_path / "absent"]
    with h5py.File(tmp_path / "x_data.hdf5", "w") as file:
        file.create_group("davis/left/events")
    for name in ("x_gt.hdf5", "drive.aedat4", "flow.h5"):
        (tmp_path / name).write_bytes(b"")
    names = ["drive.aedat4", "x_data.hdf5"]
    assert [path.name for path in find_recordings(tmp_path)] == names


def test_a_broken_recording_does_not_stop_the_others(run, folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "in")
    broken = next((tmp_path / "in" / "a").glob("events.*"))
    broken.write_bytes(broken.read_bytes()[:100])
    assert run(tmp_path / "in", "-o", tmp_path / "out", *QUIET) == 1
    told = capsys.readouterr().err
    assert "a/events.h5" in told and "; the other recordings go on" in told
    assert "error: 1 of 2 recordings failed:\n  " in told
    summary = json.loads((tmp_path / "out" / "recordings.json").read_text())
    assert [one["name"] for one in summary["recordings"]] == ["b"]


def test_two_commands_on_one_output_are_refused(run, recording, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with directory_lock(tmp_path / "out"):
        assert run(recording, *QUIET) == 1
    message = capsys.readouterr().err
    assert f"{tmp_path / 'out'}: process {os.getpid()} on " in message
    assert "wait for it, or give another directory" in message
    assert files(tmp_path / "out") == []
    assert run(recording, *QUIET) == 0
    assert not (tmp_path / "out" / ".lock").exists()


def test_tracks_need_one_process(run, recording, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "this", lambda: Processes(0, 2, 0))
    assert run(recording, "--tracks", "auto", *QUIET) == 1
    assert "--tracks follows points through all pairs in turn" in capsys.readouterr().err


def test_parts_cover_all_and_differ_by_one():
    for count in (1, 2, 3, 7):
        for length in (0, 1, 5, 12):
            parts = [Processes(rank, count, rank).part(length) for rank in range(count)]
            assert [i for part in parts for i in part] == list(range(length))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_write_the_files_of_one(run, folder, checkpoint, tmp_path, count):
    """Bit for bit, and what is said once is said once; four processes have three pairs."""
    assert run(folder, *ALL, out=tmp_path / "one") == 0
    out = tmp_path / "several"
    done = launch(count, folder, "-o", out, "--checkpoint", checkpoint, *ALL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 pairs of 28 x 20 px: 3 estimated") == 1
    assert done.stdout.count("all 2 recordings:") == 1
    expected, found = contents(tmp_path / "one"), contents(out)
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name] == expected[name], name


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_and_what_is_done_is_kept(
    run, recording, checkpoint, tmp_path, capsys
):
    script, out = tmp_path / "dying.py", tmp_path / "out"
    script.write_text(DYING)
    done = launch(2, recording, "-o", out, "--checkpoint", checkpoint, *QUIET, script=str(script))
    assert done.returncode != 0
    assert "000001.flo" in files(out / "flow")  # of the process that died
    assert not (out / "metrics.json").exists()
    assert run(recording, *QUIET) == 0
    assert "were there already" in capsys.readouterr().out
    assert run(recording, *QUIET, out=tmp_path / "whole") == 0
    whole = contents(tmp_path / "whole")
    assert contents(out) == whole
