"""MVSEC: windows read from the disk, ground truth by hand, undistortion, and an error per fault."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowfuse.data.augment import AugmentConfig, augment
from flowfuse.data.datasets.mvsec.dataset import MvsecDataset
from flowfuse.data.datasets.mvsec.ground_truth import FlowMaps, propagate_flow
from flowfuse.data.datasets.mvsec.recording import is_mvsec, open_mvsec
from flowfuse.data.datasets.mvsec.writer import write_mvsec
from flowfuse.data.opening import open_recording
from flowfuse.events import Events

HEIGHT, WIDTH = 20, 24
START = 1_506_117_000_000_000  # us: MVSEC's clock counts from 1970
FRAME_TIMES = START + 10_000 + 20_000 * np.arange(6)
FLOW_TIMES = START + 5_000 + 50_000 * np.arange(3)


@pytest.fixture(scope="module")
def events():
    rng = np.random.default_rng(0)
    count = 4000
    return Events(
        rng.integers(0, WIDTH, count).astype(np.uint16),
        rng.integers(0, HEIGHT, count).astype(np.uint16),
        START + np.sort(rng.integers(0, 130_000, count)),  # some share a microsecond
        rng.integers(0, 2, count),
        height=HEIGHT,
        width=WIDTH,
    )


def make_frames():
    return np.random.default_rng(1).integers(0, 256, (6, HEIGHT, WIDTH)).astype(np.uint8)


def make_maps(u=2.0, v=-1.0):
    return np.broadcast_to(np.array([u, v])[:, None, None], (3, 2, HEIGHT, WIDTH)).copy()


@pytest.fixture(scope="module")
def path(tmp_path_factory, events):
    prefix = tmp_path_factory.mktemp("mvsec") / "indoor_flying1"
    return write_mvsec(prefix, events, make_frames(), FRAME_TIMES, make_maps(), FLOW_TIMES)


def test_a_recording_comes_back_to_the_microsecond(path, events):
    for recording in (open_mvsec(path), open_recording(path)):
        assert recording.sequence == "indoor_flying1" and not recording.undistorted
        assert (recording.height, recording.width) == (HEIGHT, WIDTH)
        np.testing.assert_array_equal(recording.frame_times, FRAME_TIMES)
        np.testing.assert_array_equal(recording.frame(3), make_frames()[3])
        assert recording.event_range == (events.t[0], events.t[-1])
        assert recording.frame_files == [path] and recording.ground_truth_times == ()
    exact = int(events.t[700])
    for t0, t1 in [
        (0, 2 * START),
        (START + 30_000, START + 31_000),
        (exact, exact + 1),
        (exact, exact),
        (exact, exact - 5),
        (int(FRAME_TIMES[2]), int(FRAME_TIMES[3])),
        (START + 129_000, START + 900_000),
        (0, START),
    ]:
        window, expected = recording.events(t0, t1), events.slice_time(t0, t1)
        for column in "xytp":
            np.testing.assert_array_equal(getattr(window, column), getattr(expected, column))
    assert recording._event_file.coordinate_extent() == (HEIGHT, WIDTH)
    assert is_mvsec(path) and not is_mvsec(path.with_name("indoor_flying1_gt.hdf5"))


def test_code_for_two_cameras_finds_a_right_one(path):
    with h5py.File(path) as file:
        assert file["davis/right/image_raw"] == file["davis/left/image_raw"]
        assert len(file["davis/right/events"]) == len(file["davis/left/events"])


def test_opening_and_windows_read_little(tmp_path, monkeypatch, events):
    path = write_mvsec(tmp_path / "a", events, make_frames(), FRAME_TIMES)
    t = (START + np.arange(200_000)) / 1e6
    change(path, "davis/left/events", np.stack((t * 0, t * 0, t, t * 0 + 1), axis=1))
    read, original = [], h5py.Dataset.__getitem__

    def get(self, key, *rest):
        value = original(self, key, *rest)
        if self.name.endswith("events"):
            read.append(np.size(value))
        return value

    monkeypatch.setattr(h5py.Dataset, "__getitem__", get)
    recording = open_mvsec(path)
    assert sum(read) == 2  # the times of the first and the last event
    read.clear()
    window = recording.events(START + 50_000, START + 51_000)
    assert len(window) == 1000
    # x, y, t, p of the blocks of 16384 rows that hold it, and the beginnings of log2(13) blocks.
    assert sum(read) <= 4 * 2 * 16384 + 8


def test_windows_across_blocks(path, monkeypatch, events):
    monkeypatch.setattr("flowfuse.data.formats.block_times._LEAST_BLOCK", 64)
    monkeypatch.setattr(h5py.Dataset, "chunks", None)  # or a block is a chunk at least
    recording = open_mvsec(path)
    rng = np.random.default_rng(3)
    borders = [int(events.t[i]) for i in (0, 63, 64, 128, 3999)]
    for t0, t1 in [
        *((t + a, t + a + span) for t in borders for a in (-1, 0, 1) for span in (0, 1)),
        *np.sort(START + rng.integers(-9000, 140_000, (40, 2)), axis=1).tolist(),
        (START, START + 10**9), (0, START), (START + 130_000, START + 140_000),
    ]:  # fmt: skip
        window, expected = recording.events(t0, t1), events.slice_time(t0, t1)
        for column in "xytp":
            np.testing.assert_array_equal(getattr(window, column), getattr(expected, column))


# Ground truth. Maps of 1 x 6 px make hand computation possible: position + flow, rounded, is the
# next look-up.


def propagate(maps, times, t0, t1, **options):
    maps = np.array(maps, np.float32)
    return propagate_flow(lambda i: maps[i], np.array(times), t0, t1, **options)


def test_flow_within_one_interval_is_scaled():
    maps = [[[[4, 8]], [[-2, 0]]], [[[1, 1]], [[1, 1]]]]
    flow = propagate(maps, [100, 200], 125, 175)
    assert flow.tolist() == [[[2, 4]], [[-1, 0]]]
    assert propagate(maps, [100, 200], 100, 200).tolist() == [[[4, 8]], [[-2, 0]]]


def test_flow_over_maps_is_followed_with_nearest_look_ups():
    # u of two maps; v = 0 is the mark of the unknown, so v is 0 everywhere in the result.
    first, second = [2, 2, 2, 1, 1, 2], [10, 20, 30, 40, 50, 60]
    zeros = [0] * 6
    maps = [[[first], [zeros]], [[second], [zeros]], [[zeros], [zeros]]]
    # From the middle of map 0 (share 0.5) to a quarter of map 1: pixel 0 moves by 1 to pixel 1,
    # looks up 20 there, and moves by 5; pixel 3 moves by 0.5 to 3.5, whose nearest is 4 (halves go
    # to the even pixel): 50 / 4; pixel 4 moves to 4.5: 4; pixel 5 leaves the image: unknown.
    flow = propagate(maps, [0, 100, 200], 50, 125)
    assert flow[0].tolist() == [[1 + 5, 1 + 7.5, 1 + 10, 0.5 + 12.5, 0.5 + 12.5, 0]]
    assert flow[1].tolist() == [zeros]


def test_flow_over_three_maps_counts_the_middle_one_in_full():
    ones = np.ones((1, 6))
    maps = [[k * ones, ones] for k in (2, 1, -2)] + [[ones, ones]]
    flow = np.array(propagate(maps, [0, 10, 20, 30], 5, 25))
    # u: 1 + 1 - 1; v: 0.5 + 1 + 0.5. v leaves the one row there is at once: rint(0.5) = 0 is still
    # in it, then 1.5 is not.
    assert flow[0].tolist() == [[0] * 6] and flow[1].tolist() == [[0] * 6]
    tall = [np.broadcast_to(np.array(m).reshape(2, 1, 6), (2, 4, 6)) for m in maps]
    flow = propagate(tall, [0, 10, 20, 30], 5, 25)
    assert flow[:, 0, 1].tolist() == [1, 2]


def test_a_component_that_is_zero_once_is_zero():
    maps = np.ones((3, 2, 4, 6))
    maps[1, 0, 1, 2] = 0  # u of map 1, where pixel (row 0, column 1) arrives
    flow = propagate(maps, [0, 10, 20], 0, 20)
    assert flow[:, 0, 1].tolist() == [0, 2] and flow[:, 0, 0].tolist() == [2, 2]


def test_straddling_windows_scale_the_first_map_alone():
    maps = [np.full((2, 4, 6), k) for k in (2.0, 4.0, 1.0)]
    times = [0, 100, 200]
    # 40 us from 80 on: 20 of map 0 and 20 of map 1, or 40 % of map 0.
    assert propagate(maps, times, 80, 120)[0, 1, 1] == pytest.approx(0.4 + 0.8)
    assert propagate(maps, times, 80, 120, straddle=True)[0, 1, 1] == pytest.approx(0.8)
    # No shorter than an interval: followed in either case.
    assert propagate(maps, times, 80, 180, straddle=True)[0, 1, 1] == pytest.approx(0.4 + 3.2)


def test_flow_that_is_not_covered_or_not_finite(path):
    with pytest.raises(ValueError, match="expected t0 < t1 within the maps' times, 0 to 10 us"):
        propagate(np.ones((2, 2, 4, 6)), [0, 10], 5, 11)
    maps = np.ones((3, 2, 4, 6))
    maps[0, 0, 0, 0], maps[0, 0, 0, 1] = np.nan, np.inf
    flow = propagate(maps, [0, 10, 20], 5, 15)
    assert not np.isfinite(flow[0, 0, :2]).any() or (flow[0, 0, :2] == 0).all()
    ground_truth = open_mvsec(path).maps
    assert ground_truth.between(START, START + 20_000) is None
    assert ground_truth.between(FLOW_TIMES[1], FLOW_TIMES[2] + 1) is None


@pytest.mark.parametrize("ground_truth_format", ["hdf5", "npz"])
def test_truth_of_a_recording(tmp_path, events, ground_truth_format):
    maps = make_maps()
    maps[0, :, 4, 5], maps[0, 0, 6, 7] = 0, np.inf
    write_mvsec(
        tmp_path / "a",
        events,
        make_frames(),
        FRAME_TIMES,
        maps,
        FLOW_TIMES,
        ground_truth_format=ground_truth_format,
    )
    recording = open_mvsec(tmp_path / "a_data.hdf5")
    flow, valid = recording.ground_truth(1)  # 30 to 50 ms, in the map from 5 to 55 ms
    assert flow.dtype == np.float32 and flow[:, 10, 10].tolist() == pytest.approx([0.8, -0.4])
    assert not valid[4, 5] and not valid[6, 7] and valid.sum() == HEIGHT * WIDTH - 2
    assert flow[:, 6, 7].tolist() == [0, 0]
    flow, valid = recording.ground_truth(2)  # 50 to 70 ms: 5 ms of map 0, 15 of map 1
    # float32 positions of up to 24 px are exact to 1e-6 px.
    assert flow[:, 10, 10].tolist() == pytest.approx([0.2 + 0.6, -0.1 - 0.3], abs=2e-6)
    assert (
        not valid[4, 5]
        and recording.ground_truth(5) is None
        and recording.ground_truth_at(0, 0.5) is None
    )
    assert recording.maps.size == (HEIGHT, WIDTH) and len(recording.maps) == 3


# Undistortion


def write_tables(directory, forward):
    directory.mkdir(exist_ok=True)
    for axis, table in zip("xy", np.moveaxis(forward, 2, 0), strict=True):
        np.savetxt(directory / f"indoor_flying_left_{axis}_map.txt", table)


def test_undistortion_moves_events_and_frames_alike(tmp_path, events, path):
    x, y = np.meshgrid(np.arange(WIDTH, dtype=float), np.arange(HEIGHT, dtype=float))
    write_tables(tmp_path, np.stack((x + 0.5, y - 2), axis=2))
    recording = open_mvsec(path, undistort=tmp_path)
    assert recording.undistorted
    found, raw = recording.events(START, START + 130_000), open_mvsec(path).events(START, 2 * START)
    kept = raw.y >= 2 - 0.99  # what is 1 px outside has no share in any pixel
    assert len(found) == kept.sum() and found.x.dtype == np.float32
    np.testing.assert_allclose(found.y, raw.y[kept] - 2.0)
    np.testing.assert_allclose(found.x, raw.x[kept] + 0.5)
    # The new pixel (r, c) shows the raw position (r + 2, c - 0.5): the mean of two pixels.
    frame, before = recording.frame(0).astype(float), make_frames()[0].astype(float)
    np.testing.assert_allclose(frame[5, 7], (before[7, 6] + before[7, 7]) / 2, atol=1)
    assert (frame[-2:] == 0).all()  # nothing raw leads there


def test_faults_of_undistortion_tables(tmp_path, path):
    with pytest.raises(ValueError, match=r"exactly one \*_left_x_map.txt expected, found none"):
        open_mvsec(path, undistort=tmp_path)
    write_tables(tmp_path, np.zeros((3, 4, 2)))
    with pytest.raises(ValueError, match=r"x_map.txt: 20 rows of 24 numbers expected, got 3 of 4"):
        open_mvsec(path, undistort=tmp_path)
    (tmp_path / "indoor_flying_left_x_map.txt").write_text("1 a\n")
    with pytest.raises(ValueError, match=r"x_map.txt: a table of numbers expected"):
        open_mvsec(path, undistort=tmp_path)


# Faults


def change(path, name, values):
    with h5py.File(path, "a") as file:
        del file[name]
        if values is not None:
            file[name] = values


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("events", None, r"data set davis/left/events expected, found \['image_raw"),
        ("events", np.zeros((5, 3)), r"must have shape \[N, 4\] = x, y, t, p, got \[5, 3\]"),
        ("events", np.zeros((5, 4), np.uint8), "events must be floating of shape"),
        ("events", [[0, 0, 2.0, 1], [0, 0, 1.0, 1]], "must be sorted by t, not negative; got 2000"),
        ("events", [[0, 0, np.nan, 1]], r"events\[0\] has t = nan s"),
        ("image_raw", np.zeros((6, 20, 24), np.uint16), "image_raw must be uint8, got uint16"),
        ("image_raw", None, "image_raw expected"),
        ("image_raw_ts", np.zeros(6), r"image_raw_ts must increase, got 0 us after 0 us \(index 1"),
        ("image_raw_ts", np.arange(5.0), "5 image_raw_ts for 6 image_raw"),
        ("image_raw_ts", [np.nan] * 6, "image_raw_ts must be finite seconds"),
    ],
)
def test_faults_of_data_files(tmp_path, events, name, values, message):
    path = write_mvsec(tmp_path / "a", events, make_frames(), FRAME_TIMES)
    change(path, f"davis/left/{name}", values)
    with pytest.raises(ValueError, match=message) as caught:
        open_mvsec(path)
    assert str(caught.value).startswith(str(path))


def test_faults_inside_of_windows(tmp_path, events):
    path = write_mvsec(tmp_path / "a", events, make_frames(), FRAME_TIMES)
    for row, column, value, message in [
        (100, 0, 99.0, r"x\[\d+\] = 99 lies outside the sensor.*count from event \d+ of the file"),
        (100, 3, 2.0, r"p must be bool"),
        (100, 1, np.inf, r"events\[100\] = .*expected finite x, y, t, p"),
        (100, 2, (START + 90_000) / 1e6, "t must be sorted"),
    ]:
        with h5py.File(path, "a") as file:
            kept = file["davis/left/events"][row, column]
            file["davis/left/events"][row, column] = value
        with pytest.raises(ValueError, match=message):
            open_mvsec(path).events(START, START + 200_000)
        with h5py.File(path, "a") as file:
            file["davis/left/events"][row, column] = kept
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cannot be read as HDF5, is it truncated"):
        open_mvsec(path)
    with pytest.raises(FileNotFoundError, match=r"expected <sequence>_data.hdf5"):
        open_mvsec(tmp_path / "b_data.hdf5")


def test_faults_of_truth(tmp_path, path):
    with pytest.raises(FileNotFoundError, match="no such file of ground truth"):
        FlowMaps(tmp_path / "a_gt.hdf5")
    good = {
        "timestamps": FLOW_TIMES / 1e6,
        "x_flow_dist": np.zeros((3, 4, 5)),
        "y_flow_dist": np.zeros((3, 4, 5)),
    }
    npz = tmp_path / "a_gt_flow_dist.npz"
    for changes, message in [
        ({"timestamps": None}, r"missing \['timestamps'\]"),
        ({"timestamps": np.zeros(3)}, "flow times must increase"),
        ({"timestamps": np.arange(4.0)}, "4 times for 3 flow maps"),
        ({"x_flow_dist": np.zeros((3, 4))}, r"x_flow_dist must be floating of shape \[F, H, W\]"),
        ({"y_flow_dist": np.zeros((3, 4, 6))}, "they must agree"),
        ({}, "flow maps of 5 x 4 px, but .* is 24 x 20 px"),
    ]:
        arrays = {name: array for name, array in {**good, **changes}.items() if array is not None}
        np.savez(npz, **arrays)
        with pytest.raises(ValueError, match=message):
            open_mvsec(path, ground_truth=npz)
    npz.write_bytes(npz.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"not a readable .npz, is it truncated"):
        FlowMaps(npz)
    wrong = tmp_path / "b_gt.hdf5"
    with h5py.File(wrong, "w") as file:
        file["davis/left/flow_dist"] = np.zeros((3, 4, 5, 2))
        file["davis/left/flow_dist_ts"] = np.arange(3.0)
    with pytest.raises(ValueError, match=r"flow_dist must have shape \[F, 2, H, W\]"):
        FlowMaps(wrong)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 20_000), data=st.binary(min_size=1, max_size=40))
def test_a_damaged_file_gives_data_or_a_value_error(tmp_path, path, place, data):
    damaged = tmp_path / "a_data.hdf5"
    content = bytearray(path.read_bytes())
    place %= len(content)
    content[place : place + len(data)] = data
    damaged.write_bytes(content)
    try:
        recording = open_mvsec(damaged)
        recording.events(int(FRAME_TIMES[1]), int(FRAME_TIMES[2]))
        recording.frame(1)
    except ValueError as error:
        assert str(damaged) in str(error)


def test_faults_of_writing(tmp_path, events):
    frames = make_frames()
    for arguments, message in [
        ((events, frames, FRAME_TIMES[:5]), "5 frames of .* expected, got frame 5"),
        ((events, frames[:4], FRAME_TIMES), "6 frame_times for 4 frames"),
        ((events, frames[:, 1:], FRAME_TIMES), "events of 24 x 20 px with frames of 24 x 19 px"),
        ((events, frames.astype(float), FRAME_TIMES), "frame 0 must be uint8"),
        ((events, frames, FRAME_TIMES[::-1]), "frame_times must be increasing"),
        (([events, events], frames, FRAME_TIMES), "events must follow each other"),
        ((events, frames, FRAME_TIMES, make_maps()), "belong together"),
        ((events, frames, FRAME_TIMES, make_maps(), FLOW_TIMES[:2]), "2 flow_times for more"),
        ((events, frames, FRAME_TIMES, make_maps()[:2], FLOW_TIMES), "3 flow_times for 2"),
        ((events, frames, FRAME_TIMES, make_maps()[:, :1], FLOW_TIMES), "flow map 0 must have"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_mvsec(tmp_path / "a", *arguments)
        assert not list(tmp_path.iterdir())


# Training samples


def test_samples_have_the_form_of_scenes(path):
    recording = open_mvsec(path)
    data = MvsecDataset(recording, slices=2, bins=3, step=2)
    # Frames lie at 10 + 20 i ms, truth from 5 to 105 ms: pairs (0, 2), (1, 3), (2, 4).
    assert len(data) == 3 and data.starts == [0, 1, 2]
    sample = data[1]
    shapes = {name: tuple(value.shape) for name, value in sample.tensors().items()}
    assert shapes == {
        "slices": (3, 3, HEIGHT, WIDTH),
        "frame0": (1, HEIGHT, WIDTH),
        "frame1": (1, HEIGHT, WIDTH),
        "event_sum": (1, HEIGHT, WIDTH),
        "exposure": (2,),
        "modality_mask": (3,),
        "tau": (1,),
        "flow": (1, 2, HEIGHT, WIDTH),
        "valid": (1, HEIGHT, WIDTH),
        "occluded": (1, HEIGHT, WIDTH),
        "boundary": (2, HEIGHT, WIDTH),
    }
    torch.testing.assert_close(sample.frame1[0], torch.from_numpy(make_frames()[3]) / 255)
    # 30 to 70 ms: 25 ms of map 0 (2, -1 px in 50 ms) and 15 ms of map 1.
    assert sample.flow[0, :, 10, 10].tolist() == pytest.approx([1.6, -0.8], abs=2e-6)
    events = recording.events(int(FRAME_TIMES[1]), int(FRAME_TIMES[3]))
    assert sample.event_sum.sum() == (2.0 * events.p - 1).sum()
    # What leaves the image by this flow, and what has no truth, cannot be matched.
    hidden = ~sample.valid[0]
    hidden[0], hidden[:, -2:] = True, True
    assert torch.equal(sample.occluded[0], hidden) and sample.boundary.isnan().all()
    varied = augment(sample, np.random.default_rng(0), AugmentConfig(), (16, 16))
    assert varied.flow.shape == (1, 2, 16, 16) and varied.boundary.isnan().all()
    assert MvsecDataset(recording, slices=2, bins=3, frames=(1, 3)).starts == [1]


def test_faults_of_samples(path, tmp_path, events):
    recording = open_mvsec(path)
    with pytest.raises(IndexError, match="index 9 of 4 items"):
        MvsecDataset(recording, slices=2, bins=3)[9]
    with pytest.raises(ValueError, match="slices must be at least 2"):
        MvsecDataset(recording, slices=1, bins=3)
    with pytest.raises(ValueError, match=r"no pair of frames \[5, 6\) has ground truth"):
        MvsecDataset(recording, slices=2, bins=3, frames=(5, 6))
    bare = open_mvsec(write_mvsec(tmp_path / "a", events, make_frames(), FRAME_TIMES))
    with pytest.raises(ValueError, match="no ground truth beside it"):
        MvsecDataset(bare, slices=2, bins=3)
