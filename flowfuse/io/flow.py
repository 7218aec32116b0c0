"""Reading and writing optical flow files: .flo, 16-bit .png (KITTI or DSEC), .npy and .npz."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np

from flowfuse.io.atomic import atomic_path
from flowfuse.io.paths import as_path

FLOW_SUFFIXES = (".flo", ".png", ".npy", ".npz")
PNG_SCALES = {"kitti": 64.0, "dsec": 128.0}  # steps per px; both store 0 px as 2^15

_FLO_TAG = 202021.25  # the bytes "PIEH" as a little-endian float32
_FLO_UNKNOWN_ABOVE = 1e9  # Middlebury: a larger component marks an unknown pixel
_FLO_UNKNOWN = 1e10
# What NumPy raises on damaged files; MemoryError: a header that claims an absurd shape.
_NUMPY_FAULTS = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    AttributeError,
    NotImplementedError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_flow(path: str | os.PathLike, encoding: str = "kitti") -> tuple[np.ndarray, np.ndarray]:
    """Read a flow file.

    Args:
        path: the suffix tells the format:
            ``.flo`` Middlebury (a component above 1e9 or not finite marks an invalid pixel);
            ``.png`` 16 bit, three channels, see ``encoding``; the third marks valid pixels
            (``"kitti"``: above 0, ``"dsec"``: 1);
            ``.npy`` an array [2, H, W] (not finite = invalid);
            ``.npz`` ``flow`` [2, H, W] and, optionally, ``valid`` [H, W].
        encoding: of ``.png``, which does not tell it itself: ``"kitti"`` (1/64 px, range
            [-512, 512) px) or ``"dsec"`` (1/128 px, range [-256, 256) px).

    Returns:
        flow: [2, H, W] float32, px (channel 0 right, 1 down), 0 where invalid.
        valid: [H, W] bool.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, what was found and what was expected.
    """
    path = as_path("read_flow: path", path)
    suffix = _check_suffix(path)
    if suffix == ".png":
        _check_encoding(encoding)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such flow file")
    data = path.read_bytes()
    if suffix == ".flo":
        flow, valid = _decode_flo(path, data)
    elif suffix == ".png":
        flow, valid = _decode_png(path, data, encoding)
    else:
        flow, valid = _decode_numpy(path, data)
    return np.where(valid, flow, np.float32(0)), valid


def write_flow(
    path: str | os.PathLike,
    flow: np.ndarray,
    valid: np.ndarray | None = None,
    encoding: str = "kitti",
) -> None:
    """Write a flow file, atomically.

    Args:
        path: suffix .flo, .png, .npy or .npz, as in :func:`read_flow`.
        flow: [2, H, W], px; must be finite where valid.
        valid: [H, W] bool, or None for valid everywhere. Invalid pixels become 1e10 (.flo), NaN
            (.npy, .npz) or valid = 0 (.png: "kitti" zeroes their flow, "dsec" keeps it, as its
            benchmark wants predictions to have it).
        encoding: of ``.png``: ``"kitti"`` or ``"dsec"``. Flow out of its range is clipped, with a
            warning.

    Raises:
        ValueError: naming the argument at fault.
        OSError: if the file cannot be written.
    """
    data = encode_flow(path, flow, valid, encoding)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def encode_flow(
    path: str | os.PathLike,
    flow: np.ndarray,
    valid: np.ndarray | None = None,
    encoding: str = "kitti",
) -> bytes:
    """Make the bytes that :func:`write_flow` writes; arguments and errors as there."""
    path = as_path("write_flow: path", path)
    suffix = _check_suffix(path)
    flow, valid = _check_flow(flow, valid)
    if suffix == ".flo":
        return _encode_flo(flow, valid)
    if suffix == ".png":
        _check_encoding(encoding)
        return _encode_png(path, flow, valid, encoding)
    return _encode_numpy(suffix, flow, valid)


def tau_directory(parent: Path, tau: float) -> Path:
    """The directory of displacements at ``tau``, in ``parent``: ``float(name)`` is tau exactly."""
    return parent / repr(float(tau))


def _check_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in FLOW_SUFFIXES:
        expected = ", ".join(FLOW_SUFFIXES)
        raise ValueError(f"{path}: unknown flow format {suffix!r}, expected one of {expected}")
    return suffix


def _check_encoding(encoding: str) -> None:
    if encoding not in PNG_SCALES:
        expected = " or ".join(repr(name) for name in PNG_SCALES)
        raise ValueError(f"encoding must be {expected}, got {encoding!r}")


def _check_flow(flow: np.ndarray, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    flow = np.asarray(flow)
    if flow.ndim != 3 or flow.shape[0] != 2 or 0 in flow.shape:
        raise ValueError(f"flow must have shape [2, H, W], got {list(flow.shape)}")
    if flow.dtype.kind not in "iuf":
        raise ValueError(f"flow must hold real numbers, got dtype {flow.dtype}")
    flow = flow.astype(np.float32)
    valid = np.ones(flow.shape[1:], bool) if valid is None else np.asarray(valid)
    if valid.shape != flow.shape[1:]:
        raise ValueError(
            f"valid must have shape {list(flow.shape[1:])} as the flow, got {list(valid.shape)}"
        )
    valid = valid.astype(bool)
    bad = valid & ~np.isfinite(flow).all(axis=0)
    if bad.any():
        y, x = np.unravel_index(int(np.argmax(bad)), bad.shape)
        raise ValueError(
            f"flow must be finite where valid, got ({flow[0, y, x]}, {flow[1, y, x]}) at row {y}, "
            f"column {x}; mark such pixels invalid"
        )
    return flow, valid


def _decode_flo(path: Path, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    if len(data) < 12:
        raise ValueError(f"{path}: truncated .flo file, header of 12 bytes, got {len(data)}")
    tag = np.frombuffer(data, "<f4", 1)[0]
    if tag != np.float32(_FLO_TAG):
        raise ValueError(f"{path}: not a .flo file, its tag is {tag}, expected {_FLO_TAG}")
    width, height = (int(side) for side in np.frombuffer(data, "<i4", 2, offset=4))
    if width < 1 or height < 1:
        raise ValueError(f"{path}: the .flo header gives an impossible size, {width} x {height} px")
    expected = 12 + 8 * width * height
    if len(data) != expected:
        problem = "truncated .flo file" if len(data) < expected else ".flo file is too long"
        raise ValueError(
            f"{path}: {problem}, {expected} bytes expected for {width} x {height} px, "
            f"got {len(data)}"
        )
    interleaved = np.frombuffer(data, "<f4", offset=12).reshape(height, width, 2)
    flow = np.ascontiguousarray(interleaved.transpose(2, 0, 1), dtype=np.float32)  # [2, H, W]
    # NaN compares false: it is invalid too.
    return flow, np.all(np.abs(flow) <= _FLO_UNKNOWN_ABOVE, axis=0)


def _encode_flo(flow: np.ndarray, valid: np.ndarray) -> bytes:
    height, width = valid.shape
    header = np.array([_FLO_TAG], "<f4").tobytes() + np.array([width, height], "<i4").tobytes()
    marked = np.where(valid, flow, np.float32(_FLO_UNKNOWN))
    return header + marked.transpose(1, 2, 0).astype("<f4").tobytes()


def _decode_png(path: Path, data: bytes, encoding: str) -> tuple[np.ndarray, np.ndarray]:
    # A PNG ends with an empty IEND chunk; decoders may return a partly filled image without it.
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"{path}: not a PNG file")
    if b"IEND" not in data[-12:]:
        raise ValueError(f"{path}: truncated PNG file, its end marker is missing")
    # IMREAD_UNCHANGED: the default would silently reduce to 8 bits.
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError(f"{path}: cannot be decoded as PNG, the file is damaged")
    if image.dtype != np.uint16 or image.ndim != 3 or image.shape[2] != 3:
        channels = 1 if image.ndim == 2 else image.shape[2]
        raise ValueError(
            f"{path}: a flow PNG has 3 channels of 16 bits, "
            f"got {channels} of {8 * image.dtype.itemsize} bits"
        )
    if encoding == "dsec" and image[:, :, 0].max() > 1:
        raise ValueError(
            f"{path}: the third channel of DSEC's flow is 0 or 1 (valid), "
            f"got {image[:, :, 0].max()}; were the channels written in the order of OpenCV?"
        )
    blue_green_red = image.astype(np.float32).transpose(2, 0, 1)  # OpenCV's order, [3, H, W]
    flow = (blue_green_red[2:0:-1] - 2.0**15) / np.float32(PNG_SCALES[encoding])
    return flow, image[:, :, 0] > 0


def _encode_png(path: Path, flow: np.ndarray, valid: np.ndarray, encoding: str) -> bytes:
    scale = PNG_SCALES[encoding]
    finite = np.where(np.isfinite(flow), flow, 0)  # only invalid pixels can be other than finite
    # float64: 2^15 + 128 u passes the 24 bits of float32 at fine fractions.
    code = np.rint(finite.astype(np.float64) * scale + 2.0**15)
    clipped = np.clip(code, 0, 65535)
    # In DSEC's encoding invalid flow is written too: predictions are marked invalid everywhere.
    written = valid if encoding == "kitti" else np.ones_like(valid)
    count = int(((code != clipped).any(axis=0) & written).sum())
    if count:
        warnings.warn(
            f"{path}: {count} of {int(written.sum())} flow vectors exceed the range of the "
            f"{encoding} encoding, [{-(2**15) / scale:g}, {2**15 / scale:g}) px, and were clipped",
            stacklevel=3,
        )
    if encoding == "kitti":
        clipped = np.where(valid, clipped, 0)
    image = np.stack((valid, clipped[1], clipped[0]), axis=-1).astype(np.uint16)  # B, G, R
    done, buffer = cv2.imencode(".png", image)
    if not done:
        raise OSError(f"{path}: OpenCV could not encode the PNG")
    return buffer.tobytes()


def _decode_numpy(path: Path, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    stored_valid = None
    try:
        # No pickle: a file can then hold nothing but numbers.
        content = np.load(io.BytesIO(data), allow_pickle=False)
        if path.suffix.lower() == ".npz":
            if "flow" not in content.files:
                raise ValueError(f"key 'flow' expected, found {sorted(content.files)}")
            stored_valid = content["valid"] if "valid" in content.files else None
            content = content["flow"]
        elif not isinstance(content, np.ndarray):
            raise ValueError("it is an archive, expected one array")
    except _NUMPY_FAULTS as error:
        raise ValueError(f"{path}: not a readable {path.suffix} flow file ({error})") from error
    if content.ndim != 3 or content.shape[0] != 2 or content.dtype.kind not in "iuf":
        raise ValueError(
            f"{path}: flow must be real numbers of shape [2, H, W], "
            f"got {content.dtype} of {list(content.shape)}"
        )
    flow = content.astype(np.float32)
    valid = np.isfinite(flow).all(axis=0)
    if stored_valid is not None:
        if stored_valid.shape != valid.shape:
            raise ValueError(
                f"{path}: valid must have shape {list(valid.shape)} as the flow, "
                f"got {list(stored_valid.shape)}"
            )
        valid &= stored_valid.astype(bool)
    return flow, valid


def _encode_numpy(suffix: str, flow: np.ndarray, valid: np.ndarray) -> bytes:
    marked = np.where(valid, flow, np.float32(np.nan))
    buffer = io.BytesIO()
    if suffix == ".npy":
        np.save(buffer, marked)
    else:
        np.savez_compressed(buffer, flow=marked, valid=valid)
    return buffer.getvalue()
