"""Composition of generated scenes: which planes, where, and how they move.

Two families: `layers` (objects of many shapes over a background, each on its own path) and `world`
(a camera with six degrees of freedom over ground, boxes and far scenery, at times with objects in
front).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator

from flowfuse.data.synthetic.layers import Plane
from flowfuse.data.synthetic.motion import (
    BRAKING_CURVES,
    CURVES,
    Camera,
    JointMotion,
    LayerMotion,
    Motion,
    SmoothCurve,
    WorldPlaneMotion,
    transfer,
)
from flowfuse.data.synthetic.presets import Split
from flowfuse.data.synthetic.textures import make_shape, make_texture, rectangle_mask
from flowfuse.data.synthetic.thin_shapes import Part, make_jointed, make_thin_shape, small_shape

# Nothing grows or shrinks 1.5-fold within one interval, nor twofold in all the time rendered: what
# gets much larger has no pixels to be matched with. A little less: it is looked up at STEPS times.
GROWTH, GROWTH_IN_ALL = 1.48, 1.95
STEPS = 16  # per interval
DRIVING_BOXES = 0.3  # share of the boxes that move by themselves where the camera is a car
CAR = np.array((0.1, 1.0, 0.1, 0.1, 0.1, 1.0))  # how freely a car takes up each component
NEAREST_BOX = 1.1  # depth, relative to that of the lowest row of the image
BEYOND = 0.65  # intervals rendered before the first frame and after the last, at the most
STILL = 0.5  # px per interval that a camera which stands still may shake
JOINTED_SHARE = 0.25  # of the thin objects
SWARM = (5, 10)  # small objects of a crowd
SMALL = (5.0, 22.0)  # their diameter, px
LARGEST_SWING, LARGEST_TURN = 0.6, 0.5  # rad per interval of a limb and of a wheel
MARGIN = 3  # empty texels around a bounded texture: its soft edge ends before the border


@dataclass(frozen=True)
class Layout:
    """What a composition is asked for.

    Attributes:
        height, width: image size, px.
        displacement: least and largest path length of motion in one frame interval, px.
        displacement_cap: see :class:`~flowfuse.data.synthetic.presets.SceneConfig`.
        objects: least and largest number of objects.
        world_share: probability of the `world` family.
        driving: see :class:`~flowfuse.data.synthetic.presets.SceneConfig`.
        braking: velocities change by at least half from one frame to the next, everywhere.
        extremes: a part of the surfaces is far too bright or dark for the frames, another part has
            too little contrast (below ``faint``) for events.
        faint: peak-to-peak log contrast of the part without events.
        middle: tau at which objects pass their place in the image.
        split: which families of textures and of motion to use.
        images: files for textures; empty = procedural ones only.
        device: where planes are rendered.
        thin_share, swarm_share, still_share: see
            :class:`~flowfuse.data.synthetic.presets.SceneConfig`.
    """

    height: int
    width: int
    displacement: tuple[float, float]
    displacement_cap: float | None
    objects: tuple[int, int]
    world_share: float
    driving: bool
    braking: bool
    extremes: bool
    faint: float
    middle: float
    split: Split
    images: tuple[Path, ...]
    device: torch.device | str
    thin_share: float = 0.0
    swarm_share: float = 0.0
    still_share: float = 0.0

    @property
    def calm(self) -> bool:
        """Nothing is much faster before or after the interval, or spins: as thin things do not."""
        return self.thin_share > 0


@dataclass(frozen=True)
class Surface:
    """A plane before it has its texture."""

    motion: Any  # a Motion; those of the world are WorldPlaneMotion
    size: tuple[int, int]  # texels (h, w)
    mask: np.ndarray | None = None  # None = the whole rectangle
    unbounded: bool = False  # the texture repeats
    recedes: bool = False
    shade: float = 1.0


def compose(rng: Generator, layout: Layout) -> list[Plane]:
    """Draw a scene: planes in painter's order, the first covers the image."""
    surfaces = arrange(rng, layout)
    treat = _extremes(rng, layout) if layout.extremes else None
    return [_cover(rng, layout, surface, treat) for surface in surfaces]


def arrange(rng: Generator, layout: Layout) -> list[Surface]:
    """Draw where the planes of a scene are and how they move, in painter's order."""
    world = rng.random() < layout.world_share
    target = _draw_displacement(rng, layout)
    if _happens(rng, layout.still_share):
        target = max(STILL * rng.random() ** 3, 1e-3)
    count = int(rng.integers(layout.objects[0], layout.objects[1] + 1))
    if world:
        boxes = count // 2 if layout.thin_share > 0 else count
        surfaces = _world(rng, layout, target, max(boxes, 2))
        front = 0 if layout.driving else int(rng.integers(0, 3))
        front += count - boxes  # none where all are boxes
    else:
        surfaces = [_background(rng, layout, target)]
        front = count
    for _ in range(front):
        if _happens(rng, layout.thin_share):
            surfaces += _thin_object(rng, layout, target)
        else:
            surfaces.append(_object(rng, layout, target))
    if _happens(rng, layout.swarm_share):
        surfaces += _swarm(rng, layout)
    return surfaces


def _happens(rng: Generator, share: float) -> bool:
    """Draw a yes or no. Without a share nothing is drawn: other presets keep their scenes."""
    return share > 0 and bool(rng.random() < share)


def _draw_displacement(rng: Generator, layout: Layout) -> float:
    """Path length per interval, px: log-uniform, below the cap."""
    low, high = layout.displacement
    cap = layout.displacement_cap
    if cap is None:
        cap = layout.width * (0.3 if rng.random() < 0.85 else 0.5)
    high = min(high, cap)
    return float(np.exp(rng.uniform(np.log(min(low, high / 2)), np.log(high))))


def _curve(
    rng: Generator,
    layout: Layout,
    direction: np.ndarray,
    strengths: tuple[float, ...] = (0.05, 0.3, 0.6),
) -> SmoothCurve:
    if layout.braking:
        # Over long exposures the change between the means is 0.6 of the one between the instants.
        families, strength = BRAKING_CURVES[layout.split], rng.uniform(0.6, 0.9)
    else:
        families, strength = CURVES[layout.split], rng.choice(strengths)
    family = tuple(families.values())[rng.integers(len(families))]
    return family(rng, direction, strength, 2 * layout.middle)


def _layer_motion(
    rng: Generator, layout: Layout, target: float, size: tuple[int, int], place: np.ndarray | None
) -> LayerMotion:
    """A path whose length in one interval is ``target`` px.

    Args:
        size: of the texture (h, w); its middle is the anchor.
        place: [2] where the anchor is in the middle of the time; None = the image's centre at t0.
    """
    image = np.array((layout.width, layout.height), dtype=np.float64)
    texture = np.array(size[::-1], dtype=np.float64)
    radius = 0.5 * float(np.hypot(*np.minimum(texture, image)))
    heading = rng.uniform(0, 2 * np.pi)
    # Turning and scaling are drawn as displacements at the rim, so that all components are px.
    direction = target * np.array(
        (np.cos(heading), np.sin(heading), rng.normal(0, 0.25), rng.normal(0, 0.15))
    )
    curve = _curve(rng, layout, direction)
    path = _way(curve, np.linspace(0, 1, 33)).sum()
    if layout.calm:
        path = max(path, 0.5 * _longest_way(curve, layout))
    curve = curve.scaled(target / path * np.array((1, 1, 1 / radius, 1 / radius)))
    curve = curve.scaled(np.array((1, 1, 1, _growth_share(curve, layout))))
    if layout.calm:
        turning = _ranges(curve(_rendered(layout))[:, 2])[0]
        curve = curve.scaled(np.array((1, 1, min(1.0, LARGEST_SWING / max(turning, 1e-9)), 1)))
    if place is None:
        return LayerMotion(curve, image / 2, texture / 2)
    return LayerMotion(curve, place - curve(np.array((layout.middle,)))[0, :2], texture / 2)


def _way(curve: SmoothCurve, tau: np.ndarray) -> np.ndarray:
    """Path lengths of components x and y from each time to the next, px: [T - 1]."""
    return np.linalg.norm(np.diff(curve(tau)[:, :2], axis=0), axis=1)


def _longest_way(curve: SmoothCurve, layout: Layout) -> float:
    """The longest path in any one interval of what is rendered, px."""
    return float(np.convolve(_way(curve, _rendered(layout)), np.ones(STEPS), "valid").max())


def _growth_share(curve: SmoothCurve, layout: Layout) -> float:
    """The share of the scaling of a layer, component 3, that keeps its growth in bounds."""
    inside, in_all = _ranges(curve(_rendered(layout))[:, 3])
    return min(1.0, np.log(GROWTH) / max(inside, 1e-9), np.log(GROWTH_IN_ALL) / max(in_all, 1e-9))


def _rendered(layout: Layout) -> np.ndarray:
    """Times from the begin to the end of what is rendered, :data:`STEPS` per interval."""
    end = 2 * layout.middle + BEYOND
    return np.arange(-np.ceil(BEYOND * STEPS), np.ceil(end * STEPS) + 1) / STEPS


def _ranges(values: np.ndarray) -> tuple[float, float]:
    """Largest minus least of the values at :func:`_rendered`: in any one interval, and in all."""
    windows = np.lib.stride_tricks.sliding_window_view(values, STEPS + 1)
    return float(np.ptp(windows, axis=1).max()), float(np.ptp(values))


def _background(rng: Generator, layout: Layout, target: float) -> Surface:
    size = (_endless_side(layout),) * 2
    return Surface(_layer_motion(rng, layout, target, size, None), size, unbounded=True)


def _object(rng: Generator, layout: Layout, background: float) -> Surface:
    """An object that moves by several px otherwise than what is behind it."""
    short = min(layout.height, layout.width)
    mask = make_shape(rng, short * np.exp(rng.uniform(np.log(0.15), np.log(0.75))))
    return Surface(_object_motion(rng, layout, background, mask.shape), mask.shape, mask)


def _object_motion(
    rng: Generator, layout: Layout, background: float, size: tuple[int, int]
) -> LayerMotion:
    # A near object stands still now and then: also that is motion against the background.
    still = rng.random() < 0.15 and background > 2 * layout.displacement[0]
    target = 0.02 * background if still else _draw_displacement(rng, layout)
    place = rng.uniform(0.1, 0.9, 2) * (layout.width, layout.height)
    return _layer_motion(rng, layout, target, size, place)


def _thin_object(rng: Generator, layout: Layout, background: float) -> list[Surface]:
    """A thin, branching or jointed object that moves as others do."""
    size = min(layout.height, layout.width) * np.exp(rng.uniform(np.log(0.25), np.log(0.8)))
    if rng.random() >= JOINTED_SHARE:
        mask = make_thin_shape(rng, max(size, 12.0))
        return [Surface(_object_motion(rng, layout, background, mask.shape), mask.shape, mask)]
    parts = make_jointed(rng, max(size, 24.0))
    motions: list[Motion] = [_object_motion(rng, layout, background, parts[0].mask.shape)]
    for part in parts[1:]:
        motions.append(_joint_motion(rng, layout, part, motions))
    surfaces = [Surface(m, p.mask.shape, p.mask) for m, p in zip(motions, parts, strict=True)]
    order = sorted(range(len(parts)), key=lambda i: not parts[i].behind)
    return [surfaces[i] for i in order]


def _joint_motion(rng: Generator, layout: Layout, part: Part, motions: list[Motion]) -> JointMotion:
    """A turn whose fastest point moves by as much as another object would, within bounds."""
    assert part.parent is not None and part.joint is not None
    most = LARGEST_TURN if part.turns else LARGEST_SWING
    turn = min(_draw_displacement(rng, layout) / part.reach, most) * rng.choice((-1, 1))
    # The families of curves turn components in pairs: the second one is not used.
    curve = _curve(rng, layout, np.array((turn, 0.0)))
    return JointMotion(motions[part.parent], curve, part.joint, part.anchor)


def _swarm(rng: Generator, layout: Layout) -> list[Surface]:
    """Small objects of one kind of speed, each on its own way."""
    low, high = layout.displacement
    fast = replace(layout, displacement=(float(np.sqrt(low * high)), high))
    surfaces = []
    for _ in range(rng.integers(SWARM[0], SWARM[1] + 1)):
        mask = small_shape(rng, float(np.exp(rng.uniform(*np.log(SMALL)))))
        place = rng.uniform(0.05, 0.95, 2) * (layout.width, layout.height)
        target = _draw_displacement(rng, fast)
        motion = _layer_motion(rng, layout, target, mask.shape, place)
        surfaces.append(Surface(motion, mask.shape, mask))
    return surfaces


def _endless_side(layout: Layout) -> int:
    """Texels of a repeating texture: the image and the way it moves fit in without a repeat."""
    return 64 * int(np.ceil((max(layout.height, layout.width) + 2 * layout.displacement[1]) / 64))


def _world(rng: Generator, layout: Layout, target: float, count: int) -> list[Surface]:
    """Far scenery, ground, boxes, seen by a camera that moves by about ``target`` px."""
    height, width = layout.height, layout.width
    focal = width * rng.uniform(0.7, 1.4)
    centre = np.array((width * rng.uniform(0.4, 0.6), height * rng.uniform(0.25, 0.6)))
    eye = rng.uniform(0.8, 2.5)  # height over the ground, m
    nearest = focal * eye / (height - centre[1])  # depth of the lowest row of the image, m
    camera = Camera(_camera_curve(rng, layout, focal, nearest), focal, centre)
    side = _endless_side(layout)
    still = [_far_scenery(camera, side), _ground(rng, camera, eye, nearest, side)]
    depths = nearest * np.exp(rng.uniform(np.log(NEAREST_BOX), np.log(10.0), count))
    depths = np.sort(depths)[::-1].tolist()
    boxes = [_box(rng, camera, (height, width), eye, depth) for depth in depths]
    camera = _fit_camera([*still, *chain(*boxes)], layout, target, nearest)
    surfaces = [replace(s, motion=replace(s.motion, camera=camera)) for s in still]
    for depth, faces in zip(depths, boxes, strict=True):
        drives = layout.driving and rng.random() < DRIVING_BOXES
        drive = _drive(rng, layout, camera, depth) if drives else None
        surfaces += [
            replace(s, motion=replace(s.motion, camera=camera, drive=drive)) for s in faces
        ]
    return surfaces


def _camera_curve(rng: Generator, layout: Layout, focal: float, nearest: float) -> SmoothCurve:
    """Six components drawn as px of apparent motion, then turned into radians and metres."""
    radian, metre = 1 / focal, 2 * nearest / focal  # what moves the picture by about one px
    unit = np.array((radian, radian, 2 * radian, metre, metre, 2 * metre))
    if layout.driving:
        turning = 0.7 * rng.random() ** 2
        yaw = turning * rng.choice((-1, 1))
        direction = np.array((0, yaw, 0, 0, 0, 1 - turning))
        # Wheels and springs let little through of changes in the other components.
        return _curve(rng, layout, direction, (0.05, 0.15, 0.3)).scaled(CAR * unit)
    turning = rng.uniform(0.05, 1)
    pitch, roll = rng.normal(0, (0.6, 0.25))
    yaw = (0.3 + rng.exponential(0.7)) * rng.choice((-1, 1))
    moving = (1 - turning) * rng.normal(0, (1.0, 0.25, 1.0))
    direction = np.concatenate((turning * np.array((pitch, yaw, roll)), moving))
    return _curve(rng, layout, direction).scaled(unit)


def _drive(rng: Generator, layout: Layout, camera: Camera, depth: float) -> SmoothCurve | None:
    """The way of a box at ``depth`` over the ground; None where it would grow out of bounds."""
    heading = rng.uniform(0, 2 * np.pi)
    metres = _draw_displacement(rng, layout) * depth / camera.focal
    direction = metres * np.array((np.cos(heading), 2 * np.sin(heading)))
    curve = _curve(rng, layout, direction, (0.05, 0.15))
    times = _rendered(layout)
    approach, away = camera.curve(times)[:, 5], curve(times)[:, 1]
    for share in (1.0, 0.5, 0.25):
        if _approach_share(approach - share * away, depth) == 1:
            return curve.scaled(share)
    return None


def _far_scenery(camera: Camera, side: int) -> Surface:
    texel = 1 / camera.focal
    origin = np.array((-side / 2, -side / 2, camera.focal)) * texel
    motion = WorldPlaneMotion(
        camera, origin, np.array((texel, 0, 0)), np.array((0, texel, 0)), at_infinity=True
    )
    return Surface(motion, (side, side), unbounded=True)


def _ground(rng: Generator, camera: Camera, eye: float, nearest: float, side: int) -> Surface:
    texel = (
        nearest / camera.focal * rng.uniform(0.8, 1.3)
    )  # about one texel per px where it is nearest
    turn = rng.uniform(0, 2 * np.pi)
    step_x = texel * np.array((np.cos(turn), 0, np.sin(turn)))
    step_y = texel * np.array((-np.sin(turn), 0, np.cos(turn)))
    middle = np.array((0.0, eye, 1.8 * nearest))
    motion = WorldPlaneMotion(camera, middle - side / 2 * (step_x + step_y), step_x, step_y)
    return Surface(motion, (side, side), unbounded=True, recedes=True)


def _box(
    rng: Generator, camera: Camera, image: tuple[int, int], eye: float, depth: float
) -> list[Surface]:
    """The visible faces of an upright box: the farther side, the nearer side, top, front."""
    metre_per_px = depth / camera.focal
    left = (rng.uniform(-0.15, 0.9) * image[1] - camera.centre[0]) * metre_per_px
    right = left + rng.uniform(0.08, 0.4) * image[1] * metre_per_px
    lift = rng.uniform(0.1, 0.5) * eye if rng.random() < 0.2 else 0.0  # some hang in the air
    bottom = eye - lift
    top = bottom - rng.uniform(0.15, 0.8) * image[0] * metre_per_px
    back = depth + (right - left) * rng.uniform(0.3, 2.0)
    lit = rng.uniform(0.4, 1.6)
    sides = [
        _face(camera, ((x, top, depth), (x, top, back), (x, bottom, depth)), lit)
        for x in (left, right)
    ]
    if left > 0:  # the camera is left of the box: the left side is the nearer one
        sides.reverse()
    lid = _face(camera, ((left, top, depth), (right, top, depth), (left, top, back)), 1.5)
    front = _face(camera, ((left, top, depth), (right, top, depth), (left, bottom, depth)), 1.0)
    return [face for face in (*sides, lid, front) if face is not None]


def _face(
    camera: Camera, corners: tuple[tuple[float, float, float], ...], shade: float
) -> Surface | None:
    """A rectangle given by a corner and its two neighbours; None when seen edge-on.

    It gets as many texels as it has pixels at tau = 0: a texture that is no finer than the picture
    does not alias.
    """
    corner, along_x, along_y = (np.array(c, dtype=np.float64) for c in corners)
    places = [camera.focal * c[:2] / c[2] for c in (corner, along_x, along_y)]
    width, height = (np.linalg.norm(place - places[0]) for place in places[1:])
    if min(width, height) < 2:
        return None
    columns, rows = (int(np.clip(np.ceil(n), 4, 2048)) for n in (width, height))
    step_x, step_y = (along_x - corner) / columns, (along_y - corner) / rows
    origin = corner - (MARGIN - 0.5) * (step_x + step_y)
    size = (rows + 2 * MARGIN, columns + 2 * MARGIN)
    return Surface(WorldPlaneMotion(camera, origin, step_x, step_y), size, shade=shade)


def _fit_camera(surfaces: list[Surface], layout: Layout, target: float, nearest: float) -> Camera:
    """Scale the camera's path until four fifths of the image move by at most ``target``."""
    camera = surfaces[0].motion.camera
    for _ in range(3):
        factor = target / _apparent_motion(surfaces, camera, layout)
        camera = replace(camera, curve=camera.curve.scaled(factor))
    # Not into the boxes: in all the time rendered, at most a third of the way to the nearest.
    path = camera.curve(_rendered(layout))[:, 3:]
    reach = float(np.abs(path).max())
    share = min(nearest / 3 / max(reach, 1e-9), _approach_share(path[:, 2], NEAREST_BOX * nearest))
    if share < 1:
        slower = np.array((1.0,) * 3 + (share,) * 3)
        camera = replace(camera, curve=camera.curve.scaled(slower))
        for _ in range(3):  # the motion that is missing now comes from turning
            more = np.clip(target / _apparent_motion(surfaces, camera, layout), 1 / 3, 3)
            faster = np.array((more,) * 3 + (1.0,) * 3)
            camera = replace(camera, curve=camera.curve.scaled(faster))
    return camera


def _approach_share(forward: np.ndarray, depth: float) -> float:
    """The share of a motion forward that keeps the growth of what is at ``depth`` in bounds.

    Args:
        forward: at the times :func:`_rendered`, in the units of ``depth``.
    """
    # With the share s, depths are depth - s forward; their ratio is at most g for each pair of
    # times if depth - s least <= g (depth - s largest).
    share = 1.0
    windows = np.lib.stride_tricks.sliding_window_view(forward, STEPS + 1)
    for growth, parts in ((GROWTH, windows), (GROWTH_IN_ALL, forward[None])):
        excess = float((growth * parts.max(axis=1) - parts.min(axis=1)).max())
        share = min(share, depth * (growth - 1) / max(excess, 1e-9))
    return share


def _apparent_motion(surfaces: list[Surface], camera: Camera, layout: Layout) -> float:
    """80th percentile over surfaces and image points of the path length in one interval, px."""
    x, y = np.meshgrid(np.linspace(0, layout.width - 1, 7), np.linspace(0, layout.height - 1, 7))
    points = np.stack((x.ravel(), y.ravel()), axis=1)
    tau = np.linspace(0, 1, 9)
    paths = []
    for surface in surfaces:
        matrices = replace(surface.motion, camera=camera).homographies(tau)
        texels, depth = transfer(np.linalg.inv(matrices[0]), points)
        seen = depth > 1e-3
        if not surface.unbounded:
            seen &= ((texels > 0) & (texels < surface.size[::-1])).all(1)
        tracks, depths = transfer(matrices, texels[seen])
        ahead = (depths > 0).all(0)
        paths.append(np.linalg.norm(np.diff(tracks[:, ahead], axis=0), axis=-1).sum(0))
    return max(float(np.percentile(np.concatenate(paths), 80)), 1e-6)


def _extremes(rng: Generator, layout: Layout) -> Callable[[np.ndarray, Motion], np.ndarray]:
    """Part of the view at t0 far too bright (or dark), another part almost without contrast."""
    angle, bend = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.08)
    normal = np.array((np.cos(angle), np.sin(angle))) / (layout.width, layout.height)
    across = np.array((-np.sin(angle), np.cos(angle))) / (layout.width, layout.height)
    factor = rng.uniform(20, 60) if rng.random() < 0.7 else 1 / rng.uniform(40, 100)
    bright_from, faint_to = rng.uniform(0.08, 0.25), -rng.uniform(0.05, 0.2)

    def treat(radiance: np.ndarray, motion: Motion) -> np.ndarray:
        y, x = np.mgrid[0 : radiance.shape[0], 0 : radiance.shape[1]].astype(np.float64)
        texels = np.stack((x.ravel(), y.ravel()), axis=1)
        places, _ = transfer(motion.homographies(np.array((0.0,)))[0], texels)
        places = places - (layout.width / 2, layout.height / 2)
        position = places @ normal + bend * np.sin(6 * places @ across)
        position = np.clip(position, -9, 9).reshape(radiance.shape)
        clipped = 1 / (1 + np.exp(np.clip((bright_from - position) * layout.width / 2, -50, 50)))
        faint = 1 / (1 + np.exp(np.clip((position - faint_to) * layout.width / 2, -50, 50)))
        log = np.log(radiance)
        mean, span = log.mean(), max(float(np.ptp(log)), 1e-6)
        log = log + faint * (min(1.0, layout.faint / span) - 1) * (log - mean)
        return np.exp(log + clipped * np.log(factor)).astype(np.float32)

    return treat


def _cover(
    rng: Generator,
    layout: Layout,
    surface: Surface,
    treat: Callable[[np.ndarray, Motion], np.ndarray] | None,
) -> Plane:
    """Give a surface its texture."""
    # A plain background that fills the image would hide its motion from everyone; a plain ground or
    # sky has things around it that tell.
    alone = surface.unbounded and isinstance(surface.motion, LayerMotion)
    plain = rng.random() < (0.0 if alone else 0.1 if surface.unbounded else 0.2)
    contrast = rng.uniform(0.0, 0.08) if plain else np.exp(rng.uniform(np.log(0.6), np.log(4.0)))
    brightness = surface.shade * np.exp(rng.uniform(np.log(0.06), np.log(0.6)))
    radiance = make_texture(
        rng,
        *surface.size,
        contrast=contrast,
        brightness=brightness,
        images=layout.images,
        split=layout.split,
    )
    if treat is not None:
        radiance = treat(radiance, surface.motion)
    mask = surface.mask
    if mask is None and not surface.unbounded:
        mask = rectangle_mask(*surface.size)
    return Plane(radiance, surface.motion, mask=mask, recedes=surface.recedes, device=layout.device)
