"""Events in HDF5 files: what is read, and who has the file open."""

from __future__ import annotations

import os
import pickle

import h5py
import numpy as np
import pytest
from event_cases import (
    HEIGHT,
    OFFSET,
    WIDTH,
    make_events,
    write_format,
)

from flowfuse.data.registry import open_event_file


@pytest.fixture(scope="module")
def events():
    return make_events()


@pytest.mark.parametrize("name", ["flat.h5", "dsec.h5"])
def test_hdf5_windows_read_their_chunks_only(tmp_path, monkeypatch, name):
    count, chunk = 200_000, 1 << 12
    t = np.arange(count) * 5  # 200 events per millisecond
    with h5py.File(tmp_path / name, "w") as file:
        for column, values in {"x": t % WIDTH, "y": t % HEIGHT, "t": t, "p": t % 2}.items():
            file.create_dataset(column, data=values, chunks=(chunk,))
        if name == "dsec.h5":
            file["ms_to_idx"] = np.arange(0, count, 200)
    read, original = [], h5py.Dataset.__getitem__

    def get(self, key, *rest):
        value = original(self, key, *rest)
        read.append(np.size(value))
        return value

    monkeypatch.setattr(h5py.Dataset, "__getitem__", get)
    events = open_event_file(tmp_path / name)
    assert sum(read) < count + 10  # all times are looked at once, and nothing else
    for _ in range(2):
        read.clear()
        window = events.window(500_300, 502_300, HEIGHT, WIDTH)
        assert window.t[0] == 500_300 and len(window) == 400
        if name == "dsec.h5":  # t of whole milliseconds and of one event on each side
            assert sum(read) == 3 * 400 + 600 + 2 + 4
        else:  # t of a block of four chunks; the first time the beginnings of log2(13) blocks
            assert 0 <= sum(read) - 3 * 400 - 4 * chunk <= 4
    assert name == "dsec.h5" or sum(read) == 3 * 400 + 4 * chunk


@pytest.mark.parametrize("name", ["flat.h5", "dsec.h5"])
def test_hdf5_files_stay_open_per_process_and_close_with_their_owner(tmp_path, events, name):
    path = write_format(tmp_path / name, events)
    file = open_event_file(path)
    window = (OFFSET + 5000, OFFSET + 9000, HEIGHT, WIDTH)
    expected = file.window(*window)
    copy = pickle.loads(pickle.dumps(file))
    assert file._handle.process == os.getpid() and copy._handle.process is None
    np.testing.assert_array_equal(copy.window(*window).t, expected.t)
    del file, copy
    with h5py.File(path, "a") as again:  # refused while it is open for reading
        times = again["events/t"][()]
        del again["events/t"]
        again["events/t"] = times[::-1].copy()
    with pytest.raises(
        ValueError, match=r"2997 of 3000 events are out of order.* sort the events by time"
    ):
        open_event_file(path)
