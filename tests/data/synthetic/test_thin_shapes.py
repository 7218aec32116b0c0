from __future__ import annotations

import cv2
import numpy as np
import pytest

from flowfuse.data.synthetic.thin_shapes import (
    THIN_SHAPES,
    Stroke,
    cart,
    draw_strokes,
    figure,
    make_jointed,
    make_thin_shape,
    rotor,
    small_shape,
)


@pytest.mark.parametrize("width", [2, 3, 5, 8])
def test_a_stroke_has_its_width(width):
    mask, origin = draw_strokes([Stroke(np.array(((0.0, 0.0), (40.0, 0.0))), width)])
    # OpenCV's lines on the fourfold canvas are off by up to two of its texels: half a texel.
    assert abs(mask[:, mask.shape[1] // 2].sum() - width) < 0.5
    # The points' origin: the line begins there.
    x, y = np.rint(origin).astype(int)
    assert mask[y, x + 5] > 0.6 and mask[y, x - width // 2 - 4] < 1e-3
    assert np.abs(np.arange(len(mask)) @ mask[:, 20] / mask[:, 20].sum() - origin[1]) < 0.2


def test_a_hole_takes_away():
    square = np.array(((0, 0), (20, 0), (20, 20), (0, 20)), dtype=float)
    mask, origin = draw_strokes([Stroke(square), Stroke(0.5 * square + 5, hole=True)])
    x, y = np.rint(origin).astype(int)
    assert mask[y + 10, x + 10] == 0 and mask[y + 2, x + 10] > 0.99


@pytest.mark.parametrize("kind", THIN_SHAPES)
@pytest.mark.parametrize("size", [12, 40, 120])
def test_shapes_are_thin_and_end_before_their_border(kind, size):
    for seed in range(4):
        mask = make_thin_shape(np.random.default_rng(seed), size, kind=kind)
        border = np.concatenate((mask[0], mask[-1], mask[:, 0], mask[:, -1]))
        assert mask.dtype == np.float32 and border.max() == 0 and 0.8 < mask.max() <= 1
        assert max(mask.shape) < 3 * size + 20
        solid = (mask > 0.5).astype(np.uint8)
        depth = cv2.distanceTransform(solid, cv2.DIST_L2, 5)
        if kind not in ("chair", "pierced", "glyph"):  # seats and plates are areas
            thick = depth > 6
            assert thick.sum() < 0.15 * solid.sum()  # hubs and forks
        assert 0.02 < mask.mean() < 0.9


def test_fences_wheels_and_chairs_have_holes():
    for kind in ("fence", "wheel", "chair", "pierced"):
        mask = make_thin_shape(np.random.default_rng(3), 90, kind=kind)
        outside = cv2.connectedComponents((mask < 0.5).astype(np.uint8), connectivity=4)[0] - 1
        assert outside >= 2  # the ground around, and at least one hole


@pytest.mark.parametrize("draw", [figure, cart, rotor])
def test_parts_hang_on_what_comes_before_them(draw):
    for seed in range(6):
        parts = draw(np.random.default_rng(seed), 60.0)
        assert len(parts) >= 2 and parts[0].parent is None
        for i, part in enumerate(parts[1:], start=1):
            assert part.parent is not None and part.parent < i and part.joint is not None
            x, y = np.rint(part.joint).astype(int)
            carrier = parts[part.parent].mask
            # The joint lies on the carrier, or a few texels from it.
            assert carrier[max(y - 4, 0) : y + 5, max(x - 4, 0) : x + 5].max() > 0.5
            height, width = part.mask.shape
            assert 0 <= part.anchor[0] < width and 0 <= part.anchor[1] < height
            assert 1 < part.reach < np.hypot(height, width)


def test_the_same_seed_gives_the_same_shape():
    for draw in (make_thin_shape, small_shape):
        first, again = (draw(np.random.default_rng(7), 30) for _ in range(2))
        np.testing.assert_array_equal(first, again)
    kinds = {len(make_jointed(np.random.default_rng(seed), 40)) for seed in range(12)}
    assert len(kinds) > 2
