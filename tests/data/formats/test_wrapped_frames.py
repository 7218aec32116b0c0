"""Depth, order and clock of frames."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest

from flowfuse.data.formats.frames import stated_white
from flowfuse.data.formats.wrapped_frames import ShiftedFrames
from flowfuse.data.opening import open_recording
from flowfuse.data.recording_copy import copy_recording
from flowfuse.data.recording_writer import write_recording
from flowfuse.data.registry import open_frames

HEIGHT, WIDTH = 12, 16


def write_images(directory, images, suffix=".png"):
    (directory / "images").mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        assert cv2.imwrite(str(directory / f"images/{index}{suffix}"), image)
    times = "".join(f"{0.01 * index}\n" for index in range(len(images)))
    (directory / "timestamps.txt").write_text(times)
    return directory


def deep_images(bits, count=3, channels=()):
    rng = np.random.default_rng(bits)
    images = rng.integers(0, 1 << bits, (count, HEIGHT, WIDTH, *channels)).astype(np.uint16)
    images[-1, 0, 0] = (1 << bits) - 1  # the last frame alone is white somewhere
    images[:-1] //= 2
    return images


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_the_largest_value_tells_the_depth(tmp_path, bits, suffix):
    images = deep_images(bits)
    write_images(tmp_path, images, suffix)
    with pytest.warns(UserWarning, match=f"{bits} bits are assumed, {2**bits - 1} is white; --bit"):
        recording = open_recording(tmp_path)
    frame = recording.frame(0)
    assert frame.dtype == np.uint16
    expected = np.rint(images[0] * (65535 / (2**bits - 1)))
    np.testing.assert_array_equal(frame, expected.astype(np.uint16))
    assert recording.frame(2).max() == 65535


@pytest.mark.filterwarnings("error")
def test_sixteen_bits_and_eight_bits_stay_as_they_are(tmp_path):
    images = deep_images(16)
    recording = open_recording(write_images(tmp_path, images))
    np.testing.assert_array_equal(recording.frame(1), images[1])
    write_images(tmp_path, images.astype(np.uint8))
    assert open_recording(tmp_path).frame(1).dtype == np.uint8


def test_a_stated_depth(tmp_path):
    images = deep_images(12)
    write_images(tmp_path, images)
    frame = open_recording(tmp_path, bit_depth=14).frame(2)
    np.testing.assert_array_equal(frame, np.rint(images[2] * (65535 / 16383)))
    with pytest.raises(ValueError, match=r"2.png: has values up to 4095, more than 11 bits hold"):
        open_recording(tmp_path, bit_depth=11).frame(2)
    with pytest.raises(ValueError, match="bit_depth must be 8 to 16, got 17"):
        open_recording(tmp_path, bit_depth=17)


def test_a_depth_that_is_stated_of_nothing(tmp_path):
    images = deep_images(12).astype(np.uint8)
    write_images(tmp_path, images)
    with pytest.warns(UserWarning, match=r"0.png has 8 bits: --bit-depth 12 says nothing") as told:
        recording = open_recording(tmp_path, bit_depth=12)
    np.testing.assert_array_equal(recording.frame(1), images[1])
    assert len(told) == 1, "once"
    np.savez(tmp_path / "events.npz", x=[1], y=[1], t=[5], p=[1])
    for name, value in (("bit_depth", 12), ("time_offset", "3ms")):
        with pytest.raises(ValueError, match=rf"{name} .* was given \(--\w+-\w+\) without frames"):
            open_recording(events=tmp_path / "events.npz", **{name: value})
    for name, value, lacks in (
        ("part", 1, "events"),
        ("columns", "t,x,y,p", "events"),
        ("depth", 3.0, "a calibration"),
    ):
        with pytest.raises(ValueError, match=rf"{name} .* was given \(--{name}\) without {lacks}"):
            open_recording(frames=tmp_path, **{name: value})


@pytest.mark.filterwarnings("error")
def test_files_that_state_their_depth(tmp_path):
    image = deep_images(12)[0]
    (tmp_path / "images").mkdir()
    pgm = b"P5\n# camera\n%d %d\n4095\n" % (WIDTH, HEIGHT) + image.astype(">u2").tobytes()
    for index in range(2):
        (tmp_path / f"images/{index}.pgm").write_bytes(pgm)
    (tmp_path / "timestamps.txt").write_text("0\n1\n")
    frame = open_recording(tmp_path).frame(0)
    np.testing.assert_array_equal(frame, np.rint(image * (65535 / 4095)))
    assert stated_white(pgm) == 4095 and stated_white(b"P5\n") is None and stated_white(b"") is None


def test_what_png_and_tiff_state():
    image = np.full((2, 2), 900, np.uint16)
    png = cv2.imencode(".png", image)[1].tobytes()
    assert stated_white(png) is None

    def with_bits(bits):
        chunk = b"sBIT" + bytes([bits])
        packed = struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk))
        return png[:33] + packed + png[33:]

    assert stated_white(with_bits(16)) == 65535
    assert stated_white(with_bits(12)) is None  # scaled or not: files differ
    entry = struct.pack("<HHIHH", 281, 3, 1, 1023, 0)
    assert stated_white(b"II*\0" + struct.pack("<IH", 8, 1) + entry) == 1023
    assert stated_white(b"II*\0" + struct.pack("<IH", 8, 0)) is None


def test_a_copy_keeps_every_bit(tmp_path):
    images = deep_images(12, channels=(3,))
    write_images(tmp_path / "a", images)
    with pytest.warns(UserWarning, match="12 bits are assumed"):
        copy_recording(open_recording(tmp_path / "a"), tmp_path / "b")
    recording = open_recording(tmp_path / "b")
    for index, image in enumerate(images):
        expected = np.rint(image[:, :, ::-1] * (65535 / 4095))
        np.testing.assert_array_equal(recording.frame(index), expected)


@pytest.mark.filterwarnings("error")
def test_dark_frames_that_are_written_stay_dark(tmp_path):
    dark = np.full((2, HEIGHT, WIDTH), 700, np.uint16)
    write_recording(tmp_path / "a", None, dark, [0, 1000])
    np.testing.assert_array_equal(open_recording(tmp_path / "a").frame(1), dark[1])


def test_frames_with_one_stamp(tmp_path):
    images = deep_images(8, 4).astype(np.uint8)
    write_images(tmp_path, images)
    (tmp_path / "timestamps.txt").write_text("0.0\n0.01\n0.01\n0.02\n")
    message = r"frame 2: .*2.png has 10000 us after 10000 us of .*1.png; --repair leaves out 1 of 4"
    with pytest.raises(ValueError, match=message):
        open_recording(tmp_path)
    with pytest.warns(UserWarning, match="--repair left out 1 of 4 frames"):
        recording = open_recording(tmp_path, repair=True)
    assert recording.frame_times.tolist() == [0, 10_000, 20_000]
    np.testing.assert_array_equal(recording.frame(2), images[3])
    assert [path.name for path in recording.frame_files] == ["0.png", "1.png", "3.png"]


def test_shifted_clocks(tmp_path):
    write_images(tmp_path, deep_images(8).astype(np.uint8))
    recording = open_recording(tmp_path, time_offset="3.5ms,1000ppm")
    assert recording.frame_times.tolist() == [3500, 13_510, 23_520]
    with pytest.raises(ValueError, match="the first frame is at -1000 us, before 0"):
        open_recording(tmp_path, time_offset="-1ms")
    with pytest.raises(ValueError, match="expected an offset such as"):
        open_recording(tmp_path, time_offset="soon")
    with pytest.raises(ValueError, match="a drift of -2 makes frame times go back"):
        ShiftedFrames(open_frames(tmp_path / "images", tmp_path / "timestamps.txt"), 0, -2.0)
