"""Where the files of DSEC lie, and the small ones of them: time stamps, schedules, calibration.

Three layouts are in use, and mixtures of them::

    merged     SEQ/events/left/events.h5                 SEQ/flow/forward/*.png
    bulk       train_events/SEQ/events/left/events.h5    train_optical_flow/SEQ/flow/forward/*.png
    per file   SEQ_events_left/events.h5                 SEQ_optical_flow_forward_event/*.png

Every file is looked for in all of them, in this order, also in train/ and test/, and with the names
of the third layout inside a directory SEQ.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import yaml

from flowfuse.data.formats.hdf5 import open_hdf5

# What ``DsecFiles.find`` finds: part of the name in the bulk layout, names in the merged and bulk
# layouts, names in the per-file layout (after "SEQ_").
PLACES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "events": ("events", ("events/left/events.h5",), ("events_left/events.h5",)),
    "rectify_map": (
        "events",
        ("events/left/rectify_map.h5",),
        ("events_left/rectify_map.h5",),
    ),
    "images": ("images", ("images/left/rectified",), ("images_rectified_left",)),
    "event_view_images": ("images", ("images/left/ev_inf",), ("images_left_ev_inf",)),
    "image_times": ("images", ("images/timestamps.txt",), ("image_timestamps.txt",)),
    "exposures": (
        "images",
        ("images/left/exposure_timestamps.txt", "images/left/exposure_timestamps_left.txt"),
        ("image_exposure_timestamps_left.txt",),
    ),
    "flow": ("optical_flow", ("flow/forward",), ("optical_flow_forward_event",)),
    "flow_times": (
        "optical_flow",
        ("flow/forward_timestamps.txt",),
        # The second is what browsers make of the download.
        ("optical_flow_forward_timestamps.txt", "optical_flow_forward_timestamps.txt.txt"),
    ),
    "calibration": (
        "calibration",
        ("calibration/cam_to_cam.yaml",),
        ("calibration/cam_to_cam.yaml",),
    ),
}
SPLITS = ("train", "test")
FLOW_STEP = 2  # frames between the ends of a flow map: 100 ms of a camera at 20 Hz
_BULK = {f"{split}_{place[0]}" for split in SPLITS for place in PLACES.values()}
# Folders of the schedules; the first is how the download is spelled in places.
_SCHEDULES = (
    "test_foward_optical_flow_timestamps",
    "test_forward_optical_flow_timestamps",
    "test_optical_flow_timestamps",
)


@dataclass(frozen=True)
class DsecFiles:
    """The files of one sequence, in any layout.

    Attributes:
        root: the directory that holds the sequences.
        name: of the sequence.
    """

    root: Path
    name: str

    def candidates(self, item: str) -> list[Path]:
        """List where an item of PLACES may lie, the most usual place first."""
        kind, merged, separate = PLACES[item]
        homes = [self.root / self.name, *(self.root / split / self.name for split in SPLITS)]
        bulk = [self.root / f"{split}_{kind}" / self.name for split in SPLITS]
        paths = [home / name for home in homes[:1] + bulk + homes[1:] for name in merged]
        for name in separate:
            paths += [home.parent / f"{self.name}_{name}" for home in homes]
            paths += [home / f"{self.name}_{name}" for home in homes]
            paths += [home / name for home in homes]
        return paths

    def find(self, item: str) -> Path | None:
        """Find an item of PLACES, or None."""
        return next((path for path in self.candidates(item) if path.exists()), None)

    def get(self, item: str) -> Path:
        """Find an item of PLACES.

        Raises:
            FileNotFoundError: there is none.
        """
        path = self.find(item)
        if path is None:
            raise FileNotFoundError(self.missing(item))
        return path

    def missing(self, item: str, split: str = "train") -> str:
        """Say that an item is missing, and where it is expected in each layout."""
        kind, merged, separate = PLACES[item]
        places = [
            self.root / self.name / merged[0],
            self.root / f"{split}_{kind}" / self.name / merged[0],
            self.root / f"{self.name}_{separate[0]}",
        ]
        return f"{self.name}: {item.replace('_', ' ')} not found as {', '.join(map(str, places))}"


def find_sequence(path: str | os.PathLike) -> DsecFiles | None:
    """Find the sequence that a path names: ROOT/SEQ, whichever layout ROOT has; None if there is
    no such sequence. In the per-file layout ROOT/SEQ itself need not exist."""
    path = Path(os.path.abspath(path))
    if (path / "events.h5").is_file():  # a plain recording, whatever lies beside it
        return None
    root = path.parent.parent if path.parent.name in _BULK else path.parent
    files = DsecFiles(root, path.name)
    return files if path.name and files.find("events") is not None else None


def list_sequences(root: str | os.PathLike) -> list[str]:
    """List the sequences below a root that have events, sorted.

    Raises:
        FileNotFoundError: when there is no such directory.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such directory")
    places = [root, *(root / name for name in (*SPLITS, *(f"{s}_events" for s in SPLITS)))]
    names = {
        entry.name.removesuffix("_events_left")
        for place in places
        if place.is_dir()
        for entry in place.iterdir()
        if entry.is_dir()
    }
    return sorted(name for name in names if DsecFiles(root, name).find("events") is not None)


def read_image_times(path: Path) -> np.ndarray:
    """Read the time stamps of the images: one integer per line, microseconds.

    Returns:
        [F] int64, strictly increasing.
    """
    times = _read_rows(path, "one time in microseconds", (1,))[:, 0]
    _check_increasing(path, "times", times)
    return times


def read_exposure_times(path: Path, count: int) -> np.ndarray:
    """Read exposure intervals: "start, end" in microseconds, one line per image.

    Returns:
        [F, 2] int64.
    """
    rows = _read_rows(path, "exposure start, end in microseconds", (2,))
    if len(rows) != count:
        raise ValueError(f"{path}: {len(rows)} exposures for {count} image time stamps")
    _check_spans(path, "the exposure", rows)
    return rows


def read_flow_times(path: Path) -> np.ndarray:
    """Read the windows of flow maps: "from, to" in microseconds, one line per map.

    Returns:
        [N, 2] int64, ordered by time.
    """
    rows = _read_rows(path, "from, to in microseconds", (2, 3))[:, :2]
    _check_spans(path, "the flow", rows)
    _check_increasing(path, "from", rows[:, 0])
    return rows


def read_schedule(path: Path) -> np.ndarray:
    """Read what the benchmark wants of a test sequence.

    Args:
        path: lines "from_timestamp_us, to_timestamp_us, file_index".

    Returns:
        [N, 3] int64: from, to (microseconds), number of the file; ordered by time.
    """
    rows = _read_rows(path, "from_timestamp_us, to_timestamp_us, file_index", (3,))
    _check_spans(path, "the flow", rows[:, :2])
    _check_increasing(path, "from_timestamp_us", rows[:, 0])
    _check_increasing(path, "file_index", rows[:, 2])
    return rows


def find_schedule(files: DsecFiles, directory: Path | None = None) -> Path | None:
    """Find the schedule of a test sequence: SEQ.csv in ``directory`` if that is given, else in the
    folders where the download and known loaders have it; None if there is none."""
    name = f"{files.name}.csv"
    if directory is not None:
        places = [directory / name]
    else:
        parents = [files.root, files.root / "test"]
        places = [parent / folder / name for folder in _SCHEDULES for parent in parents]
        homes = [parent / files.name for parent in parents]
        homes.append(files.root / "test_optical_flow" / files.name)
        places += [home / "test_forward_flow_timestamps.csv" for home in homes]
        places += [home / "flow" / "forward_timestamps.txt" for home in homes]
        places += [parent / name for parent in parents]
    return next((path for path in places if path.is_file()), None)


def read_rectify_map(path: Path) -> np.ndarray:
    """Read where each raw pixel of the event camera lies in the rectified view.

    Returns:
        [H, W, 2] float32: [y, x] -> (x_rect, y_rect). It leads from raw to rectified, so it is no
        map for cv2.remap.
    """
    with open_hdf5(path) as file:
        found = sorted(file)
        data = file.get("rectify_map")
        values = data[()] if isinstance(data, h5py.Dataset) else None
    if values is None:
        raise ValueError(f"{path}: the data set 'rectify_map' expected, found {found}")
    if values.ndim != 3 or values.shape[2] != 2 or values.dtype.kind != "f":
        raise ValueError(
            f"{path}: rectify_map must be float32 of shape [H, W, 2], "
            f"got {values.dtype} of {list(values.shape)}"
        )
    if not np.isfinite(values).all():
        y, x, _ = np.unravel_index(int(np.argmin(np.isfinite(values))), values.shape)
        raise ValueError(f"{path}: rectify_map must be finite, got {values[y, x]} at [{y}, {x}]")
    return values.astype(np.float32, copy=False)


def read_view_change(path: Path) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Read how rectified images are brought into the rectified event view from cam_to_cam.yaml.

    P = K_rect0 R_rect0 R_10^T R_rect1^T K_rect1^-1, cam0 being the left event camera and cam1 the
    left frame camera. The homography is exact at infinite depth: the translation between the
    cameras, which it leaves out, shifts near objects by a few pixels.

    Returns:
        P, [3, 3] float64: pixels (x, y, 1) of the image to pixels of the event view; and (height,
        width) of the images where the file states it.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from error

    def read(*keys: str, shape: tuple[int, ...]) -> np.ndarray:
        value, name = content, ".".join(keys)
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                raise ValueError(f"{path}: key {name} expected, {key!r} is missing")
            value = value[key]
        try:
            array = np.array(value, np.float64)
        except (TypeError, ValueError):
            array = np.empty(0)
        if array.shape != shape or not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} must be finite numbers of shape {list(shape)}")
        return array

    def camera(name: str) -> np.ndarray:
        fx, fy, cx, cy = read("intrinsics", name, "camera_matrix", shape=(4,))
        if fx <= 0 or fy <= 0:
            raise ValueError(f"{path}: the focal lengths of {name} must be positive")
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])

    def rotation(name: str, matrix: np.ndarray) -> np.ndarray:
        if not np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-4) or np.linalg.det(matrix) < 0:
            raise ValueError(f"{path}: extrinsics.{name} is not a rotation")
        return matrix

    between = rotation("T_10", read("extrinsics", "T_10", shape=(4, 4))[:3, :3])
    to_rect0 = rotation("R_rect0", read("extrinsics", "R_rect0", shape=(3, 3)))
    to_rect1 = rotation("R_rect1", read("extrinsics", "R_rect1", shape=(3, 3)))
    from_image = np.linalg.inv(camera("camRect1"))
    size = None
    if "resolution" in content["intrinsics"]["camRect1"]:
        width, height = read("intrinsics", "camRect1", "resolution", shape=(2,))
        size = int(height), int(width)
    return camera("camRect0") @ to_rect0 @ between.T @ to_rect1.T @ from_image, size


def _read_rows(path: Path, expected: str, widths: tuple[int, ...]) -> np.ndarray:
    """Integers separated by commas, [N, columns] int64. A header and # comments are skipped."""
    rows: list[list[int]] = []
    for number, fields in _numbered_rows(path):
        try:
            row = [int(field) for field in fields]
        except ValueError:
            if not rows and not any(field[:1].isdigit() for field in fields):
                continue  # names of columns
            row = []
        if len(row) not in widths or (rows and len(row) != len(rows[0])):
            raise ValueError(f"{path}, line {number}: {expected} expected, found {fields}")
        if min(row) < 0 or max(row) >= 2**62:
            raise ValueError(f"{path}, line {number}: {expected} expected, out of range: {fields}")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no line found, expected lines of {expected}; is it truncated?")
    return np.array(rows, np.int64)


def _numbered_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error})") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, [field.strip() for field in line.split(",")]


def _check_increasing(path: Path, name: str, values: np.ndarray) -> None:
    wrong = np.flatnonzero(np.diff(values) <= 0)
    if len(wrong):
        index = int(wrong[0]) + 1
        raise ValueError(
            f"{path}: {name} must increase, row {index} has {values[index]} "
            f"after {values[index - 1]}"
        )


def _check_spans(path: Path, what: str, rows: np.ndarray) -> None:
    wrong = np.flatnonzero(rows[:, 1] <= rows[:, 0])
    if len(wrong):
        start, end = rows[wrong[0]].tolist()
        raise ValueError(
            f"{path}: {what} of row {int(wrong[0])} ends at {end} us, not after its start {start}"
        )
