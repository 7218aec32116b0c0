"""Tables of events in .h5 and .npz, the files of M3ED, TUM-VIE and VECtor, folders of EVIMO2."""

from __future__ import annotations

import warnings

import h5py
import numpy as np
import pytest
from event_cases import HEIGHT, OFFSET, WIDTH, make_events, windows_that_are_slices, write_dsec

from flowfuse.data.opening import open_recording
from flowfuse.data.registry import open_event_file


@pytest.fixture(scope="module")
def events():
    return make_events()


def stack(events, names, kind):
    """[N, 4] in this order; floating times are seconds."""
    columns = {name: getattr(events, name).astype(np.float64) for name in "xytp"}
    if np.dtype(kind).kind == "f":
        columns["t"] /= 1e6
    return np.stack([columns[name] for name in names], axis=1).astype(kind)


def write_v2e(path, events):
    with h5py.File(path, "w") as file:  # chunked and compressed as v2e does, beside its frames
        table = stack(events, "txyp", "u4")
        file.create_dataset("events", data=table, chunks=(256, 4), compression="gzip")
        file.create_dataset("frame", data=np.zeros((2, HEIGHT, WIDTH), "u1"))


def write_mvsec_order(path, events):
    with h5py.File(path, "w") as file:
        file["recorded"] = stack(events, "xytp", "f8")
        file.attrs["height"], file.attrs["width"] = HEIGHT, WIDTH


def write_records(path, events):
    records = np.empty(len(events), [("x", "u2"), ("y", "u2"), ("p", "i2"), ("t", "i8")])
    for name in "xytp":
        records[name] = getattr(events, name)
    with h5py.File(path, "w") as file:
        file.create_dataset("events", data=records, chunks=(100,))


def write_evimo(path, events):
    meta = np.array({"frames": []}, object)  # a pickle, which is not touched
    np.savez(path, events=stack(events, "txyp", "f8"), meta=meta, K=np.eye(3))


def write_evimo_packed(path, events):
    np.savez_compressed(path, events=stack(events, "txyp", "f8"))


def write_m3ed(path, events, cameras=("left",), resolution=(WIDTH, HEIGHT)):
    with h5py.File(path, "w") as file:
        for name in cameras:
            group = file.create_group(f"prophesee/{name}")
            for column, kind in zip("xytp", ("u2", "u2", "i8", "u1"), strict=True):
                values = getattr(events, column) + (name != "left" and column == "t")
                group.create_dataset(column, data=values.astype(kind), chunks=(500,))
            group["ms_map_idx"] = np.searchsorted(events.t, np.arange(1100) * 1000).astype("u8")
            group["calib/resolution"] = np.array(resolution)
        file["ovc/left/data"] = np.zeros((1, 3, 4, 1), "u1")


def write_tum_vie(path, events):
    write_dsec(path, events, 0)
    with h5py.File(path, "a") as file:
        del file["t_offset"]


def write_vector(path, events):
    write_dsec(path, events, OFFSET)


def write_evimo2(path, events, shape=(-1, 1)):
    path.mkdir()
    np.save(path / "dataset_events_t.npy", (events.t / 1e6).reshape(shape))
    np.save(path / "dataset_events_xy.npy", np.stack((events.x, events.y), axis=1))
    np.save(path / "dataset_events_p.npy", events.p.reshape(shape))


KINDS = {
    "v2e.h5": write_v2e,
    "order_of_mvsec.hdf5": write_mvsec_order,
    "records.h5": write_records,
    "evimo.npz": write_evimo,
    "packed.npz": write_evimo_packed,
    "m3ed.h5": write_m3ed,
    "mocap-desk-events_left.h5": write_tum_vie,
    "vector.hdf5": write_vector,
    "scene_01": write_evimo2,
}


@pytest.mark.filterwarnings("ignore:.*is compressed", "ignore:.*the columns are taken as x y t p")
@pytest.mark.parametrize("name", KINDS)
def test_windows_are_slices_of_the_whole(tmp_path, monkeypatch, events, name):
    monkeypatch.setattr("flowfuse.data.formats.block_times._LEAST_BLOCK", 100)
    KINDS[name](tmp_path / name, events)
    file = open_event_file(tmp_path / name)
    for window in windows_that_are_slices(file, events):
        assert window.x.dtype.kind in "iu" and window.t.dtype == np.int64


@pytest.mark.filterwarnings("ignore:.*the sensor size is not stated")
def test_a_folder_of_evimo2_is_a_recording(tmp_path, events):
    write_evimo2(tmp_path / "scene", events, (-1,))
    recording = open_recording(tmp_path / "scene")
    assert recording.has_events and not recording.has_frames
    assert len(recording.events(0, 2 * OFFSET)) == len(events)
    (tmp_path / "scene" / "dataset_events_p.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"dataset_events_p.npy: no such file"):
        open_recording(tmp_path / "scene")
    np.save(tmp_path / "scene" / "dataset_events_p.npy", events.p[:-1])
    with pytest.raises(ValueError, match=r"same length, got x has 3000, .* p has 2999"):
        open_recording(tmp_path / "scene")
    np.save(tmp_path / "scene" / "dataset_events_xy.npy", events.x)
    with pytest.raises(ValueError, match=r"xy.npy: shape \[N, 2\] expected, got \[3000\]"):
        open_recording(tmp_path / "scene")
    (tmp_path / "scene" / "dataset_events_t.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"t.npy: not a readable .npy, is it truncated"):
        open_recording(tmp_path / "scene")


def test_the_cameras_of_m3ed(tmp_path, events):
    write_m3ed(tmp_path / "a.h5", events, ("right", "left"))
    with pytest.warns(UserWarning, match="prophesee/left is taken, of prophesee/left, prophesee/r"):
        file = open_event_file(tmp_path / "a.h5")
    assert file.time_range == (events.t[0], events.t[-1])
    assert file.sensor_size == (HEIGHT, WIDTH)
    write_m3ed(tmp_path / "b.h5", events, resolution=(1, 2, 3))
    with pytest.raises(ValueError, match="calib/resolution must be width and height in px, got"):
        _ = open_event_file(tmp_path / "b.h5").sensor_size


def test_tables_whose_columns_are_stated(tmp_path, events):
    few = events.slice_time(OFFSET, OFFSET + 100)
    table = stack(few, "yxtp", "u4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["events"] = table
    np.savez(tmp_path / "a.npz", events=table)
    for name in ("a.h5", "a.npz"):
        with pytest.raises(ValueError, match=rf"{name}: the order of its columns does not show"):
            open_event_file(tmp_path / name)
        file = open_event_file(tmp_path / name, "y,x,t,p")
        np.testing.assert_array_equal(file.window(0, 2 * OFFSET, 12, 16).x, few.x)
        assert open_event_file(tmp_path / name, "y,x,t_ms,p").time_range[0] == 1000 * few.t[0]
    write_records(tmp_path / "b.h5", events)
    with pytest.raises(ValueError, match=r"b.h5: columns are stated, but /events has named"):
        open_event_file(tmp_path / "b.h5", "y,x,t,p")


@pytest.mark.parametrize("name", ["a.h5", "a.npz"])
def test_an_order_taken_from_values_is_told(tmp_path, events, name):
    table = stack(events, "xytp", "i8")
    if name == "a.npz":
        np.savez(tmp_path / name, events=table)
    else:
        with h5py.File(tmp_path / name, "w") as file:
            file["events"] = table
    with pytest.warns(UserWarning, match=rf"{name}: the columns are taken as x y t p, which alone"):
        open_event_file(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_event_file(tmp_path / name, "x,y,t_us,p")


def test_whole_numbers_in_a_table_of_floats_are_microseconds(tmp_path, events):
    table = stack(events, "txyp", "u4").astype(np.float64)
    np.savez(tmp_path / "a.npz", events=table)
    with pytest.warns(UserWarning, match="t is taken as microseconds, since it has whole numbers"):
        file = open_event_file(tmp_path / "a.npz")
    assert file.time_range == (events.t[0], events.t[-1])


def test_faults_of_tables(tmp_path, events):
    np.savez(tmp_path / "a.npz", events=np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"events must be numbers of shape \[N, 4\], got float64"):
        open_event_file(tmp_path / "a.npz")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["first"], file["second"] = np.zeros((2, 9, 4))  # which of them?
    with pytest.raises(ValueError, match=r"data sets in '/' x, y, t, p expected, found \['first'"):
        open_event_file(tmp_path / "a.h5")
    table = stack(events, "txyp", "f8")
    table[-1, 0] = np.nan
    np.savez(tmp_path / "b.npz", events=table)
    with pytest.raises(ValueError, match=r"b.npz: t must be finite"):
        open_event_file(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", events=np.zeros((0, 4)))
    assert open_event_file(tmp_path / "c.npz").time_range is None
