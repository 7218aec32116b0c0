"""Sequences of DSEC, opened: events, frames, flow, and what is said of broken files."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from dsec_cases import FIRST, FRAMES, HEIGHT, OFFSET, SHIFT, WIDTH, write

from flowfuse.data.datasets.dsec.sequence import DsecEvents, change_view, open_sequence
from flowfuse.data.datasets.dsec.writer import default_rig, write_raw_events
from flowfuse.data.opening import open_recording
from flowfuse.events import Events
from flowfuse.inputs import slice_events, sum_events


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("dsec"))


@pytest.fixture
def path(stored, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(stored, tmp_path / stored.name))


def columns(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path / "events" / "left" / "events.h5") as file:
        return {name: file[f"events/{name}"][()] for name in "xytp"}


def change(path: Path, name: str, values: object) -> None:
    """Replace a data set, in a new file: another sequence may have the former one open."""
    stored = path / "events" / "left" / "events.h5"
    changed = Path(shutil.copy(stored, path / "changed.h5"))
    with h5py.File(changed, "r+") as file:
        del file[name]
        if values is not None:
            file[name] = values
    changed.replace(stored)


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 5), (60_000, 160_000), (60_123, 60_124), (-50_000, 3_000), (400_000, 900_000), (7, 7)],
)
def test_windows_hold_the_events_of_their_times(stored, start, end):
    raw = columns(stored)
    wanted = (raw["t"] >= start) & (raw["t"] < end)
    sequence = open_sequence(stored)
    window = sequence.raw_events(OFFSET + start, OFFSET + end)
    np.testing.assert_array_equal(window.t, raw["t"][wanted].astype(np.int64) + OFFSET)
    for name in "xyp":
        np.testing.assert_array_equal(getattr(window, name), raw[name][wanted])
    rectified = sequence.events(OFFSET + start, OFFSET + end)
    with h5py.File(stored / "events" / "left" / "rectify_map.h5") as file:
        places = file["rectify_map"][()][raw["y"][wanted], raw["x"][wanted]]
    inside = ((places > -1) & (places < (WIDTH, HEIGHT))).all(axis=1)
    np.testing.assert_array_equal(rectified.x, places[inside, 0])
    np.testing.assert_array_equal(rectified.y, places[inside, 1])
    assert rectified.x.dtype == np.float32 and len(rectified) == inside.sum()


def test_times_beyond_the_index_are_bounded_by_the_file(path):
    everything = columns(path)
    with h5py.File(path / "events" / "left" / "events.h5") as file:
        table = file["ms_to_idx"][()]
    change(path, "ms_to_idx", table[:100])  # 100 ms of 410
    sequence = open_sequence(path)
    for start, end in ((90_000, 120_000), (250_000, 300_000), (300_000, 10**9)):
        wanted = (everything["t"] >= start) & (everything["t"] < end)
        assert len(sequence.raw_events(OFFSET + start, OFFSET + end)) == wanted.sum()


def test_opening_and_windows_read_little(tmp_path, monkeypatch):
    count = 200_000
    rng = np.random.default_rng(0)
    file = tmp_path / "events.h5"
    write_raw_events(
        file,
        Events(
            rng.integers(0, WIDTH, count), rng.integers(0, HEIGHT, count),
            np.sort(rng.integers(0, 10**6, count)), rng.integers(0, 2, count),
        ),
        OFFSET,
    )  # fmt: skip
    read, original = [], h5py.Dataset.__getitem__

    def get(self, key, *rest):
        value = original(self, key, *rest)
        read.append(np.size(value))
        return value

    monkeypatch.setattr(h5py.Dataset, "__getitem__", get)
    events = DsecEvents(file)
    assert sum(read) < 10
    read.clear()
    window = events.window(OFFSET + 500_300, OFFSET + 502_300, HEIGHT, WIDTH)
    # Four columns of the window, and t of the rest of the milliseconds where it begins and ends.
    assert 300 < len(window) < 500 and sum(read) < 4 * len(window) + 400


def test_rectified_events_are_splatted_bilinearly():
    """One event at (1.25, 2), one at the pixel (3, 0); and what hangs over the border."""
    limits = {"height": 4, "width": 5}
    events = Events([1.25, 3.0, 4.5], [2.0, 0.0, 3.0], [10, 11, 12], [1, 0, 1], **limits)
    slices = slice_events(events, 0, 20, slices=2, bins=1, **limits)
    expected = torch.zeros(3, 1, 4, 5)
    expected[2, 0, 2, 1], expected[2, 0, 2, 2] = 0.75, 0.25
    expected[2, 0, 0, 3] = -1
    expected[2, 0, 3, 4] = 0.5  # the other half lies outside
    torch.testing.assert_close(slices, expected)
    torch.testing.assert_close(sum_events(events, 0, 20, None, None, **limits), expected[2])
    # Integer positions are pixels, in either type.
    whole = Events([1, 3], [2, 0], [10, 11], [1, 0], **limits)
    floating = Events([1.0, 3.0], [2.0, 0.0], [10, 11], [1, 0], **limits)
    assert whole.x.dtype != floating.x.dtype
    torch.testing.assert_close(
        *(slice_events(e, 0, 20, slices=2, bins=3, **limits) for e in (whole, floating)),
        rtol=0, atol=0,
    )  # fmt: skip


def count_in_child(sequence, window, connection) -> None:
    handle = sequence._events._handle
    process = handle.process
    events = len(sequence.raw_events(*window))
    connection.send((process, handle.process, os.getpid(), events))


def test_every_process_has_a_handle_of_its_own(stored):
    sequence, window = open_sequence(stored), (OFFSET + 50_000, OFFSET + 90_000)
    count = len(sequence.raw_events(*window))
    assert sequence._events._handle.process == os.getpid()
    copy = pickle.loads(pickle.dumps(sequence))
    assert copy._events._handle.process is None and len(copy.raw_events(*window)) == count
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    child = fork.Process(target=count_in_child, args=(sequence, window, theirs))
    child.start()
    inherited, used, own, found = ours.recv()
    child.join()
    assert inherited == os.getpid() and used == own != inherited and found == count
    assert len(sequence.raw_events(*window)) == count  # ours is not closed by that


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("t_offset", None, "'t_offset' expected"),
        ("ms_to_idx", None, "'ms_to_idx' expected"),
        ("events/p", None, r"missing \['p'\]"),
        ("events/x", np.zeros(4000, np.float32), "events/x must be integers, got float32"),
        ("events/y", np.zeros((4000, 2), np.uint16), r"y must be numbers of shape \[N\]"),
        ("events/y", np.zeros(3999, np.uint16), "x, y, t and p must have the same length"),
        ("ms_to_idx", np.zeros(9), r"ms_to_idx must be integers of shape \[M\]"),
        ("t_offset", np.zeros(3, int), r"t_offset must be integers of shape \[\]"),
        ("events/t", np.arange(4000)[::-1].astype(np.uint32), "t must be sorted"),
    ],
)
def test_faults_of_the_event_file_are_named_on_opening(path, name, values, message):
    change(path, name, values)
    with pytest.raises(ValueError, match=message) as caught:
        open_sequence(path)
    assert str(path / "events" / "left" / "events.h5") in str(caught.value)


def test_faults_inside_the_event_file_are_named_by_the_window(path):
    raw = columns(path)
    with h5py.File(path / "events" / "left" / "events.h5") as file:
        table = file["ms_to_idx"][()].astype(np.int64)
    window = (OFFSET + 150_000, OFFSET + 160_000)

    def fault(name: str, values: np.ndarray, message: str) -> None:
        change(path, name, values)
        with pytest.raises(ValueError, match=message) as caught:
            open_sequence(path).events(*window)
        assert "events.h5" in str(caught.value)

    for lie in (table + 300, np.maximum(table - 300, 0)):
        fault("ms_to_idx", np.minimum(lie, len(raw["t"])), "ms_to_idx does not belong to it")
    fault("ms_to_idx", table + len(raw["t"]), "ms_to_idx is wrong at 150 ms")
    fault("ms_to_idx", table[::-1].copy(), "ms_to_idx is wrong at 150 ms")
    change(path, "ms_to_idx", table)
    swapped = raw["t"].copy()
    middle = int(table[155])
    swapped[[middle, middle + 20]] = swapped[[middle + 20, middle]]
    fault("events/t", swapped, "t must be sorted|t is not sorted")
    change(path, "events/t", raw["t"])
    outside = raw["x"].copy()
    outside[middle] = WIDTH
    fault("events/x", outside, rf"x\[\d+\] = {WIDTH} lies outside the sensor")


def test_truncated_files_are_named(path):
    events = path / "events" / "left" / "events.h5"
    events.write_bytes(events.read_bytes()[:-4000])
    with pytest.raises(ValueError, match=r"events.h5: cannot be read as HDF5, is it truncated"):
        open_sequence(path)


def test_a_missing_codec_is_named(path, monkeypatch):
    monkeypatch.setattr("flowfuse.data.formats.hdf5.register_codecs", lambda: False)

    def refuse(*args, **options):
        raise OSError("can't dlopen the filter")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(ValueError, match=r"codec of hdf5plugin, which is not installed"):
        open_sequence(path)


def test_missing_files_are_listed_together(path):
    (path / "events" / "left" / "rectify_map.h5").unlink()
    (path / "images" / "timestamps.txt").unlink()
    (path / "calibration" / "cam_to_cam.yaml").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        open_sequence(path)
    for item in ("rectify map", "image times", "calibration"):
        assert f"thun_00_a: {item} not found as" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no events found; it holds the sequences thun_00"):
        open_sequence(path.parent)
    with pytest.raises(FileNotFoundError, match="no events found"):
        open_sequence(path.parent / "thun_07_a")


def test_faults_of_images_are_named(path):
    sequence = open_sequence(path)
    assert sequence.warped and sequence.frame(0).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(IndexError, match="frame 7 of a sequence with 7 frames"):
        sequence.frame(FRAMES)
    images = path / "images" / "left" / "rectified"
    (images / "000003.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"000003.png: no such image"):
        sequence.frame(3)
    cv2.imwrite(str(images / "000002.png"), np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(ValueError, match=r"000002.png is 30 x 20 px, .*images of 72 x 54 px"):
        sequence.frame(2)
    (images / "000001.png").write_bytes((images / "000001.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"000001.png: truncated image"):
        sequence.frame(1)
    # Images that are in the event view already are taken as they are.
    ready = path / "images" / "left" / "ev_inf"
    ready.mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    cv2.imwrite(str(ready / "000000.png"), picture[:, :, ::-1])
    cv2.imwrite(str(ready / "000001.png"), picture[1:])
    sequence = open_sequence(path)
    assert not sequence.warped
    np.testing.assert_array_equal(sequence.frame(0), picture)
    with pytest.raises(ValueError, match=r"000001.png is 32 x 23 px, but the event view is 32 x"):
        sequence.frame(1)


def test_change_view_puts_every_pixel_where_the_homography_says():
    image = np.zeros((40, 60), np.uint8)
    image[20:, 30:] = 200
    move = np.array([[1.0, 0, -10], [0, 1, -5], [0, 0, 1]])
    moved = change_view(image, move, 30, 40)
    np.testing.assert_array_equal(moved, image[5:35, 10:50])
    np.testing.assert_array_equal(change_view(image, np.eye(3), 40, 60), image)
    # Stripes finer than the view can show must not alias into coarse ones.
    stripes = np.zeros((60, 90), np.uint8)
    stripes[:, ::3] = 240
    shrink = np.diag((0.4, 0.4, 1.0))
    half, aliased = (
        change_view(stripes, shrink, 24, 36),
        cv2.warpPerspective(stripes, shrink, (36, 24)),
    )
    assert half.std() < 0.5 * aliased.std() and abs(half.mean() - 80) < 5


def test_flow_is_found_by_its_time_stamps(path):
    sequence = open_sequence(path)
    assert sequence.frame_pairs == [(0, 2), (2, 4), (4, 6)]
    flow, valid = sequence.ground_truth(2)
    np.testing.assert_array_equal(flow[:, valid].T, np.broadcast_to(SHIFT, (valid.sum(), 2)))
    assert not valid[:5].any() and valid[5:].all() and (flow[:, :5] == 0).all()
    assert sequence.ground_truth(1) is None and sequence.ground_truth_at(2, 0.5) is None
    assert sequence.ground_truth_at(2, 1.0) is not None
    forward = path / "flow" / "forward"
    (forward / "._000002.png").touch()  # as macOS leaves them
    assert open_sequence(path).frame_pairs == [(0, 2), (2, 4), (4, 6)]
    # A file that is named by another index than its time stamp's frame.
    (forward / "000002.png").rename(forward / "000003.png")
    with pytest.raises(ValueError, match=r"starts at frame 2, but .*forward has no 000002.png"):
        _ = open_sequence(path).frame_pairs
    shutil.copy(forward / "000003.png", forward / "000002.png")
    with pytest.raises(ValueError, match=r"4 flow maps for 3 lines of .*belongs to 000003.png"):
        _ = open_sequence(path).frame_pairs
    (forward / "000003.png").unlink()
    times = path / "flow" / "forward_timestamps.txt"
    written = times.read_text()
    times.write_text(written.replace(str(OFFSET + FIRST), str(OFFSET + FIRST + 3)))
    assert open_sequence(path).frame_pairs == [(0, 2), (2, 4), (4, 6)]  # rounded otherwise
    late = OFFSET + FIRST + 25_000
    times.write_text(written.replace(str(OFFSET + FIRST), str(late)))
    with pytest.raises(ValueError, match=rf"{late} us is not the time stamp of a fr.*nearest is"):
        _ = open_sequence(path).frame_pairs
    times.unlink()
    with pytest.raises(FileNotFoundError, match="thun_00_a: flow times not found as"):
        _ = open_sequence(path).frame_pairs


def test_faults_of_flow_maps_are_named(path):
    sequence = open_sequence(path)
    file = path / "flow" / "forward" / "000000.png"
    image = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    for wrong, message in (
        (image[..., ::-1], "third channel of DSEC's flow is 0 or 1"),
        ((image >> 8).astype(np.uint8), "3 channels of 16 bits, got 3 of 8 bits"),
        (image[..., 0], "got 1 of 16 bits"),
        (image[:-1], "is 32 x 23 px, but the event view is 32 x 24 px"),
    ):
        cv2.imwrite(str(file), wrong)
        with pytest.raises(ValueError, match=message) as caught:
            sequence.ground_truth(0)
        assert str(file) in str(caught.value)


def test_a_flow_of_zero_is_valid(path):
    file = path / "flow" / "forward" / "000000.png"
    image = np.full((HEIGHT, WIDTH, 3), 2**15, np.uint16)
    image[..., 0] = 1
    image[0, 0] = 0  # B = 0: unknown
    cv2.imwrite(str(file), image)
    flow, valid = open_sequence(path).ground_truth(0)
    assert valid.sum() == HEIGHT * WIDTH - 1 and not valid[0, 0] and (flow == 0).all()


def test_a_rig_of_another_kind(tmp_path):
    """Frames are found through whatever calibration the file holds."""
    rig = default_rig((HEIGHT, WIDTH), (40, 60))
    sequence = open_sequence(write(tmp_path, rig=rig, image_size=(1, 1)))
    assert sequence.frame(0).shape == (HEIGHT, WIDTH, 3)
    assert "thun_00_a, 7 frames" in repr(sequence)
    assert len(sequence.source_files) == 5 and len(sequence.frame_files) == FRAMES


def test_a_sequence_is_a_recording_of_its_own_kind(stored):
    sequence = open_recording(stored)
    assert sequence.name == "thun_00_a" and sequence.path == stored
    with pytest.raises(
        ValueError, match=r"sequences of DSEC; name one, such as .*thun_00_a \(thun"
    ):
        open_recording(stored.parent)
    # Events that are named are those of a plain recording, as they were stored.
    with pytest.warns(UserWarning, match="the sensor size is not stated"):
        plain = open_recording(events=stored / "events" / "left" / "events.h5")
    raw = plain.events(OFFSET, OFFSET + 10**6)
    assert len(raw) == len(columns(stored)["t"]) and raw.x.dtype == np.uint16
