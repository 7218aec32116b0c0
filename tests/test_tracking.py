"""tracking.py: long tracks over successive results, and why they end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowfuse.result import Result
from flowfuse.tracking import Tracker

HEIGHT, WIDTH = 30, 40


def moving(
    t0: int, t1: int, u: float, v: float = 0.0, *, unsure: float = 0.0, edge=(12, 9)
) -> Result:
    """Uniform linear motion of (u, v) px; the uncertainty is a raw value of the network."""
    points = torch.tensor([u, v], dtype=torch.float32)[None, None, :, None, None]
    boundary = torch.full((1, 2, HEIGHT, WIDTH), -5.0)
    boundary[0, 0, edge[1], edge[0]] = 5.0
    uncertainty = torch.full((1, 2, HEIGHT, WIDTH), unsure)
    uncertainty[:, 0] *= -1  # hardly any weight on the narrow Laplace
    return Result(
        points.expand(1, 1, 2, HEIGHT, WIDTH).clone(), uncertainty, boundary,
        t0=t0, t1=t1, modalities=("events",), as_torch=False,
    )  # fmt: skip


def test_points_are_followed_over_results():
    tracker = Tracker([[5.0, 6.0], [20.5, 10.0]])
    first = tracker.update(moving(100, 200, 2.0, 1.0))
    assert (first.t0, first.t1) == (100, 200)
    assert first.new_ids.tolist() == first.ids.tolist() == [0, 1] and not first.lost
    assert first.new_points.tolist() == [[5.0, 6.0], [20.5, 10.0]]
    assert np.allclose(first.points, [[7, 7], [22.5, 11]])
    second = tracker.update(moving(200, 300, -3.0))
    assert not len(second.new_ids) and np.allclose(second.points, [[4, 7], [19.5, 11]])
    assert tracker.t == 300 and np.array_equal(tracker.points, second.points)


def test_overlapping_results():
    """The middle of a result goes on where the last one ended; an old one changes nothing."""
    tracker = Tracker([[5.0, 6.0]])
    tracker.update(moving(0, 100, 4.0))
    step = tracker.update(moving(50, 150, 8.0))
    assert (step.t0, step.t1) == (100, 150) and np.allclose(step.points, [[13, 6]], atol=1e-4)
    again = tracker.update(moving(0, 150, 8.0))
    assert (again.t0, again.t1) == (150, 150) and np.array_equal(again.points, step.points)


def test_points_that_leave():
    tracker = Tracker([[38.0, 5.0], [10.0, 5.0], [-3.0, 5.0]])
    step = tracker.update(moving(0, 10, 2.5))
    assert step.ids.tolist() == [1]
    assert step.lost[0] == ("left", 10, 40.5, 5.0)
    # It has never been on the image: its last place is where it was asked for.
    assert step.lost[2] == ("left", 0, -3.0, 5.0)


def test_points_of_unknown_motion():
    tracker = Tracker([[10.0, 5.0]], max_uncertainty=3.0)
    assert not tracker.update(moving(0, 10, 1.0)).lost
    step = tracker.update(moving(10, 20, 1.0, unsure=8.0))
    assert step.lost[0].reason == "uncertain" and step.lost[0][1:] == (20, 12.0, 5.0)
    careless = Tracker([[10.0, 5.0]], max_uncertainty=None)
    assert not careless.update(moving(0, 10, 1.0, unsure=8.0)).lost


def test_points_that_meet():
    squeeze = moving(0, 10, 0.0)
    squeeze._points[0, 0, 0] = 1 - torch.arange(float(WIDTH))  # all columns come to x = 1
    step = Tracker([[0.0, 5.0], [3.0, 5.0], [3.0, 9.0]]).update(squeeze)
    assert step.ids.tolist() == [0, 2], "the older one goes on, and rows differ"
    assert step.lost[1].reason == "merged"


def test_points_are_lost_at_a_gap():
    tracker = Tracker([[10.0, 5.0]])
    tracker.update(moving(0, 10, 1.0))
    step = tracker.update(moving(11, 20, 1.0))
    assert step.lost == {0: ("gap", 10, 11.0, 5.0)} and not len(step.ids)
    assert not len(tracker.update(moving(20, 30, 1.0)).ids), "given points do not come again"


def test_a_clock_that_begins_anew():
    """Results of another clock are followed, whatever the time of the last one was."""
    given = Tracker([[5.0, 6.0]])
    given.update(moving(7_000, 7_100, 4.0))
    step = given.update(moving(0, 100, 4.0))
    assert step.lost == {0: ("reset", 7_100, 9.0, 6.0)} and not len(step.ids)
    assert (step.t0, step.t1, given.t) == (0, 100, 100)
    chosen = Tracker(spacing=20, max_points=3)
    before = chosen.update(moving(7_000, 7_100, 1.0))
    step = chosen.update(moving(50, 150, 1.0))
    assert set(step.lost) == set(before.ids.tolist()) and len(step.new_ids) == 3
    assert min(step.new_ids) > max(before.ids), "a number is given once"
    again = chosen.update(moving(150, 250, 1.0))
    assert not again.lost and again.ids.tolist() == step.ids.tolist()


def test_points_are_chosen():
    """One in each cell, at the strongest edge; again where the last one has gone."""
    tracker = Tracker(spacing=20)
    step = tracker.update(moving(0, 10, 3.0))
    assert step.new_ids.tolist() == [0, 1, 2, 3]
    assert [12.0, 9.0] in step.new_points.tolist()
    cells = {(int(x) // 20, int(y) // 20) for x, y in step.new_points}
    assert cells == {(0, 0), (1, 0), (0, 1), (1, 1)}
    later = [tracker.update(moving(10 * i, 10 * i + 10, 8.0)) for i in range(1, 4)]
    assert sum(len(one.new_ids) for one in later) >= 2
    numbers = [*step.new_ids, *(number for one in later for number in one.new_ids)]
    assert len(set(numbers)) == len(numbers)
    assert all(one.reason in ("left", "merged") for one in later[-1].lost.values())
    few = Tracker(spacing=20, max_points=1).update(moving(0, 10, 3.0))
    assert few.new_points.tolist() == [[12.0, 9.0]], "the strongest"
    none = Tracker(spacing=20).update(moving(0, 10, 3.0, unsure=8.0))
    assert not len(none.new_ids), "nothing is known there"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": [1, 2]}, r"points must have shape \[N, 2\], got \[2\]"),
        ({"points": [[1, np.nan]]}, r"points must be finite, got points\[0\]"),
        ({"points": "here"}, r"points must be numbers of shape \[N, 2\]"),
        ({"spacing": 0}, "spacing must be a whole number >= 1, got 0"),
        ({"max_points": 1.5}, "max_points must be a whole number"),
        ({"max_uncertainty": 0}, "max_uncertainty must be positive, got 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tracker(**arguments)
