from __future__ import annotations

import numpy as np
import pytest

from flowfuse.data import motion, textures
from flowfuse.data.scenes import generate_scene


@pytest.mark.parametrize("split", ["train", "test"])
def test_scenes_draw_from_their_split_alone(split, monkeypatch):
    drawn = set()

    def recording(families):
        def record(name):
            draw = families[name]
            return lambda *arguments: drawn.add(name) or draw(*arguments)

        for name in tuple(families):
            monkeypatch.setitem(families, name, record(name))

    recording(textures.PATTERNS)
    for table in (motion.CURVES, motion.BRAKING_CURVES):
        for families in table.values():
            recording(families)
    for preset in ("slow", "blur"):
        for seed in range(5):
            generate_scene(seed, preset, 16, 24, split=split)
    curves = motion.CURVES[split].keys() | motion.BRAKING_CURVES[split].keys()
    assert drawn & curves
    assert drawn <= curves | textures.FAMILIES[split].keys()


def test_splits_differ():
    train, test = (generate_scene(0, "slow", 16, 24, split=split) for split in ("train", "test"))
    assert (train.frames != test.frames).any()
    default = generate_scene(0, "slow", 16, 24)
    np.testing.assert_array_equal(default.frames, train.frames)
