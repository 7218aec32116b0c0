"""Images and videos: pixels, and damaged files."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from flowfuse.data.formats.frames import list_images, read_image


def test_image_values(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[0, 128, 257, 65535]], np.uint16))
    assert read_image(tmp_path / "a.png").tolist() == [[0, 0, 1, 255]]
    cv2.imwrite(str(tmp_path / "b.png"), np.array([[[1, 2, 3, 9]]], np.uint8))  # BGRA
    assert read_image(tmp_path / "b.png").tolist() == [[[3, 2, 1]]]
    for name in ("c.png", "c.jpg"):
        cv2.imwrite(str(tmp_path / name), np.zeros((50, 50), np.uint8))
        data = (tmp_path / name).read_bytes()
        for kept in (0, 20, len(data) - 8):
            (tmp_path / name).write_bytes(data[:kept])
            with pytest.raises(ValueError, match=rf"{name}: (truncated|not an image)"):
                read_image(tmp_path / name)


def names_in_order(directory, names, times=None):
    directory.mkdir()
    for name in names:
        (directory / name).touch()
    return [path.name for path in list_images(directory, times)]


@pytest.mark.parametrize(
    "names",
    [
        ["frame_1.png", "frame_2.png", "frame_10.png"],
        ["000001.png", "000002.png", "000010.png"],
        ["0.012284.png", "0.036852.png", "0.06142.png", "0.085988.png"],
        ["0.01.png", "0.1.png", "0.15.png", "0.2.png"],
        ["-0.5.png", "5e-05.png", "0.1.png", "1.0.png", "12.25.png"],
        ["1600000000.123456.png", "1600000000.98.png", "1600000001.5.png"],
        ["take1.8.png", "take1.9.png", "take1.10.png"],
        ["1.9.png", "1.10.png", "1.11.png"],
        ["1.998.png", "1.999.png", "1.1000.png", "1.1001.png"],
        ["cam_0.5.png", "cam_1.25.png", "cam_2.125.png"],
        ["a1.b2.png", "a1.b10.png", "a2.b1.png"],
    ],
)
def test_the_order_of_image_names(tmp_path, names):
    assert names_in_order(tmp_path / "images", names[::-1]) == names


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (["left_1.png", "right_1.png", "left_2.png", "right_2.png"], "left_2.png and right_1.png"),
        (["A1.png", "a2.png", "A3.png"], "A3.png and a2.png"),
    ],
)
def test_images_of_two_kinds_in_one_directory_are_refused(tmp_path, names, pair):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"{pair} have different words, .* of two cameras"):
        list_images(tmp_path)
    # Such words are no counters: their numbers do not go back.
    for path in tmp_path.iterdir():
        path.unlink()
    for name in ("first.png", "image_b.png", "image_c1.png", "image_d2.png"):
        (tmp_path / name).write_bytes(b"")
    assert len(list_images(tmp_path)) == 4


def test_an_open_order_is_refused_unless_times_tell(tmp_path):
    with pytest.raises(ValueError, match=r"1.5.png or 1.25.png may come first"):
        names_in_order(tmp_path / "a", ["1.5.png", "1.25.png"])
    for factor in (10**6, 1000):  # names in s or ms, from any start
        folder = tmp_path / f"b{factor}"
        times = np.array([70, 70 + factor // 4])
        assert names_in_order(folder, ["1.5.png", "1.25.png"], times) == ["1.25.png", "1.5.png"]
    for names in (["1.png", "01.png"], ["7.png", "7.jpg"], ["0.5.png", "0.50.png", "0.05.png"]):
        with pytest.raises(ValueError, match="have the same numbers, so their order is open"):
            names_in_order(tmp_path / names[0], names)
