"""Files that cannot be written, or whose writing is interrupted: whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from flowfuse.data.formats import hdf5_output
from flowfuse.data.formats.event_writer import write_event_parts
from flowfuse.data.formats.hdf5_output import Hdf5Output
from flowfuse.events import Events
from flowfuse.io.atomic import (
    atomic_directory,
    atomic_path,
    check_file_path,
    remove_abandoned,
)

FULL_DISK = """
import resource, signal, sys
import numpy as np
from flowfuse.data.datasets.dsec.writer import write_raw_events
from flowfuse.data.formats.event_writer import write_event_parts
from flowfuse.data.datasets.mvsec.writer import write_mvsec
from flowfuse.data.recording_writer import write_recording
from flowfuse.events import Events

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file beyond the limit is an error, as a full disk
write, path, limit = *sys.argv[1:3], int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
rng = np.random.default_rng(0)
written = []


def parts():
    for index in range(20):
        written.append(index)
        n = 50_000
        x, y, p = rng.integers(0, 16, (3, n)).astype(np.int32)
        yield Events(x, y, np.arange(n) + index * n, p % 2, height=16, width=16)


frames, times = np.zeros((2, 16, 16), np.uint8), [0, 500_000]
noise = rng.random((9, 2, 16, 16)) * 100
try:
    if write == "recording":
        write_recording(path, next(parts()), None, None)
    elif write in ("h5", "dsec"):
        write_event_parts(path + ".h5", parts(), (16, 16), write)
    elif write == "raw":
        write_raw_events(path, next(parts()), 0)
    elif write == "mvsec":
        write_mvsec(path, parts(), frames, times)
    else:
        none = Events.empty(16, 16)
        write_mvsec(path, none, frames, times, list(noise) * 9, np.arange(82) * 10_000)
except OSError as error:
    print(error, len(written))
"""


def run(code, *arguments):
    """Run code in a process of its own, which HDF5 would crash."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of the size of files")
@pytest.mark.parametrize("write", ["recording", "h5", "dsec", "raw", "mvsec", "truth"])
@pytest.mark.parametrize("full", ["from the start", "in the middle"])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, write, full):
    room = {"recording": 1 << 19, "raw": 1 << 18, "mvsec": 1 << 21, "truth": 1 << 18}
    limit = room.get(write, 1 << 20) if full == "in the middle" else 1 << 16
    done = run(FULL_DISK, write, tmp_path / "r", limit)
    assert "File too large" in done.stdout
    assert int(done.stdout.split()[-1]) < 10, "the work goes on although nothing can be written"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["h5", "dsec"])
@pytest.mark.parametrize("last", [0, 3])
def test_an_interrupt_ends_the_writing_and_leaves_nothing(tmp_path, kind, last):
    def parts():
        for index in range(last):
            yield Events([1, 2], [3, 4], [index, index], [0, 1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_event_parts(tmp_path / "e.h5", parts(), (16, 16), kind)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("refused", [None, errno.EOPNOTSUPP])
def test_an_hdf5_file_that_can_be_written_is_whole(tmp_path, monkeypatch, refused):
    def refuse(*arguments):
        raise OSError(refused, os.strerror(refused))

    if refused:  # as some file systems do
        monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    rng = np.random.default_rng(0)
    large = rng.integers(0, 255, (10, 1 << 20)).astype(np.uint8)
    with Hdf5Output(tmp_path / "a.h5") as file:
        file.attrs["height"] = 7
        file.put("large", large, compression="gzip", compression_opts=1, chunks=(1, 1 << 16))
        file.put("empty", large[:0], compression="gzip")
        file.put("number", np.asarray(3))
    with h5py.File(tmp_path / "a.h5") as file:
        assert (file["large"][:] == large).all() and file["large"].chunks == (1, 1 << 16)
        assert file["empty"].shape == (0, 1 << 20) and file["number"][()] == 3
        assert file.attrs["height"] == 7
    # What was reserved is given back.
    assert os.path.getsize(tmp_path / "a.h5") < 1.01 * large.nbytes + (1 << 16)


def test_what_is_reserved_covers_what_is_written(tmp_path, monkeypatch):
    """Data sets that are extended in turns, with chunks that are written again and again."""
    ends = []
    allocate = hdf5_output._allocate
    monkeypatch.setattr(hdf5_output, "_allocate", lambda *a: (ends.append(a[1]), allocate(*a)))
    rng = np.random.default_rng(0)
    with Hdf5Output(tmp_path / "a.h5") as file:
        for name in "abcd":
            file.create_dataset(
                name, (0,), np.int64, maxshape=(None,), chunks=(1 << 16,), compression="gzip"
            )
        for _ in range(40):
            values = rng.integers(-(2**62), 2**62, 9000)  # that no codec makes smaller
            file.reserve(4 * values.nbytes)
            for name in "abcd":
                file[name].resize(len(file[name]) + len(values), axis=0)
                file[name][-len(values) :] = values
            assert file.id.get_filesize() <= max(ends)
        file.flush()
        assert file.id.get_filesize() <= max(ends)


def test_a_disk_without_room_is_told_where_room_cannot_be_reserved(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    usage = shutil.disk_usage(tmp_path)
    with Hdf5Output(tmp_path / "a.h5") as file:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
        file.reserve(10**5)
        with pytest.raises(OSError, match="No space left"):
            file.reserve(10**7)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_names_the_file_that_was_asked_for(tmp_path, code):
    with pytest.raises(OSError) as told, atomic_path(tmp_path / "a.txt"):
        raise OSError(code, os.strerror(code))
    assert told.value.filename == (str(tmp_path / "a.txt") if code == errno.ENOSPC else None)


def test_errors_name_no_temporary_path(tmp_path):
    with pytest.raises(OSError) as told, atomic_path(tmp_path / "a.txt") as temporary:
        open(temporary)  # nothing is there yet
    assert told.value.filename == str(tmp_path / "a.txt")
    with pytest.raises(OSError) as told, atomic_directory(tmp_path / "d") as temporary:
        open(temporary / "b.txt")
    assert told.value.filename == str(tmp_path / "d" / "b.txt")
    assert str(told.value).endswith(f"'{tmp_path / 'd' / 'b.txt'}'")
    long = tmp_path / ("n" * 240 + ".h5")  # the temporary name is longer
    with pytest.raises(OSError, match="too long") as told, atomic_path(long) as temporary:
        open(temporary, "w")
    assert told.value.filename == str(long)
    with pytest.raises(OSError) as told, atomic_path(tmp_path / "a.txt"):
        open(tmp_path / "other.txt")
    assert told.value.filename == str(tmp_path / "other.txt")


def test_a_directory_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="no regular file"):
        check_file_path("/dev/null")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(PermissionError, match=r"a\.txt: cannot write, .* is not writable"):
        check_file_path(tmp_path / "a.txt")


def test_only_what_killed_writers_left_is_removed(tmp_path):
    """Two processes may write into one directory."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with atomic_path(tmp_path / "mine.flo") as mine:
        mine.write_bytes(b"half")
        machine = mine.name.split(".")[2].split("-")[0]
        names = {
            "dead": f".a.{machine}-{ended.pid}-0a.tmp.flo",
            "of an older version": f".b.{ended.pid}-0a.tmp.flo",
            "running": f".c.{machine}-{os.getppid()}-0a.tmp.flo",
            "elsewhere": f".d.{'0' * 8}-{ended.pid}-0a.tmp.flo",
            "elsewhere, old": f".e.{'0' * 8}-{os.getpid()}-0a.tmp.flo",
            "another's": ".f.tmp.flo",
        }
        for name in names.values():
            (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / names["elsewhere, old"], (0, 0))
        (tmp_path / f".g.{machine}-{ended.pid}-0a.tmp").mkdir()
        remove_abandoned(tmp_path)
        kept = {what for what, name in names.items() if (tmp_path / name).exists()}
        assert kept == {"running", "elsewhere", "another's"}
    assert (tmp_path / "mine.flo").read_bytes() == b"half"
