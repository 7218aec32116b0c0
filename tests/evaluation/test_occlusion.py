"""Occlusion by forward and backward flow, by hand."""

import numpy as np
import pytest

from flowfuse.evaluation.occlusion import find_occluded

HEIGHT, WIDTH = 4, 12


def constant(u: float, v: float = 0.0) -> np.ndarray:
    flow = np.zeros((2, HEIGHT, WIDTH), np.float32)
    flow[0], flow[1] = u, v
    return flow


def test_what_an_object_covers_is_occluded():
    """Columns 2 to 4 move by 3 px to the right, and cover columns 5 to 7 of a still background."""
    flow, backward = constant(0), constant(0)
    flow[0, :, 2:5] = 3
    backward[0, :, 5:8] = -3
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[:, 5:8] = True
    assert np.array_equal(find_occluded(flow, backward), expected)


def test_what_leaves_the_image_is_occluded():
    occluded = find_occluded(constant(2, -1), constant(-2, 1))
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[:, -2:] = expected[0] = True
    assert np.array_equal(occluded, expected)


def test_the_threshold():
    # gap^2 = 0.36 <= 0.5 + ...; 1.0 > 0.01 (100 + 81) ... = 2.31 is not; 4 > 2.14 is
    for back, hidden in ((-10.6, False), (-9.0, False), (-8.0, True)):
        found = find_occluded(constant(10), constant(back))[:, 0]
        assert found.all() == hidden and found.any() == hidden
    broken = constant(0)
    broken[1, 2, 3] = np.nan
    assert find_occluded(broken, constant(0)).sum() == 1


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"got \[2, 4, 12\] and \[2, 4, 11\]"):
        find_occluded(constant(0), constant(0)[..., 1:])
