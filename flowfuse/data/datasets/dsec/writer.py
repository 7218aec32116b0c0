"""Writing sequences in the files of DSEC, byte for byte as its readers expect them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import cv2
import hdf5plugin
import numpy as np
import yaml

from flowfuse.data.datasets.dsec.files import FLOW_STEP, PLACES, find_sequence
from flowfuse.data.formats.hdf5_output import Hdf5Output
from flowfuse.events import Events
from flowfuse.io.atomic import atomic_path
from flowfuse.io.flow import write_flow
from flowfuse.visualization import as_rgb, write_image

Layout = Literal["merged", "bulk", "per_file"]
LAYOUTS: tuple[str, ...] = get_args(Layout)
Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Rig:
    """A left event camera (cam0) and a left frame camera (cam1), as in cam_to_cam.yaml.

    Attributes:
        size, image_size: (height, width) of the event sensor and of the images, px.
        camera, distortion: fx, fy, cx, cy and k1, k2, p1, p2 of the raw event camera.
        rectified, rectified_image: fx, fy, cx, cy of the two rectified views.
        rotation, image_rotation: [3, 3], R_rect0 and R_rect1, from a camera to its rectified view.
        transform: [4, 4], T_10, from cam0 to cam1, metres.
    """

    size: tuple[int, int]
    image_size: tuple[int, int]
    camera: tuple[float, ...]
    distortion: tuple[float, ...]
    rectified: tuple[float, ...]
    rectified_image: tuple[float, ...]
    rotation: Matrix
    image_rotation: Matrix
    transform: Matrix

    def rectify(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Rectified positions of raw positions, [N] px each: [N, 2] float64 (x, y)."""
        points = np.stack((x, y), axis=-1).astype(np.float64)[:, None]
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-9)
        rectified = cv2.undistortPoints(
            points, _matrix(self.camera), np.array(self.distortion), None,
            np.array(self.rotation), _matrix(self.rectified), criteria,
        )  # fmt: skip
        return rectified[:, 0]

    def distort(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Raw positions of rectified positions, [N] px each: [N, 2] float64 (x, y)."""
        rays = np.stack((x, y, np.ones(len(x))), axis=-1) @ np.linalg.inv(_matrix(self.rectified)).T
        rays = rays @ np.array(self.rotation)  # R^T from the left is R from the right
        still = np.zeros(3)
        raw, _ = cv2.projectPoints(
            rays[:, None], still, still, _matrix(self.camera), np.array(self.distortion)
        )
        return raw[:, 0]

    def rectify_map(self) -> np.ndarray:
        """[H, W, 2] float32: [y, x] -> rectified (x, y)."""
        height, width = self.size
        y, x = (axis.ravel() for axis in np.mgrid[:height, :width])
        return self.rectify(x, y).reshape(height, width, 2).astype(np.float32)

    def image_to_event_view(self) -> np.ndarray:
        """[3, 3]: rectified image pixels to rectified event pixels, at infinite depth."""
        between = np.array(self.transform)[:3, :3]
        to_event = np.array(self.rotation) @ between.T @ np.array(self.image_rotation).T
        image = np.linalg.inv(_matrix(self.rectified_image))
        return _matrix(self.rectified) @ to_event @ image

    def to_yaml(self) -> str:
        """The text of cam_to_cam.yaml."""

        def camera(parameters: tuple[float, ...], size: tuple[int, int], **more: object) -> dict:
            return {"camera_matrix": list(parameters), "resolution": [size[1], size[0]], **more}

        model = {"camera_model": "pinhole", "distortion_model": "radtan"}
        content = {
            "intrinsics": {
                "cam0": camera(
                    self.camera, self.size, distortion_coeffs=list(self.distortion), **model
                ),
                "camRect0": camera(self.rectified, self.size, camera_model="pinhole"),
                "camRect1": camera(self.rectified_image, self.image_size, camera_model="pinhole"),
            },
            "extrinsics": {
                "T_10": [list(row) for row in self.transform],
                "R_rect0": [list(row) for row in self.rotation],
                "R_rect1": [list(row) for row in self.image_rotation],
            },
        }
        return yaml.safe_dump(content, sort_keys=False)


def default_rig(size: tuple[int, int], image_size: tuple[int, int]) -> Rig:
    """A rig like DSEC's: a barrel-distorted event camera and a slightly wider frame camera, a few
    degrees apart.

    Args:
        size, image_size: (height, width) of the event sensor and of the images, px.
    """

    def centred(focal: float, height: int, width: int, shift: float = 0.0) -> tuple[float, ...]:
        return focal, focal, (width - 1) / 2 + shift, (height - 1) / 2 - shift

    height, width = size
    # Focal lengths in units of the width, of the height where the image is flatter than usual.
    event_focal = 0.88 * max(width, 4 / 3 * height)
    image_focal = 0.79 * max(image_size[1], 4 / 3 * image_size[0])
    transform = np.eye(4)
    transform[:3, :3] = _rotation(0.004, -0.006, 0.003)
    transform[:3, 3] = (-0.04, 0.002, 0.001)
    return Rig(
        size=size,
        image_size=image_size,
        camera=centred(event_focal, height, width, 0.01 * width),
        distortion=(-0.15, 0.04, 4e-4, -3e-4),
        rectified=centred(event_focal, height, width),
        rectified_image=centred(image_focal, *image_size, -0.005 * image_size[1]),
        rotation=_rows(_rotation(-0.003, 0.004, 0.006)),
        image_rotation=_rows(_rotation(0.002, 0.003, -0.004)),
        transform=_rows(transform),
    )


def write_sequence(  # noqa: PLR0913 - one argument for each kind of file
    root: str | os.PathLike,
    name: str,
    events: Events,
    frames: Sequence[np.ndarray] | np.ndarray,
    frame_times: Sequence[int] | np.ndarray,
    *,
    exposures: np.ndarray | None = None,
    flow: Mapping[int, tuple[np.ndarray, np.ndarray]] | None = None,
    rig: Rig | None = None,
    image_size: tuple[int, int] = (1080, 1440),
    event_view_images: bool = False,
    layout: Layout = "merged",
    split: Literal["train", "test"] = "train",
    t_offset: int = 54_000_000_000,
) -> Path:
    """Write what was seen in the rectified event view as a sequence of DSEC, whole or not at all.

    Events move to the nearest raw pixel of the rig's event camera (those beyond its border are
    lost), frames into the rectified view of its frame camera.

    Args:
        root: the directory of the data set; it may hold other sequences.
        name: of the sequence.
        events: at pixels of the rectified event view, with height and width; times from about 0.
        frames: [F, H, W] or [F, H, W, 3] RGB, uint8, in the same view.
        frame_times: [F] increasing integer microseconds, mid-exposure, of the events' clock.
        exposures: [F] durations, centred on the frame times, us.
        flow: first frame -> flow [2, H, W] px to the second next frame, and valid [H, W] bool.
        rig: the two cameras; None takes :func:`default_rig`.
        image_size: (height, width) of the images where ``rig`` is None, px.
        event_view_images: store the frames as they are in images/left/ev_inf, and no others.
        layout: "merged", "bulk" or "per_file".
        split: names the folders of the bulk layout.
        t_offset: microseconds, added to all times.

    Returns:
        ROOT/SEQ, which :func:`flowfuse.data.datasets.dsec.sequence.open_sequence` opens.

    Raises:
        ValueError: naming the argument at fault, or when the sequence is there already.
        OSError: a file cannot be written.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"write_sequence: layout must be one of {LAYOUTS}, got {layout!r}")
    check_new_sequence(root, name)
    if events.height is None or events.width is None:
        raise ValueError("write_sequence: events must know the height and width of their sensor")
    root, times = Path(root), np.asarray(frame_times, np.int64)
    size = (events.height, events.width)
    rig = default_rig(size, image_size) if rig is None else rig
    _check(events, frames, times, flow or {}, rig)

    root.mkdir(parents=True, exist_ok=True)
    # Beside its place until all is written: after an error or Ctrl-C nothing of it is left.
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}.") as directory:
        written: dict[Path, Path] = {}  # where a file or folder is, and where it belongs

        def place(item: str) -> Path:
            kind, merged, separate = PLACES[item]
            path = Path(f"{name}_{separate[0]}")
            if layout != "per_file":
                path = Path("" if layout == "merged" else f"{split}_{kind}", name, merged[0])
            if (root / path).exists():
                raise ValueError(f"{root / path}: exists already, but {name} has no events")
            here = Path(directory, path)
            here.parent.mkdir(parents=True, exist_ok=True)
            written[here] = root / path
            return here

        images = place("event_view_images" if event_view_images else "images")
        images.mkdir()
        for index, frame in enumerate(frames):
            image = as_rgb(frame) if event_view_images else _to_image_view(as_rgb(frame), rig)
            write_image(images / f"{index:06d}.png", image)
        _write_text(place("image_times"), [str(t) for t in times + t_offset])
        if exposures is not None:
            begin = times + t_offset - np.asarray(exposures, np.int64) // 2
            spans = np.stack((begin, begin + exposures), axis=1)
            header = "# exposure_start_timestamp_us, exposure_end_timestamp_us"
            _write_text(place("exposures"), [header, *_joined(spans)])
        if flow:
            maps, firsts = place("flow"), sorted(flow)
            maps.mkdir()
            for index in firsts:
                write_flow(maps / f"{index:06d}.png", *flow[index], encoding="dsec")
            spans = np.stack((times[firsts], times[np.add(firsts, FLOW_STEP)]), axis=1) + t_offset
            _write_text(
                place("flow_times"), ["# from_timestamp_us, to_timestamp_us", *_joined(spans)]
            )
        _write_text(place("calibration"), [rig.to_yaml().rstrip()])
        with atomic_path(place("rectify_map")) as path, Hdf5Output(path) as file:
            file.put("rectify_map", rig.rectify_map(), **_packing())
        # Last: a sequence is one that has events.
        write_raw_events(place("events"), _to_raw(events, rig), t_offset)
        for here, path in written.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            here.replace(path)
    return root / name


def check_new_sequence(root: str | os.PathLike, name: str) -> None:
    """Refuse, before the work is done, a name that :func:`write_sequence` would refuse.

    Raises:
        ValueError: it names no folder in the root, or a sequence that is there already.
    """
    if Path(name).name != name or name in ("", ".."):
        raise ValueError(f"write_sequence: name must be one of a folder in {root}, got {name!r}")
    if find_sequence(Path(root) / name) is not None:
        raise ValueError(f"{Path(root) / name}: this sequence exists already")


def write_raw_events(path: Path, events: Events, t_offset: int) -> None:
    """Write an events.h5: blosc with zstd, ms_to_idx and t_offset.

    Args:
        path: of the file.
        events: at raw pixels, times without the offset (below 2^32 us).
        t_offset: microseconds.
    """
    if len(events) and events.t[-1] >= 2**32:
        raise ValueError(f"{path}: event times must be below 2^32 us, got {events.t[-1]}")
    milliseconds = np.arange(int(events.t[-1]) // 1000 + 1 if len(events) else 1)
    columns = {
        "events/x": events.x.astype(np.uint16),
        "events/y": events.y.astype(np.uint16),
        "events/t": events.t.astype(np.uint32),
        "events/p": events.p,
        "ms_to_idx": np.searchsorted(events.t, 1000 * milliseconds).astype(np.uint64),
    }
    with atomic_path(path) as temporary, Hdf5Output(temporary) as file:
        for name, values in columns.items():
            file.put(name, values, **_packing())
        file.put("t_offset", np.asarray(t_offset, np.int64))


def _check(
    events: Events,
    frames: Sequence[np.ndarray] | np.ndarray,
    times: np.ndarray,
    flow: Mapping[int, tuple[np.ndarray, np.ndarray]],
    rig: Rig,
) -> None:
    size = (events.height, events.width)
    if rig.size != size:
        raise ValueError(f"write_sequence: rig is of {rig.size} px, the events of {size}")
    if len(frames) != len(times) or (np.diff(times) <= 0).any():
        raise ValueError(
            f"write_sequence: frame_times must increase and be one per frame, got {len(times)} "
            f"for {len(frames)} frames"
        )
    for index, frame in enumerate(frames):
        if frame.dtype != np.uint8 or frame.shape[:2] != size:
            raise ValueError(
                f"write_sequence: frame {index} must be uint8 of {size} px as the events, "
                f"got {frame.dtype} {list(frame.shape)}"
            )
    outside = [index for index in flow if not 0 <= index < len(times) - FLOW_STEP]
    if outside:
        raise ValueError(
            f"write_sequence: flow of frame {outside[0]} ends at frame {outside[0] + FLOW_STEP}, "
            f"but there are {len(times)} frames"
        )


def _to_raw(events: Events, rig: Rig) -> Events:
    x, y = np.rint(rig.distort(events.x, events.y)).astype(np.int32).T if len(events) else ([], [])
    x, y = np.asarray(x, np.int32), np.asarray(y, np.int32)
    height, width = rig.size
    kept = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return Events(x[kept], y[kept], events.t[kept], events.p[kept], height=height, width=width)


def _to_image_view(frame: np.ndarray, rig: Rig) -> np.ndarray:
    height, width = rig.image_size
    return cv2.warpPerspective(
        frame,
        np.linalg.inv(rig.image_to_event_view()),
        (width, height),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _matrix(parameters: tuple[float, ...]) -> np.ndarray:
    fx, fy, cx, cy = parameters
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _rotation(*axis_angle: float) -> np.ndarray:
    return cv2.Rodrigues(np.array(axis_angle))[0]


def _rows(matrix: np.ndarray) -> Matrix:
    return tuple(tuple(map(float, row)) for row in matrix)


def _joined(rows: np.ndarray) -> list[str]:
    return [", ".join(map(str, row)) for row in rows.tolist()]


def _write_text(path: Path, lines: Sequence[str]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def _packing() -> dict[str, object]:
    return {
        "chunks": True,
        **hdf5plugin.Blosc(cname="zstd", clevel=3, shuffle=hdf5plugin.Blosc.SHUFFLE),
    }
