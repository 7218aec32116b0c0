"""Pictures: known colours, sizes, and files that can be read back."""

from __future__ import annotations

import os

import av
import cv2
import numpy as np
import pytest

from flowfuse.events import Events
from flowfuse.visualization import (
    BRIGHTER,
    DARKER,
    add_legend,
    add_title,
    as_rgb,
    colour_flow,
    colour_wheel,
    contact_sheet,
    heat_maximum,
    largest_magnitude,
    legend,
    render_boundary,
    render_events,
    render_heat,
    upscale,
    write_image,
    write_video,
)


def vectors(*pairs):
    return np.array(pairs, float).T[:, None]  # [2, 1, N]


def test_wheel_has_the_published_colours():
    wheel = colour_wheel()
    assert wheel.shape == (55, 3)
    # Red, yellow, green, cyan, blue, magenta stand where the segments of 15, 6, 4, 11, 13, 6 start.
    assert wheel[[0, 15, 21, 25, 36, 49]].tolist() == [
        [255, 0, 0],
        [255, 255, 0],
        [0, 255, 0],
        [0, 255, 255],
        [0, 0, 255],
        [255, 0, 255],
    ]


def test_directions_and_magnitudes():
    colours = colour_flow(vectors((1, 0), (-1, 0), (0, 0), (2, 0), (0.5, 0)), max_magnitude=1)[0]
    assert colours[0].tolist() == [255, 0, 0]  # to the right: red
    assert colours[1, 0] == 0 and colours[1, 2] == 255  # to the left: cyan to blue
    assert colours[2].tolist() == [255, 255, 255]
    assert colours[3].tolist() == [255, 0, 0]  # beyond the maximum: as at the rim
    assert colours[4].tolist() == [255, 127, 127]  # half of the maximum: half saturated


def test_the_wheel_has_no_seam():
    angle = np.linspace(0, 2 * np.pi, 3600)
    ring = colour_flow(np.stack((np.cos(angle), np.sin(angle)))[:, None], max_magnitude=1)[0]
    # One of 3600 steps is 1/65 of a wheel colour; neighbours differ by up to 64 levels (4 steps for
    # 255), so 2 levels with rounding.
    assert np.abs(np.diff(ring.astype(int), axis=0)).max() <= 2


def test_invalid_flow_is_black_and_does_not_scale():
    flow = vectors((1, 0), (1e10, 0), (np.nan, 0))
    valid = np.array([[True, False, True]])
    assert colour_flow(flow, valid)[0].tolist() == [[255, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert largest_magnitude(flow, valid) == 1 and largest_magnitude(flow * 0) == 1
    assert (colour_flow(np.zeros((2, 3, 4))) == 255).all()
    with pytest.raises(ValueError, match=r"shape \[2, H, W\], got \[3, 4\]"):
        colour_flow(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="max_magnitude must be positive"):
        colour_flow(flow, max_magnitude=0)


def test_events_over_a_frame():
    events = Events([0, 1, 1, 1], [0, 0, 0, 0], [0, 1, 2, 3], [1, 0, 0, 1], height=2, width=3)
    for picture in (
        render_events(None, events),
        render_events(np.full((2, 3), 255, np.uint8), events),
        render_events(np.zeros((2, 3, 3)), events),
    ):
        paper = picture[1, 1].astype(int)
        assert np.ptp(paper) == 0  # gray
        red, blue = picture[0, 0].astype(int), picture[0, 1].astype(int)
        assert red[0] > red[2] + 80 and blue[2] > blue[0] + 80  # the majority decides
        assert np.abs(red - paper).max() > 60  # readable on white, on bright and on dark frames
    assert render_events(None, events)[0, 1].tolist() == list(DARKER)
    assert render_events(None, Events([0], [0], [0], [1], height=1, width=1))[
        0, 0
    ].tolist() == list(BRIGHTER)
    assert (render_events(None, Events.empty(2, 3)) == 255).all()
    with pytest.raises(ValueError, match="needs a frame"):
        render_events(None, Events([0], [0], [0], [1]))


def test_boundaries_have_two_colours():
    boundary = np.zeros((2, 2, 2))
    boundary[0, 0, 0] = boundary[1, 0, 1] = 1
    picture = render_boundary(np.full((2, 2), 128, np.uint8), boundary).astype(int)
    assert picture[0, 0, 2] > picture[0, 0, 0] + 100  # B_e: cyan
    assert picture[0, 1, 0] > picture[0, 1, 2] + 100  # B_m: orange red
    assert np.ptp(picture[1, 1]) == 0
    with pytest.raises(ValueError, match=r"boundary must have shape \[2, 2, 2\]"):
        render_boundary(np.zeros((2, 2)), boundary[:, 1:])


def test_heat_maps():
    values = np.array([[0.0, 1, 2, np.nan, 9]])
    valid = np.array([[1, 1, 1, 1, 0]], bool)
    heat = render_heat(values, valid, 2)
    assert heat[0, 3].tolist() == heat[0, 4].tolist() == [128] * 3
    assert np.all(np.diff(heat[0, :3].astype(int).sum(axis=1)) > 0)
    assert heat_maximum(values, valid) == pytest.approx(1.98)  # 99th percentile of 0, 1, 2
    assert heat_maximum(values * np.nan) == 1
    with pytest.raises(ValueError, match=r"values must have shape \[H, W\]"):
        render_heat(np.zeros((1, 2, 2)))


@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (180, 240), (480, 640)])
def test_composed_pictures_of_any_size(shape):
    image = np.full((*shape, 3), 77, np.uint8)
    for picture in (
        add_legend(image, 12.3),
        add_title(image, "flow at tau = 0.5"),
        legend(3.0),
        contact_sheet([image] * 5, [f"tau = {i / 5}" for i in range(5)], columns=3),
        upscale(image),
    ):
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    np.testing.assert_array_equal(add_legend(image, 1)[: shape[0], : shape[1]], image)
    assert upscale(image).shape[1] >= 480
    title = add_title(image, "flow")
    np.testing.assert_array_equal(title[-shape[0] :], image)
    if shape[1] > 100:
        assert title[: -shape[0]].min() < 60  # dark ink


def test_contact_sheet_places_row_by_row():
    images = [np.full((100, 400), value, np.uint8) for value in (10, 20, 30)]
    sheet = contact_sheet(images, columns=2)
    assert sheet.shape == (2 * 108 + 8, 2 * 408 + 8, 3)
    assert [sheet[50, 50, 0], sheet[50, 450, 0], sheet[160, 50, 0]] == [10, 20, 30]
    assert sheet[160, 450, 0] == 255
    with pytest.raises(ValueError, match="no images"):
        contact_sheet([])
    with pytest.raises(ValueError, match="2 labels for 3 images"):
        contact_sheet(images, ["a", "b"])
    with pytest.raises(ValueError, match="columns must be positive"):
        contact_sheet(images, columns=0)


def test_images_of_every_kind():
    assert as_rgb(np.array([[0.5, 2.0]]))[0].tolist() == [[128] * 3, [255] * 3]
    assert as_rgb(np.full((2, 3, 1), 7, np.uint8)).shape == (2, 3, 3)
    with pytest.raises(ValueError, match=r"got \[2, 2, 2\]"):
        as_rgb(np.zeros((2, 2, 2)))


def test_write_image(tmp_path):
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    write_image(tmp_path / "a.png", image)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png"))[:, :, ::-1], image)
    with pytest.raises(ValueError, match=r"no images of kind '.xyz'"):
        write_image(tmp_path / "a.xyz", image)
    with pytest.raises(FileNotFoundError, match="not an existing directory"):
        write_image(tmp_path / "none" / "a.png", image)
    assert os.listdir(tmp_path) == ["a.png"]


def refuse(*_, **__):
    raise av.FFmpegError(1, "no encoder")


def test_write_video(tmp_path):
    path = tmp_path / "a\udcff.mp4"  # any name that the system takes
    images = [np.full((33, 47, 3), value, np.uint8) for value in (40, 120, 200)]
    write_video(path, iter(images), [7, 7.25, 8.5])
    with open(path, "rb") as file, av.open(file) as container:
        (stream,) = container.streams.video
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        found = list(container.decode(stream))
    assert [frame.time for frame in found] == pytest.approx([0, 0.25, 1.5], abs=1e-4)
    pictures = [frame.to_ndarray(format="rgb24") for frame in found]
    assert len(found) == 3 and pictures[0].shape == (34, 48, 3)
    # 6: the codec is lossy; uniform pictures come back within some levels.
    means = [picture[:30, :40].mean() for picture in pictures]
    np.testing.assert_allclose(means, [40, 120, 200], atol=6)


def test_faults_of_videos_leave_nothing(tmp_path, monkeypatch):
    path, images = (
        tmp_path / "a.mp4",
        [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)],
    )
    with pytest.raises(ValueError, match="pictures of 8 x 8 and of 9 x 8 px"):
        write_video(path, images, [0, 1])
    with pytest.raises(ValueError, match="no images"):
        write_video(path, [], [])
    with pytest.raises(ValueError, match="1 times for more pictures"):
        write_video(path, images[:1] * 2, [0])
    with pytest.raises(ValueError, match="1 pictures for 2 times"):
        write_video(path, images[:1], [0, 1])
    with pytest.raises(ValueError, match="must increase"):
        write_video(path, images[:1] * 2, [1, 1])
    with pytest.raises(ValueError, match=r"written as .mp4"):
        write_video(tmp_path / "a.avi", images, [0, 1])
    if os.path.exists("/dev/full"):
        monkeypatch.setattr(
            "flowfuse.visualization.open", lambda *_: open("/dev/full", "wb"), raising=False
        )
        with pytest.raises(OSError, match="No space left"):
            write_video(path, images[:1], [0])
        monkeypatch.undo()
    monkeypatch.setattr(av.VideoFrame, "from_ndarray", refuse)
    with pytest.raises(OSError, match=r"cannot be encoded as H.264 .*PyAV"):
        write_video(path, images[:1], [0])
    assert os.listdir(tmp_path) == []
