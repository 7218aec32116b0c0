from __future__ import annotations

import numpy as np
import pytest

from flowfuse.data.synthetic.motion import (
    BRAKING_CURVES,
    CURVES,
    Curve,
    JointMotion,
    LayerMotion,
    RampCurve,
    arc,
    transfer,
)

FAMILIES = [
    (name, family)
    for table in (CURVES, BRAKING_CURVES)
    for families in table.values()
    for name, family in families.items()
]


def test_ramps_by_hand():
    # 1 per interval until tau = 1, then up to 3 at tau = 2, then constant.
    curve = RampCurve(np.array((1.0, 2.0)), np.array(((1.0, 0.0), (3.0, -1.0))))
    places = curve(np.array((-2.0, 0.0, 1.0, 1.5, 2.0, 4.0)))
    # In the ramp 1 s + 2 s^2 / 2 after s: 0.75 at s = 0.5, 2 at its end; 3 per interval from there.
    np.testing.assert_allclose(places[:, 0], (-2, 0, 1, 1.75, 3, 9))
    np.testing.assert_allclose(places[:, 1], (0, 0, 0, -0.125, -0.5, -2.5))
    doubled = curve.scaled(np.array((2.0, 0.0)))(np.array((4.0,)))
    np.testing.assert_allclose(doubled, ((18, 0),))


def test_arc_turns_at_constant_rate():
    curve = arc(np.random.default_rng(0), np.array((4.0, 0.0)), 0.6, 1.0)
    rate = curve.frequency[0]
    radius = 4 / rate  # along the direction; the other half-axis is any
    tau = np.linspace(-0.5, 1.5, 9)
    x, y = curve(tau).T
    np.testing.assert_allclose(x, radius * np.sin(rate * tau), atol=1e-12)
    half_axis = curve.amplitude[1, 1]
    np.testing.assert_allclose((x / radius) ** 2 + (1 - y / half_axis) ** 2, 1, atol=1e-9)


@pytest.mark.parametrize(("name", "family"), FAMILIES)
def test_families_start_at_zero_and_are_smooth(name, family):
    step, end = 1e-3, 2.0
    tau = np.arange(-0.6, end + 0.6, step)
    for seed in range(20):
        curve = family(np.random.default_rng(seed), np.array((3.0, -4.0, 1.0, 0.5)), 0.3, end)
        np.testing.assert_allclose(curve(np.zeros(1)), 0, atol=1e-12)
        velocity = np.diff(curve(tau), axis=0) / step
        # |direction| is 5.1: no family is anywhere still or many times as fast.
        speed = np.linalg.norm(velocity, axis=1)
        assert 0.5 < speed.max() < 25
        # Velocities do not jump: within 1/1000 of an interval they change by a hundredth or so.
        assert np.linalg.norm(np.diff(velocity, axis=0), axis=1).max() < 0.2


@pytest.mark.parametrize("families", BRAKING_CURVES.values())
def test_braking_changes_the_velocity_by_at_least_half(families):
    for family in families.values():
        for seed in range(6):
            curve = family(np.random.default_rng(seed), np.array((5.0, 0.0)), 0.6, 3.0)
            # Means over exposures of 0.95 intervals around the frames.
            bounds = np.arange(4)[:, None] + np.array((-0.475, 0.475))
            means = np.diff(curve(bounds.ravel())[:, 0].reshape(bounds.shape))[:, 0]
            slower = np.minimum(means[1:], means[:-1])
            assert (slower <= 0.5 * np.maximum(means[1:], means[:-1])).all()


def test_no_family_of_motion_is_in_both_splits():
    for table in (CURVES, BRAKING_CURVES):
        assert table["train"].keys() and table["test"].keys()
        assert not set(table["train"].values()) & set(table["test"].values())
        assert not table["train"].keys() & table["test"].keys()


def straight(*rate: float) -> Curve:
    return Curve(np.array(rate), np.zeros((1, len(rate))), np.ones(1), np.zeros(1))


def test_a_part_turns_at_its_joint_and_goes_with_its_body():
    body = LayerMotion(straight(10.0, 0, 0, 0), np.array((50.0, 20.0)), np.array((5.0, 5.0)))
    # A quarter turn clockwise (y points down) per interval, about texel (1, 2) of the part, which
    # stays on texel (8, 5) of the body: at (53, 20), then (63, 20).
    turn = straight(np.pi / 2, 0)
    part = JointMotion(body, turn, np.array((8.0, 5.0)), np.array((1.0, 2.0)))
    points = np.array(((1.0, 2.0), (4.0, 2.0)))
    places, depth = transfer(part.homographies(np.array((0.0, 1.0))), points)
    np.testing.assert_allclose(places, (((53, 20), (56, 20)), ((63, 20), (63, 23))), atol=1e-12)
    assert (depth == 1).all()
    # A part of the part: on its second point, without a turn of its own.
    hand = JointMotion(part, straight(0.0, 0.0), np.array((4.0, 2.0)), np.zeros(2))
    places, _ = transfer(hand.homographies(np.array((1.0,))), np.array(((0.0, 0.0), (2.0, 0.0))))
    np.testing.assert_allclose(places[0], ((63, 23), (63, 25)), atol=1e-12)
