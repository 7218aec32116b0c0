"""Events of an event camera: validated arrays of position, time and polarity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class Events:
    """A sequence of events (x, y, t, p), sorted by time.

    Integer coordinates are pixels of the sensor; float coordinates are sub-pixel positions, as
    rectification gives them (an integer is the centre of a pixel). The given arrays are never
    modified; those that already have the right dtype are kept without a copy.

    Args:
        x: [N] column, px: any integer dtype, or floating (kept as float32). numpy, torch or list.
        y: [N] row, px, as x. If either of x, y is floating, both become float32.
        t: [N] time, integer microseconds, >= 0, non-decreasing.
        p: [N] polarity: bool, {0, 1} or {-1, 1}. Stored as uint8 {0, 1}.
        height: rows of the sensor, or None when unknown.
        width: columns of the sensor, or None when unknown.

    Attributes:
        x, y: [N] uint16, int32 or float32, both the same.
        t: [N] int64, microseconds.
        p: [N] uint8, 1 for brighter, 0 for darker.
        height, width: as given.

    Raises:
        ValueError: naming the array, the index and the value at fault. With height and width
            given, integer coordinates must be pixels of the sensor; float ones must be closer than
            1 px to one (-1 < x < width), so that they have a share in some pixel.
    """

    __slots__ = ("height", "p", "t", "width", "x", "y")

    def __init__(
        self, x: Any, y: Any, t: Any, p: Any, *, height: int | None = None, width: int | None = None
    ) -> None:
        given = {"x": x, "y": y, "t": t, "p": p}
        arrays = {name: _vector(name, value) for name, value in given.items()}
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise ValueError(f"Events: x, y, t and p must have the same length, got {found}")
        self.height = _sensor_side("height", height)
        self.width = _sensor_side("width", width)
        self.t = _times(arrays["t"])
        self.p = _polarities(arrays["p"])
        x, y = _coordinates("x", arrays["x"]), _coordinates("y", arrays["y"])
        if x.dtype.kind == "f" or y.dtype.kind == "f":
            x, y = x.astype(np.float32, copy=False), y.astype(np.float32, copy=False)
        elif x.dtype != y.dtype:
            x, y = x.astype(np.int32, copy=False), y.astype(np.int32, copy=False)
        self.x, self.y = x, y
        _check_inside("x", x, self.width, "width", self.height, self.width)
        _check_inside("y", y, self.height, "height", self.height, self.width)

    def __len__(self) -> int:
        return len(self.t)

    def __repr__(self) -> str:
        sensor = f"{self.width} x {self.height}" if self.width and self.height else "unknown sensor"
        span = f"{self.t[0]} to {self.t[-1]} us" if len(self) else "empty"
        return f"Events({len(self)}, {span}, {sensor}, {self.x.dtype} coordinates)"

    def __getitem__(self, part: slice | np.ndarray) -> Events:
        """The events of a slice, as views of these, or of a mask [N] bool, as copies.

        Raises:
            ValueError: anything else, such as indices, which might break the order of time.
        """
        is_mask = isinstance(part, np.ndarray) and part.dtype == bool
        if not is_mask and not (isinstance(part, slice) and (part.step is None or part.step > 0)):
            raise ValueError(f"Events: expected a forward slice or a mask, got {part!r}")
        columns = (self.x[part], self.y[part], self.t[part], self.p[part])
        return Events._trusted(*columns, self.height, self.width)

    def slice_time(self, t0: int, t1: int) -> Events:
        """The events of the half-open window [t0, t1), found by binary search.

        Args:
            t0, t1: window, microseconds; t1 <= t0 gives no events.

        Returns:
            Events whose arrays are views of these.
        """
        first = int(np.searchsorted(self.t, t0, side="left"))
        last = max(first, int(np.searchsorted(self.t, t1, side="left")))
        return self[first:last]

    @classmethod
    def empty(cls, height: int | None = None, width: int | None = None) -> Events:
        """No events, of a sensor of the given size."""
        none = np.empty(0, np.uint16)
        return cls(
            none, none, np.empty(0, np.int64), np.empty(0, np.uint8), height=height, width=width
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Events]) -> Events:
        """Join events of one sensor that follow each other in time.

        Args:
            parts: Events in the order of time; the parts with known sensor size must agree.

        Returns:
            All events; coordinates are float32 if any part's are.

        Raises:
            ValueError: if nothing is given, sensors differ, or a part starts before the last ends.
        """
        if not parts:
            raise ValueError("Events.concatenate: nothing to join, expected at least one Events")
        sizes = {(part.height, part.width) for part in parts} - {(None, None)}
        if len(sizes) > 1:
            found = ", ".join(f"{width} x {height}" for height, width in sorted(sizes, key=str))
            raise ValueError(f"Events.concatenate: parts of different sensors: {found}")
        height, width = sizes.pop() if sizes else (None, None)
        # An empty part has no say in the coordinate dtype.
        filled = [part for part in parts if len(part)] or [parts[0]]
        return cls(
            *(np.concatenate([getattr(part, name) for part in filled]) for name in "xytp"),
            height=height,
            width=width,
        )

    @classmethod
    def _trusted(
        cls,
        x: np.ndarray,
        y: np.ndarray,
        t: np.ndarray,
        p: np.ndarray,
        height: int | None,
        width: int | None,
    ) -> Events:
        """Wrap arrays already known to be valid (views of a validated Events)."""
        events = cls.__new__(cls)
        events.x, events.y, events.t, events.p = x, y, t, p
        events.height, events.width = height, width
        return events


def _vector(name: str, value: Any) -> np.ndarray:
    """value as a one-dimensional numeric array; torch tensors come to the CPU."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.ndim != 1:
        raise ValueError(f"Events: {name} must have shape [N], got {list(array.shape)}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"Events: {name} must hold numbers, got dtype {array.dtype}")
    return array


def _sensor_side(name: str, value: int | None) -> int | None:
    if value is None:
        return None
    if int(value) != value or value < 1:
        raise ValueError(f"Events: {name} must be a positive integer, got {value!r}")
    return int(value)


def _times(t: np.ndarray) -> np.ndarray:
    if t.size == 0:  # an empty list has a float dtype
        return t.astype(np.int64, copy=False)
    if t.dtype.kind not in "iu":
        raise ValueError(
            f"Events: t must be integer microseconds, got dtype {t.dtype}; "
            "convert seconds with np.rint(t * 1e6).astype(np.int64)"
        )
    if t.dtype == np.uint64 and t.max() > np.iinfo(np.int64).max:
        index = int(np.argmax(t))
        raise ValueError(f"Events: t[{index}] = {t[index]} us does not fit int64")
    t = t.astype(np.int64, copy=False)
    unsorted = t[1:] < t[:-1]
    if unsorted.any():
        index = int(np.argmax(unsorted)) + 1
        raise ValueError(
            f"Events: t must be sorted, got t[{index}] = {t[index]} us "
            f"after t[{index - 1}] = {t[index - 1]} us"
        )
    if t[0] < 0:
        raise ValueError(f"Events: t must not be negative, got t[0] = {t[0]} us")
    return t


def _polarities(p: np.ndarray) -> np.ndarray:
    if p.dtype.kind == "b":
        return p.view(np.uint8)
    if p.size == 0:
        return p.astype(np.uint8)
    positive, zero, negative = p == 1, p == 0, p == -1
    bad = ~(positive | zero | negative)
    if bad.any():
        index = int(np.argmax(bad))
        raise ValueError(
            f"Events: p must be bool, {{0, 1}} or {{-1, 1}}, got p[{index}] = {p[index]}"
        )
    if negative.any():
        if zero.any():
            raise ValueError(
                f"Events: p mixes 0 (first at index {int(np.argmax(zero))}) and -1 (first at index "
                f"{int(np.argmax(negative))}); expected {{0, 1}} or {{-1, 1}}"
            )
        return positive.view(np.uint8)
    return p.astype(np.uint8, copy=False)


def _coordinates(name: str, values: np.ndarray) -> np.ndarray:
    """values as uint16, int32 or float32, finite and not below the first pixel."""
    if values.size == 0:
        known = values.dtype in (np.uint16, np.int32, np.float32)
        return values if known else values.astype(np.uint16)
    if values.dtype.kind == "b":
        raise ValueError(f"Events: {name} must be integer or floating coordinates, got dtype bool")
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
            kept = values.astype(np.float32, copy=False)
        finite = np.isfinite(kept)
        if not finite.all():
            index = int(np.argmin(finite))
            beyond = ", beyond float32" if np.isfinite(values[index]) else ""
            raise ValueError(
                f"Events: {name} must be finite, got {name}[{index}] = {values[index]}{beyond}"
            )
        return kept
    if values.dtype in (np.uint16, np.int32):
        return values
    if values.max() > np.iinfo(np.int32).max or values.min() < np.iinfo(np.int32).min:
        index = int(np.argmax(np.abs(values.astype(np.float64))))
        raise ValueError(f"Events: {name}[{index}] = {values[index]} does not fit int32")
    return values.astype(np.int32)


def _check_inside(
    name: str,
    values: np.ndarray,
    side: int | None,
    side_name: str,
    height: int | None,
    width: int | None,
) -> None:
    if values.size == 0:
        return
    if values.dtype.kind == "f":
        outside, lowest = values <= -1, "-1 <"
    else:
        outside, lowest = values < 0, "0 <="
    if side is not None:
        outside = outside | (values >= side)
    if outside.any():
        index = int(np.argmax(outside))
        limit = f" < {side} ({side_name})" if side is not None else ""
        sensor = f" on the sensor of {width} x {height} px" if width and height else ""
        raise ValueError(
            f"Events: {name}[{index}] = {values[index]} lies outside the sensor, "
            f"expected {lowest} {name}{limit}{sensor}"
        )
