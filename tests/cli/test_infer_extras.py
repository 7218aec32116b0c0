"""What --write writes, and flow from one modality."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from infer_cases import CONFIG, QUIET, files

import flowfuse
from flowfuse.cli.infer import main
from flowfuse.cli.infer_extras import EXTRAS
from flowfuse.data.opening import open_recording
from flowfuse.data.recording_writer import write_recording
from flowfuse.estimator import load
from flowfuse.evaluation.occlusion import find_occluded
from flowfuse.events import Events
from flowfuse.io.flow import read_flow
from flowfuse.model import FlowFuse
from flowfuse.model.checkpoint import save_checkpoint
from flowfuse.runner import FrameReader, Interval, estimate_backward, estimate_interval


def test_all_kinds_are_written_and_read_back(run, recording, tmp_path, capsys):
    assert run(recording, *QUIET) == 0
    out = tmp_path / "out"
    flow = (out / "flow" / "000000.flo").read_bytes()
    assert run(recording, "--write", ",".join(EXTRAS), *QUIET) == 0  # takes up the same run
    assert (out / "flow" / "000000.flo").read_bytes() == flow
    for kind in EXTRAS.values():
        names = [f"{index:06d}.{kind.suffix or 'flo'}" for index in range(3)]
        assert files(out / kind.folder) == names
    result = flowfuse.load_result(out / "control_points" / "000000.npz")
    assert np.array_equal(read_flow(out / "flow" / "000000.flo")[0], result.flow)
    assert np.array_equal(np.load(out / "uncertainty" / "000000.npy"), result.uncertainty)
    assert np.array_equal(np.load(out / "boundaries" / "000000.npy"), result.boundary)
    backward, _ = read_flow(out / "flow_backward" / "000000.flo")
    occlusion = cv2.imread(str(out / "occlusion" / "000000.png"), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(occlusion == 255, find_occluded(result.flow, backward))
    assert set(np.unique(occlusion)) <= {0, 255}
    assert f"occlusion: {out / 'occlusion'}" in capsys.readouterr().out
    assert run(recording, "--write", "backward", *QUIET) == 0
    assert "0 estimated, 3 were there already" in capsys.readouterr().out
    assert run(recording, "--overwrite", *QUIET) == 0  # clears what is not asked for
    assert not (out / "control_points").exists()


def test_a_lost_file_is_made_again(run, recording, tmp_path, capsys):
    assert run(recording, "--write", "boundaries", *QUIET) == 0
    lost = tmp_path / "out" / "boundaries" / "000001.npy"
    whole = lost.read_bytes()
    lost.unlink()
    capsys.readouterr()
    assert run(recording, "--write", "boundaries", *QUIET) == 0
    assert "1 estimated, 2 were there already" in capsys.readouterr().out
    assert lost.read_bytes() == whole


def test_backward_flow_is_the_flow_of_the_recording_run_backwards(
    checkpoint,
    recording,
    events,
    tmp_path,
):
    """The same bits as from a recording that holds all of it in the opposite order."""
    opened, last = open_recording(recording), 200_000
    backwards = Events(
        events.x[::-1], events.y[::-1], last - 1 - events.t[::-1], 1 - events.p[::-1],
        height=events.height, width=events.width,
    )  # fmt: skip
    times = last - opened.frame_times[::-1]
    frames = [opened.frame(i) for i in range(4)][::-1]
    write_recording(
        tmp_path / "rec", backwards, np.stack(frames), times, exposures=np.full(4, 8_000)
    )
    estimator, other = load(checkpoint), open_recording(tmp_path / "rec")
    window = Interval(0, *map(int, opened.frame_times[:2]), (0, 1))
    found = estimate_backward(estimator, opened, FrameReader(opened), window, None)
    mirrored = Interval(2, *map(int, times[2:4]), (2, 3))
    expected, _ = estimate_interval(estimator, other, FrameReader(other), mirrored, None)
    assert np.abs(found).max() > 0.1 and np.array_equal(found, expected.flow)


def test_one_modality_alone(run, recording, checkpoint, events, tmp_path, capsys):
    estimator, opened = load(checkpoint), open_recording(recording)
    t0, t1 = map(int, opened.frame_times[:2])
    for name, arguments in (
        ("events", (None, None, events)),
        ("frames", (opened.frame(0), opened.frame(1), None)),
        ("from-frame", (opened.frame(0), None, events)),
    ):
        out = tmp_path / name
        option = "--from-frame" if name == "from-frame" else f"--{name}-only"
        assert run(recording, option, "--write", "occlusion", *QUIET, out=out) == 0
        assert "warning" not in capsys.readouterr().err
        exposures = {"exposure0": 8_000, "exposure1": 8_000} if name == "frames" else {}
        expected = estimator(*arguments, t0=t0, t1=t1, **exposures)
        assert np.array_equal(read_flow(out / "flow" / "000000.flo")[0], expected.flow)
        pairs = json.loads((out / "metrics.json").read_text())["pairs"]
        # The last pair has no event.
        assert [pair["index"] for pair in pairs] == [0, 1, 2][: 3 if name == "frames" else 2]
    assert run(recording, *QUIET, out=tmp_path / "events") == 1
    assert "modalities ['events'] there, ['frames', 'events'] now" in capsys.readouterr().err


def test_frames_only_says_so(run, recording, events, tmp_path, capsys):
    assert run(recording, "--frames-only", *QUIET) == 0
    printed = capsys.readouterr()
    assert "  3 pairs from the frames alone, as --frames-only asks\n" in printed.out
    assert "without any event" not in printed.out and printed.err.count("warning") == 0
    write_recording(tmp_path / "rec", events, None, None)
    assert run(tmp_path / "rec", "--frames-only", *QUIET, out=tmp_path / "b") == 1
    told = f"--frames-only needs at least two frames, got 0 in {tmp_path / 'rec'}"
    assert told in capsys.readouterr().err
    path = tmp_path / "events.safetensors"
    save_checkpoint(path, FlowFuse(replace(CONFIG, frames=False)))
    chosen = ("--checkpoint", path, "--frames-only", *QUIET)
    assert run(recording, *chosen, out=tmp_path / "c") == 1
    assert f"--frames-only: {path} is a network of events alone" in capsys.readouterr().err


def test_no_arguments_are_answered_with_an_example(capsys):
    assert main([]) == 2
    usage, told = capsys.readouterr().err.rstrip().rsplit("\n", 1)
    assert usage.startswith("usage: flowfuse-infer ")
    assert told == (
        "flowfuse-infer: error: no arguments, expected a recording and a directory for the "
        "results: flowfuse-infer RECORDING -o OUT (--help explains both)"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--write", "depth"], "unknown kind 'depth', expected some of backward, occlusion"),
        (["--write", "occlusion,"], "unknown kind ''"),
        (["--events-only", "--frames-only"], "not allowed with"),
        (["--every", "10ms", "--frames-only"], "leave out --frames-only"),
        (["--every", "10ms", "--from-frame"], "leave out --from-frame"),
        (["--from-frame", "--events-only"], "not allowed with"),
    ],
)
def test_wrong_usage_is_explained(arguments, message, capsys):
    assert main(["rec", "-o", "out", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("modalities", "backward", "expected"),
    [
        (("events",), False, []),
        (("frame0", "events"), False, [0]),
        (("frame0", "events"), True, [1]),
        (("frames",), False, [0, 1]),
        (("frames", "events"), True, [0, 1]),
    ],
)
def test_frames_that_are_not_shown_are_not_read(
    checkpoint, recording, monkeypatch, modalities, backward, expected
):
    opened, read = open_recording(recording), []
    frame = opened.frame
    monkeypatch.setattr(opened, "frame", lambda index: read.append(index) or frame(index))
    interval = Interval(0, 5_000, 45_000, (0, 1))
    estimate = estimate_backward if backward else estimate_interval
    estimate(load(checkpoint), opened, FrameReader(opened), interval, 1, modalities=modalities)
    assert sorted(read) == expected


def test_unknown_modalities_are_refused(checkpoint, recording):
    opened = open_recording(recording)
    reader, interval = FrameReader(opened), Interval(0, 5_000, 45_000, (0, 1))
    message = "modalities must be of frames, events, frame0; got 'frame'"
    with pytest.raises(ValueError, match=message):
        estimate_interval(load(checkpoint), opened, reader, interval, 1, modalities=("frame",))
    with pytest.raises(ValueError, match=message):
        estimate_backward(load(checkpoint), opened, reader, interval, 1, ("events", "frame"))
