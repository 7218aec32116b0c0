"""What is no path is refused by name, by all that open something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import flowfuse
from flowfuse.io.paths import as_path


def test_a_text_or_a_path_is_taken():
    assert as_path("f: path", "a/b.flo") == as_path("f: path", Path("a/b.flo")) == Path("a/b.flo")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flowfuse.read_flow(None), "read_flow: path must be a path, got None"),
        (lambda: flowfuse.write_flow(None, np.zeros((2, 4, 4))), "write_flow: path .* got None"),
        (lambda: flowfuse.load_result(None), "load_result: path must be a path, got None"),
        (lambda: flowfuse.load(None), "load: checkpoint must be a name or a path, got None"),
        (lambda: flowfuse.open_recording(3), "open_recording: path must be a path, got 3"),
        (lambda: flowfuse.open_recording(events=2.5), "open_recording: events .* got 2.5"),
        (lambda: flowfuse.open_recording("a", frames=b"b"), "open_recording: frames .* got b'b'"),
        (lambda: flowfuse.open_recording("a", times=[1]), r"open_recording: times .* got \[1\]"),
        (lambda: flowfuse.open_recording("a", calibration=1), "calibration must be a path, got 1"),
    ],
)
def test_what_is_no_path_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
