"""Cameras that do nothing but turn: ground truth from a gyroscope, or from given rates.

The rotation sequences of the Event Camera Dataset (Mueggler et al., IJRR 2017), as they unpack, and
own recordings of that layout::

    SEQ/events.txt, images.txt, images/   as of any camera
       /calib.txt                         fx fy cx cy k1 k2 p1 p2 k3
       /imu.txt                           t ax ay az gx gy gz; s, m/s^2, rad/s
       /rates.txt                         in place of imu.txt: t wx wy wz; s, rad/s
       /R_imu.txt                         optional, 3 x 3: directions of the camera = R those of imu

A folder is one of these if it has calib.txt and either rates.txt, or imu.txt and a name that ends
in ``rotation``. The flow of a turning camera needs no depth. What the camera moved besides is not
in it: at a distance of Z, v m/s are f v / Z px/s.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np

from flowfuse.data.calibration import Camera
from flowfuse.data.datasets.base import DataSet
from flowfuse.data.datasets.directory import DirectoryRecording, open_directory
from flowfuse.data.recording import Flow

NAME = "rotation"  # what the data set's sequences end in
TIMES = (0.25, 0.5, 0.75)  # tau at which errors are reported
INTERVAL = 50_000  # us, of events without frames
LARGEST_GAP = 50_000  # us between two rates, beyond which nothing is known
_CALIBRATION = 9  # numbers
_LAST_SECOND = 9e12  # more do not fit int64 microseconds


class RotationRecording(DirectoryRecording):
    """A recording of a turning camera.

    Args:
        path: of the folder.

    Raises:
        ValueError: naming the file, what was found and what was expected.
    """

    def __init__(self, path: Path) -> None:
        plain = open_directory(path)
        super().__init__(path, plain._event_file, plain._frame_source)
        self._camera = read_lens(path / "calib.txt", self.height, self.width)
        self._times, self._rates = read_rates(path)
        self._rays: np.ndarray | None = None
        self.ground_truth_times = TIMES
        if not self.has_frames and self.event_range is not None:
            first, last = self.event_range
            starts = np.arange(first + INTERVAL, last + 2 - INTERVAL, INTERVAL)  # with history
            self.ground_truth_intervals = np.stack((starts, starts + INTERVAL), axis=1)

    def ground_truth_at(self, index: int, tau: float) -> Flow | None:
        """Ground truth from frame ``index`` to the fraction tau of the way to the next.

        Args:
            index: frame; without frames, of ``ground_truth_intervals``.
            tau: in (0, 1].

        Returns:
            flow [2, H, W] float32 (px, of the raw, distorted image) and valid [H, W] bool, False
            where the lens has no image of a pixel; None where the rates do not cover the time.
        """
        interval = self._interval(index)
        if interval is None or not 0 < tau <= 1:
            return None
        t0, t1 = interval
        return self.rotation_flow(t0, t0 + round(tau * (t1 - t0)))

    def has_ground_truth(self, index: int) -> bool:
        """Whether the rates cover the time from frame ``index`` to the next."""
        interval = self._interval(index)
        return interval is not None and integrate(self._times, self._rates, *interval) is not None

    def _interval(self, index: int) -> tuple[int, int] | None:
        """Start and end of a frame pair, or of an interval without frames."""
        spans = self.ground_truth_intervals
        if self.has_frames:
            spans = np.stack((self.frame_times[:-1], self.frame_times[1:]), axis=1)
        return (int(spans[index, 0]), int(spans[index, 1])) if 0 <= index < len(spans) else None

    def rotation_flow(self, t0: int, t1: int) -> Flow | None:
        """Ground truth of any time interval [t0, t1), microseconds, as :meth:`ground_truth_at`."""
        turned = integrate(self._times, self._rates, t0, t1)
        if turned is None:
            return None
        y, x = np.mgrid[: self.height, : self.width].astype(np.float64)
        pixels = np.stack((x.ravel(), y.ravel()), axis=1)
        if self._rays is None:
            rays = self._camera.undistort(pixels)
            self._rays = np.concatenate((rays, np.ones((len(rays), 1))), axis=1)
        # A direction x of the camera at t0 is R^T x at t1; for row vectors, x R.
        moved = self._rays @ turned
        places = np.full_like(pixels, np.nan)
        seen = moved[:, 2] > 1e-6
        places[seen] = self._camera.project(moved[seen, :2] / moved[seen, 2:])
        flow = (places - pixels).T.reshape(2, self.height, self.width).astype(np.float32)
        valid = np.isfinite(flow).all(axis=0)
        return np.where(valid, flow, np.float32(0)), valid


class RotationDataSet(DataSet):
    """Folders of turning cameras."""

    name = "rotation"
    own_calibration = "its lens is in calib.txt, and its flow is that of the raw image"

    def matches(self, path: Path) -> bool:
        if not (path / "calib.txt").is_file():
            return False
        named = path.name.endswith(NAME) and (path / "imu.txt").is_file()
        return named or (path / "rates.txt").is_file()

    def open(self, path: Path) -> RotationRecording:
        return RotationRecording(path)


DATASET = RotationDataSet()


def read_lens(path: Path, height: int, width: int) -> Camera:
    """Read calib.txt: fx fy cx cy k1 k2 p1 p2 k3.

    Raises:
        ValueError: it holds something else.
    """
    try:
        numbers = [
            float(word) for word in path.read_text(encoding="utf-8-sig", errors="replace").split()
        ]
    except ValueError:
        numbers = []
    known = len(numbers) == _CALIBRATION and np.isfinite(numbers).all()
    if not known or not min(numbers[:2]) > 0:
        raise ValueError(
            f"{path}: fx fy cx cy k1 k2 p1 p2 k3 expected, found {len(numbers)} numbers"
        )
    fx, fy, cx, cy = numbers[:4]
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    return Camera(height, width, matrix, np.array(numbers[4:]))


def read_rates(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the rates of rotation of a folder, in the axes of its camera.

    Returns:
        [N] int64 microseconds, increasing; [N, 3] rad/s about x (right), y (down), z (forward).

    Raises:
        ValueError: naming the file, what was found and what was expected.
    """
    given, imu = path / "rates.txt", path / "imu.txt"
    file, columns, what = (given, 4, "t wx wy wz") if given.is_file() else (imu, 7, "t a[3] g[3]")
    table = _read_table(file, what)
    if table.shape[1] != columns:
        raise ValueError(f"{file}: lines {what!r} expected, found {table.shape[1]} columns")
    if not (np.isfinite(table).all() and np.abs(table[:, 0]).max() < _LAST_SECOND):
        raise ValueError(f"{file}: finite numbers and times expected in lines {what!r}")
    times = np.rint(table[:, 0] * 1e6).astype(np.int64)
    if (np.diff(times) <= 0).any():
        line = int(np.argmax(np.diff(times) <= 0)) + 2
        raise ValueError(f"{file}, line {line}: times must increase")
    rates, turn = table[:, -3:], path / "R_imu.txt"
    if turn.is_file():
        matrix = _read_table(turn, "a b c")
        whole = matrix.shape == (3, 3) and np.isfinite(matrix).all()
        if not whole or np.abs(matrix @ matrix.T - np.eye(3)).max() > 1e-3:
            raise ValueError(f"{turn}: a rotation, 3 x 3, expected")
        rates = rates @ matrix.T
    return times, rates


def _read_table(path: Path, what: str) -> np.ndarray:
    """Numbers in lines, [N, columns]."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns of a file without numbers
            return np.loadtxt(path, ndmin=2)
    except (ValueError, UserWarning) as error:
        raise ValueError(f"{path}: lines {what!r} expected ({error})") from None


def integrate(times: np.ndarray, rates: np.ndarray, t0: int, t1: int) -> np.ndarray | None:
    """The rotation of a camera over [t0, t1): a direction x at t1 was R x at t0, [3, 3].

    Args:
        times, rates: of :func:`read_rates`; linear in between.
        t0, t1: microseconds.

    Returns:
        None where the rates do not cover the time, or have a gap of more than LARGEST_GAP in it.
    """
    inner = times[(times > t0) & (times < t1)]
    steps = np.concatenate(([t0], inner, [t1]))
    if not len(times) or t0 < times[0] or t1 > times[-1]:
        return None
    around = times[max(np.searchsorted(times, t0, "right") - 1, 0) : np.searchsorted(times, t1) + 1]
    if len(around) > 1 and np.diff(around).max() > LARGEST_GAP:
        return None
    middles = (steps[:-1] + steps[1:]) / 2
    turned = np.eye(3)
    at = np.stack([np.interp(middles, times, rates[:, axis]) for axis in range(3)], axis=1)
    for rate, seconds in zip(at, np.diff(steps) * 1e-6, strict=True):
        turned = turned @ cv2.Rodrigues(rate * seconds)[0]
    return turned
