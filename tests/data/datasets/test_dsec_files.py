"""Layouts of DSEC, time stamps, schedules and calibration, on files written by hand."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from flowfuse.data.datasets.dsec.files import (
    DsecFiles,
    find_schedule,
    find_sequence,
    list_sequences,
    read_exposure_times,
    read_flow_times,
    read_image_times,
    read_rectify_map,
    read_schedule,
    read_view_change,
)

SEQ = "zurich_city_01_a"


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("item", "place"),
    [
        ("events", "train_events/{}/events/left/events.h5"),
        ("events", "test_events/{}/events/left/events.h5"),
        ("events", "{}/events/left/events.h5"),
        ("events", "{}_events_left/events.h5"),
        ("events", "test/{}/events_left/events.h5"),  # as E-RAFT's loader has it
        ("events", "{0}/{0}_events_left/events.h5"),
        ("rectify_map", "train_events/{}/events/left/rectify_map.h5"),
        ("rectify_map", "{}_events_left/rectify_map.h5"),
        ("images", "train_images/{}/images/left/rectified"),
        ("images", "{}/images/left/rectified"),
        ("images", "{}_images_rectified_left"),
        ("event_view_images", "{}/images/left/ev_inf"),
        ("image_times", "train_images/{}/images/timestamps.txt"),
        ("image_times", "{}/images/timestamps.txt"),
        ("image_times", "{}_image_timestamps.txt"),
        ("image_times", "test/{}/image_timestamps.txt"),
        ("exposures", "{}/images/left/exposure_timestamps.txt"),
        ("exposures", "{}_image_exposure_timestamps_left.txt"),
        ("flow", "train_optical_flow/{}/flow/forward"),
        ("flow", "train/{}/flow/forward"),
        ("flow", "{}_optical_flow_forward_event"),
        ("flow_times", "{}/flow/forward_timestamps.txt"),
        ("flow_times", "{}_optical_flow_forward_timestamps.txt.txt"),
        ("calibration", "train_calibration/{}/calibration/cam_to_cam.yaml"),
        ("calibration", "{}_calibration/cam_to_cam.yaml"),
    ],
)
def test_every_layout_is_found(tmp_path, item, place):
    files = DsecFiles(tmp_path, SEQ)
    assert files.find(item) is None
    path = touch(tmp_path / place.format(SEQ))
    assert files.find(item) == path


def test_sequences_are_named_by_root_and_name(tmp_path):
    root = tmp_path / "data"
    touch(root / "train_events" / "a" / "events" / "left" / "events.h5")
    touch(root / "b" / "events" / "left" / "events.h5")
    touch(root / "c_events_left" / "events.h5")
    touch(root / "plain" / "events.h5")
    (root / "train_images" / "d").mkdir(parents=True)
    assert list_sequences(root) == ["a", "b", "c"]
    for name in "abc":
        assert find_sequence(root / name) == DsecFiles(root, name)
    # The directory itself names a sequence of the bulk layout, too.
    assert find_sequence(root / "train_events" / "a") == DsecFiles(root, "a")
    for path in (root / "plain", root / "d", root, root / "nothing"):
        assert find_sequence(path) is None
    with pytest.raises(FileNotFoundError, match="nothing: no such directory"):
        list_sequences(root / "nothing")


def test_missing_files_are_named_in_every_layout(tmp_path):
    text = DsecFiles(tmp_path, SEQ).missing("rectify_map")
    assert text.startswith(f"{SEQ}: rectify map not found as ")
    for place in ("{}/events/left/", "train_events/{}/events/left/", "{}_events_left/"):
        assert str(tmp_path / place.format(SEQ) / "rectify_map.h5") in text


def test_image_times_and_exposures(tmp_path):
    times = touch(tmp_path / "times.txt", "# us\n1000\n51000\n\n101003\n")
    assert read_image_times(times).tolist() == [1000, 51000, 101003]
    text = "# exposure_start_timestamp_us, exposure_end_timestamp_us\n1, 3\n51,53\n"
    exposures = touch(tmp_path / "exposures.txt", text)
    assert read_exposure_times(exposures, 2).tolist() == [[1, 3], [51, 53]]
    with pytest.raises(ValueError, match=r"exposures.txt: 2 exposures for 3 image time stamps"):
        read_exposure_times(exposures, 3)
    touch(exposures, "start, end\n3, 1\n")
    with pytest.raises(ValueError, match=r"exposures.txt: the exposure of row 0 ends at 1 us"):
        read_exposure_times(exposures, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1000\n900\n", "times must increase, row 1 has 900 after 1000"),
        ("1000\n1000\n", "times must increase"),
        ("1000\n20.5\n", r"line 2: one time in microseconds expected, found \['20.5'\]"),
        ("1000\n2000, 3000\n", "line 2: one time in microseconds expected"),
        ("-5\n", "line 1: .* out of range"),
        (f"{2**63}\n", "line 1: .* out of range"),
        ("", "no line found"),
        ("# only a header\n", "no line found"),
    ],
)
def test_wrong_image_times_are_named(tmp_path, text, message):
    path = touch(tmp_path / "timestamps.txt", text)
    with pytest.raises(ValueError, match=message) as caught:
        read_image_times(path)
    assert str(path) in str(caught.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"timestamps.txt: not a text file"):
        read_image_times(path)


def test_flow_times(tmp_path):
    path = touch(tmp_path / "f.txt", "# from_timestamp_us, to_timestamp_us\n10, 20\n20, 30\n")
    assert read_flow_times(path).tolist() == [[10, 20], [20, 30]]
    touch(path, "20, 30\n10, 20\n")
    with pytest.raises(ValueError, match=r"f.txt: from must increase, row 1 has 10 after 20"):
        read_flow_times(path)
    touch(path, "30, 20\n")
    with pytest.raises(ValueError, match="the flow of row 0 ends at 20 us, not after its start 30"):
        read_flow_times(path)


@pytest.mark.parametrize(
    "header", ["", "# from_timestamp_us, to_timestamp_us, file_index\n", "from, to, file_index\n"]
)
@pytest.mark.parametrize("comma", [",", ", "])
def test_schedules(tmp_path, header, comma):
    rows = comma.join(("10", "20", "4")) + "\n" + comma.join(("30", "40", "14")) + "\n"
    path = touch(tmp_path / "s.csv", header + rows)
    assert read_schedule(path).tolist() == [[10, 20, 4], [30, 40, 14]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10,20\n", "line 1: from_timestamp_us, to_timestamp_us, file_index expected"),
        ("10,20,4\n30,40\n", "line 2: .*file_index expected"),
        ("10,20,4\n30,40,4\n", "file_index must increase"),
        ("10,20,4\n5,9,6\n", "from_timestamp_us must increase"),
        ("10,5,4\n", "ends at 5 us"),
        ("10,20,4\n30,4", "line 2"),
    ],
)
def test_wrong_schedules_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_schedule(touch(tmp_path / "s.csv", text))
    assert "s.csv" in str(caught.value)


def test_published_schedules(shared_data):
    directory = shared_data / "dsec_test_timestamps"
    if not directory.is_dir():
        pytest.skip(f"no schedules at {directory}")
    schedules = {path.stem: read_schedule(path) for path in directory.glob("*.csv")}
    assert len(schedules) == 7 and sum(map(len, schedules.values())) == 416
    assert schedules["interlaken_00_b"][0].tolist() == [51648500652, 51648600574, 820]
    files = DsecFiles(Path("nowhere"), "thun_01_a")
    assert find_schedule(files, directory) == directory / "thun_01_a.csv"
    assert find_schedule(files) is None


@pytest.mark.parametrize(
    "place",
    [
        "test_forward_optical_flow_timestamps/{}.csv",
        "test_foward_optical_flow_timestamps/{}.csv",
        "test/{}/test_forward_flow_timestamps.csv",
        "test_optical_flow/{}/flow/forward_timestamps.txt",
        "{}.csv",
    ],
)
def test_schedules_are_found_in_the_usual_places(tmp_path, place):
    path = touch(tmp_path / place.format(SEQ))
    assert find_schedule(DsecFiles(tmp_path, SEQ)) == path


def test_rectify_map_and_its_faults(tmp_path):
    path = tmp_path / "rectify_map.h5"
    values = np.arange(24, dtype=np.float32).reshape(3, 4, 2)

    def write(name: str, data: np.ndarray) -> None:
        with h5py.File(path, "w") as file:
            file[name] = data

    write("rectify_map", values)
    np.testing.assert_array_equal(read_rectify_map(path), values)
    broken = values.copy()
    broken[1, 2, 0] = np.nan
    for name, data, message in (
        ("map", values, r"'rectify_map' expected, found \['map'\]"),
        ("rectify_map", values[..., 0], r"float32 of shape \[H, W, 2\], got float32 of \[3, 4\]"),
        ("rectify_map", values.astype(int), "got int64"),
        ("rectify_map", broken, r"must be finite, got .* at \[1, 2\]"),
    ):
        write(name, data)
        with pytest.raises(ValueError, match=message) as caught:
            read_rectify_map(path)
        assert str(path) in str(caught.value)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"rectify_map.h5: cannot be read as HDF5, is it trunc"):
        read_rectify_map(path)


def rotation_y(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def rotation_x(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def calibration() -> dict:
    transform = np.eye(4)
    transform[:3, :3] = rotation_x(2) @ rotation_y(3)
    transform[:3, 3] = (0.05, 0.0, 0.0)
    return {
        "intrinsics": {
            "camRect0": {"camera_matrix": [500.0, 510.0, 320.0, 240.0]},
            "camRect1": {"camera_matrix": [1100.0, 1110.0, 700.0, 550.0]},
        },
        "extrinsics": {
            "T_10": transform.tolist(),
            "R_rect0": rotation_y(1).tolist(),
            "R_rect1": rotation_x(-1.5).tolist(),
        },
    }


def project(camera: list[float], point: np.ndarray) -> np.ndarray:
    fx, fy, cx, cy = camera
    return np.array([fx * point[0] / point[2] + cx, fy * point[1] / point[2] + cy])


def test_view_change_maps_distant_points(tmp_path):
    path, content = tmp_path / "cam_to_cam.yaml", calibration()
    touch(path, yaml.safe_dump(content))
    change, size = read_view_change(path)
    assert size is None
    cameras, moves = content["intrinsics"], content["extrinsics"]
    for direction in ((0.1, -0.2, 1.0), (-0.3, 0.1, 1.0), (0.0, 0.0, 1.0)):
        shifts = []
        for depth in (1e9, 5.0):
            point0 = depth * np.array(direction)  # in the frame of cam0
            point1 = (np.array(moves["T_10"]) @ (*point0, 1))[:3]
            seen0 = project(cameras["camRect0"]["camera_matrix"], moves["R_rect0"] @ point0)
            seen1 = project(cameras["camRect1"]["camera_matrix"], moves["R_rect1"] @ point1)
            mapped = change @ (*seen1, 1)
            shifts.append(np.abs(mapped[:2] / mapped[2] - seen0).max())
        # Exact at infinity; at 5 m, the baseline of 5 cm is 500 px * 0.05 / 5 = 5 px.
        assert shifts[0] < 1e-5 and 4 < shifts[1] < 6
    content["intrinsics"]["camRect1"]["resolution"] = [1440, 1080]
    touch(path, yaml.safe_dump(content))
    assert read_view_change(path)[1] == (1080, 1440)


def test_faults_of_the_calibration_are_named(tmp_path):
    path = tmp_path / "cam_to_cam.yaml"

    def fault(message: str, *keys: str, value: object = None) -> None:
        content = calibration()
        place = content
        for key in keys[:-1]:
            place = place[key]
        if value is None:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value
        touch(path, yaml.safe_dump(content))
        with pytest.raises(ValueError, match=message) as caught:
            read_view_change(path)
        assert str(path) in str(caught.value)

    fault("key extrinsics.T_10 expected, 'T_10' is missing", "extrinsics", "T_10")
    fault("key intrinsics.camRect1.camera_matrix expected", "intrinsics", "camRect1")
    camera = ("intrinsics", "camRect0", "camera_matrix")
    fault(r"camRect0.camera_matrix must be finite numbers of shape \[4\]", *camera, value=[1, 2])
    fault("camRect0.camera_matrix must be finite", *camera, value=["a", 1, 2, 3])
    fault("focal lengths of camRect0 must be positive", *camera, value=[-1, 1, 0, 0])
    skewed = np.diag((1.0, 2.0, 1.0)).tolist()
    fault("extrinsics.R_rect1 is not a rotation", "extrinsics", "R_rect1", value=skewed)
    touch(path, "a: [")
    with pytest.raises(ValueError, match=r"cam_to_cam.yaml: not a YAML file"):
        read_view_change(path)
    touch(path, "")
    with pytest.raises(ValueError, match=r"key extrinsics\.T_10 expected"):
        read_view_change(path)
