"""Files of HDF5 that stay open, and how their faults are told."""

from __future__ import annotations

import os
import pickle

import h5py
import pytest

from flowfuse.data.formats.hdf5 import Hdf5Handle, open_hdf5


@pytest.fixture
def path(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["values"] = [3, 5]
    return tmp_path / "a.h5"


def test_a_handle_looks_once_per_process(path):
    handle, looked = Hdf5Handle(path), []

    def find(file):
        looked.append(os.getpid())
        return file["values"]

    assert handle.process is None
    for index, value in ((0, 3), (1, 5)):
        with handle.reading(find) as values:
            assert values[index] == value
    assert looked == [os.getpid()] and handle.process == os.getpid()
    copy = pickle.loads(pickle.dumps(handle))
    assert copy.process is None
    handle._opened = (-1, *handle._opened[1:])  # as a process finds it that was forked from -1
    with handle.reading(find) as values:
        assert values[0] == 3
    assert len(looked) == 2 and handle.process == os.getpid()


@pytest.mark.parametrize("error", [KeyError("x"), OSError("x"), RuntimeError("x"), TypeError("x")])
def test_faults_name_the_file_and_close_it(path, error):
    handle = Hdf5Handle(path)
    with (
        pytest.raises(ValueError, match=r"a.h5: cannot be read as HDF5, is it trunc.*x") as caught,
        handle.reading(lambda file: file["values"]),
    ):
        raise error
    assert caught.value.__cause__ is error and handle.process is None
    with handle.reading(lambda file: file["values"]) as values:
        assert values[1] == 5
    # Errors of others pass, and close it, too.
    with pytest.raises(ZeroDivisionError), handle.reading(lambda file: file):
        raise ZeroDivisionError
    assert handle.process is None


def test_what_is_not_found_is_looked_for_again(path):
    handle = Hdf5Handle(path)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"a.h5: cannot be read"), handle.reading(_find_absent):
            pass
        assert handle.process is None


def _find_absent(file):
    return file["absent"]


def test_open_hdf5_closes_the_file(path, monkeypatch):
    with open_hdf5(path) as file:
        assert file["values"][0] == 3
    assert not file
    path.write_bytes(path.read_bytes()[:100])
    monkeypatch.setattr("flowfuse.data.formats.hdf5.register_codecs", lambda: False)
    with pytest.raises(ValueError, match="codec of hdf5plugin, which is not"), open_hdf5(path):
        pass
