"""Event files of every format: intervals are slices of the whole, and faults are named."""

from __future__ import annotations

import os

import h5py
import numpy as np
import pytest
from event_cases import (
    GOOD,
    HEIGHT,
    OFFSET,
    WIDTH,
    make_events,
    save_h5,
    windows_that_are_slices,
    write_dsec,
    write_format,
)

from flowfuse.data.formats.hdf5_events import Hdf5Events
from flowfuse.data.formats.text import TextEvents
from flowfuse.data.opening import open_recording
from flowfuse.data.registry import open_event_file
from flowfuse.events import Events


@pytest.fixture(scope="module")
def events():
    return make_events()


FORMATS = [
    "flat.h5",
    "root.h5",
    "seconds.h5",
    "dsec.h5",
    "stored.npz",
    "packed.npz",
    "blank.txt",
    "comma.csv",
]


@pytest.mark.filterwarnings("ignore:.*is compressed and is unpacked")
@pytest.mark.parametrize("name", FORMATS)
def test_windows_are_slices_of_the_whole(tmp_path, events, name):
    file = open_event_file(write_format(tmp_path / name, events))
    if isinstance(file, TextEvents):
        file._index.block_bytes = 500  # windows then span several blocks
    windows_that_are_slices(file, events)
    assert os.listdir(tmp_path) == [name]  # nothing is written beside the user's file


@pytest.mark.parametrize("name", ["flat.h5", "dsec.h5", "short.h5", "stored.npz"])
def test_windows_across_chunks_and_blocks(tmp_path, monkeypatch, events, name):
    monkeypatch.setattr("flowfuse.data.formats.block_times._LEAST_BLOCK", 100)
    path = tmp_path / name
    if name == "flat.h5":
        with h5py.File(path, "w") as file:
            for column in "xytp":
                file.create_dataset(column, data=getattr(events, column), chunks=(64,))
    elif name == "short.h5":  # a table that ends before the events do
        write_dsec(path, events, OFFSET)
        with h5py.File(path, "a") as file:
            table = file["ms_to_idx"][:11]
            del file["ms_to_idx"]
            file["ms_to_idx"] = table
    else:
        write_format(path, events)
    file = open_event_file(path)
    borders = events.t[[0, 63, 64, 127, 128, 255, 256, 1000, 2999]]
    rng = np.random.default_rng(2)
    for t0, t1 in [
        *((int(t) + a, int(t) + a + span) for t in borders for a in (-1, 0, 1) for span in (0, 1)),
        *np.sort(rng.integers(OFFSET - 3000, OFFSET + 43_000, (60, 2)), axis=1).tolist(),
        (0, 10**9), (OFFSET + 40_000, 10**9), (0, 5), (OFFSET + 10_000, OFFSET + 11_000),
    ]:  # fmt: skip
        window, expected = file.window(t0, t1, HEIGHT, WIDTH), events.slice_time(t0, t1)
        for column in "xytp":
            np.testing.assert_array_equal(getattr(window, column), getattr(expected, column))


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p": None}, r"missing \['p'\]"),
        ({"x": [1]}, "same length, got x has 1, y has 2"),
        ({"x": [[1, 2]]}, r"x must be numbers of shape \[N\], got int64 of \[1, 2\]"),
        ({"t": [6, 5]}, "sorted"),
        ({"t": [-6, 5]}, r"t must not be negative, got t\[0\] = -6 us"),
        ({"t": [np.nan, 1.0]}, "t must be finite"),
        ({"x": [1.0, np.nan]}, r"x must be finite, got x\[1\] = nan"),
        ({"x": [1, 9]}, r"x\[1\] = 9 lies outside .*count from event 0 of the file"),
        ({"p": [0, 3]}, r"p\[1\] = 3"),
    ],
)
def test_faults_of_binary_files(tmp_path, suffix, changes, message):
    columns = {name: values for name, values in {**GOOD, **changes}.items() if values is not None}
    path = tmp_path / f"events{suffix}"
    (save_h5 if suffix == ".h5" else np.savez)(path, **columns)
    with pytest.raises(ValueError, match=message) as caught:
        open_event_file(path).window(0, 10**7, 4, 4)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("name", ["flat.h5", "dsec.h5", "stored.npz", "packed.npz"])
@pytest.mark.filterwarnings("ignore:.*is compressed and is unpacked")
def test_truncated_binary_files(tmp_path, events, name):
    path = write_format(tmp_path / name, events)
    for kept in (0, 5, 1000, path.stat().st_size - 50):
        path.write_bytes(path.read_bytes()[:kept] if kept else b"")
        with pytest.raises(ValueError, match="truncated"):
            open_event_file(path).window(0, 2 * OFFSET, HEIGHT, WIDTH)
        write_format(path, events)


def test_other_faults_of_event_files(tmp_path, events, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no such event file"):
        open_event_file(tmp_path / "events.txt")
    (tmp_path / "events.bin").touch()
    with pytest.raises(ValueError, match=r"unknown event format '.bin'"):
        open_event_file(tmp_path / "events.bin")
    np.savez(tmp_path / "a.npz", **{**GOOD, "p": np.array([{}, {}], object)})
    with pytest.raises(ValueError, match="Python objects"):
        open_event_file(tmp_path / "a.npz")
    path = write_format(tmp_path / "dsec.h5", events)
    with h5py.File(path, "a") as file:
        file["ms_to_idx"][6:20] = 0
    with pytest.raises(ValueError, match="ms_to_idx"):
        open_event_file(path).window(OFFSET + 5000, OFFSET + 9000, HEIGHT, WIDTH)
    for suffix, save in ((".h5", save_h5), (".npz", np.savez)):
        save(tmp_path / f"back{suffix}", **{**GOOD, "t": [7, 5]})
        with pytest.raises(
            ValueError,
            match=r"back.*1 of 2 events is out of order, event 1 has 5 us after 7 us; --repair",
        ):
            open_event_file(tmp_path / f"back{suffix}")
    for height in ("tall", [4, 5], 0, np.nan):
        save_h5(tmp_path / "sized.h5", **GOOD)
        with h5py.File(tmp_path / "sized.h5", "a") as file:
            file.attrs["height"], file.attrs["width"] = height, 4
        with pytest.raises(ValueError, match=r"sized.h5: the attribute height must be one"):
            open_recording(tmp_path / "sized.h5")
    for extra, message in (
        ({"t_offset": [1, 2]}, r"t_offset must be integers of shape \[\]"),
        ({"t_offset": "soon"}, r"t_offset must be integers of shape \[\]"),
        ({"ms_to_idx": 5}, r"ms_to_idx must be integers of shape \[M\]"),
    ):
        save_h5(tmp_path / "extra.h5", **GOOD, **extra)
        with pytest.raises(ValueError, match=rf"extra.h5: {message}"):
            open_event_file(tmp_path / "extra.h5")
    monkeypatch.setattr("flowfuse.data.formats.hdf5.register_codecs", lambda: False)
    path.write_bytes(b"not HDF5")
    with pytest.raises(ValueError, match="hdf5plugin, which is not installed"):
        Hdf5Events(path)


def test_empty_event_files(tmp_path):
    none = Events.empty(HEIGHT, WIDTH)
    for name in [*FORMATS[:3], "stored.npz", "blank.txt", "comma.csv"]:
        file = open_event_file(write_format(tmp_path / name, none))
        assert file.time_range is None and len(file.window(0, 10, HEIGHT, WIDTH)) == 0
