"""Sequences of DSEC as they are written, read back by code that knows only the format."""

from __future__ import annotations

from pathlib import Path

import cv2
import h5py
import hdf5plugin  # noqa: F401 -- registers the codecs of the files
import numpy as np
import pytest
import yaml

from flowfuse.data.datasets.dsec import writer
from flowfuse.data.datasets.dsec.sequence import open_sequence
from flowfuse.data.datasets.dsec.writer import (
    LAYOUTS,
    default_rig,
    write_raw_events,
    write_sequence,
)
from flowfuse.data.synthetic.scenes import generate_scene
from flowfuse.evaluation.metrics import photometric_error
from flowfuse.events import Events

HEIGHT, WIDTH = 72, 96
IMAGE_SIZE = (162, 216)
OFFSET = 47_000_000_123
SEQ = "thun_00_a"
PLACES = {  # written from the description of the data set, not from the code
    "merged": {
        "events": "thun_00_a/events/left/events.h5",
        "map": "thun_00_a/events/left/rectify_map.h5",
        "images": "thun_00_a/images/left/rectified",
        "times": "thun_00_a/images/timestamps.txt",
        "exposures": "thun_00_a/images/left/exposure_timestamps.txt",
        "flow": "thun_00_a/flow/forward",
        "flow_times": "thun_00_a/flow/forward_timestamps.txt",
        "calibration": "thun_00_a/calibration/cam_to_cam.yaml",
    },
    "bulk": {
        "events": "train_events/thun_00_a/events/left/events.h5",
        "map": "train_events/thun_00_a/events/left/rectify_map.h5",
        "images": "train_images/thun_00_a/images/left/rectified",
        "times": "train_images/thun_00_a/images/timestamps.txt",
        "exposures": "train_images/thun_00_a/images/left/exposure_timestamps.txt",
        "flow": "train_optical_flow/thun_00_a/flow/forward",
        "flow_times": "train_optical_flow/thun_00_a/flow/forward_timestamps.txt",
        "calibration": "train_calibration/thun_00_a/calibration/cam_to_cam.yaml",
    },
    "per_file": {
        "events": "thun_00_a_events_left/events.h5",
        "map": "thun_00_a_events_left/rectify_map.h5",
        "images": "thun_00_a_images_rectified_left",
        "times": "thun_00_a_image_timestamps.txt",
        "exposures": "thun_00_a_image_exposure_timestamps_left.txt",
        "flow": "thun_00_a_optical_flow_forward_event",
        "flow_times": "thun_00_a_optical_flow_forward_timestamps.txt",
        "calibration": "thun_00_a_calibration/cam_to_cam.yaml",
    },
}


@pytest.fixture(scope="module")
def scene():
    return generate_scene(11, "slow", HEIGHT, WIDTH, frames=5)


@pytest.fixture(scope="module")
def flow(scene):
    ground_truths = {i: scene.ground_truth(float(i + 2), start=float(i)) for i in (0, 2)}
    maps = {i: (flow.numpy(), valid.numpy()) for i, (flow, valid, _) in ground_truths.items()}
    maps[2][1][:, :7] = False
    return maps


@pytest.fixture(scope="module")
def root(scene, flow, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("dsec")
    for layout in LAYOUTS:
        path = write_sequence(
            root / layout, SEQ, scene.events, scene.frames, scene.frame_times,
            exposures=scene.exposures, flow=flow, image_size=IMAGE_SIZE, layout=layout,
            t_offset=OFFSET,
        )  # fmt: skip
        assert path == root / layout / SEQ
    return root


def numbers(path: Path) -> np.ndarray:
    return np.loadtxt(path, dtype=np.int64, delimiter=",", comments="#", ndmin=2)


def read_flow_png(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """PNG, uint16, channels R, G, B: u = (R - 2^15) / 128, v = (G - 2^15) / 128, valid = (B == 1).
    OpenCV reads BGR."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image.dtype == np.uint16 and image.shape == (HEIGHT, WIDTH, 3)
    blue, green, red = (image[:, :, i].astype(np.float64) for i in range(3))
    return np.stack(((red - 2**15) / 128, (green - 2**15) / 128)), blue == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_files_hold_the_scene(root, scene, flow, layout):
    place = {name: root / layout / path for name, path in PLACES[layout].items()}

    times = numbers(place["times"])[:, 0]
    np.testing.assert_array_equal(times, scene.frame_times + OFFSET)
    exposures = numbers(place["exposures"])
    np.testing.assert_array_equal(exposures[:, 1] - exposures[:, 0], scene.exposures)
    middle = exposures.sum(axis=1) / 2
    assert np.abs(middle - times).max() <= 1

    spans = numbers(place["flow_times"])
    np.testing.assert_array_equal(spans, np.stack((times[[0, 2]], times[[2, 4]]), axis=1))
    assert sorted(p.name for p in place["flow"].iterdir()) == ["000000.png", "000002.png"]
    for index, (expected, known) in flow.items():
        values, valid = read_flow_png(place["flow"] / f"{index:06d}.png")
        np.testing.assert_array_equal(valid, known)
        # Half a step of 1/128 px, and the rounding of float32 there.
        assert np.abs(values - expected)[:, known].max() <= 0.5 / 128 + 1e-5

    with h5py.File(place["map"]) as file:
        rectify = file["rectify_map"][()]
    assert rectify.dtype == np.float32 and rectify.shape == (HEIGHT, WIDTH, 2)
    grid = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), axis=-1)
    assert 1 < np.abs(rectify - grid).max() < 10  # a distortion, but not another camera

    with h5py.File(place["events"]) as file:
        kinds = {name: file[f"events/{name}"].dtype for name in "xytp"}
        assert kinds == {"x": np.uint16, "y": np.uint16, "t": np.uint32, "p": np.uint8}
        # 32001 is the number under which HDF5 knows blosc; its fifth option is 5 for zstd.
        packing = file["events/t"].id.get_create_plist().get_filter_by_id(32001)
        assert packing is not None and packing[1][6] == 5
        x, y, t, p = (file[f"events/{name}"][()] for name in "xytp")
        table, offset = file["ms_to_idx"][()], int(file["t_offset"][()])
    assert offset == OFFSET and len(t) == len(scene.events)  # none lies beyond the raw sensor
    assert table[0] == 0 and len(table) == t[-1] // 1000 + 1
    for ms, first in enumerate(table.tolist()):
        assert t[first] >= 1000 * ms and (first == 0 or t[first - 1] < 1000 * ms)
    np.testing.assert_array_equal(t, scene.events.t)
    np.testing.assert_array_equal(p, scene.events.p)
    error = rectify[y, x] - np.stack((scene.events.x, scene.events.y), axis=-1)
    assert np.abs(error).max() < 0.6  # the nearest raw pixel; distortion stretches by some percent

    # Frames by the homography P = K_rect0 R_rect0 R_10^T R_rect1^T K_rect1^-1, pixel by pixel.
    content = yaml.safe_load(place["calibration"].read_text())
    k0, k1 = (content["intrinsics"][f"camRect{i}"]["camera_matrix"] for i in (0, 1))
    k0, k1 = (np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]) for fx, fy, cx, cy in (k0, k1))
    moves = {name: np.array(value) for name, value in content["extrinsics"].items()}
    rotation = moves["R_rect0"] @ moves["T_10"][:3, :3].T @ moves["R_rect1"].T
    back = np.linalg.inv(k0 @ rotation @ np.linalg.inv(k1))
    image = cv2.imread(str(place["images"] / "000001.png"))
    assert image.shape == (*IMAGE_SIZE, 3) and image.dtype == np.uint8
    assert sorted(p.name for p in place["images"].iterdir()) == [f"{i:06d}.png" for i in range(5)]
    errors = []
    for row in range(4, HEIGHT - 4, 3):
        for column in range(4, WIDTH - 4, 3):
            a, b, c = back @ (column, row, 1)
            assert 0 <= a / c < IMAGE_SIZE[1] and 0 <= b / c < IMAGE_SIZE[0]
            seen = int(image[round(b / c), round(a / c), 0])
            errors.append(abs(seen - int(scene.frames[1][row, column])))
    assert np.mean(errors) < 4  # the nearest pixel of an image twice as fine, gray levels


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reading_gives_the_scene_back(root, scene, flow, layout):
    sequence = open_sequence(root / layout / SEQ)
    np.testing.assert_array_equal(sequence.frame_times, scene.frame_times + OFFSET)
    start, end = (int(sequence.frame_times[i]) for i in (0, 2))
    events, expected = (
        sequence.events(start, end),
        scene.events.slice_time(start - OFFSET, end - OFFSET),
    )
    np.testing.assert_array_equal(events.t, expected.t + OFFSET)
    np.testing.assert_array_equal(events.p, expected.p)
    assert max(np.abs(events.x - expected.x).max(), np.abs(events.y - expected.y).max()) < 0.6
    for index in (0, 2, 4):
        error = sequence.frame(index)[..., 0].astype(int) - scene.frames[index]
        assert np.abs(error).mean() < 1.5  # resampled twice, gray levels of 255
    for index, (true, known) in flow.items():
        values, valid = sequence.ground_truth(index)
        np.testing.assert_array_equal(valid, known)
        assert np.abs(values - true)[:, known].max() <= 0.5 / 128 + 1e-5
        frames = sequence.frame(index), sequence.frame(index + 2)
        still = photometric_error(*frames, np.zeros_like(true))
        assert photometric_error(*frames, np.where(valid, values, true)) < 0.5 * still
    assert sequence.frame_pairs == [(0, 2), (2, 4)]


def test_frames_already_in_the_event_view(tmp_path, scene):
    path = write_sequence(
        tmp_path, "a", scene.events, scene.frames, scene.frame_times, event_view_images=True
    )
    sequence = open_sequence(path)
    assert not sequence.warped and sequence.exposures is None
    np.testing.assert_array_equal(sequence.frame(3)[..., 1], scene.frames[3])
    assert sequence.ground_truth(0) is None and sequence.frame_pairs == [(0, 2), (2, 4)]


def test_the_rig_inverts_its_distortion():
    rig = default_rig((48, 64), (108, 144))
    rectified = rig.rectify(np.array([0.0, 31.0, 63.0]), np.array([47.0, 20.0, 5.0]))
    raw = rig.distort(*rectified.T)
    np.testing.assert_allclose(raw, [(0, 47), (31, 20), (63, 5)], atol=1e-5)


def test_wrong_arguments_are_named(tmp_path, scene):
    given = (scene.events, scene.frames, scene.frame_times)
    with pytest.raises(ValueError, match="layout must be one of"):
        write_sequence(tmp_path, "a", *given, layout="zip")
    for name in ("", ".", "..", "../a", "b/a", str(tmp_path.parent / "a")):
        with pytest.raises(ValueError, match="name must be one of a folder in"):
            write_sequence(tmp_path / "root", name, *given)
    with pytest.raises(ValueError, match="flow of frame 3 ends at frame 5, but there are 5 frames"):
        write_sequence(tmp_path, "a", *given, flow={3: (np.zeros((2, HEIGHT, WIDTH)), None)})
    with pytest.raises(ValueError, match="got 5 for 4 frames"):
        write_sequence(tmp_path, "a", scene.events, scene.frames[:4], scene.frame_times)
    with pytest.raises(ValueError, match=r"frame 0 must be uint8 of \(72, 96\) px"):
        write_sequence(tmp_path, "a", scene.events, scene.frames[:, 1:], scene.frame_times)
    with pytest.raises(ValueError, match="rig is of"):
        write_sequence(tmp_path, "a", *given, rig=default_rig((9, 9), (20, 20)))
    unknown = Events([1], [1], [1], [1])
    with pytest.raises(ValueError, match="must know the height and width"):
        write_sequence(tmp_path, "a", unknown, *given[1:])
    late = Events([1], [1], [2**32], [1])
    with pytest.raises(ValueError, match="below 2\\^32 us, got 4294967296"):
        write_raw_events(tmp_path / "events.h5", late, 0)
    assert list(tmp_path.iterdir()) == []
    write_sequence(tmp_path, "a", Events.empty(HEIGHT, WIDTH), *given[1:], image_size=IMAGE_SIZE)
    assert open_sequence(tmp_path / "a").event_range is None
    with pytest.raises(ValueError, match="this sequence exists already"):
        write_sequence(tmp_path, "a", *given)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_interrupted_sequence_leaves_nothing(scene, tmp_path, monkeypatch, layout):
    given = (tmp_path, "a", scene.events, scene.frames, scene.frame_times)
    (tmp_path / "b").mkdir()

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writer, "write_raw_events", interrupted)
        write_sequence(*given, image_size=IMAGE_SIZE, layout=layout)
    assert list(tmp_path.iterdir()) == [tmp_path / "b"]
    times = tmp_path / PLACES[layout]["times"].replace(SEQ, "a")
    times.parent.mkdir(parents=True, exist_ok=True)
    times.write_text("of another recording")
    with pytest.raises(ValueError, match=f"{times.name}: exists already, but a has no events"):
        write_sequence(*given, image_size=IMAGE_SIZE, layout=layout)
    assert times.read_text() == "of another recording" and not list(tmp_path.glob(".a*"))
