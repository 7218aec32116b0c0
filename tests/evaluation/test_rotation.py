"""Flow of a turning camera."""

from __future__ import annotations

import numpy as np

from flowfuse.evaluation.rotation import rotation_flow

HEIGHT, WIDTH = 24, 32
FACTS = {
    "rate_rad_s": [0.0, 0.5, 0.0],  # about the vertical axis
    "calib": [200.0, 200.0, (WIDTH - 1) / 2, (HEIGHT - 1) / 2, 0.0, 0.0, 0.0, 0.0, 0.0],
}


def test_flow_of_a_turning_camera():
    flow = rotation_flow(FACTS, 0.05, HEIGHT, WIDTH)
    # The middle moves by f tan(angle), against the camera's turn to the right.
    middle = flow[:, HEIGHT // 2 - 1 : HEIGHT // 2 + 1, WIDTH // 2 - 1 : WIDTH // 2 + 1]
    # 1e-3 px: the four pixels around the middle are half a pixel away from it.
    np.testing.assert_allclose(middle.mean((1, 2)), (-200 * np.tan(0.025), 0), atol=1e-3)
    assert np.abs(rotation_flow(FACTS, 0.0, HEIGHT, WIDTH)).max() < 1e-5


def test_the_lens_is_undone_and_done():
    """Half of the turn, and from there the other half, is the whole turn."""
    facts = {**FACTS, "calib": [*FACTS["calib"][:4], -0.37, 0.15, 0.0, 0.0, 0.0]}
    half, whole = (rotation_flow(facts, t, HEIGHT, WIDTH) for t in (0.025, 0.05))
    row, column = 12, 20
    x = column + half[0, row, column]
    left = int(x)
    again = half[0, row, left] * (left + 1 - x) + half[0, row, left + 1] * (x - left)
    # 1e-2 px: the flow between two pixels is not quite linear.
    assert abs(half[0, row, column] + again - whole[0, row, column]) < 1e-2
