"""Damaged files of data sets: data, or an error that names the file; never another exception."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowfuse.data.datasets import blinkflow, evimo2, rotation, tum_vie
from flowfuse.data.datasets.multiflow import MultiFlowRecording
from flowfuse.data.file_recording import FileRecording
from flowfuse.data.formats.frames import read_time_column

SIZE = (6, 8)


def bare(kind: type[FileRecording], **attributes: object) -> FileRecording:
    """A recording of which only some files are there."""
    recording = object.__new__(kind)
    recording.height, recording.width = SIZE
    for name, value in attributes.items():
        setattr(recording, name, value)
    return recording


def read_multiflow(path: Path) -> object:
    return bare(MultiFlowRecording)._read(path)


def read_blinkflow(path: Path) -> object:
    return bare(blinkflow.BlinkFlowRecording, _files={1: path}).ground_truth_at(0, 1.0)


def read_continuous(path: Path) -> object:
    found = bare(evimo2.Evimo2Recording, _continuous=path, _event_file=None)
    found.ground_truth_intervals = found._continuous_intervals()
    return found.ground_truth_at(0, 0.5)


def read_classic(path: Path) -> object:
    found = bare(evimo2.Evimo2Recording, _classic=path, _rows=[])
    found.ground_truth_intervals = found._classic_intervals()
    return found.ground_truth_at(0, 1.0)


def read_rates(path: Path) -> object:
    return rotation.read_rates(path.parent)


KINDS: dict[str, Callable[[Path], object]] = {
    "0900000.h5": read_multiflow,
    "000001.npy": read_blinkflow,
    "config.yaml": blinkflow._read_config,
    "multiflow.h5": read_continuous,
    "dataset_flow.npz": read_classic,
    "calib.txt": lambda path: rotation.read_lens(path, *SIZE),
    "rates.txt": read_rates,
    "image_timestamps.txt": partial(read_time_column, unit="milliseconds"),
    "image_timestamps_left.txt": partial(read_time_column, unit="microseconds", header=True),
    "calibration.json": tum_vie.read_basalt,
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    with h5py.File(folder / "0900000.h5", "w") as file:
        file.create_dataset("flow", data=np.ones((*SIZE, 2), np.float32), compression="gzip")
    np.save(folder / "000001.npy", np.ones((*SIZE, 3), np.float32))
    (folder / "config.yaml").write_text("duration: 1.0\nfps: 10\n")
    with h5py.File(folder / "multiflow.h5", "w") as file:
        file["time"] = [0.5, 0.6]
        file.create_dataset("multiflow", data=np.ones((2, 6, 2, *SIZE)), compression="gzip")
    flow = np.ones((*SIZE, 2), np.float32)
    np.savez_compressed(folder / "dataset_flow.npz", t=[0.1], t_end=[0.2], flow_0=flow)
    (folder / "calib.txt").write_text("200.5 201 4 3 -0.3 0.1 0 0 0\n")
    (folder / "rates.txt").write_text("".join(f"{i / 100} 0.1 -0.2 3e-1\n" for i in range(20)))
    (folder / "image_timestamps.txt").write_text("0.0\n33.333\n66.667\n")
    (folder / "image_timestamps_left.txt").write_text("# us\n10000.5\n60000.25\n")
    lens = dict.fromkeys("fx fy cx cy k1 k2 k3 k4".split(), 0.5)
    pose = dict.fromkeys("px py pz qx qy qz qw".split(), 0.5)
    camera = {"camera_type": "kb4", "intrinsics": lens}
    value = {"T_imu_cam": [pose] * 3, "intrinsics": [camera] * 3, "resolution": [[8, 6]] * 3}
    (folder / "calibration.json").write_text(json.dumps({"value0": value}))
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for module in (blinkflow, evimo2):
        monkeypatch.setattr(module, "SIZE", SIZE)


@pytest.mark.parametrize("name", KINDS)
def test_the_files_are_good_before(originals, name):
    assert KINDS[name](originals / name) is not None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_files_give_data_or_an_error_that_names_them(originals, tmp_path, name, data):
    content = (originals / name).read_bytes()
    place = data.draw(st.integers(0, min(len(content), 2500)) | st.integers(0, len(content)))
    text = st.text("0123456789.,-+eE#:[]{}\"' \n\tnaif", min_size=1, max_size=8).map(str.encode)
    piece = data.draw(st.none() | st.binary(min_size=1, max_size=12) | text)
    path = tmp_path / name
    kept = b"" if piece is None else piece + content[place + len(piece) :]
    path.write_bytes(content[:place] + kept)
    try:
        KINDS[name](path)
    except (ValueError, OSError) as error:
        assert str(path) in str(error)
