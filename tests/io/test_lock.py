"""One command at a time in a directory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import warnings

import pytest

from flowfuse.io import lock
from flowfuse.io.lock import directory_lock

HOLD = """
import sys
from pathlib import Path
from flowfuse.io.lock import directory_lock
with directory_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_refused_until_the_first_lets_go(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        expected = f"process {other.pid} on {socket.gethostname()} is writing there"
        with pytest.raises(ValueError, match=expected), directory_lock(tmp_path):
            pass
        other.kill()  # the lock goes with the process, though its file stays
        other.wait()
    assert (tmp_path / lock.NAME).exists()
    with directory_lock(tmp_path):
        assert (tmp_path / lock.NAME).read_text().startswith(f"process {os.getpid()} on ")
    assert list(tmp_path.iterdir()) == []


def test_it_is_given_back_after_an_error(tmp_path):
    with pytest.raises(KeyError), directory_lock(tmp_path):
        raise KeyError
    with directory_lock(tmp_path):
        pass


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="has no locks .No locks available"):
        with directory_lock(tmp_path):
            assert list(tmp_path.iterdir()) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.undo()
        with directory_lock(tmp_path):
            pass
