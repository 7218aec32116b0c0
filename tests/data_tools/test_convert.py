"""Conversion between all layouts: round trips to the bit, in parts of any size."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from dsec_cases import write as write_dsec

from flowfuse.data.formats.event_writer import write_event_parts
from flowfuse.data.opening import open_recording
from flowfuse.data.recording import iterate_events
from flowfuse.data.recording_writer import write_recording
from flowfuse.events import Events

HEIGHT, WIDTH = 12, 16
START = 1_600_000_000_123_456  # a clock that counts from 1970: seconds need 16 digits
TIMES = START + np.array([1000, 21_000, 41_003])


def run(*argv) -> int:
    path = Path(__file__).resolve().parents[2] / "data_tools" / "convert.py"
    spec = importlib.util.spec_from_file_location("convert", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(part) for part in argv])


def make_events(floating=False):
    rng = np.random.default_rng(0)
    t = START + np.sort(rng.integers(0, 50_000, 2500))
    x, y = rng.integers(0, WIDTH, 2500), rng.integers(0, HEIGHT, 2500)
    if floating:
        x, y = (x * rng.random(2500)).astype(np.float32), (y * rng.random(2500)).astype(np.float32)
    return Events(x, y, t, rng.integers(0, 2, 2500), height=HEIGHT, width=WIDTH)


def check(found, expected):
    for column in "xytp":
        np.testing.assert_array_equal(getattr(found, column), getattr(expected, column))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (3, HEIGHT, WIDTH)).astype(np.uint8)
    flow = rng.normal(0, 5, (2, 2, HEIGHT, WIDTH)).astype(np.float32)
    valid = rng.random((HEIGHT, WIDTH)) < 0.8
    path = tmp_path_factory.mktemp("convert") / "source"
    write_recording(
        path,
        make_events(),
        frames,
        TIMES,
        exposures=np.array([200, 300, 401]),
        flow=[(flow[0], valid), flow[1]],
        flow_at={0.25: [flow[1], None]},
    )
    return path


@pytest.mark.parametrize("kind", ["h5", "dsec", "npz", "txt", "csv"])
def test_plain_recordings_come_back(tmp_path, source, kind, capsys):
    assert run(source, tmp_path / "a", "--events-format", kind) == 0
    text = capsys.readouterr()
    assert "2500 events" in text.out and "3 frames" in text.out and text.err == ""
    assert "3 fields of ground truth" in text.out
    found, expected = open_recording(tmp_path / "a"), open_recording(source)
    check(found.events(0, 2 * START), make_events())
    window = int(TIMES[0]), int(TIMES[1])
    check(found.events(*window), make_events().slice_time(*window))
    np.testing.assert_array_equal(found.frame_times, expected.frame_times)
    np.testing.assert_array_equal(found.exposures, expected.exposures)
    for index in range(3):
        np.testing.assert_array_equal(found.frame(index), expected.frame(index))
    assert found.ground_truth_times == (0.25,)
    for index, tau in [(0, 1.0), (1, 1.0), (0, 0.25)]:
        for one, other in zip(
            found.ground_truth_at(index, tau), expected.ground_truth_at(index, tau), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    assert found.ground_truth_at(1, 0.25) is None


def test_to_mvsec_and_back(tmp_path, source, capsys):
    assert run(source, tmp_path / "new" / "a_data.hdf5") == 0
    text = capsys.readouterr()
    assert "holds no exposures" in text.err and "at times in between" in text.err
    assert "3 maps of ground truth" in text.out
    assert run(tmp_path / "new" / "a_data.hdf5", tmp_path / "back") == 0
    found, expected = open_recording(tmp_path / "back"), open_recording(source)
    check(found.events(0, 2 * START), make_events())
    np.testing.assert_array_equal(found.frame_times, expected.frame_times)
    np.testing.assert_array_equal(found.frame(2), expected.frame(2))
    for index in (0, 1):
        (flow, valid), (ground_truth_flow, known) = (
            found.ground_truth(index),
            expected.ground_truth(index),
        )
        np.testing.assert_array_equal(valid, known)
        np.testing.assert_array_equal(flow, ground_truth_flow)


@pytest.mark.parametrize(
    ("target", "ground_truth"), [("plain", "plain/flow"), ("a_data.hdf5", "a_gt.hdf5")]
)
def test_flow_over_two_frames_is_not_taken_for_flow_to_the_next(
    tmp_path, capsys, target, ground_truth
):
    sequence = write_dsec(tmp_path / "dsec")
    assert run(sequence, tmp_path / target) == 0
    assert "leads to the second next frame" in capsys.readouterr().err
    assert not (tmp_path / ground_truth).exists()
    found, expected = open_recording(tmp_path / target), open_recording(sequence)
    assert found.ground_truth(0) is None and expected.ground_truth(0) is not None
    np.testing.assert_array_equal(found.frame_times, expected.frame_times)
    span = (0, int(expected.time_range[1]) + 1)
    check(found.events(*span), expected.events(*span))


@pytest.mark.parametrize("kind", ["h5", "dsec", "npz", "txt", "csv"])
def test_fractional_events_come_back(tmp_path, kind, monkeypatch):
    events = make_events(floating=True)
    path = tmp_path / f"events.{'h5' if kind == 'dsec' else kind}"
    parts = [events.slice_time(START + 9000 * i, START + 9000 * (i + 1)) for i in range(6)]
    assert write_event_parts(path, parts, (HEIGHT, WIDTH), kind) == 2500
    (tmp_path / "sensor.txt").write_text(f"{WIDTH} {HEIGHT}\n")
    recording = open_recording(tmp_path)
    check(recording.events(0, 2 * START), events)
    check(
        recording.events(START + 8000, START + 9500), events.slice_time(START + 8000, START + 9500)
    )


def test_dsec_layout(tmp_path):
    t = [5_000_400, 5_000_400, 5_002_399, 5_002_400, 5_005_000]
    events = Events([1] * 5, [2] * 5, t, [1] * 5, height=HEIGHT, width=WIDTH)
    parts = [events.slice_time(0, 5_002_400), events.slice_time(5_002_400, 10**7)]
    write_event_parts(tmp_path / "events.h5", parts, (HEIGHT, WIDTH), "dsec")
    with h5py.File(tmp_path / "events.h5") as file:
        assert file["t_offset"][()] == 5_000_400
        kinds = [file[f"events/{name}"].dtype for name in "xytp"]
        assert kinds == [np.uint16, np.uint16, np.uint32, np.uint8]
        # Times from the offset: 0, 0, 1999, 2000, 4600.
        assert file["ms_to_idx"][:].tolist() == [0, 2, 3, 4, 4]
        assert file["events/t"][:].tolist() == [0, 0, 1999, 2000, 4600]


def test_events_that_do_not_fit_the_layout_of_dsec(tmp_path):
    path = tmp_path / "events.h5"
    for x, t, message in [
        (
            [1, 2],
            [7, 7 + 2**32],
            "events.h5: times from the first on have 32 bits .*, got 4294967296; w",
        ),
        ([1, 70_000], [7, 8], "events.h5: pixels have 16 bits in the layout of DSEC, got 70000"),
    ]:
        events = Events(x, [1, 2], t, [0, 1])
        with pytest.raises(ValueError, match=message):
            write_event_parts(path, [events], (HEIGHT, 80_000), "dsec")
        assert not path.exists()
        write_event_parts(path, [events], (HEIGHT, 80_000), "h5")
        check(open_recording(path).events(0, 2**33), events)
        path.unlink()


@pytest.mark.parametrize("kind", ["h5", "dsec", "npz", "txt"])
def test_no_events_at_all(tmp_path, kind):
    path = tmp_path / f"events.{'h5' if kind == 'dsec' else kind}"
    assert write_event_parts(path, [], (HEIGHT, WIDTH), kind) == 0
    (tmp_path / "sensor.txt").write_text(f"{WIDTH} {HEIGHT}\n")
    assert open_recording(tmp_path).event_range is None


@pytest.mark.parametrize("content", ["", "# t x y p\n", "timestamp,x,y,polarity\n"])
def test_a_file_without_events_is_not_converted(tmp_path, content, capsys):
    path = tmp_path / "events.txt"
    path.write_text(content)
    (tmp_path / "sensor.txt").write_text(f"{WIDTH} {HEIGHT}\n")
    for source in (path, tmp_path):
        assert run(source, tmp_path / "out.h5") == 1
        assert "holds no event, and no frames: nothing to write" in capsys.readouterr().err
    assert not (tmp_path / "out.h5").exists()


def test_frames_without_events_are_converted_with_a_word(tmp_path, source, capsys):
    empty = tmp_path / "events.txt"
    empty.write_text("")
    assert run(source, tmp_path / "out", "--events", empty) == 0
    assert "the event file holds no event" in capsys.readouterr().err
    assert len(open_recording(tmp_path / "out").frame_times) > 0


def test_parts_are_small(source):
    recording = open_recording(source)
    parts = list(iterate_events(recording, part=100))
    check(Events.concatenate(parts), make_events())
    # The first spans 10 ms, 500 events; the span follows the rate.
    assert max(map(len, parts[3:])) < 200


def test_files_of_events_alone(tmp_path, source, capsys):
    assert run(source, tmp_path / "e.h5", "--events-format", "dsec") == 0
    assert "holds events alone, the frames are left out" in capsys.readouterr().err
    check(open_recording(tmp_path / "e.h5").events(0, 2 * START), make_events())
    with h5py.File(tmp_path / "e.h5") as file:
        assert "ms_to_idx" in file
    for argv, message in [
        ((source, tmp_path / "e.h5"), "e.h5: exists already"),
        ((tmp_path / "e.h5", tmp_path / "a_data.hdf5"), "one of them is missing"),
        ((source, source), "exists already, expected a new or empty directory"),
        ((tmp_path / "none", tmp_path / "x"), "no such recording"),
        ((source, tmp_path / "e.hdf5"), "nothing is written as .hdf5; name a file that ends in"),
        ((source, tmp_path / "e.raw"), "nothing is written as .raw; name a file that ends in"),
    ]:
        assert run(*argv) == 1
        error = capsys.readouterr().err
        assert error.startswith("convert: error: ") and message in error.splitlines()[-1]
    with pytest.raises(ValueError, match=r"events are written as h5 \(.h5\), .* got 'flo'"):
        write_event_parts(tmp_path / "e.flo", [], (1, 1))
    events = make_events()
    with pytest.raises(ValueError, match="events must follow each other in time"):
        write_event_parts(tmp_path / "f.h5", [events, events], (HEIGHT, WIDTH))
    with pytest.raises(ValueError, match="whole in one part and fractional in another"):
        later = make_events(floating=True).slice_time(START + 40_000, 2 * START)
        write_event_parts(
            tmp_path / "f.h5", [events.slice_time(0, START + 20_000), later], (HEIGHT, WIDTH)
        )
    assert not (tmp_path / "f.h5").exists()


def test_the_unit_that_is_assumed_is_told(tmp_path, capsys):
    (tmp_path / "sensor.txt").write_text("16 12\n")
    source = tmp_path / "a.txt"

    def told(lines: str, *options: str) -> str:
        source.write_text(lines)
        assert run(source, tmp_path / f"{len(list(tmp_path.iterdir()))}.h5", *options) == 0
        return capsys.readouterr().out

    state = f"{source}: t is taken as seconds, since it has fractions; state another unit as "
    fractions = "".join(f"{0.25 * i} {i % 16} 2 {i % 2}\n" for i in range(20))
    assert state + "columns (--columns t_ms,x,y,p)" in told(fractions)
    moved = "".join(f"{i % 16} 2 {0.25 * i} {i % 2}\n" for i in range(20))
    assert state + "columns (--columns x,y,t_ms,p)" in told("x y t p\n" + moved)
    few = told("0 1 2 1\n1 1 2 0\n")
    assert "t is taken as seconds, since there are too few lines to tell" in few
    for options in ((), ("--columns", "t_s,x,y,p")):
        header = "" if options else "t_ms x y p\n"
        assert "taken as" not in told(header + fractions, *options)


def test_columns_are_stated_and_triggers_are_frame_times(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("3,2,1,700\n4,1,0,900\n")  # x, y, p, t in microseconds
    source, target = tmp_path / "a.csv", tmp_path / "events.h5"
    assert run(source, target, "--columns", "x,y,p,t_us") == 0
    assert f"{target}: 2 events" in capsys.readouterr().out
    found = open_recording(target).events(0, 1000)
    assert [getattr(found, name).tolist() for name in "xytp"] == [
        [3, 4],
        [2, 1],
        [700, 900],
        [1, 0],
    ]
    assert run(source, tmp_path / "b.h5", "--columns", "x,y,p") == 1
    assert "columns must be x, y, p and one of t" in capsys.readouterr().err
    # EVT 2.0: an event, and a trigger that rises, at 197 us and one tick later.
    words = np.array([8 << 28 | 3, 1 << 28 | 5 << 22 | 1 << 11 | 1, 10 << 28 | 6 << 22 | 1], "<u4")
    header = b"% evt 2.0\n% geometry 16x12\n% end\n"
    (tmp_path / "a.raw").write_bytes(header + words.tobytes())
    (tmp_path / "images").mkdir()
    image = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    cv2.imwrite(str(tmp_path / "images" / "0.png"), image)
    frames = "--frames", tmp_path / "images", "--frame-times", "triggers:rising"
    assert run(tmp_path / "a.raw", tmp_path / "out", *frames) == 0
    recording = open_recording(tmp_path / "out")
    assert recording.frame_times.tolist() == [198] and recording.event_range == (197, 197)
    np.testing.assert_array_equal(recording.frame(0), image)
