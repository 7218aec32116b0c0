"""Zipped text: the events of its one file, which goes with the reader, and faults."""

from __future__ import annotations

import gc
import pickle
import zipfile

import numpy as np
import pytest
from event_cases import HEIGHT, OFFSET, WIDTH, make_events, write_format

from flowfuse.data.opening import open_recording
from flowfuse.data.registry import open_event_file


def zip_text(path, text, name="dynamic_6dof.txt", **others):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)
        archive.writestr("__MACOSX/._dynamic_6dof.txt", "x")
        for other, content in others.items():
            archive.writestr(other.replace("_", "."), content)
    return path


def test_windows_are_slices_of_the_whole(tmp_path, monkeypatch):
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    events = make_events()
    text = write_format(tmp_path / "plain.txt", events).read_text()
    path = zip_text(tmp_path / "events.zip", f"{WIDTH} {HEIGHT}\n{text}")
    recording = open_recording(path)  # its size is stated: no warning
    assert (recording.height, recording.width) == (HEIGHT, WIDTH)
    file = open_event_file(path)
    for copy in (file, pickle.loads(pickle.dumps(file))):
        for t0, t1 in [(0, 2 * OFFSET), (OFFSET + 5000, OFFSET + 15000), (5, 5)]:
            window, expected = copy.window(t0, t1, HEIGHT, WIDTH), events.slice_time(t0, t1)
            for column in "xytp":
                np.testing.assert_array_equal(getattr(window, column), getattr(expected, column))
        del copy
    assert len(list(place.iterdir())) == 2
    del file, recording, window
    gc.collect()
    assert list(place.iterdir()) == []


def test_columns_can_be_stated(tmp_path):
    path = zip_text(tmp_path / "a.zip", "3,2,1,700\n")
    window = open_event_file(path, "x,y,p,t_us").window(0, 10**6, 9, 9)
    assert [int(getattr(window, name)[0]) for name in "xytp"] == [3, 2, 700, 1]


def test_faults(tmp_path):
    path = zip_text(tmp_path / "a.zip", "0.1 1 1 1\n0.2 1 1\n")
    with pytest.raises(ValueError, match=r"a.zip, line 2: 4 columns"):
        open_event_file(path).window(0, 10**6, 4, 4)
    zip_text(path, "0.1 1 1 1\n", b_txt="0.1 1 1 1\n")
    with pytest.raises(ValueError, match=r"a.zip: one .txt or .csv .* dynamic_6dof.txt, b.txt"):
        open_event_file(path)
    zip_text(path, "", name="image.png")
    with pytest.raises(ValueError, match=r"a.zip: one .txt or .csv file expected, found image"):
        open_event_file(path)
    path.write_bytes(zip_text(path, "0.1 1 1 1\n" * 99).read_bytes()[:100])
    with pytest.raises(ValueError, match=r"a.zip: not a readable .zip, is it truncated"):
        open_event_file(path)
