"""Truncated and overwritten files of every kind: data, or an error that names the file.

Files that came through a broken download or disk; never another exception, a hang or a crash.
"""

from __future__ import annotations

import importlib.util
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import ecf_cases
import event_cases
import h5py
import numpy as np
import packet_cases
import pytest
from dsec_cases import OFFSET, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowfuse.data.calibration import read_calibration
from flowfuse.data.datasets.dsec.files import (
    read_exposure_times,
    read_flow_times,
    read_image_times,
    read_rectify_map,
    read_view_change,
)
from flowfuse.data.datasets.dsec.sequence import DsecEvents
from flowfuse.data.datasets.mvsec.ground_truth import FlowMaps
from flowfuse.data.datasets.mvsec.recording import open_mvsec
from flowfuse.data.datasets.mvsec.writer import write_mvsec
from flowfuse.data.formats.event_writer import write_event_parts
from flowfuse.data.formats.frames import read_image
from flowfuse.data.opening import open_recording
from flowfuse.data.registry import open_event_file, open_frames
from flowfuse.events import Events

HEIGHT, WIDTH, COUNT = 6, 8, 400
CALIBRATION = """\
events: {size: [8, 6], K: [9.0, 9.0, 3.5, 2.5], distortion: [-0.1, 0.02, 0, 0]}
frames: {size: [16, 12], K: [18.0, 18.0, 7.5, 5.5]}
R: [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
"""
CAMCHAIN = """\
cam0: {camera_model: pinhole, intrinsics: [9.0, 9.0, 3.5, 2.5], distortion_model: radtan,
  distortion_coeffs: [-0.1, 0.02, 0, 0], resolution: [8, 6], rostopic: /events}
cam1: {camera_model: pinhole, intrinsics: [18.0, 18.0, 7.5, 5.5], distortion_model: none,
  distortion_coeffs: [], resolution: [16, 12], rostopic: /images,
  T_cn_cnm1: [[1, 0, 0, 0.1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}
"""
CAMERA_INFO = """\
image_width: 8
image_height: 6
camera_matrix: {rows: 3, cols: 3, data: [9.0, 0, 3.5, 0, 9.0, 2.5, 0, 0, 1]}
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [-0.1, 0.02, 0, 0, 0]}
"""


def read_events(path: Path) -> None:
    file = open_event_file(path)
    _ = file.time_range, file.sensor_size
    file.coordinate_extent()
    file.window(20_000, 30_000, HEIGHT, WIDTH)
    file.window(0, 10**9, HEIGHT, WIDTH)


def read_triggers(path: Path) -> None:
    read_events(path)
    open_event_file(path).triggers()


def read_prophesee(path: Path) -> None:
    file = open_event_file(path)
    file.window(0, 2 * OFFSET, event_cases.HEIGHT, event_cases.WIDTH)
    _ = file.sensor_size, file.triggers()


def read_recording(path: Path) -> None:
    recording = open_recording(path)
    recording.events(0, 10**9)


def write_video(path: Path, images: list[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=50)
        stream.height, stream.width, stream.pix_fmt = *images[0].shape, "gray"
        for image in images:
            frame = av.VideoFrame.from_ndarray(image.astype(np.uint8), format="gray")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def read_frames(path: Path) -> None:
    frames = open_frames(path)
    for index in range(len(frames.times)):
        frames.read(index)


def read_dsec(path: Path) -> None:
    DsecEvents(path).window(OFFSET + 60_000, OFFSET + 160_000, 24, 32)


def read_mvsec(path: Path) -> None:
    recording = open_mvsec(path)
    recording.events(12_000, 24_000)
    recording.frame(1)
    recording._event_file.coordinate_extent()


def read_truth(path: Path) -> None:
    maps = FlowMaps(path)
    maps.between(int(maps.times[0]), int(maps.times[-1]))


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: of the file.
        read: reads all that there is of it.
        binary: whether damage may be any byte; else texts are damaged by characters, too.
    """

    name: str
    read: Callable[[Path], object]
    binary: bool = True

    def __str__(self) -> str:
        return self.name


KINDS = [
    Kind("flat.h5", read_events),
    Kind("flat.h5", read_recording),
    Kind("layout_of_dsec.h5", read_events),
    Kind("stored.npz", read_events),
    Kind("packed.npz", read_events),
    Kind("events.txt", read_events, binary=False),
    Kind("events.csv", read_events, binary=False),
    Kind("table.h5", read_events),
    Kind("m3ed.h5", read_events),
    Kind("prophesee.h5", read_prophesee),
    Kind("table.npz", read_events),
    Kind("text.zip", read_events),
    Kind("prophesee.raw", read_triggers),
    Kind("prophesee.dat", read_events),
    Kind("packets.bag", read_triggers),
    Kind("packets.db3", read_events),
    Kind("packets.mcap", read_events),
    Kind("events.h5", read_dsec),
    Kind("rectify_map.h5", read_rectify_map),
    Kind("a_data.hdf5", read_mvsec),
    Kind("a_gt.hdf5", read_truth),
    Kind("b_gt_flow_dist.npz", read_truth),
    Kind("timestamps.txt", read_image_times, binary=False),
    Kind("exposure_timestamps.txt", lambda path: read_exposure_times(path, 7), binary=False),
    Kind("forward_timestamps.txt", read_flow_times, binary=False),
    Kind("cam_to_cam.yaml", read_view_change, binary=False),
    Kind("rig.yaml", read_calibration, binary=False),
    Kind("camchain.yaml", read_calibration, binary=False),
    Kind("camera_info.yaml", read_calibration, binary=False),
    Kind("video.mkv", read_frames),
    Kind("deep.pgm", read_image),
]


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """A directory with a good file of every kind."""
    folder = tmp_path_factory.mktemp("originals")
    rng = np.random.default_rng(0)
    x, y, p = (rng.integers(0, limit, COUNT) for limit in (WIDTH, HEIGHT, 2))
    events = Events(x, y, np.sort(rng.integers(0, 50_000, COUNT)), p, height=HEIGHT, width=WIDTH)
    size = (HEIGHT, WIDTH)
    for name, kind in [
        ("flat.h5", "h5"), ("layout_of_dsec.h5", "dsec"), ("stored.npz", "npz"),
        ("events.txt", "txt"), ("events.csv", "csv"),
    ]:  # fmt: skip
        write_event_parts(folder / name, [events], size, kind)
    np.savez_compressed(folder / "packed.npz", **{name: getattr(events, name) for name in "xytp"})
    write_tables(folder, events)
    write_of_cameras(folder, events)
    frames = rng.integers(0, 256, (3, *size)).astype(np.uint8)
    maps, times = np.ones((3, 2, *size)), np.array([10_000, 20_000, 30_000])
    write_mvsec(folder / "a", events, frames, times, maps, times)
    write_mvsec(folder / "b", events, frames, times, maps, times, ground_truth_format="npz")
    sequence = write(folder / "dsec")
    for name in (
        "events/left/events.h5", "events/left/rectify_map.h5", "images/timestamps.txt",
        "images/left/exposure_timestamps.txt", "flow/forward_timestamps.txt",
        "calibration/cam_to_cam.yaml",
    ):  # fmt: skip
        shutil.copy(sequence / name, folder)
    (folder / "rig.yaml").write_text(CALIBRATION)
    (folder / "camchain.yaml").write_text(CAMCHAIN)
    (folder / "camera_info.yaml").write_text(CAMERA_INFO)
    write_video(folder / "video.mkv", list(np.random.default_rng(0).integers(0, 99, (3, 8, 16))))
    (folder / "deep.pgm").write_bytes(b"P5\n8 6\n4095\n" + bytes(range(96)))
    return folder


def write_tables(folder: Path, events: Events) -> None:
    table = np.stack([getattr(events, name) for name in "txyp"], axis=1)
    with h5py.File(folder / "table.h5", "w") as file:
        file.create_dataset("events", data=table.astype("u4"), chunks=(100, 4), compression="gzip")
    with h5py.File(folder / "m3ed.h5", "w") as file:
        for name in "xytp":
            file[f"prophesee/left/{name}"] = getattr(events, name)
        file["prophesee/left/calib/resolution"] = [WIDTH, HEIGHT]
    np.savez(folder / "table.npz", events=table)
    with zipfile.ZipFile(folder / "text.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "events.txt", "events.txt")


def write_of_cameras(folder: Path, events: Events) -> None:
    ecf_cases.write(folder / "prophesee.h5", event_cases.make_events())
    rows = list(zip(*(getattr(events, name).tolist() for name in "xytp"), strict=True))
    words, records = [], []
    for x, y, t, p in rows:
        words += [0x8000 | t >> 12, 0x6000 | t & 0xFFF, y, 0x2000 | p << 11 | x, 0xA000 | p]
        records.append(struct.pack("<II", t, x | y << 14 | p << 28))
    data = np.array(words, "<u2").tobytes()
    size = f"height={HEIGHT};width={WIDTH}"
    (folder / "prophesee.raw").write_bytes(f"% format EVT3;{size}\n% end\n".encode() + data)
    header = f"% Version 2\n% Height {HEIGHT}\n% Width {WIDTH}\n\0\x08".encode()
    (folder / "prophesee.dat").write_bytes(header + b"".join(records))
    if importlib.util.find_spec("rosbags") is None:
        return
    for storage in ("bag", "db3", "mcap"):
        path = folder / (f"packets.{storage}" if storage == "bag" else f"packets_{storage}")
        writer = packet_cases.PacketWriter(path, storage)
        for number in range(4):
            part = data[number * len(data) // 4 : (number + 1) * len(data) // 4]
            writer.write(20_000 * number, number, 0, "evt3", part, size=(HEIGHT, WIDTH))
        writer.bag.close()
        if storage != "bag":
            (file,) = path.glob(f"*.{storage}")
            shutil.copy(file, folder / f"packets.{storage}")


def damaged(content: bytes, binary: bool, data: st.DataObject) -> bytes:
    """Cut off the end, or write over a few bytes, in the file's head as often as elsewhere."""
    place = data.draw(st.integers(0, min(len(content), 2500)) | st.integers(0, len(content)))
    if data.draw(st.booleans()):
        return content[:place]
    noise = st.binary(min_size=1, max_size=12)
    if not binary:
        noise |= st.text("0123456789.,-+eE#:[]{}\"' \n\tnaif", min_size=1, max_size=8).map(
            str.encode
        )
    piece = data.draw(noise)
    return content[:place] + piece + content[place + len(piece) :]


def skip_without_rosbags(kind: Kind) -> None:
    if kind.name.startswith("packets"):
        pytest.importorskip("rosbags")


@pytest.mark.filterwarnings("ignore")  # of unpacking, and of a sensor size that is not stated
@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_files_give_data_or_an_error_that_names_them(originals, tmp_path, kind, data):
    skip_without_rosbags(kind)
    path = tmp_path / kind.name
    path.write_bytes(damaged((originals / kind.name).read_bytes(), kind.binary, data))
    try:
        kind.read(path)
    except (ValueError, OSError) as error:
        assert str(path) in str(error)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_files_are_good_before(originals, kind):
    skip_without_rosbags(kind)
    kind.read(originals / kind.name)
