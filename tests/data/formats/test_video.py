"""Videos: pixels, time stamps, fields, and what damaged or odd ones say."""

from __future__ import annotations

import warnings
from fractions import Fraction

import av
import av.logging
import numpy as np
import pytest

from flowfuse.data.formats.video import _first_field, _packet_layout, _stated_end
from flowfuse.data.opening import open_recording
from flowfuse.data.registry import open_frames

HEIGHT, WIDTH = 48, 64


def write_video(path, images, stamps=None, *, codec="ffv1", pixels=None, options=None):
    """Images, uint8 or uint16, gray; stamps in milliseconds."""
    deep = images[0].dtype == np.uint16
    pixels = pixels or ("gray16le" if deep else "gray")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=50, options=options or {})
        stream.height, stream.width = images[0].shape
        stream.pix_fmt = pixels
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="gray16le" if deep else "gray")
            frame = frame.reformat(format=pixels)
            frame.pts = 20 * index if stamps is None else stamps[index]
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def noise(count, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(40, 220, (count, HEIGHT // 8, WIDTH // 8)).astype(np.uint8)
    return small.repeat(8, axis=1).repeat(8, axis=2)


@pytest.mark.filterwarnings("error")
def test_frames_in_any_order(tmp_path):
    images = noise(90)
    frames = open_frames(write_video(tmp_path / "a.mkv", images))
    assert frames.times.tolist() == (20_000 * np.arange(90)).tolist()
    for index in (0, 1, 4, 3, 89, 40, 41, 0, 75):
        np.testing.assert_array_equal(frames.read(index), images[index])
    again = open_frames(write_video(tmp_path / "b.mp4", images, codec="libx264", pixels="yuv420p"))
    for index in (88, 33, 89, 2, 60):
        decoded = again.read(index).mean(axis=2)
        assert np.abs(decoded - images[index]).mean() < 8  # lossy; any other frame is 60 off


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_the_times_of_the_container(tmp_path, name):
    stamps = [1400, 1420, 1440, 1540, 1550]
    codec = "ffv1" if name == "a.mkv" else "libx264"
    pixels = "gray" if name == "a.mkv" else "yuv420p"
    path = write_video(tmp_path / name, noise(5), stamps, codec=codec, pixels=pixels)
    assert open_recording(path).frame_times.tolist() == [1000 * t for t in stamps]
    (tmp_path / "timestamps.txt").write_text("0\n0.1\n")
    with pytest.raises(ValueError, match="2 frame times for 5 frames"):
        open_recording(tmp_path)


def test_all_bits_are_kept(tmp_path):
    image = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16) * 20
    frames = open_frames(write_video(tmp_path / "a.mkv", [image, image // 2]))
    np.testing.assert_array_equal(frames.read(0), image)
    np.testing.assert_array_equal(frames.read(1), image // 2)


def test_interlaced_frames(tmp_path):
    """Both fields of a still picture make it whole; of motion the first one is taken."""
    rng = np.random.default_rng(0)
    wide = rng.integers(40, 220, (HEIGHT // 8, 40)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    still = [wide[:, 9 * i : 9 * i + WIDTH] for i in range(6)]
    moving = []
    for index, image in enumerate(still):
        woven = image.copy()
        woven[1::2] = wide[1::2, 9 * index + 5 : 9 * index + 5 + WIDTH]
        moving.append(woven)
    options = {"flags": "+ildct+ilme", "x264-params": "tff=1", "qp": "1"}
    kinds = {"codec": "libx264", "pixels": "yuv420p", "options": options}
    frames = open_frames(write_video(tmp_path / "a.mkv", still, **kinds))
    assert np.abs(frames.read(3).mean(axis=2) - still[3]).mean() < 8
    path = write_video(tmp_path / "b.mkv", moving, **kinds)
    with pytest.warns(UserWarning, match="6 of 6 frames are interlaced: the first field"):
        frames = open_frames(path)
    error = np.abs(frames.read(3).mean(axis=2) - still[3])
    assert error.mean() < 12 and error[::2].mean() < 8
    assert np.abs(moving[3].astype(int) - still[3]).mean() > 12


def test_fields():
    image = np.array([[0], [9], [4], [9], [8]], np.uint8)
    assert _first_field(image, bottom=False).ravel().tolist() == [0, 2, 4, 6, 8]
    assert _first_field(image[:4], bottom=False).ravel().tolist() == [0, 2, 4, 4]
    image = np.array([[9], [0], [9], [4], [9], [8]], np.uint8)
    assert _first_field(image, bottom=True).ravel().tolist() == [0, 0, 2, 4, 6, 8]
    assert _first_field(image[:5], bottom=True).ravel().tolist() == [0, 0, 2, 4, 4]


def test_odd_frames_are_told(tmp_path):
    images = noise(8)
    images[2], images[5] = 0, images[4]
    path = write_video(tmp_path / "a.mkv", images)
    with pytest.warns(UserWarning) as told:
        open_frames(path)
    text = str(told[0].message)
    assert "1 of 8 frames are black, 2" in text
    assert "1 of 8 frames repeat the one before, 5" in text


def test_damage_is_told(tmp_path):
    kinds = {
        "codec": "libx264",
        "pixels": "yuv420p",
        "options": {"movflags": "faststart", "g": "5"},
    }
    path = write_video(tmp_path / "a.mp4", noise(60), **kinds)
    data = path.read_bytes()
    place = len(data) // 2
    path.write_bytes(data[:place] + b"\xff" * 400 + data[place + 400 :])
    with pytest.warns(
        UserWarning, match=r"the stream is damaged: \d+ packets cannot|the container states"
    ):
        open_frames(path)
    moov = data.rindex(b"moov")
    path.write_bytes(data[: moov - 200])
    with pytest.raises(ValueError, match=r"a.mp4: PyAV cannot open this video, is it truncated"):
        open_frames(path)


def test_a_matroska_file_that_ends_early_is_told(tmp_path):
    path = write_video(tmp_path / "a.mkv", noise(50))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_frames(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r"has 0\.\d+ s, the container states an end at 1\.000 s"):
        open_frames(path)


@pytest.mark.parametrize(("prefix", "step"), [(0, 188), (4, 192), (0, 204)])
def test_packets_are_found_by_their_first_bytes(prefix, step):
    packet = b"G" * prefix + b"G" + bytes(step - prefix - 1)
    assert _packet_layout(4 * packet) == (prefix, step)
    assert _packet_layout(bytes(4 * step)) is None


@pytest.mark.parametrize("name", ["a.ts", "a.mts"])
def test_a_transport_stream_that_is_cut_is_told(tmp_path, name):
    images = np.random.default_rng(0).integers(0, 255, (30, HEIGHT, WIDTH)).astype(np.uint8)
    path = write_video(tmp_path / name, images, codec="libx264", pixels="yuv420p")
    data, step = path.read_bytes(), 188 if name == "a.ts" else 192
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(open_frames(path).times) == 30
    packets = [(end, data[end - 188 : end]) for end in range(step, len(data), step)]
    # Full of data, and not the begin of any: in the middle of a frame.
    inner = [end for end, packet in packets if not packet[1] & 0x40 and packet[3] >> 4 & 3 == 1]
    middle = inner[-1]
    for end in (middle, middle - 100):
        path.write_bytes(data[:end])
        with pytest.warns(UserWarning, match="the file ends in the middle of a frame: it is cut"):
            open_frames(path)


def test_damage_that_a_decoder_hides_is_told(tmp_path):
    path = write_video(tmp_path / "a.mkv", noise(30), codec="libx264", pixels="yuv420p")
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(len(data) // 2, len(data) - 200, 30):
        data[place] ^= 255
    path.write_bytes(data)
    level = av.logging.get_level()
    with pytest.warns(UserWarning, match=r"the stream is damaged.* the decoder says: h264: \w+"):
        open_frames(path)
    assert av.logging.get_level() == level


@pytest.mark.parametrize(
    ("text", "end"),
    [("00:01:02.500000000", 62.5e6), ("01:00:00", 3.6e9), ("", None), ("12 s", None)],
)
def test_the_end_that_matroska_states(text, end):
    assert _stated_end(text) == end


def test_what_is_no_video(tmp_path):
    path = write_video(tmp_path / "a.mkv", noise(3))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"cannot open this video|no frame of this video|no video"):
        open_recording(path)
    strange = write_video(tmp_path / "a.mkv", noise(3)).rename(tmp_path / "video\udcff.mkv")
    assert len(open_recording(strange).frame_times) == 3
