"""Protocols of MVSEC: which intervals and pixels count, by hand, and what is printed of them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from flowfuse.data.datasets.mvsec.protocols import OPEN, PROTOCOLS, Protocol, find_protocol
from flowfuse.data.datasets.mvsec.recording import open_mvsec
from flowfuse.data.datasets.mvsec.writer import write_mvsec
from flowfuse.events import Events

HEIGHT, WIDTH = 12, 16
FRAMES = 1_000_000 + 20_000 * np.arange(10)
MAPS = 1_000_000 + 50_000 * np.arange(4)  # up to 1.15 s: frames 8 and 9 have no truth


@pytest.fixture(scope="module")
def open_sequence(tmp_path_factory):
    """Open a recording of a given name; u = 1, 2, 3 px in its maps, v = 1 px."""
    directory = tmp_path_factory.mktemp("protocols")
    t = np.arange(990_000, 1_190_000, 1000)
    events = Events(t // 1000 % WIDTH, t // 1000 % HEIGHT, t, t % 2, height=HEIGHT, width=WIDTH)
    frames = np.zeros((10, HEIGHT, WIDTH), np.uint8)
    maps = np.ones((4, 2, HEIGHT, WIDTH))
    maps[:, 0] = np.arange(1, 5)[:, None, None]
    maps[0, :, 5, 6] = 0  # unknown

    def make(name):
        prefix = directory / name
        if not prefix.with_name(f"{name}_data.hdf5").exists():
            write_mvsec(prefix, events, frames, FRAMES, maps, MAPS)
        return open_mvsec(f"{prefix}_data.hdf5")

    return make


def small(name, **changes):
    """A preset whose crop, and seconds, fit these images."""
    return replace(PROTOCOLS[name], crop=8, **{"seconds": {}, **changes})


def test_presets_are_those_of_the_papers():
    names = ["evflownet", "dceiflow", "dceiflow-disjoint", "eraft20", "eraft45"]
    assert list(PROTOCOLS) == names
    assert all(protocol.crop == 256 for protocol in PROTOCOLS.values())
    flownet, dceiflow, disjoint, slow, fast = PROTOCOLS.values()
    assert flownet.seconds["outdoor_day1"] == (222.4, 240.4) and flownet.outdoor_rows == 190
    for number, start in enumerate((4, 9, 7, 6), 1):
        assert flownet.seconds[f"indoor_flying{number}"] == (start, OPEN)
    assert dceiflow.frames["outdoor_day2"] == (4375, 7002)
    assert disjoint == replace(dceiflow, name="dceiflow-disjoint", disjoint=True)
    assert flownet.masks == ("events",) and flownet.straddle and flownet.outlier_fraction == 0
    assert dceiflow.frames["indoor_flying2"] == (314, 2199)
    assert dceiflow.frames["indoor_flying4"] == (196, 570)
    assert dceiflow.frames["outdoor_day1"] == (245, 3000) and dceiflow.outdoor_rows == 190
    assert dceiflow.masks == ("dense", "events") and not dceiflow.straddle
    assert dceiflow.outlier_fraction == 0.05 and dceiflow.steps == (1, 4)
    # Inclusive in the papers' code: 4356 to 4705, 10167 to 10953.
    assert slow.starts["outdoor_day1"] == (4356, 4706) and slow.steps == ()
    assert fast.starts["outdoor_day1"] == (10167, 10954) and fast.steps == (1,)
    assert {slow.full_rows, fast.full_rows} == {193} and {slow.masks, fast.masks} == {("dense",)}


def test_the_crop_is_the_centre():
    assert PROTOCOLS["evflownet"].corner(260, 346) == (2, 45)
    image = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    np.testing.assert_array_equal(small("evflownet").cut(image), image[2:10, 4:12])
    with pytest.raises(ValueError, match="images of at least 256 x 256 px expected, got 16 x 12"):
        PROTOCOLS["eraft20"].cut(image)


def test_intervals_between_frames(open_sequence):
    recording = open_sequence("indoor_flying1")
    protocol = small("evflownet")
    found = protocol.intervals(recording, 1)
    assert [w.frames for w in found] == [(i, i + 1) for i in range(7)]  # up to 1.14 s of 1.15
    assert (found[2].t0, found[2].t1, found[2].index) == (1_040_000, 1_060_000, 2)
    assert [w.frames for w in protocol.intervals(recording, 4)] == [(i, i + 4) for i in range(4)]
    assert [w.index for w in protocol.intervals(recording, 1, stride=3)] == [0, 3, 6]
    # Half-open: frame 6 is not in [1, 6), so the last pair of dt = 4 starts at 1.
    ranged = replace(protocol, frames={"indoor_flying1": (1, 6)})
    assert [w.index for w in ranged.intervals(recording, 1)] == [1, 2, 3, 4]
    assert [w.index for w in ranged.intervals(recording, 4)] == [1]
    starts = replace(protocol, starts={"indoor_flying1": (1, 3)})
    assert [w.index for w in starts.intervals(recording, 1)] == [1, 2]
    # Seconds count from the first event, at 0.99 s: frames at 0.01 + 0.02 i.
    timed = replace(protocol, seconds={"indoor_flying1": (0.03, 0.09)})
    assert [w.index for w in timed.intervals(recording, 1)] == [1, 2, 3]


def test_disjoint_intervals_are_counted_as_by_the_code_of_the_paper():
    """1883 at dt = 1 and 470 at dt = 4, of frames 314 to 2198."""
    times = 1_000_000 + 31_000 * np.arange(2300)
    maps = SimpleNamespace(times=times[[0, -1]])
    recording = SimpleNamespace(
        sequence="indoor_flying1", maps=maps, frame_times=times, time_range=(0, times[-1])
    )
    protocol = PROTOCOLS["dceiflow-disjoint"]
    one, four = (protocol.intervals(recording, step) for step in (1, 4))
    assert (len(one), len(four)) == (1883, 470)
    assert [w.frames for w in four[:2]] == [(314, 318), (318, 322)]
    assert len(PROTOCOLS["dceiflow"].intervals(recording, 4)) == 1881
    told = protocol.describe("indoor_flying1", 4)[1]
    assert told == "time intervals: frames [314, 2199), one after another, without the last"
    told = PROTOCOLS["evflownet"].describe("indoor_flying2", 1)[1]
    assert told == "time intervals: from 9.0 s on, counted after the first event or frame"


def test_intervals_between_maps(open_sequence):
    protocol = small("eraft20", starts={"outdoor_day1": (1, 3)})
    found = protocol.intervals(open_sequence("outdoor_day1"))
    assert [(w.index, w.t0, w.t1, w.frames) for w in found] == [
        (1, 1_050_000, 1_100_000, None),
        (2, 1_100_000, 1_150_000, None),
    ]


def test_truth_of_short_intervals_differs_between_protocols(open_sequence):
    recording = open_sequence("indoor_flying1")
    # Frames 2 and 3: 40 to 60 ms, 10 ms of map 0 (u = 1 px in 50 ms) and 10 of map 1 (2 px).
    flownet, dceiflow = small("evflownet"), small("dceiflow", only_listed=False, frames={})
    window = flownet.intervals(recording, 1)[2]
    flow, valid = flownet.ground_truth(recording, window)
    assert flow.shape == (2, 8, 8) and flow[:, 0, 0].tolist() == pytest.approx([0.4, 0.4])
    assert not valid[5 - 2, 6 - 4] and valid.sum() == 63
    flow, _ = dceiflow.ground_truth(recording, window)
    # float32 positions are exact to 1e-6 px.
    assert flow[:, 0, 0].tolist() == pytest.approx([0.2 + 0.4, 0.2 + 0.2], abs=2e-6)


def test_rows_that_do_not_count(open_sequence):
    indoor, outdoor = open_sequence("indoor_flying1"), open_sequence("outdoor_day1")
    protocol = small("evflownet", outdoor_rows=3, seconds={})
    window = protocol.intervals(outdoor, 1)[4]  # all of it in map 1, which is known everywhere
    assert protocol.ground_truth(indoor, window)[1].all()
    valid = protocol.ground_truth(outdoor, window)[1]
    assert valid[:3].all() and not valid[3:].any()
    # Row 9 of the full frame is row 7 of the crop, which starts at row 2.
    full = small("eraft45", full_rows=9, starts={}, only_listed=False)
    valid = full.ground_truth(outdoor, window)[1]
    assert valid[:7].all() and not valid[7:].any()


def test_event_mask(open_sequence):
    protocol = small("evflownet")
    events = Events([4, 0, 11.6, 15.8], [2, 0, 8.2, 3], [0, 1, 2, 3], [1] * 4, height=12, width=16)
    mask = protocol.event_mask(events)
    # (4, 2) is the crop's corner; (0, 0) lies outside of it; (11.6, 8.2) is pixel (12, 8), outside;
    # (15.8, 3) is beyond the last column.
    assert np.argwhere(mask).tolist() == [[0, 0]]


def test_descriptions_say_everything():
    text = "\n".join(PROTOCOLS["evflownet"].describe("outdoor_day1", 4))
    for part in (
        "protocol evflownet, outdoor_day1, dt=4: frame i to frame i + 4",
        "222.4 to 240.4 s after the first event or frame",
        "256 x 256 centre crop, the top 190 rows of the crop; pixels with ground truth and events",
        "passes into the next map gets only its first map, scaled",
        "outlier: > 3 px; average: mean of the time intervals' means",
    ):
        assert part in text
    text = "\n".join(PROTOCOLS["dceiflow"].describe("indoor_flying1", 1))
    assert "frames [314, 2199)" in text and "> 3 px and > 5 %" in text and "rows" not in text
    assert "all pixels with ground truth / pixels with ground truth and events" in text
    text = "\n".join(PROTOCOLS["eraft20"].describe("outdoor_day1", 1))
    assert "flow map to flow map" in text and "flow maps [4356, 4706)" in text
    assert "rows below 193 of the full frame" in text


def test_faults(open_sequence, tmp_path):
    recording = open_sequence("indoor_flying1")
    with pytest.raises(ValueError, match="unknown protocol 'x'; known: evflownet, dceiflow"):
        find_protocol("x")
    with pytest.raises(ValueError, match="protocol evflownet: dt must be 1 or 4, got 2"):
        PROTOCOLS["evflownet"].intervals(recording, 2)
    with pytest.raises(ValueError, match="eraft45 is defined for outdoor_day1, not for 'indoor"):
        PROTOCOLS["eraft45"].intervals(recording, 1)
    with pytest.raises(
        ValueError, match=r"no time interval of protocol dceiflow has ground truth; .* 10 fr"
    ):
        PROTOCOLS["dceiflow"].intervals(recording, 1)
    events = Events.empty(HEIGHT, WIDTH)
    path = write_mvsec(tmp_path / "a", events, np.zeros((1, 12, 16), np.uint8), [5])
    with pytest.raises(ValueError, match="no ground truth beside it"):
        Protocol("p", steps=(1,)).intervals(open_mvsec(path))
