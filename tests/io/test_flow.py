"""Flow files: exact bytes, round trips, and an error for everything else."""

from __future__ import annotations

import io
import os
import struct

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowfuse.io.atomic import atomic_path
from flowfuse.io.flow import read_flow, write_flow

FLOW = np.array([[[1.5, -2.25, 0.0]], [[0.25, 30.0, -7.5]]], np.float32)  # [2, 1, 3], exact in PNG
VALID = np.array([[True, True, False]])


def test_flo_bytes_are_the_middlebury_layout(tmp_path):
    write_flow(tmp_path / "a.flo", FLOW)
    expected = b"PIEH" + struct.pack("<2i6f", 3, 1, 1.5, 0.25, -2.25, 30.0, 0.0, -7.5)
    assert (tmp_path / "a.flo").read_bytes() == expected
    np.testing.assert_array_equal(
        cv2.readOpticalFlow(str(tmp_path / "a.flo")), FLOW.transpose(1, 2, 0)
    )


@pytest.mark.parametrize(("encoding", "scale"), [("kitti", 64), ("dsec", 128)])
def test_png_channels_are_u_v_valid(tmp_path, encoding, scale):
    write_flow(tmp_path / "a.png", FLOW, VALID, encoding=encoding)
    blue, green, red = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)[0].T
    assert red.dtype == np.uint16
    assert red[0] == 1.5 * scale + 2**15 and green[1] == 30 * scale + 2**15
    assert blue.tolist() == [1, 1, 0]
    assert green[2] == (0 if encoding == "kitti" else -7.5 * scale + 2**15)


@pytest.mark.parametrize("name", ["a.flo", "a.png", "a.npy", "a.npz"])
@pytest.mark.parametrize("valid", [None, VALID])
def test_round_trip(tmp_path, name, valid):
    write_flow(tmp_path / name, FLOW, valid)
    flow, mask = read_flow(tmp_path / name)
    expected = np.ones((1, 3), bool) if valid is None else valid
    np.testing.assert_array_equal(flow, np.where(expected, FLOW, 0))
    np.testing.assert_array_equal(mask, expected)
    assert flow.dtype == np.float32 and mask.dtype == bool
    assert os.listdir(tmp_path) == [name]


def test_png_clips_with_a_warning_and_never_wraps(tmp_path):
    flow = np.array([[[600.0, -600.0, 0]], [[0, 0, 600.0]]])
    with pytest.warns(UserWarning, match=r"2 of 2 flow vectors .* \[-512, 512\)"):
        write_flow(tmp_path / "a.png", flow, VALID)
    read, _ = read_flow(tmp_path / "a.png")
    np.testing.assert_array_equal(read[0, 0, :2], [512 - 1 / 64, -512])


def test_flo_unknown_marker(tmp_path):
    marked = np.array([[[1.0, 2e9, np.nan]], [[1.0, 0, 0]]], "<f4").transpose(1, 2, 0)
    (tmp_path / "a.flo").write_bytes(b"PIEH" + struct.pack("<2i", 3, 1) + marked.tobytes())
    flow, valid = read_flow(tmp_path / "a.flo")
    assert valid.tolist() == [[True, False, False]] and np.isfinite(flow).all()


def _png(array):
    return cv2.imencode(".png", array)[1].tobytes()


def _numpy_bytes(save, *arrays, **named):
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.flo", b"PIEH\x01", "truncated .flo file, header of 12 bytes"),
        ("a.flo", b"HEIP" + bytes(16), "tag is .* expected 202021.25"),
        ("a.flo", b"PIEH" + struct.pack("<2i", 2, 1) + bytes(15), "28 bytes expected for 2 x 1"),
        ("a.flo", b"PIEH" + struct.pack("<2i", 2, 1) + bytes(17), "too long"),
        ("a.flo", b"PIEH" + struct.pack("<2i", -2, 1), "-2 x 1 px"),
        ("a.png", _png(np.zeros((2, 2, 3), np.uint8)), "3 of 8 bits"),
        ("a.png", _png(np.zeros((2, 2), np.uint16)), "1 of 16 bits"),
        ("a.png", _png(np.zeros((9, 9, 3), np.uint16))[:-20], "truncated PNG"),
        ("a.png", b"GIF89a", "not a PNG"),
        ("a.npy", _numpy_bytes(np.save, np.zeros((3, 4, 5))), r"float64 of \[3, 4, 5\]"),
        ("a.npy", _numpy_bytes(np.save, np.zeros((2, 4, 5)))[:-9], "not a readable .npy"),
        ("a.npy", _numpy_bytes(np.save, np.array([{}], object)), "not a readable .npy"),
        ("a.npz", _numpy_bytes(np.savez, u=np.zeros(3)), "key 'flow' expected"),
        ("a.npz", _numpy_bytes(np.savez, flow=np.zeros((2, 3, 4)))[:-30], "not a readable .npz"),
        ("a.npz", _numpy_bytes(np.savez, flow=np.zeros((2, 3, 4)), valid=np.ones(3)), "valid must"),
        ("a.tif", b"", "unknown flow format '.tif'"),
    ],
)
def test_bad_files_are_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_flow(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_bad_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such flow file"):
        read_flow(tmp_path / "none.flo")
    with pytest.raises(ValueError, match="encoding must be 'kitti' or 'dsec', got 'sintel'"):
        write_flow(tmp_path / "a.png", FLOW, encoding="sintel")
    with pytest.raises(ValueError, match=r"shape \[2, H, W\], got \[1, 3\]"):
        write_flow(tmp_path / "a.flo", FLOW[0])
    with pytest.raises(ValueError, match=r"valid must have shape \[1, 3\]"):
        write_flow(tmp_path / "a.flo", FLOW, VALID.T)
    with pytest.raises(ValueError, match=r"finite where valid, got .* at row 0, column 1"):
        write_flow(tmp_path / "a.flo", np.where([True, False, True], FLOW, np.nan))
    with pytest.raises(FileNotFoundError, match="not an existing directory"):
        write_flow(tmp_path / "none" / "a.flo", FLOW)
    assert os.listdir(tmp_path) == []


def test_a_failed_write_keeps_the_former_file(tmp_path):
    path = tmp_path / "a.flo"
    write_flow(path, FLOW)
    before = path.read_bytes()
    with pytest.raises(OSError, match="disk full"), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise OSError("disk full")
    with pytest.raises(OSError, match="nothing was written"), atomic_path(path):
        pass
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.flo"]


def test_only_a_file_is_replaced(tmp_path):
    (tmp_path / "a.flo").mkdir()
    os.mkfifo(tmp_path / "b.flo")
    for name in ("a.flo", "b.flo"):
        with pytest.raises(OSError, match=f"{name}: cannot write, it exists and is no regular"):
            write_flow(tmp_path / name, FLOW)
    assert not (tmp_path / "b.flo").is_file() and len(os.listdir(tmp_path)) == 2


# The fixture's directory serves all examples: each overwrites the file.
SHARED = [HealthCheck.function_scoped_fixture]


@settings(max_examples=60, deadline=None, suppress_health_check=SHARED)
@given(
    data=st.binary(max_size=80)
    | st.builds(
        lambda w, h, body: b"PIEH" + struct.pack("<2i", w, h) + body,
        st.integers(-2, 3),
        st.integers(-2, 3),
        st.binary(max_size=72),
    )
    | st.builds(lambda cut: b"PIEH" + struct.pack("<2i", 2, 3) + bytes(cut), st.integers(40, 56)),
    name=st.sampled_from(["a.flo", "a.png", "a.npy", "a.npz"]),
)
def test_any_bytes_give_flow_or_a_value_error(tmp_path, data, name):
    path = tmp_path / name
    path.write_bytes(data)
    try:
        flow, valid = read_flow(path)
    except ValueError:
        return
    assert flow.shape == (2, *valid.shape) and np.isfinite(flow).all()


def test_real_middlebury_file(shared_data):
    flow, valid = read_flow(shared_data / "rubberwhale" / "flow10.flo")
    # Middlebury gives 388 x 584 px for this sequence, with a small part unknown and motion < 5 px.
    assert flow.shape == (2, 388, 584) and 0.9 < valid.mean() < 1
    assert np.abs(flow[:, valid]).max() < 5


def test_dsec_predictions_are_marked_invalid_and_clipped_with_a_warning(tmp_path):
    """R = rint(128 u + 2^15), B = 0: the range is [-256, 256) px, and nothing wraps."""
    path = tmp_path / "000820.png"
    flow = np.zeros((2, 2, 3), np.float32)
    flow[:, 0, 0] = (300.0, -256.5)
    flow[:, 1, 2] = (1.5, -0.5 / 128)
    with pytest.warns(UserWarning, match=r"1 of 6 flow vectors exceed .*\[-256, 256\) px"):
        write_flow(path, flow, np.zeros((2, 3), bool), encoding="dsec")
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image.dtype == np.uint16 and (image[..., 0] == 0).all()
    assert image[0, 0].tolist() == [0, 0, 65535]
    assert image[1, 2].tolist() == [0, 32768, 32960]  # -1/2 rounds to the even 0
    image[..., 0] = 2
    cv2.imwrite(str(path), image)
    with pytest.raises(ValueError, match=r"000820.png: the third channel .* is 0 or 1 .*got 2"):
        read_flow(path, encoding="dsec")
    assert read_flow(path, encoding="kitti")[1].all()
