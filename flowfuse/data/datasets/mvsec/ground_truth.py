"""Ground truth of MVSEC: maps at about 20 Hz, followed from one frame time to another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from flowfuse.data.formats.hdf5 import find_dataset, increasing_microseconds, open_hdf5
from flowfuse.data.formats.npz import map_member, open_npz

GROUP = "davis/left"
Flow = tuple[np.ndarray, np.ndarray]  # flow [2, H, W] float32 px, valid [H, W] bool


class FlowMaps:
    """Ground truth: map i holds the displacement of every pixel from times[i] to times[i + 1].

    Args:
        path: ``_gt.hdf5`` (``davis/left/flow_dist`` [F, 2, H, W] px and ``flow_dist_ts`` [F] s) or
            ``_gt_flow_dist.npz`` (``x_flow_dist``, ``y_flow_dist`` [F, H, W] px, ``timestamps``
            [F] s).

    Attributes:
        times: [F] int64, microseconds.
        size: (height, width), px.

    Raises:
        FileNotFoundError, ValueError: naming the file, the key and what was expected.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file of ground truth")
        self.path = path
        self._arrays = _map_arrays(path) if path.suffix == ".npz" else None
        if self._arrays is None:
            with open_hdf5(path) as file:
                maps = find_dataset(path, file, f"{GROUP}/flow_dist", "[F, 2, H, W]", "f")
                seconds = find_dataset(path, file, f"{GROUP}/flow_dist_ts", "[F]", "f")[:]
                shape = maps.shape
            if shape[1] != 2:
                raise ValueError(
                    f"{path}: {GROUP}/flow_dist must have shape [F, 2, H, W], got {list(shape)}"
                )
        else:
            seconds, shape = self._arrays["timestamps"], self._arrays["x_flow_dist"].shape
        self.size = (int(shape[-2]), int(shape[-1]))
        self.times = increasing_microseconds(path, "flow times", seconds)
        if len(self.times) != shape[0]:
            raise ValueError(f"{path}: {len(self.times)} times for {shape[0]} flow maps")
        if len(self.times) < 2:
            raise ValueError(f"{path}: at least 2 flow maps expected, found {len(self.times)}")

    def __len__(self) -> int:
        return len(self.times)

    def read(self, index: int) -> np.ndarray:
        """Map ``index``, [2, H, W] float32 px, as it is in the file (0 or not finite = unknown)."""
        if self._arrays is not None:
            parts = (self._arrays[f"{axis}_flow_dist"][index] for axis in "xy")
            return np.stack([np.asarray(part, np.float32) for part in parts])
        with open_hdf5(self.path) as file:
            return np.asarray(file[f"{GROUP}/flow_dist"][index], np.float32)

    def between(self, t0: int, t1: int, *, straddle: bool = False) -> Flow | None:
        """Ground truth from t0 to t1 (microseconds); see :func:`propagate_flow`.

        Returns:
            flow [2, H, W] float32 px, and where it is valid [H, W] bool: finite and not (0, 0),
            which is how these maps mark the unknown. None where no map covers the time.
        """
        if t0 < self.times[0] or t1 > self.times[-1]:
            return None
        flow = propagate_flow(self.read, self.times, t0, t1, straddle=straddle)
        valid = np.isfinite(flow).all(axis=0) & (flow != 0).any(axis=0)
        return np.where(valid, flow, np.float32(0)), valid


def propagate_flow(
    read: Callable[[int], np.ndarray],
    times: np.ndarray,
    t0: int,
    t1: int,
    *,
    straddle: bool = False,
) -> np.ndarray:
    """Follow flow maps from t0 to t1.

    Within one map's interval the flow is that map's, scaled by the share of the interval. Over
    several, every pixel moves from map to map: the flow is looked up at the pixel nearest to where
    it has come (halves go to the even one), the first and last map counting by their share. A
    component that is exactly 0 at any look-up is 0 in the end, and outside of the image all is 0:
    in these maps, 0 is how the unknown is marked.

    Args:
        read: index -> map [2, H, W], px from times[i] to times[i + 1].
        times: [F] int64 us, increasing; times[0] <= t0 < t1 <= times[-1].
        straddle: scale the first map alone, too, where its interval is longer than t1 - t0 but ends
            before t1, as the code of EV-FlowNet does.

    Returns:
        [2, H, W] float32, px.

    Raises:
        ValueError: t0 or t1 are not covered, or t1 <= t0.
    """
    if not times[0] <= t0 < t1 <= times[-1]:
        raise ValueError(
            f"flow from {t0} to {t1} us: expected t0 < t1 within the maps' times, "
            f"{times[0]} to {times[-1]} us"
        )
    index = int(np.searchsorted(times, t0, side="right")) - 1
    interval = int(times[index + 1] - times[index])
    if t1 <= times[index + 1] or (straddle and interval > t1 - t0):
        return read(index) * np.float32((t1 - t0) / interval)
    height, width = read(index).shape[1:]
    start = np.stack(np.meshgrid(np.arange(width), np.arange(height))).astype(np.float32)
    position, known = start.copy(), np.ones(start.shape, bool)
    while times[index] < t1:
        begin, end = max(t0, times[index]), min(t1, times[index + 1])
        share = (end - begin) / (times[index + 1] - times[index])
        step = _nearest(read(index), position)
        known &= step != 0
        position += step * np.float32(share)
        index += 1
    return np.where(known, position - start, np.float32(0))


def _nearest(image: np.ndarray, position: np.ndarray) -> np.ndarray:
    """[2, H, W] at the pixels nearest to positions [2, H, W]; 0 outside of the image."""
    height, width = image.shape[1:]
    with np.errstate(invalid="ignore"):  # positions are NaN once a map was
        column, row = np.rint(position)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    column, row = (np.where(inside, part, 0).astype(int) for part in (column, row))
    return np.where(inside, image[:, row, column], np.float32(0))


def _map_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of ``_gt_flow_dist.npz`` as memory maps."""
    shapes = {"timestamps": "[F]", "x_flow_dist": "[F, H, W]", "y_flow_dist": "[F, H, W]"}
    with open_npz(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        missing = [name for name in shapes if name not in names]
        if missing:
            raise ValueError(f"keys {list(shapes)} expected, found {names}, missing {missing}")
        arrays = {name: map_member(path, archive, name) for name in shapes}
        for name, array in arrays.items():
            if array.ndim != shapes[name].count(",") + 1 or array.dtype.kind != "f":
                raise ValueError(
                    f"{name} must be floating of shape {shapes[name]}, "
                    f"got {array.dtype} of {list(array.shape)}"
                )
        if arrays["x_flow_dist"].shape != arrays["y_flow_dist"].shape:
            x, y = (list(arrays[f"{axis}_flow_dist"].shape) for axis in "xy")
            raise ValueError(f"x_flow_dist is {x}, y_flow_dist is {y}; they must agree")
    return arrays
