"""Files that cannot be written, or whose writing is interrupted: whole or not there."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading

import h5py
import numpy as np
import pytest

from flowfuse.atomic import atomic_directory, atomic_path, check_file_path
from flowfuse.data.files.hdf5_output import create_hdf5

FULL_DISK = """
import resource, signal, sys
import numpy as np
from flowfuse.data.dsec.writer import write_raw_events
from flowfuse.data.files.event_writer import write_event_parts
from flowfuse.data.mvsec.writer import write_mvsec
from flowfuse.data.recording import write_recording
from flowfuse.events import Events

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file beyond the limit is an error, as a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
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
write, path = sys.argv[1], sys.argv[2]
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
INTERRUPTED = """
import os, signal, sys, time
import numpy as np
from flowfuse.data.files import event_writer, hdf5_output
from flowfuse.events import Events

kind, path, wanted, number = *sys.argv[1:3], *map(int, sys.argv[3:])
calls, write = 0, hdf5_output._Sink.write


def interrupted(self, data):
    global calls
    calls += 1
    if calls == wanted:
        os.kill(os.getpid(), number)
    return write(self, data)


def parts():
    rng = np.random.default_rng(0)
    x, y, p = rng.integers(0, 16, (3, 400_000)).astype(np.int32)
    if wanted == 0:  # while the caller waits for events
        os.kill(os.getpid(), number)
        time.sleep(60)
    yield Events(x, y, np.arange(len(x)), p % 2, height=16, width=16)


def late(number, frame):
    raise TimeoutError("late")


hdf5_output._Sink.write = interrupted
if number != signal.SIGINT:
    signal.signal(number, late)
try:
    print("returned", event_writer.write_event_parts(path, parts(), (16, 16), kind))
except (KeyboardInterrupt, TimeoutError) as error:
    print(type(error).__name__, error)
"""


def run(code, *arguments):
    """Run code in a process of its own, which HDF5 would crash."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of the size of files")
@pytest.mark.parametrize("write", ["recording", "h5", "dsec", "raw", "mvsec", "truth"])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, write):
    done = run(FULL_DISK, write, tmp_path / "r")
    assert "File too large" in done.stdout
    assert int(done.stdout.split()[-1]) < 10, "the work goes on although nothing can be written"
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("kind", ["h5", "dsec"])
@pytest.mark.parametrize("write", [0, 1, 3, 8])
@pytest.mark.parametrize(
    ("number", "said"), [("SIGINT", "KeyboardInterrupt "), ("SIGALRM", "TimeoutError late")]
)
def test_an_interrupt_ends_the_writing_and_leaves_nothing(tmp_path, kind, write, number, said):
    arguments = kind, tmp_path / "e.h5", write, int(getattr(signal, number))
    assert run(INTERRUPTED, *arguments).stdout == said + "\n"
    assert os.listdir(tmp_path) == []


def test_an_hdf5_file_that_can_be_written_is_whole(tmp_path):
    def fill(file, key, values):
        file[key] = values
        return len(file)

    def write_both(path):
        with create_hdf5(path) as write:
            assert write(fill, "a", np.arange(1000)) == 1
            assert write(fill, "b", np.arange(3)) == 2

    write_both(tmp_path / "main.h5")
    thread = threading.Thread(target=write_both, args=(tmp_path / "thread.h5",))
    thread.start()
    thread.join()
    for name in ("main.h5", "thread.h5"):
        with h5py.File(tmp_path / name) as file:
            assert (file["a"][:] == np.arange(1000)).all() and (file["b"][:] == [0, 1, 2]).all()


def test_what_goes_wrong_while_a_file_is_written_is_told(tmp_path):
    def fail(file):
        raise KeyError("in a write")

    for wrong in (lambda write: write(fail), lambda write: {}["between"]):
        with pytest.raises(KeyError, match=r"in a write|between"), create_hdf5(tmp_path / "a") as w:
            wrong(w)
        with h5py.File(tmp_path / "a") as file:  # closed, so that it can be opened
            assert len(file) == 0


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
    long = tmp_path / ("n" * 240 + ".h5")  # the temporary name is longer
    with pytest.raises(OSError, match="too long") as told, atomic_path(long) as temporary:
        with create_hdf5(temporary):
            pass
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
