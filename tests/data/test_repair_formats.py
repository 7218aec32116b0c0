"""Events out of order in the formats of cameras and tables: told, and dropped by repair."""

from __future__ import annotations

import struct
import zipfile

import h5py
import numpy as np
import pytest
from packet_cases import PacketWriter

from flowfuse.data.formats.base import UnsortedError
from flowfuse.data.opening import open_recording

HEIGHT, WIDTH, COUNT, BAD = 6, 8, 400, 250


@pytest.fixture(scope="module")
def rows():
    """Events (x, y, t, p), of which one is 5 ms early."""
    rng = np.random.default_rng(0)
    columns = [rng.integers(0, limit, COUNT) for limit in (WIDTH, HEIGHT)]
    t = 20_000 + 100 * np.arange(COUNT)
    t[BAD] -= 5000
    return [
        tuple(int(v) for v in row)
        for row in zip(*columns, t, rng.integers(0, 2, COUNT), strict=True)
    ]


def write_dat(path, rows):
    header = f"% Version 2\n% Height {HEIGHT}\n% Width {WIDTH}\n\0\x08".encode()
    records = [struct.pack("<II", t, x | y << 14 | p << 28) for x, y, t, p in rows]
    path.write_bytes(header + b"".join(records))


def write_aedat2(path, rows):
    words = [
        struct.pack(">II", (259 - y) << 22 | (345 - x) << 12 | p << 11, t) for x, y, t, p in rows
    ]
    path.write_bytes(b"#!AER-DAT2.0\r\n# AEChip: a.Davis346B\r\n" + b"".join(words))


def write_aedat3(path, rows):
    records = [struct.pack("<Ii", x << 17 | y << 2 | p << 1 | 1, t) for x, y, t, p in rows]
    head = struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, len(rows), len(rows), len(rows))
    names = b"#!AER-DAT3.1\r\n#Source 1: DAVIS346C\r\n#!END-HEADER\r\n"
    path.write_bytes(names + head + b"".join(records))


def write_packets(path, rows):
    writer = PacketWriter(path, "bag")
    for number in range(4):
        part = rows[number * COUNT // 4 : (number + 1) * COUNT // 4]
        data = [struct.pack("<II", x << 17 | y << 2 | p << 1 | 1, t) for x, y, t, p in part]
        writer.write(part[0][2], number, 0, "libcaer", b"".join(data), size=(HEIGHT, WIDTH))
    writer.bag.close()


def write_text(path, rows):
    path.write_text("x,y,t_us,p\n" + "".join(f"{x},{y},{t},{p}\n" for x, y, t, p in rows))


def write_zip(path, rows):
    with zipfile.ZipFile(path, "w") as archive:
        lines = "".join(f"{t / 1e6:.6f} {x} {y} {p}\n" for x, y, t, p in rows)
        archive.writestr("a.txt", f"{WIDTH} {HEIGHT}\n{lines}")


def write_table(path, rows):
    with h5py.File(path, "w") as file:
        file["events"] = np.array(rows)[:, [2, 0, 1, 3]].astype("u4")


def write_npz(path, rows):
    np.savez(path, events=np.array(rows)[:, [2, 0, 1, 3]].astype("u4"))


KINDS = {
    "a.dat": write_dat,
    "2.aedat": write_aedat2,
    "3.aedat": write_aedat3,
    "a.bag": write_packets,
    "a.csv": write_text,
    "a.zip": write_zip,
    "a.h5": write_table,
    "a.npz": write_npz,
}
STATED = ("a.h5", "a.npz")  # nothing shows which column is t where it is not sorted


@pytest.mark.filterwarnings("ignore:.*the sensor size is not stated")
@pytest.mark.parametrize("name", KINDS)
def test_an_event_out_of_order_is_told_and_dropped(tmp_path, rows, name):
    path = tmp_path / name
    KINDS[name](path, rows)
    columns = "t,x,y,p" if name in STATED else None
    with pytest.raises(UnsortedError, match=r"1 of 400 events is out of order, event 250") as told:
        open_recording(path, columns=columns)
    assert str(told.value).startswith(str(path))
    with pytest.warns(UserWarning, match=r"--repair dropped 1 out of order \(the first: event 250"):
        recording = open_recording(path, columns=columns, repair=True)
    found = recording.events(0, 10**9)
    expected = rows[:BAD] + rows[BAD + 1 :]
    for column, values in zip("xytp", zip(*expected, strict=True), strict=True):
        np.testing.assert_array_equal(getattr(found, column), values)


@pytest.mark.filterwarnings("ignore:.*the sensor size is not stated")
def test_a_line_off_the_sensor_is_told_and_dropped(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("8 6\n0.1 1 2 1\n0.2 -5 3 1\n0.3 9 3 1\n0.4 4 5 0\n")
    with pytest.raises(ValueError, match=r"line 3: x and y must not lie outside the sensor"):
        open_recording(path)
    with pytest.warns(UserWarning, match=r"--repair dropped 2 off the sensor \(the first: event 1"):
        recording = open_recording(path, repair=True)
    assert recording.events(0, 10**9).x.tolist() == [1, 4]
