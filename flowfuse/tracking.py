"""Long tracks: points followed through one result after the other."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from flowfuse.result import Array, Result

LEFT = "left"  # the image
UNCERTAIN = "uncertain"
MERGED = "merged"  # with an older track, such as when it is covered
GAP = "gap"  # the result does not begin before or where the last one ended
RESET = "reset"  # the result ended before the last one began: another clock
MERGE_DISTANCE = 1.0  # px


class LostPoint(NamedTuple):
    """Where a track ended.

    Attributes:
        reason: "left" the image, "uncertain", "merged" with an older track, a "gap" in time, or a
            "reset" of the clock.
        t: time of its last place, us.
        x, y: that place, px; outside of the image if it left.
    """

    reason: str
    t: int
    x: float
    y: float


class TrackStep(NamedTuple):
    """What one result did to the tracks.

    Attributes:
        t0, t1: from when to when the points were followed, us.
        ids: [N] int64, of the tracks that go on.
        points: [N, 2] float32, (x, y) at t1, px.
        new_ids: [M] int64, of the tracks that began at t0, those that are lost by t1 included.
        new_points: [M, 2] float32, their places at t0.
        lost: the tracks that ended, by id.
    """

    t0: int
    t1: int
    ids: np.ndarray
    points: np.ndarray
    new_ids: np.ndarray
    new_points: np.ndarray
    lost: dict[int, LostPoint]


class Tracker:
    """Follows points over successive results of a stream or of a recording.

    Results may follow each other or overlap. Whatever lies between two of them is not known: all
    points are lost at a gap, and where a result ends before the last one began, as after the clock
    of a sensor began anew.

    Args:
        points: [N, 2], (x, y) at the start of the first result, px; None: points are chosen, and
            chosen anew where there are none.
        spacing: px; without ``points``, a cell of this size without a track gets one, at its most
            informative edge (the largest B_e).
        max_points: tracks at a time, without ``points``.
        max_uncertainty: px; a point is lost, and none is chosen, where the expected error of the
            flow of a result is larger. None: never.

    Attributes:
        t: time up to which the points are followed, us; None before the first result.
        ids, points: as of the last :class:`TrackStep`.

    Raises:
        ValueError: naming the argument, what was found and what was expected.
    """

    def __init__(
        self,
        points: Array | None = None,
        *,
        spacing: int = 32,
        max_points: int = 500,
        max_uncertainty: float | None = 3.0,
    ) -> None:
        for name, value in (("spacing", spacing), ("max_points", max_points)):
            if int(value) != value or value < 1:
                raise ValueError(f"Tracker: {name} must be a whole number >= 1, got {value}")
        if max_uncertainty is not None and not max_uncertainty > 0:
            raise ValueError(f"Tracker: max_uncertainty must be positive, got {max_uncertainty}")
        self._spacing, self._most = int(spacing), int(max_points)
        self._limit = np.inf if max_uncertainty is None else max_uncertainty
        self._given = None if points is None else _as_points(points)
        self._chooses = points is None
        self._next_id = 0
        self._began = 0  # of the last result, us
        self.t: int | None = None
        self.ids = np.empty(0, np.int64)
        self.points = np.empty((0, 2), np.float32)

    def update(self, result: Result) -> TrackStep:
        """Follow the points through the next result.

        Args:
            result: of the same sensor as those before, and later.

        Returns:
            What became of the points; nothing, if the result lies in the time of the last one.
        """
        began, self._began = self._began, result.t0
        reset = self.t is not None and result.t1 <= min(began, self.t)
        if self.t is not None and result.t1 <= self.t and not reset:
            self._began = began
            none = np.empty(0, np.int64)
            return TrackStep(self.t, self.t, self.ids, self.points, none, _no_points(), {})
        lost: dict[int, LostPoint] = {}
        if self.t is not None and (reset or result.t0 > self.t):
            places = zip(self.ids.tolist(), self.points.tolist(), strict=True)
            reason = RESET if reset else GAP
            lost = {i: LostPoint(reason, self.t, *place) for i, place in places}
            self.ids, self.points, self.t = np.empty(0, np.int64), _no_points(), None
        start = result.t0 if self.t is None else self.t
        tau = (start - result.t0) / (result.t1 - result.t0)
        origins = self.points
        if tau > 0 and len(origins):
            origins = _numpy(result.origins(self.points, tau))
        uncertainty = _numpy(result.uncertainty)
        new_origins = self._choose(origins, result, uncertainty)
        count = len(new_origins)
        new_ids = np.arange(self._next_id, self._next_id + count, dtype=np.int64)
        self._next_id += count
        new_points = new_origins
        if tau > 0 and count:
            new_points = _numpy(result.track(new_origins, tau))

        ids = np.concatenate((self.ids, new_ids))
        before = np.concatenate((self.points, new_points))
        origins = np.concatenate((origins, new_origins))
        after = _numpy(result.track(origins, 1.0)) if len(ids) else _no_points()
        reasons = self._reasons(result, origins, after, uncertainty)
        for i in np.flatnonzero(reasons != "").tolist():
            known = np.isfinite(after[i]).all()
            place, t = (after[i], result.t1) if known else (before[i], start)
            lost[int(ids[i])] = LostPoint(str(reasons[i]), t, float(place[0]), float(place[1]))
        kept = reasons == ""
        self.t, self.ids, self.points = result.t1, ids[kept], after[kept]
        return TrackStep(start, result.t1, self.ids, self.points, new_ids, new_points, lost)

    def _choose(self, points: np.ndarray, result: Result, uncertainty: np.ndarray) -> np.ndarray:
        """Places at the start of a result where tracks begin, [M, 2] px."""
        if self._given is not None:
            chosen, self._given = self._given, None
            return chosen
        if not self._chooses:
            return _no_points()
        height, width, cell = result.height, result.width, self._spacing
        score = np.where(uncertainty <= self._limit, _numpy(result.boundary)[0], -1.0)
        rows, columns = -(-height // cell), -(-width // cell)
        padded = np.full((rows * cell, columns * cell), -1.0)
        padded[:height, :width] = score
        cells = padded.reshape(rows, cell, columns, cell).swapaxes(1, 2).reshape(rows, columns, -1)
        best = cells.argmax(axis=2)
        free = cells.max(axis=2) >= 0
        here = points[np.isfinite(points).all(axis=1)]
        x, y = np.rint(here).astype(int).T // cell
        on_image = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
        free[y[on_image], x[on_image]] = False
        row, column = np.nonzero(free)
        inner_y, inner_x = np.divmod(best[row, column], cell)
        chosen = np.stack((column * cell + inner_x, row * cell + inner_y), axis=1)
        strength = score[chosen[:, 1], chosen[:, 0]]
        order = np.argsort(-strength, kind="stable")[: max(0, self._most - len(points))]
        return chosen[np.sort(order)].astype(np.float32)

    def _reasons(
        self, result: Result, origins: np.ndarray, after: np.ndarray, uncertainty: np.ndarray
    ) -> np.ndarray:
        """Why each point is lost, "" where it is not."""
        reasons = np.full(len(after), "", dtype=object)
        size = np.array([result.width - 1, result.height - 1])
        on_image = ((after >= 0) & (after <= size)).all(axis=1)  # NaN is outside
        place = np.clip(np.nan_to_num(np.rint(origins)), 0, size).astype(int)
        reasons[uncertainty[place[:, 1], place[:, 0]] > self._limit] = UNCERTAIN
        reasons[~on_image] = LEFT
        going = np.flatnonzero(reasons == "")
        # In cells of the distance, so that only few are compared with each other.
        seen: dict[tuple[int, int], list[int]] = {}
        for i in going.tolist():  # the older first
            x, y = (int(v // MERGE_DISTANCE) for v in after[i])
            near = (seen.get((x + dx, y + dy), ()) for dx in (-1, 0, 1) for dy in (-1, 0, 1))
            others = [j for group in near for j in group]
            if any(np.hypot(*(after[i] - after[j])) < MERGE_DISTANCE for j in others):
                reasons[i] = MERGED
            else:
                seen.setdefault((x, y), []).append(i)
        return reasons


def _as_points(points: Any) -> np.ndarray:
    if hasattr(points, "detach"):
        points = points.detach().cpu().numpy()
    try:
        array = np.array(points, np.float32)
    except (TypeError, ValueError):
        raise ValueError(
            f"Tracker: points must be numbers of shape [N, 2], got {points!r}"
        ) from None
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"Tracker: points must have shape [N, 2], got {list(array.shape)}")
    if not np.isfinite(array).all():
        index = int(np.argmin(np.isfinite(array).all(axis=1)))
        raise ValueError(f"Tracker: points must be finite, got points[{index}] = {array[index]}")
    return array


def _no_points() -> np.ndarray:
    return np.empty((0, 2), np.float32)


def _numpy(values: Array) -> np.ndarray:
    return values.cpu().numpy() if hasattr(values, "cpu") else values
