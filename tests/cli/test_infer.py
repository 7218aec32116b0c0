"""flowfuse-infer from the command line to the files, on small recordings."""

from __future__ import annotations

import errno
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from infer_cases import CONFIG, FIRST, FRAMES, HEIGHT, QUIET, SHIFT, STEP, WIDTH, files

from flowfuse.cli import infer_outputs as outputs
from flowfuse.cli import infer_recording, infer_report
from flowfuse.cli.infer import main
from flowfuse.cli.infer_options import parse_duration, parse_range, parse_times
from flowfuse.data.opening import open_recording
from flowfuse.data.recording_writer import write_recording
from flowfuse.estimator import load
from flowfuse.events import Events
from flowfuse.io.flow import read_flow
from flowfuse.model import FlowFuse
from flowfuse.model.checkpoint import save_checkpoint
from flowfuse.runner import (
    FrameReader,
    Interval,
    count_gaps,
    estimate_interval,
    plan_fixed_rate,
    plan_frame_pairs,
)


def expected_flow(recording: Path, checkpoint: Path, index: int):
    opened = open_recording(recording)
    t0, t1 = opened.frame_times[index : index + 2]
    return load(checkpoint)(
        opened.frame(index), opened.frame(index + 1), opened.events(0, t1 + 4_001),
        t0=t0, t1=t1, exposure0=8_000, exposure1=8_000,
    )  # fmt: skip


def test_everything_is_written(run, recording, checkpoint, tmp_path, capsys):
    assert run(recording, "--times", "0.25,0.5") == 0
    out = tmp_path / "out"
    flows = [f"{index:06d}.flo" for index in range(FRAMES - 1)]
    pictures = [
        f"{index:06d}_{kind}.png"
        for index in range(FRAMES - 1)
        for kind in ("boundary", "events", "flow", "times")
    ]
    assert files(out / "flow") == flows
    assert files(out / "flow_at") == [f"{tau}/{name}" for tau in ("0.25", "0.5") for name in flows]
    assert files(out / "pictures") == pictures
    assert files(out)[-2:] == ["run.json", "windows.csv"] and (out / "metrics.json").is_file()
    for name in pictures:
        image = cv2.imread(str(out / "pictures" / name))
        assert image is not None and image.std() > 5
    video = cv2.VideoCapture(str(out / "flow.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == FRAMES - 1
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(1e6 / STEP, rel=1e-3)  # real time
    for index in range(FRAMES - 1):
        result = expected_flow(recording, checkpoint, index)
        assert np.array_equal(read_flow(out / "flow" / flows[index])[0], result.flow)
        at, _ = read_flow(out / "flow_at" / "0.25" / flows[index])
        assert np.array_equal(at, result.at(0.25))
    printed = capsys.readouterr().out
    for text in (
        "3 pairs of 28 x 20 px: 3 estimated, 0 were there already",
        "1 pair without any event: flow from the frames alone",
        "EPE: ", "AUSE: ", "of 3 pairs estimated by this call",
        "EPE at tau = 0.5: ", "time per pair: ", "photometric error",
        str(out / "flow.mp4"), str(out / "pictures" / pictures[0]), str(out / "metrics.json"),
    ):  # fmt: skip
        assert text in printed


def test_an_evident_cause_is_told_in_one_line(recording, tmp_path, monkeypatch):
    found = open_recording(recording)
    monkeypatch.setattr(infer_recording, "find_cause", lambda recording: "x is mirrored")
    with pytest.warns(UserWarning, match=f"^{re.escape(str(recording))}: x is mirrored$"):
        infer_recording._warn_of_cause(found)

    def fails(recording):
        raise ValueError("a broken frame that is not asked for")

    monkeypatch.setattr(infer_recording, "find_cause", fails)
    infer_recording._warn_of_cause(found)


def test_metrics_by_hand(run, recording, tmp_path):
    assert run(recording, "--times", "0.5", *QUIET) == 0
    out = tmp_path / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    errors = []
    for index, pair in enumerate(metrics["pairs"]):
        flow = read_flow(out / "flow" / f"{index:06d}.flo")[0]
        error = np.hypot(flow[0] - SHIFT[0], flow[1] - SHIFT[1])[5:]  # rows above 5 are invalid
        errors.append(error.mean())
        # float32 files, float64 sums
        assert pair["flow"]["epe"] == pytest.approx(error.mean(), rel=1e-6)
        assert pair["zero_flow"]["epe"] == pytest.approx(np.hypot(*SHIFT), rel=1e-6)
        assert pair["t0_us"] == FIRST + index * STEP
        half = read_flow(out / "flow_at" / "0.5" / f"{index:06d}.flo")[0]
        error = np.hypot(half[0] - SHIFT[0] / 2, half[1] - SHIFT[1] / 2)[5:]
        assert pair["flow_at"]["0.5"]["flow"]["epe"] == pytest.approx(error.mean(), rel=1e-6)
        assert pair["trajectory"]["tepe"] == pytest.approx(error.mean(), rel=1e-6)
        assert pair["trajectory"]["deviation_error"] is None  # a straight motion: no deviation
    average = metrics["average"]["flow"]["per_frame"]["epe"]
    assert average == pytest.approx(np.mean(errors), rel=1e-6)
    assert metrics["average"]["flow"]["frames"] == FRAMES - 1


@pytest.mark.parametrize(
    ("suffix", "encoding", "step"),
    # 16-bit PNG rounds to its step; the others keep float32
    [("npy", "kitti", 0), ("npz", "kitti", 0), ("png", "kitti", 1 / 64), ("png", "dsec", 1 / 128)],
)
def test_formats_read_back(run, recording, checkpoint, tmp_path, suffix, encoding, step):
    arguments = ("--format", suffix, "--png-encoding", encoding, "--pairs", "1:2", *QUIET)
    assert run(recording, *arguments) == 0
    assert files(tmp_path / "out" / "flow") == [f"000001.{suffix}"]
    flow, valid = read_flow(tmp_path / "out" / "flow" / f"000001.{suffix}", encoding)
    expected = expected_flow(recording, checkpoint, 1).flow
    assert valid.all() and np.abs(flow - expected).max() <= step / 2 + 1e-9


def test_an_interrupted_run_goes_on(run, recording, tmp_path, monkeypatch, capsys):
    """Interrupted between two files of a pair, and again with a file lost: the same files."""
    arguments = (recording, "--times", "0.5")
    assert run(*arguments, out=tmp_path / "whole") == 0
    write_flow, written = outputs.write_flow, []

    def interrupted(path, *args, **kwargs):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        write_flow(path, *args, **kwargs)

    monkeypatch.setattr(outputs, "write_flow", interrupted)
    assert run(*arguments) == 130
    assert "goes on from here" in capsys.readouterr().err
    monkeypatch.setattr(outputs, "write_flow", write_flow)
    out = tmp_path / "out"
    before = (out / "flow" / "000000.flo").stat().st_mtime_ns
    assert run(*arguments) == 0
    assert "2 estimated, 1 were there already" in capsys.readouterr().out
    assert (out / "flow" / "000000.flo").stat().st_mtime_ns == before
    (out / "flow_at" / "0.5" / "000002.flo").unlink()
    abandoned = out / "flow" / ".000002.999999999-0a1b2c3d.tmp.flo"  # what a kill leaves
    abandoned.write_bytes(b"half")
    assert run(*arguments) == 0
    assert "1 estimated, 2 were there already" in capsys.readouterr().out
    assert files(out) == files(tmp_path / "whole")
    for name in files(out):
        if Path(name).suffix in (".flo", ".png", ".json"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert run(*arguments) == 0
    assert "0 estimated, 3 were there already" in capsys.readouterr().out


def test_times_keep_all_their_digits(run, recording, tmp_path):
    """Output is named as a recording's truth is, and two close times do not share a file."""
    copy = tmp_path / "copy"
    shutil.copytree(recording, copy)
    (copy / "flow_at" / "0.5").rename(copy / "flow_at" / repr(1 / 3))
    times = (1 / 3, 0.3333334)
    assert run(copy, "--times", ",".join(map(repr, times)), "--pairs", "0:1", *QUIET) == 0
    flow_at = tmp_path / "out" / "flow_at"
    assert files(flow_at) == [f"{tau}/000000.flo" for tau in times]
    first, second = (read_flow(flow_at / repr(tau) / "000000.flo")[0] for tau in times)
    assert not np.array_equal(first, second)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["pairs"][0]["flow_at"]) == [repr(1 / 3)]


def test_other_settings_need_overwrite(run, recording, tmp_path, capsys):
    assert run(recording, *QUIET) == 0
    assert run(recording, "--iterations", 2, *QUIET) == 1
    message = capsys.readouterr().err
    assert "other settings (iterations None there, 2 now)" in message and "--overwrite" in message
    before = (tmp_path / "out" / "flow" / "000000.flo").read_bytes()
    assert run(recording, "--iterations", 2, "--times", "0.5", "--overwrite", *QUIET) == 0
    assert (tmp_path / "out" / "flow" / "000000.flo").read_bytes() != before
    assert run(recording, "--iterations", 2, "--format", "npy", "--overwrite", *QUIET) == 0
    assert files(tmp_path / "out", "*.flo") == []  # nothing stale
    for content, found in (("{", "run.json: "), ('{"runs": 3}', "has no key 'flowfuse'")):
        (tmp_path / "out" / "run.json").write_text(content)
        before = files(tmp_path / "out")
        assert run(recording, "--overwrite", *QUIET) == 1
        message = capsys.readouterr().err
        assert "not written by flowfuse-infer" in message and found in message
        assert files(tmp_path / "out") == before


def test_precision(run, recording, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("flowfuse.precision.cpu_has_bfloat16", lambda: True)
    assert run(recording, *QUIET) == 0
    assert run(recording, "--precision", "bf16", *QUIET) == 1
    assert "precision float32 there, bf16 now" in capsys.readouterr().err
    other = tmp_path / "bf16"
    assert run(recording, "--precision", "bf16", *QUIET, out=other) == 0
    whole, half = (read_flow(path / "flow" / "000000.flo")[0] for path in (tmp_path / "out", other))
    assert 0 < np.abs(half - whole).max() < 0.1 * np.abs(whole).max()  # bfloat16 has 8 bits


def test_without_bfloat16_instructions_float32_goes_on(
    run, recording, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("flowfuse.precision.cpu_has_bfloat16", lambda: False)
    assert run(recording, *QUIET) == 0
    assert "bfloat16" not in capsys.readouterr().err
    other = tmp_path / "bf16"
    assert run(recording, "--precision", "bf16", *QUIET, out=other) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "bfloat16" in line]
    assert told == [
        "flowfuse-infer: warning: --precision bf16: this CPU has no bfloat16 instructions: "
        "float32 is faster, and used instead"
    ]
    assert json.loads((other / "run.json").read_text())["precision"] == "float32"
    flows = [read_flow(path / "flow" / "000000.flo")[0] for path in (tmp_path / "out", other)]
    assert np.array_equal(*flows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_auto_is_the_cpu_without_a_gpu(run, recording, tmp_path, capsys):
    assert run(recording, *QUIET) == 0
    assert run(recording, "--device", "auto", *QUIET, out=tmp_path / "auto") == 0
    assert "; cpu, " in capsys.readouterr().out
    for name in files(tmp_path / "out", "*.flo"):
        assert (tmp_path / "auto" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_replaced_images_are_noticed(run, broken, capsys):
    assert run(broken, *QUIET) == 0
    image = first_image(broken)
    cv2.imwrite(str(image), 255 - cv2.imread(str(image), cv2.IMREAD_UNCHANGED))
    assert run(broken, *QUIET) == 1
    assert "other settings (frame_files " in capsys.readouterr().err


def test_an_output_inside_the_recording_is_taken_up(run, broken, capsys):
    for done in (0, 3):
        assert run(broken, *QUIET, out=broken / "out") == 0
        assert f"{done} were there already" in capsys.readouterr().out


def test_metrics_and_intervals_cover_earlier_calls(run, recording, tmp_path):
    assert run(recording, "--pairs", "1:3", *QUIET) == 0
    assert run(recording, "--pairs", "0:1", *QUIET) == 0
    assert run(recording, *QUIET, out=tmp_path / "whole") == 0
    for name in ("metrics.json", "windows.csv"):
        there = (tmp_path / "out" / name).read_text()
        assert there == (tmp_path / "whole" / name).read_text()
    lines = [f"{i},{FIRST + i * STEP},{FIRST + (i + 1) * STEP},flow/00000{i}.flo" for i in range(3)]
    assert there.splitlines() == ["index,t0_us,t1_us,file", *lines]


def test_events_and_frames_of_different_times_are_refused(run, recording, events, tmp_path, capsys):
    frames = [open_recording(recording).frame(index) for index in range(2)]
    write_recording(tmp_path / "rec", events, frames, [10**9, 10**9 + STEP])
    assert run(tmp_path / "rec", *QUIET) == 1
    message = capsys.readouterr().err
    assert "the frames from 1000.000000 to 1000.040000 s" in message and "units" in message
    # The grid starts with the events, and frames at other times do not stretch it.
    assert run(tmp_path / "rec", "--every", "40ms", *QUIET) == 0
    assert len((tmp_path / "out" / "windows.csv").read_text().splitlines()) == 1 + 2


def test_the_cause_stands_before_the_refusal(run, recording, monkeypatch, tmp_path, capsys):
    opened = open_recording(recording)
    frames = [opened.frame(index) for index in range(3)]
    write_recording(
        tmp_path / "rec", opened.events(0, 10**9), frames, [10**9, 2 * 10**9, 3 * 10**9]
    )
    monkeypatch.setattr(infer_recording, "find_cause", lambda recording: "clocks differ")
    assert run(tmp_path / "rec", *QUIET) == 1
    warning, error = capsys.readouterr().err.splitlines()[-2:]
    assert warning.endswith("rec: clocks differ") and "no event lies between two frames" in error


def test_doubtful_times_are_told(run, recording, events, tmp_path, capsys):
    frames = [open_recording(recording).frame(index) for index in range(3)]
    seconds = 10**6  # the frames' times as if they were in ms
    write_recording(tmp_path / "rec", events, frames, [0, 40 * seconds, 80 * seconds])
    assert run(tmp_path / "rec", *QUIET) == 0
    told = capsys.readouterr().err
    assert "may be 1000 times too short" in told and "are the units right?" not in told  # once
    assert run(tmp_path / "rec", "--pairs", "1:2", *QUIET, out=tmp_path / "other") == 0
    assert "no event in any pair asked for" in capsys.readouterr().err
    assert run(recording, *QUIET, out=tmp_path / "good") == 0
    assert "warning" not in capsys.readouterr().err


def test_missing_events_are_told(run, recording, tmp_path, capsys):
    (tmp_path / "rec").mkdir()
    for name in ("images", "images.txt"):
        (tmp_path / "rec" / name).symlink_to(recording / name)
    assert run(tmp_path / "rec", *QUIET) == 0
    expected = f"warning: no event file in {tmp_path / 'rec'} (events.h5, "
    assert expected in capsys.readouterr().err
    parts = ("--frames", recording / "images", "--frame-times", recording / "images.txt")
    assert run(*parts, *QUIET, out=tmp_path / "other") == 0
    assert "no event file: flow from the frames alone" in capsys.readouterr().err
    assert run(*parts, "--every", "1ms", out=tmp_path / "third") == 1
    assert "needs events, but there is no event file" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--events-only", "--from-frame", "--event-flow"])
def test_what_needs_events_is_refused_without_any(run, recording, tmp_path, capsys, option):
    opened = open_recording(recording)
    frames = [opened.frame(index) for index in range(2)]
    write_recording(tmp_path / "frames", None, frames, [0, 40_000])
    write_recording(tmp_path / "empty", Events.empty(HEIGHT, WIDTH), frames, [0, 40_000])
    for name, found in (
        ("frames", f"no event file in {tmp_path / 'frames'} (events.h5, "),
        ("empty", f"no event in {tmp_path / 'empty' / 'events.h5'} (0 found, at least one"),
    ):
        assert run(tmp_path / name, option, *QUIET) == 1
        (told,) = capsys.readouterr().err.splitlines()
        assert told.startswith(
            f"flowfuse-infer: error: {option} needs events, but there is {found}"
        )
        assert not (tmp_path / "out").exists()


def test_an_empty_event_file_is_named(run, recording, tmp_path, capsys):
    frames = [open_recording(recording).frame(index) for index in range(2)]
    write_recording(tmp_path / "rec", Events.empty(HEIGHT, WIDTH), frames, [0, 40_000])
    told = f"no event in {tmp_path / 'rec' / 'events.h5'} (0 found, at least one expected)"
    assert run(tmp_path / "rec", *QUIET) == 0
    assert f"warning: {told}: flow from the frames alone" in capsys.readouterr().err
    assert run(tmp_path / "rec", "--every", "1ms", *QUIET, out=tmp_path / "other") == 1
    assert f"flow at a fixed rate needs events, but there is {told}" in capsys.readouterr().err


def test_a_handful_of_events_is_told_once(run, recording, tmp_path, capsys):
    frames = [open_recording(recording).frame(index) for index in range(3)]
    events = Events(
        [1, 2, 3], [1, 2, 3], [5_000, 45_000, 46_000], [0, 1, 0], height=HEIGHT, width=WIDTH
    )
    write_recording(tmp_path / "rec", events, frames, [0, 40_000, 80_000])
    assert run(tmp_path / "rec", *QUIET) == 0
    (told,) = (line for line in capsys.readouterr().err.splitlines() if "fewer" in line)
    assert told.endswith(
        "rec: 2 of 2 pairs with fewer than 50 events (the fewest: pair 0, 1): events tell next to "
        "nothing of the motion there"
    )
    assert run(tmp_path / "rec", "--frames-only", *QUIET, out=tmp_path / "other") == 0
    assert "fewer" not in capsys.readouterr().err


def test_far_longer_intervals_are_told(run, recording, events, tmp_path, capsys):
    frames = [open_recording(recording).frame(index) for index in range(3)]
    write_recording(tmp_path / "rec", events, frames, [0, 10_000, 80_000])
    usual = "longer than 5 x the usual distance of frames, 10.000 ms (the longest:"
    assert run(tmp_path / "rec", "--pairs", "1:2", *QUIET) == 0
    expected = f"rec: 1 of 1 pairs {usual} pair 1, 70.000 ms): expect wrong flow there\n"
    assert expected in capsys.readouterr().err
    assert run(tmp_path / "rec", "--every", "60ms", *QUIET, out=tmp_path / "other") == 0
    assert f"1 of 1 time intervals {usual} time interval 0, 60" in capsys.readouterr().err
    assert run(tmp_path / "rec", "--every", "50ms", *QUIET, out=tmp_path / "third") == 0
    assert "expect wrong flow" not in capsys.readouterr().err


def test_gray_and_colour_frames_are_compared_in_gray(run, recording, broken, tmp_path):
    image = first_image(broken)
    gray = cv2.imread(str(image), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(image), np.repeat(gray[..., None], 3, axis=2))
    assert run(broken, *QUIET) == 0
    assert run(recording, *QUIET, out=tmp_path / "gray") == 0
    errors = [
        json.loads((tmp_path / out / "metrics.json").read_text())["average"]["photometric_error"]
        for out in ("out", "gray")
    ]
    assert errors[0] == pytest.approx(errors[1], abs=1e-4)  # the luma of gray is that gray


def test_a_closed_pipe_is_no_error_of_the_output(run, recording, capsys, monkeypatch):
    def closed(*args):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(infer_report.RunReport, "summary", closed)
    assert run(recording, *QUIET) == 141
    assert "Broken pipe" not in capsys.readouterr().err


def test_foreign_directories_are_left_alone(run, recording, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(recording, copy)
    before = files(copy)
    assert run(copy, "--overwrite", out=copy) == 1
    assert "must not be the recording itself" in capsys.readouterr().err
    assert run(recording, "--overwrite", out=copy) == 1
    assert "not empty, and not written by flowfuse-infer" in capsys.readouterr().err
    assert files(copy) == before


def test_ranges(run, recording, tmp_path):
    assert run(recording, "--pairs", "1:", *QUIET) == 0
    assert files(tmp_path / "out" / "flow") == ["000001.flo", "000002.flo"]
    seconds = [(FIRST + index * STEP) * 1e-6 for index in (0, 2)]
    assert run(recording, "--start", seconds[0], "--end", seconds[1], *QUIET) == 0
    assert files(tmp_path / "out" / "flow") == ["000000.flo", "000001.flo", "000002.flo"]


def test_events_alone_at_a_fixed_rate(run, recording, events, checkpoint, tmp_path, capsys):
    window = ("--start", "0.05", "--end", "0.1")
    assert run(recording, "--every", "10ms", *window, "--times", "0.5") == 0
    out = tmp_path / "out"
    # [85, 95) ms holds no event: the recording's events end at 85 ms
    assert files(out / "flow") == [f"{index:06d}.flo" for index in range(4)]
    printed = capsys.readouterr().out
    assert "5 time intervals" in printed and "time intervals: " in printed
    assert "1 time interval without any event: no flow, no file" in printed
    assert not (out / "metrics.json").exists() and (out / "flow.mp4").is_file()
    rows = (out / "windows.csv").read_text().splitlines()
    assert rows[4:] == ["3,80000,90000,flow/000003.flo", "4,90000,100000,"]
    result = load(checkpoint)(None, None, events, t0=60_000, t1=70_000)
    assert result.modalities == ("events",)
    assert np.array_equal(read_flow(out / "flow" / "000001.flo")[0], result.flow)


def test_separate_files_and_frames_only(run, recording, tmp_path):
    parts = ("--frames", recording / "images", "--frame-times", recording / "images.txt")
    assert run("--events", recording / "events.h5", *parts, *QUIET) == 0
    assert files(tmp_path / "out" / "flow") == ["000000.flo", "000001.flo", "000002.flo"]
    lone = tmp_path / "frames_only"
    frames = [open_recording(recording).frame(index) for index in range(2)]
    write_recording(lone, None, frames, [0, STEP])
    assert run(lone, out=tmp_path / "other") == 0
    metrics = json.loads((tmp_path / "other" / "metrics.json").read_text())
    assert "flow" not in metrics["average"]  # no truth
    assert metrics["average"]["photometric_error"] > 0


def test_stated_columns_and_frame_times_of_triggers(run, recording, events, tmp_path, capsys):
    rows = zip(*(getattr(events, name).tolist() for name in "xypt"), strict=True)
    lines = "".join(f"{x},{y},{p},{t}\n" for x, y, p, t in rows)
    (tmp_path / "events.csv").write_text(f"{WIDTH} {HEIGHT}\n{lines}")
    parts = ("--frames", recording / "images", "--frame-times")
    given = ("--events", tmp_path / "events.csv", "--columns", "x,y,p,t_us")
    assert run(*given, *parts, recording / "images.txt", *QUIET) == 0
    assert run("--events", recording / "events.h5", *parts, recording / "images.txt", *QUIET,
               out=tmp_path / "same") == 0  # fmt: skip
    flow = "flow/000000.flo"
    assert (tmp_path / "out" / flow).read_bytes() == (tmp_path / "same" / flow).read_bytes()
    # EVT 2.0 with a trigger at each frame.
    words = []
    for time in (FIRST + STEP * i for i in range(FRAMES)):
        words += [8 << 28 | time >> 6, 1 << 28 | (time & 63) << 22 | 3 << 11 | 2]
        words.append(10 << 28 | (time & 63) << 22 | 1)
    header = f"% evt 2.0\n% geometry {WIDTH}x{HEIGHT}\n% end\n".encode()
    (tmp_path / "a.raw").write_bytes(header + np.array(words, "<u4").tobytes())
    again = (tmp_path / "a.raw", *parts, "triggers:rising", *QUIET)
    for said in ("", "3 were there already"):
        capsys.readouterr()
        assert run(*again, out=tmp_path / "triggered") == 0
        printed = capsys.readouterr()
        assert said in printed.out + printed.err
    assert len(files(tmp_path / "triggered" / "flow")) == 3
    rows = (tmp_path / "triggered" / "windows.csv").read_text().splitlines()
    assert rows[1].startswith(f"0,{FIRST},{FIRST + STEP},")


def test_gaps_are_told(run, tmp_path, capsys):
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16), np.uint8)
    write_recording(tmp_path / "rec", None, frames, [0, 10_000, 20_000, 70_000, 80_000])
    assert run(tmp_path / "rec", *QUIET) == 0
    assert "1 pair longer than 1.5 x the median interval" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["rec"],
        ["-o", "out"],
        ["rec", "-o", "out", "--unknown", "1"],
        ["rec", "-o", "out", "--iter", "1"],
        ["rec", "-o", "out", "--format", "exr"],
        ["rec", "-o", "out", "--iterations", "0"],
        ["rec", "-o", "out", "--iterations", "two"],
        ["rec", "-o", "out", "--threads", "-1"],
        ["rec", "-o", "out", "--max-pictures", "-1"],
        ["rec", "-o", "out", "--pairs", "5"],
        ["rec", "-o", "out", "--pairs", "5:5"],
        ["rec", "-o", "out", "--every", "10"],
        ["rec", "-o", "out", "--every", "10ms", "--pairs", "0:1"],
        ["rec", "-o", "out", "--times", "0.5,0.25"],
        ["rec", "-o", "out", "--times", "1.5"],
        ["rec", "-o", "out", "--times", "half"],
        ["rec", "-o", "out", "--start", "nan"],
        ["rec", "-o", "out", "--end", "inf"],
        ["rec", "-o", "out", "--start", "1e305"],
        ["rec", "-o", "out", "--threads", "100000"],
    ],
)
def test_wrong_usage_is_explained(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert "usage: flowfuse-infer" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_two_images_are_told_how_to_become_a_recording(run, tmp_path, capsys):
    names = [tmp_path / "a.png", tmp_path / "b.JPG"]
    assert main([*map(str, names), "-o", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert f"{names[0]}, {names[1]}: an image is no recording" in told
    assert "DIR/images/" in told and "DIR/timestamps.txt" in told and "t0=0, t1=50_000" in told
    # What it says works.
    images = tmp_path / "pair" / "images"
    images.mkdir(parents=True)
    for number in (0, 1):
        cv2.imwrite(str(images / f"{number}.png"), np.full((16, 16), 99 * number, np.uint8))
    (tmp_path / "pair" / "timestamps.txt").write_text("0\n0.05\n")
    assert run(tmp_path / "pair", *QUIET) == 0


def test_help(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert "--times TAU,..." in printed and "lambda" not in printed
    assert "--precision {float32,bf16}" in printed and "auto (the first GPU" in printed


@pytest.fixture
def broken(recording, tmp_path):
    """A copy of the recording to break."""
    path = tmp_path / "broken"
    shutil.copytree(recording, path)
    return path


def truncate(path: Path, keep: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def first_image(path: Path) -> Path:
    return sorted((path / "images").iterdir())[0]


@pytest.mark.parametrize(
    ("damage", "extra", "message"),
    [
        (shutil.rmtree, (), "no such"),
        (lambda p: truncate(p / "events.h5"), (), "events.h5"),
        (lambda p: first_image(p).unlink(), (), "00000"),
        (lambda p: truncate(first_image(p)), (), "00000"),
        (lambda p: cv2.imwrite(str(first_image(p)), np.zeros((5, 9))), (), "9 x 5 px"),
        (lambda p: truncate(p / "flow" / "000001.flo"), (), "000001.flo"),
        (lambda p: None, ("--pairs", "7:9"), "no frame pair in the range asked for"),
        (lambda p: None, ("--start", "9"), "no frame pair in the range asked for"),
        (lambda p: None, ("--every", "5s"), "no time interval of 5000000 us fits"),
        (lambda p: None, ("--every", "1us", "--end", "9"), "at most 1000000 expected"),
        (lambda p: (p / "exposures.txt").write_text("0 1\n" * 4), (), "broken, frames 0 and 1 ("),
        (lambda p: None, ("--device", "cuda:77"), "cuda:77"),
        (lambda p: None, ("--device", "toaster"), "toaster"),
    ],
)
def test_bad_input_is_one_line(run, broken, capsys, damage, extra, message):
    damage(broken)
    assert run(broken, *QUIET, *extra) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("flowfuse-infer: error: ") and message in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_mended_input_is_no_other_setting(run, broken, capsys):
    second = sorted((broken / "images").iterdir())[1]
    whole = second.read_bytes()
    truncate(second)
    assert run(broken, "--times", "0.5", *QUIET) == 1
    assert second.name in capsys.readouterr().err
    second.write_bytes(whole)  # of another time and size than at the first call
    assert run(broken, "--times", "0.5", *QUIET) == 0
    assert "3 estimated, 0 were there already" in capsys.readouterr().out
    # With results there, another input is another run.
    second.write_bytes(whole)
    assert run(broken, "--times", "0.5", *QUIET) == 1
    assert "give another directory, or --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint at all"])
def test_bad_checkpoints_are_one_line(recording, tmp_path, capsys, content):
    path = tmp_path / "bad.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert main([str(recording), "-o", str(tmp_path / "out"), "--checkpoint", str(path)]) == 1
    assert "bad.safetensors" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_single_frame_without_rate(run, tmp_path, capsys):
    write_recording(tmp_path / "rec", None, [np.zeros((16, 16), np.uint8)], [0])
    assert run(tmp_path / "rec") == 1
    assert "--every 10ms" in capsys.readouterr().err
    assert run(tmp_path / "rec", "--every", "10ms") == 1
    assert "no event file" in capsys.readouterr().err


def test_output_that_cannot_be_written(run, recording, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    assert run(recording, out=tmp_path / "file" / "out") == 1
    assert str(tmp_path / "file") in capsys.readouterr().err

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs, "write_flow", full)
    assert run(recording, *QUIET) == 1
    assert f"{tmp_path / 'out'}: No space left on device" in capsys.readouterr().err
    assert files(tmp_path / "out", "*.flo") == []


def test_a_name_that_is_not_utf8(run, recording, tmp_path, capsys):
    out = tmp_path / "out\udcff"
    assert run(recording, "--max-pictures", "0", out=out) == 0
    assert (out / "flow.mp4").is_file()
    assert "video: " in capsys.readouterr().out


def test_a_recording_that_was_moved_goes_on(run, broken, tmp_path, capsys):
    assert run(broken, "--pairs", "0:1", *QUIET) == 0
    moved = broken.rename(tmp_path / "elsewhere")
    assert run(moved, "--pairs", "0:2", *QUIET) == 0
    assert "1 estimated, 1 were there already" in capsys.readouterr().out
    calls = (tmp_path / "out" / "history.jsonl").read_text().splitlines()
    commands = [json.loads(line)["command"] for line in calls]
    assert str(broken) in commands[0] and str(moved) in commands[1] and len(commands) == 2
    with open(moved / "events.h5", "ab") as file:
        file.write(b" ")
    assert run(moved, "--pairs", "0:2", *QUIET) == 1
    assert "other settings (recording " in capsys.readouterr().err


def test_a_network_of_events_alone_skips_pairs_without_any(run, recording, tmp_path, capsys):
    """The last pair of the recording has none: told, counted, and no file."""
    path, out = tmp_path / "events.safetensors", tmp_path / "out"
    save_checkpoint(path, FlowFuse(replace(CONFIG, frames=False)))
    assert run(recording, "--checkpoint", path, *QUIET) == 0
    printed = capsys.readouterr().out
    assert "2 estimated, 0 were there already" in printed
    assert "  1 pair without any event: no flow, no file" in printed
    assert files(out / "flow") == ["000000.flo", "000001.flo"]
    assert (out / "windows.csv").read_text().splitlines()[-1].endswith(",")
    assert run(recording, "--checkpoint", path, "--pairs", "2:3", *QUIET, out=tmp_path / "b") == 0
    assert "uses: nothing was estimated" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("starts", "times", "factor"),
    [
        ([0, 50_000, 100_000], [0, 0.05, 0.1], 1),  # 20 Hz: real time
        ([7_000, 17_000, 27_000], [0, 0.02, 0.04], 2),  # 100 Hz
        ([0, 1_000, 2_000], [0, 0.02, 0.04], 20),
        ([0, 50_000, 60_000_000, 60_050_000], [0, 0.05, 1.05, 1.1], 1),  # a gap is cut
        ([5], [0], 1),
    ],
)
def test_playback(starts, times, factor):
    found = outputs.playback(starts)
    assert found[0] == pytest.approx(times) and found[1] == factor


def test_warnings_are_lines_of_the_command(run, recording, capsys, monkeypatch):
    def warn(*args):
        infer_recording.warnings.warn("something is odd", RuntimeWarning, stacklevel=1)
        return False

    monkeypatch.setattr(outputs.OutputDirectory, "is_done", warn)
    assert run(recording, *QUIET) == 0
    assert "flowfuse-infer: warning: something is odd\n" in capsys.readouterr().err


def test_parsing():
    expected = {"10ms": 10_000, "5000us": 5_000, "0.01s": 10_000, "0.5 ms": 500}
    for text, microseconds in expected.items():
        assert parse_duration(text) == microseconds
    for text in ("10", "ms", "-1ms", "0ms", "0.5us", "1..5ms", "1h", "1e400s"):
        with pytest.raises(ValueError, match="such as 10ms"):
            parse_duration(text)
    assert parse_times("0.25,0.5,1") == (0.25, 0.5, 1.0) and parse_times("") == ()
    assert parse_range("3:") == (3, None) and parse_range(":4") == (None, 4)


class Clock:
    """What planning asks a recording."""

    path, has_events, has_frames = None, True, True
    frame_times = np.array([100, 200, 300, 900])
    frame_pairs = ((0, 1), (1, 2), (2, 3))
    event_range = (50, 1049)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ((3, 5), "/rec, frames 3 and 5 (0.000100 to 0.000200 s): exposure0 must be"),
        (None, "/rec, time interval 7 (0.000100 to 0.000200 s): exposure0 must be"),
    ],
)
def test_errors_of_an_estimate_name_the_interval(frames, message):
    def fail(*inputs, **times):
        raise ValueError("exposure0 must be short")

    fail.model = SimpleNamespace(config=SimpleNamespace(slices=4, frames=True))
    recording = SimpleNamespace(
        path=Path("/rec"),
        exposures=None,
        events=lambda t0, t1: Events([1], [1], [150], [1]),
        frame=lambda index: index,
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        estimate_interval(
            fail, recording, FrameReader(recording), Interval(7, 100, 200, frames), None
        )


def test_an_interval_reads_all_events_of_both_exposures():
    asked = []
    recording = SimpleNamespace(
        exposures=np.array([[60, 140], [190, 210]]),
        events=lambda t0, t1: asked.append((t0, t1)),
        frame=lambda index: index,
    )

    class Estimator:
        device = torch.device("cpu")
        model = SimpleNamespace(config=SimpleNamespace(slices=4, frames=True))

        def __call__(self, *inputs, **times):
            return times

    window = Interval(0, 100, 200, (0, 1))
    times, _ = estimate_interval(Estimator(), recording, FrameReader(recording), window, None)
    assert asked == [(60, 210)]  # E_0 begins at 75 only
    assert (times["exposure0"], times["exposure1"]) == (80, 20)


def test_planning_by_hand():
    clock = Clock()
    assert plan_frame_pairs(clock, (1, 2)) == [Interval(1, 200, 300, (1, 2))]
    assert [w.index for w in plan_frame_pairs(clock, None, 150, 300)] == [1]
    assert count_gaps(plan_frame_pairs(clock)) == 1
    steps = plan_fixed_rate(clock, 400)
    # the last event is at 1049: 50 + 2 * 400 <= 1050, a third interval is not whole
    assert steps == [Interval(0, 50, 450, None), Interval(1, 450, 850, None)]
    assert len(plan_fixed_rate(clock, 500)) == 2
