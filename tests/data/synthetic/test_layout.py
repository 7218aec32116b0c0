from __future__ import annotations

import numpy as np
import pytest

from flowfuse.data.synthetic import motion, textures
from flowfuse.data.synthetic.layout import MARGIN, Layout, Surface, arrange
from flowfuse.data.synthetic.motion import Camera, Curve, LayerMotion, WorldPlaneMotion, transfer
from flowfuse.data.synthetic.scenes import generate_scene

RENDERED = np.arange(-0.6, 1.6, 1 / 64)  # tau


def surfaces(seed: int, **changes) -> list[Surface]:
    settings = {
        "height": 96,
        "width": 128,
        "displacement": (8.0, 60.0),
        "displacement_cap": None,
        "objects": (2, 6),
        "world_share": 0.0,
        "driving": False,
        "braking": False,
        "extremes": False,
        "faint": 0.1,
        "middle": 0.5,
        "split": "train",
        "images": (),
        "device": "cpu",
    }
    return arrange(np.random.default_rng(seed), Layout(**(settings | changes)))


def scale(surface: Surface) -> np.ndarray:
    """Size of a surface at all times: a layer's scale, or one over the distance of a box."""
    if isinstance(surface.motion, LayerMotion):
        return np.exp(surface.motion.curve(RENDERED)[:, 3])
    # The corner inside of the margin, nearest to the camera, of each face.
    corner = surface.motion.origin + (MARGIN - 0.5) * (
        surface.motion.step_x + surface.motion.step_y
    )
    depth = corner[2] - surface.motion.camera.curve(RENDERED)[:, 5]
    if surface.motion.drive is not None:
        depth = depth + surface.motion.drive(RENDERED)[:, 1]
    return 1 / depth


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("family", ["layers", "world", "driving"])
def test_growth_is_bounded(family, split):
    largest = []
    changes = {"world_share": float(family != "layers"), "driving": family == "driving"}
    for seed in range(60):
        for surface in surfaces(seed, split=split, **changes):
            if surface.unbounded and not isinstance(surface.motion, LayerMotion):
                continue  # ground and sky
            sizes = scale(surface)
            assert (sizes > 0).all() and sizes.max() <= 2 * sizes.min()
            windows = np.lib.stride_tricks.sliding_window_view(sizes, 65)
            largest.append((windows.max(axis=1) / windows.min(axis=1)).max())
    assert max(largest) <= 1.5
    # Growth is bounded, not removed.
    assert max(largest) > 1.3


def way(surface: Surface) -> float:
    """Path length of a layer's anchor from frame 0 to frame 1, px."""
    places = surface.motion.curve(np.linspace(0, 1, 65))[:, :2]
    return np.linalg.norm(np.diff(places, axis=0), axis=1).sum()


def test_displacements_are_capped_in_pixels():
    def ways(cap: float | None) -> np.ndarray:
        changes = {"displacement": (20.0, 120.0), "displacement_cap": cap, "objects": (1, 1)}
        scenes = [surfaces(seed, height=24, width=32, **changes) for seed in range(60)]
        return np.array([way(scene[0]) for scene in scenes])

    # Without one: 0.3 of 32 px, 0.5 in some scenes; half of that is the least then.
    by_width = ways(None)
    assert 4.7 < by_width.min() and by_width.max() < 16.1
    assert (by_width > 9.7).any() and np.mean(by_width < 9.7) > 0.7
    in_pixels = ways(120.0)
    assert 19.9 < in_pixels.min() < 30 and 90 < in_pixels.max() < 120.1
    assert ways(40.0).max() < 40.1


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_car_goes_forward_and_yaws(split):
    driving, yaws, shaking = [], [], []
    for seed in range(40):
        scene = surfaces(seed, world_share=1.0, driving=True, split=split)
        assert all(isinstance(surface.motion, WorldPlaneMotion) for surface in scene)
        camera = scene[0].motion.camera
        pitch, yaw, roll, *way = camera.curve(np.ones(1))[0]
        yaws.append(yaw)
        # Wheels and springs: sideways, up, pitch and roll are what is left of a car's shaking.
        assert way[2] > 0 and np.hypot(*way[:2]) < 0.2 * way[2]
        shaking.append(np.hypot(pitch, roll))
        driving += [surface.motion.drive is not None for surface in scene[2:]]
        assert scene[0].motion.drive is None and scene[1].motion.drive is None
    assert np.mean(shaking) < 0.2 * np.mean(np.abs(yaws))
    assert min(yaws) < 0 < max(yaws)
    assert 0.15 < np.mean(driving) < 0.45


def test_a_plane_that_drives_by_hand():
    straight = Curve(np.zeros(6), np.zeros((1, 6)), np.ones(1), np.zeros(1))
    drive = Curve(np.array((0.5, -1.0)), np.zeros((1, 2)), np.ones(1), np.zeros(1))
    plane = WorldPlaneMotion(
        Camera(straight, 100.0, np.array((30.0, 20.0))),
        np.array((0, 0, 5.0)),
        np.array((1.0, 0, 0)),
        np.array((0, 1.0, 0)),
        drive=drive,
    )
    places, _ = transfer(plane.homographies(np.array((0.0, 1.0))), np.array(((1.0, 2.0),)))
    # f X / Z: 100 / 5 and 200 / 5 px from the centre; then X = 1.5 and Z = 4.
    np.testing.assert_allclose(places[:, 0], ((50, 60), (67.5, 70)))


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
