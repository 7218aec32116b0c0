"""Which format a file has, which data set a directory is, and what counts as a recording."""

from __future__ import annotations

import numpy as np
import pytest
from dsec_cases import write as write_dsec_sequence
from event_cases import HEIGHT, WIDTH, frames, make_events, save_images, write_format

import flowfuse
from flowfuse.data.datasets.directory import DirectoryRecording
from flowfuse.data.datasets.dsec.sequence import DsecSequence
from flowfuse.data.datasets.mvsec.recording import MvsecRecording
from flowfuse.data.datasets.mvsec.writer import write_mvsec
from flowfuse.data.formats.base import EVENTS, FRAMES, Format
from flowfuse.data.opening import DATASETS, open_recording
from flowfuse.data.recording import Recording
from flowfuse.data.registry import (
    FORMATS,
    event_suffixes,
    find_format,
    open_event_file,
    open_frames,
    video_suffixes,
)

PROPHESEE_HEADER = b"% evt 3.0\n% end\n"


def name_of(path, holds=EVENTS):
    found = find_format(path, holds)
    return found and found.name


def test_the_formats_and_data_sets_of_this_package():
    # Added ones follow, but for the directory, which is the last resort.
    first = (
        ".h5", ".hdf5", ".npz", ".txt", ".csv", ".zip", ".raw", ".dat", ".aedat4", ".aedat", ".bag",
        ".mcap", ".db3",
    )  # fmt: skip
    assert event_suffixes()[: len(first)] == first
    assert video_suffixes()[:6] == (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v")
    names = [dataset.name for dataset in DATASETS]
    assert names[:3] == ["BlinkFlow", "DSEC", "MVSEC"] and names[-1] == "directory"
    assert {"EVIMO2", "MultiFlow", "UEOF", "TUM-VIE", "VECtor", "rotation"} < set(names)
    for item in (*FORMATS, *DATASETS):
        item.check()


def test_formats_are_found_by_suffix_then_by_content(tmp_path):
    events = make_events()
    for name, expected in (("flat.h5", "HDF5"), ("stored.npz", "npz"), ("blank.txt", "text")):
        path = write_format(tmp_path / name, events)
        assert name_of(path) == expected
        assert name_of(path.rename(tmp_path / path.name.upper())) == expected
        other = (tmp_path / path.name.upper()).rename(tmp_path / f"{name}.data")
        if expected == "text":  # anything could be text
            assert name_of(other) is None
            continue
        assert name_of(other) == expected
        assert len(open_event_file(other).window(0, 2**40, HEIGHT, WIDTH)) == len(events)
    for content, expected in (
        (PROPHESEE_HEADER, "Prophesee RAW"),
        (b"% a comment", None),
        (b"#!AER-DAT4.0\r\n", "AEDAT 4"),
        (b"#ROSBAG V2.0\n", "ROS bag"),
        (b"PK\x03\x04", None),
        (b"", None),
    ):
        (tmp_path / "a.data").write_bytes(content)
        assert name_of(tmp_path / "a.data") == expected
    assert name_of(tmp_path / "absent.raw") == "Prophesee RAW"
    assert name_of(tmp_path / "absent.data") is None
    assert name_of(tmp_path) is None and name_of(tmp_path, FRAMES) == "images"
    (tmp_path / "metadata.yaml").write_text("rosbag2_bagfile_information:\n")
    assert name_of(tmp_path) == "ROS bag" and name_of(tmp_path, FRAMES) == "ROS bag"


def test_content_decides_between_formats_of_one_suffix(tmp_path, monkeypatch):
    class OtherRaw(Format):
        name, suffixes, rank = "other", (".raw",), 200

        def recognizes(self, path):
            return path.read_bytes().startswith(b"OTHER")

    monkeypatch.setattr(FORMATS, "_items", [*FORMATS, OtherRaw()])
    path = tmp_path / "a.raw"
    for content, expected in (
        (b"OTHER", "other"),
        (PROPHESEE_HEADER, "Prophesee RAW"),
        (b"neither", "Prophesee RAW"),  # whose message says what is wrong
    ):
        path.write_bytes(content)
        assert name_of(path) == expected
    with pytest.raises(ValueError, match=r"not a Prophesee \.raw file"):
        open_event_file(path)


def test_a_format_holds_what_it_says():
    class Plain(Format):
        name = "plain"

    with pytest.raises(NotImplementedError, match="plain holds no events"):
        Plain().open_events(None)
    with pytest.raises(NotImplementedError, match="plain holds no frames"):
        Plain().open_frames(None)
    assert Plain().contents(None) == (True, False) and not Plain().recognizes(None)


def test_unknown_kinds_of_frames(tmp_path):
    (tmp_path / "a.bin").touch()
    with pytest.raises(ValueError, match=r"a.bin: unknown kind of frames, expected a directory of"):
        open_frames(tmp_path / "a.bin")
    with pytest.raises(FileNotFoundError, match="no such directory of images, nor video"):
        open_frames(tmp_path / "none")
    save_images(tmp_path / "images", frames())
    with pytest.raises(FileNotFoundError, match=r"none.txt: no such file of frame times"):
        open_frames(tmp_path / "images", tmp_path / "none.txt")


def test_every_data_set_gives_a_recording(tmp_path):
    events, times = make_events(), [1_000_000, 1_020_000]
    write_mvsec(str(tmp_path / "a"), [events], iter(frames(2)), np.array(times))
    write_dsec_sequence(tmp_path, "zurich_city_01_a")
    for path, kind, step in (
        (flowfuse.sample_recording(), DirectoryRecording, 1),
        (tmp_path / "a_data.hdf5", MvsecRecording, 1),
        (tmp_path / "zurich_city_01_a", DsecSequence, 2),
    ):
        recording = open_recording(path)
        assert type(recording) is kind and isinstance(recording, Recording)
        assert recording.ground_truth_step == step and recording.path == path
        assert recording.has_events and recording.has_frames
    assert not isinstance(events, Recording)
