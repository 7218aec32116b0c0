"""Images that a caller gives."""

from __future__ import annotations

import numpy as np
import pytest
from estimator_cases import FLAT, GOOD, HEIGHT, WIDTH, wanted_events


@pytest.mark.parametrize(
    ("frame0", "frame1", "message"),
    [
        (FLAT, FLAT.astype(">f4"), "frame1 must be .*; got dtype >f4"),
        (FLAT.astype(np.uint32), FLAT, "frame0 must be .*; got dtype uint32"),
        (FLAT[:9], FLAT[:9], "frame0 must be at least 16 x 16 px, got 50 x 9"),
        (FLAT[None], FLAT, r"frame0 must have shape \[H, W\] or \[H, W, 3\]"),
        (FLAT.tolist(), FLAT, "frame0 must be a numpy array or a tensor, got list"),
        (FLAT.astype(np.int32), FLAT, "must be uint8, uint16, or float16"),
        (FLAT + 200.0, FLAT, r"must lie in \[0, 1\], got 200 to 200; divide by 255"),
        (FLAT - 0.5, FLAT, r"must lie in \[0, 1\]"),
        (FLAT * np.nan, FLAT, "frame0 must be finite"),
    ],
)
def test_wrong_frames_are_named(estimator, frame0, frame1, message):
    with pytest.raises(ValueError, match=message):
        estimator(frame0, frame1, None, **GOOD)


def test_frames_of_16_bits_and_mixed_coordinates(estimator):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8) for _ in range(2)]
    deep = [frame.astype(np.uint16) * 257 for frame in frames]
    events = wanted_events()
    mixed = (events.x.astype(np.uint16), events.y.astype(np.int64), events.t, events.p)
    expected = estimator(*frames, events, **GOOD).flow
    np.testing.assert_allclose(estimator(*deep, mixed, **GOOD).flow, expected, atol=1e-4)
    with pytest.warns(UserWarning, match="frame0: values up to .* multiply by 65535 / 4095"):
        estimator(*(frame // 17 for frame in deep), events, **GOOD)
