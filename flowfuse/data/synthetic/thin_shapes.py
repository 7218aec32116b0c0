"""Thin, branching and jointed objects of generated scenes, as masks.

Strokes are 2 to 8 texels wide, about as many px. Masks are soft by about a pixel at their edge, as
those of :func:`flowfuse.data.synthetic.textures.make_shape`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from flowfuse.data.synthetic.textures import make_shape

PAD = 6  # texels of nothing around: more than the softening reaches
SOFTNESS = 0.6  # texels
FINER = 4  # strokes are drawn on a canvas of so many times the texels
THINNEST, THICKEST = 2, 8


@dataclass(frozen=True)
class Stroke:
    """A line of one width through points, or the area inside of them.

    Attributes:
        points: [N, 2] texels (x, y).
        width: of the line in texels; 0 = the points are the corners of an area.
        hole: takes away what lies there.
        closed: the last point is joined with the first.
    """

    points: np.ndarray
    width: int = 0
    hole: bool = False
    closed: bool = False


@dataclass(frozen=True)
class Part:
    """One rigid part of an object.

    Attributes:
        mask: [h, w] float32 in [0, 1], 0 along its border.
        anchor: [2] texel (x, y) that a turn leaves in place.
        parent: index of the part that it hangs on; None for the body.
        joint: [2] texel of the parent that the anchor stays on.
        turns: it goes round as a wheel does, instead of swinging as a limb.
        behind: it is painted before the body.
    """

    mask: np.ndarray
    anchor: np.ndarray
    parent: int | None = None
    joint: np.ndarray | None = None
    turns: bool = False
    behind: bool = False

    @property
    def reach(self) -> float:
        """The largest distance of the anchor to a corner of what is there, texels."""
        corners = np.array(((0, 0), (0, 1), (1, 0), (1, 1))) * (self.mask.shape[1::-1])
        inner = np.clip(corners, PAD, np.array(self.mask.shape[1::-1]) - PAD)
        return float(np.linalg.norm(inner - self.anchor, axis=1).max())


def draw_strokes(strokes: Sequence[Stroke]) -> tuple[np.ndarray, np.ndarray]:
    """Draw strokes, one over the other, on a canvas of just their size.

    Returns:
        The mask [h, w], and the texel [2] (x, y) at which the points' origin lies.
    """
    low = np.min([(s.points - s.width / 2).min(0) for s in strokes], axis=0) - PAD
    high = np.max([(s.points + s.width / 2).max(0) for s in strokes], axis=0) + PAD
    extent = np.ceil(high - low).astype(int)
    # OpenCV's smooth lines are 1.5 texels too wide; sharp ones on a finer canvas are not.
    fine = np.zeros((FINER * extent[1], FINER * extent[0]), dtype=np.uint8)
    for stroke in strokes:
        # Texel centres are whole numbers on both canvases.
        corners = FINER * (stroke.points - low + 0.5) - 0.5
        points = [np.round(corners * 16).astype(np.int32)]
        value = 0 if stroke.hole else 255
        if stroke.width:
            thickness = FINER * stroke.width - 1  # they come out wider by one or two
            cv2.polylines(fine, points, stroke.closed, value, thickness, cv2.LINE_8, 4)
        else:
            cv2.fillPoly(fine, points, value, cv2.LINE_8, 4)
    mask = cv2.resize(fine, tuple(extent.tolist()), interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), SOFTNESS), -low


def thread(rng: Generator, size: float) -> list[Stroke]:
    """One to three long bent lines: wires, stalks, tendrils."""
    strokes = []
    heading = rng.uniform(0, 2 * np.pi)
    for _ in range(rng.integers(1, 4)):
        turns = np.cumsum(rng.normal(0, rng.uniform(0.02, 0.25), 16)) + rng.normal(0, 0.4)
        steps = size / 16 * _direction(heading + turns)
        start = rng.uniform(-0.15, 0.15, 2) * size - 0.5 * steps.sum(0)
        strokes.append(Stroke(start + np.cumsum(steps, axis=0), _width(rng)))
    return strokes


def tree(rng: Generator, size: float) -> list[Stroke]:
    """A trunk that forks, its branches thinner and shorter from fork to fork."""
    strokes = []
    forks = int(rng.integers(2, 4))
    spread, shrink = rng.uniform(0.3, 0.8), rng.uniform(0.6, 0.8)
    tips = [(np.zeros(2), -np.pi / 2 + rng.normal(0, 0.15), size * 0.6 * rng.uniform(0.7, 1.0))]
    width = float(np.clip(size * rng.uniform(0.04, 0.12), 3, THICKEST))
    for _ in range(forks + 1):
        grown = []
        for start, heading, length in tips:
            bend = heading + np.array((0.0, rng.normal(0, 0.2)))
            points = start + np.cumsum(
                np.vstack((np.zeros(2), 0.5 * length * _direction(bend))), axis=0
            )
            strokes.append(Stroke(points, max(round(width), THINNEST)))
            for side in (-1, 1) if rng.random() < 0.7 else (-1, 0.1, 1):
                turn = side * spread * rng.uniform(0.6, 1.3)
                grown.append((points[-1], bend[1] + turn, shrink * length * rng.uniform(0.7, 1.1)))
        tips, width = grown, width * rng.uniform(0.55, 0.75)
    return strokes


def fence(rng: Generator, size: float) -> list[Stroke]:
    """Posts and rails: fences, ladders, grids, nets."""
    width, height = size, size * rng.uniform(0.25, 1.0)
    thick, thin = _width(rng), _width(rng)
    gap = rng.uniform(4, max(0.35 * size, 6))  # at the least one sees through by so much
    rails = int(rng.integers(2, max(3, int(height / (thin + gap)) + 1)))
    posts = max(int(width / (thick + gap)), 1) + 1
    slant = rng.normal(0, 0.15) * height
    strokes = []
    for x in np.linspace(-width / 2, width / 2, posts):
        ends = np.array(((x - slant / 2, height / 2), (x + slant / 2, -height / 2)))
        strokes.append(Stroke(ends, thick))
    inset = rng.uniform(0, 0.2) * height
    for y in np.linspace(-height / 2 + inset, height / 2 - inset, rails):
        shift = -slant * y / height
        strokes.append(Stroke(np.array(((shift - width / 2, y), (shift + width / 2, y))), thin))
    return _turned(rng, strokes, np.pi if rng.random() < 0.4 else 0.1)


def wheel(rng: Generator, size: float) -> list[Stroke]:
    """A rim with spokes and a hub, at times seen at an angle."""
    return _wheel(rng, size, rng.uniform(0.5, 1.0) if rng.random() < 0.4 else 1.0)


def _wheel(rng: Generator, size: float, height: float) -> list[Stroke]:
    radius, flat = size / 2, np.array((1.0, height))
    # Half-way to the rim one sees through between spokes.
    spokes = int(np.clip(rng.integers(3, 9), 3, max(np.pi * radius / 9, 3)))
    phase = rng.uniform(0, 2 * np.pi)
    rim = radius * _direction(np.linspace(0, 2 * np.pi, 64, endpoint=False)) * flat
    most = max(int(0.25 * radius), THINNEST)
    strokes = [Stroke(rim, min(_width(rng), most), closed=True)]
    width = min(_width(rng), 5, most)
    for angle in phase + 2 * np.pi / spokes * np.arange(spokes):
        strokes.append(Stroke(np.stack((np.zeros(2), radius * _direction(angle) * flat)), width))
    hub = max(0.15 * radius, 2) * _direction(np.linspace(0, 2 * np.pi, 24, endpoint=False)) * flat
    return [*strokes, Stroke(hub)]


def glyph(rng: Generator, size: float) -> list[Stroke]:
    """One to three signs as of an unknown script: straight and round strokes on a lattice."""
    signs = int(rng.integers(1, 4))
    tall = size / max(0.8 * signs, 1)
    width = int(np.clip(round(tall * rng.uniform(0.05, 0.13)), THINNEST, THICKEST))
    lattice = np.array([(x, y) for y in range(4) for x in range(3)]) * (tall / 4.5, tall / 3)
    strokes = []
    for sign in range(signs):
        start = lattice[rng.integers(12)]
        for _ in range(rng.integers(2, 5)):
            end = lattice[rng.integers(12)]
            if rng.random() < 0.35:  # a bow from one to the other
                normal = np.array((start[1] - end[1], end[0] - start[0]))
                t = np.linspace(0, 1, 12)[:, None]
                bow = rng.uniform(0.3, 0.7) * rng.choice((-1, 1))
                points = start + t * (end - start) + bow * np.sin(np.pi * t) * normal
            else:
                points = np.stack((start, end))
            strokes.append(Stroke(points + np.array((0.8 * tall * sign, 0)), width))
            start = end if rng.random() < 0.7 else lattice[rng.integers(12)]
    return _turned(rng, strokes, np.pi)


def chair(rng: Generator, size: float) -> list[Stroke]:
    """A seat on four legs, with a back of bars between which one sees through."""
    wide, deep = size * rng.uniform(0.35, 0.5), size * np.array((0.15, -0.12))
    deep = deep * rng.uniform(0.6, 1.2, 2) * (rng.choice((-1, 1)), 1)
    leg, tall = size * rng.uniform(0.35, 0.5), size * rng.uniform(0.35, 0.5)
    near = np.array(((0, 0), (wide, 0)))
    far = near + deep
    down, up = np.array((0, leg)), np.array((0, -tall))
    post, bar = min(_width(rng), 6), min(_width(rng), 5)
    strokes = [Stroke(np.stack((corner, corner + down)), post) for corner in (*far, *near)]
    strokes.append(Stroke(np.stack((*near, *far[::-1]))))
    if rng.random() < 0.5:  # rungs between the legs
        strokes.append(Stroke(near + 0.6 * down, THINNEST))
    strokes += [Stroke(np.stack((corner, corner + up)), post) for corner in far]
    strokes.append(Stroke(far + up, post))
    bars = int(rng.integers(1, 5))
    for share in (np.arange(bars) + 1) / (bars + 1):
        if rng.random() < 0.5:
            strokes.append(Stroke(far + share * up, bar))
        else:
            top = far[0] + share * (far[1] - far[0])
            strokes.append(Stroke(np.stack((top, top + up)), bar))
    return _turned(rng, strokes, 0.3)


def pierced(rng: Generator, size: float) -> list[Stroke]:
    """A plate with holes, between which narrow bridges stay."""
    columns, rows = (int(n) for n in rng.integers(2, 6, 2))
    cell = size / max(columns, rows)
    bridge = min(_width(rng), 0.6 * cell)
    corners = np.array(((0, 0), (1, 0), (1, 1), (0, 1)))
    strokes = [
        Stroke(
            corners * (columns, rows) * cell
            + np.array(((-1, -1), (1, -1), (1, 1), (-1, 1))) * bridge / 2
        )
    ]
    round_holes = rng.random() < 0.5
    circle = 0.5 + 0.5 * _direction(np.linspace(0, 2 * np.pi, 24, endpoint=False))
    for y in range(rows):
        for x in range(columns):
            outline = (circle if round_holes else corners) * (cell - bridge) + bridge / 2
            strokes.append(Stroke(outline + np.array((x, y)) * cell, hole=True))
    return _turned(rng, strokes, np.pi)


THIN_SHAPES: dict[str, Callable[[Generator, float], list[Stroke]]] = {
    "thread": thread,
    "tree": tree,
    "fence": fence,
    "wheel": wheel,
    "glyph": glyph,
    "chair": chair,
    "pierced": pierced,
}


def make_thin_shape(rng: Generator, size: float, *, kind: str | None = None) -> np.ndarray:
    """Draw the mask of a thin or branching object.

    Args:
        rng: source of every random choice.
        size: about its diameter in texels, at least 12.
        kind: of :data:`THIN_SHAPES`; None = any.

    Returns:
        [h, w] float32 in [0, 1], 0 along its border.
    """
    kind = kind or str(rng.choice(tuple(THIN_SHAPES)))
    return draw_strokes(THIN_SHAPES[kind](rng, size))[0]


def small_shape(rng: Generator, size: float) -> np.ndarray:
    """Draw the mask of a small object: a ball, a leaf, a stick, a sign; [h, w]."""
    if rng.random() < 0.3:
        return make_thin_shape(rng, size, kind="glyph" if rng.random() < 0.5 else "thread")
    return make_shape(rng, size, kind=str(rng.choice(("ellipse", "blob", "box", "polygon"))))


def figure(rng: Generator, size: float) -> list[Part]:
    """A body with two to five limbs that swing; some bend once more at their middle."""
    trunk = 0.45 * size * rng.uniform(0.6, 1.0)
    mask = make_shape(rng, trunk, kind=str(rng.choice(("ellipse", "box", "blob"))))
    middle = np.array(mask.shape[::-1]) / 2
    parts = [Part(mask, middle)]
    limbs = int(rng.integers(2, 6))
    for heading in rng.uniform(0, 2 * np.pi) + 2 * np.pi / limbs * np.arange(limbs):
        direction = _direction(heading + rng.normal(0, 0.3))
        joint = middle + _depth(mask, middle, direction) * direction
        length, width = size * rng.uniform(0.25, 0.55), _width(rng)
        bends = rng.random() < 0.4
        pieces = (0.5 * length,) * 2 if bends else (length,)
        behind = bool(rng.random() < 0.5)
        parent = 0
        for piece in pieces:
            points = np.stack((np.zeros(2), piece * direction))
            limb, origin = draw_strokes([Stroke(points, width)])
            parts.append(Part(limb, origin, parent, joint, behind=behind))
            parent, joint = len(parts) - 1, origin + points[1]
            direction = _direction(np.arctan2(*direction[::-1]) + rng.normal(0, 0.5))
            width = max(width - 1, THINNEST)
    return parts


def cart(rng: Generator, size: float) -> list[Part]:
    """A bar or box on two wheels that go round."""
    height = size * rng.uniform(0.06, 0.3)
    corners = np.array(((-1, -1), (1, -1), (1, 1), (-1, 1))) * (size / 2, height / 2)
    mask, origin = draw_strokes([Stroke(corners)])
    parts = [Part(mask, origin)]
    for side in (-1, 1):
        spokes = _wheel(rng, size * rng.uniform(0.3, 0.42), 1.0)
        rim, hub = draw_strokes(spokes)
        joint = origin + np.array((side * size * rng.uniform(0.25, 0.4), height / 2))
        parts.append(Part(rim, hub, 0, joint, turns=True))
    return parts


def rotor(rng: Generator, size: float) -> list[Part]:
    """A pole with vanes that go round."""
    pole = Stroke(np.array(((0.0, 0.0), (rng.normal(0, 0.05) * size, 0.6 * size))), _width(rng))
    mask, origin = draw_strokes([pole])
    vanes, width = int(rng.integers(2, 6)), _width(rng)
    angles = rng.uniform(0, 2 * np.pi) + 2 * np.pi / vanes * np.arange(vanes)
    strokes = [Stroke(np.stack((np.zeros(2), 0.4 * size * _direction(a))), width) for a in angles]
    blades, hub = draw_strokes(strokes)
    return [Part(mask, origin), Part(blades, hub, 0, origin, turns=True)]


JOINTED: tuple[Callable[[Generator, float], list[Part]], ...] = (figure, figure, cart, rotor)


def make_jointed(rng: Generator, size: float) -> list[Part]:
    """Draw an object of several parts; the first is the body, parents come before their parts.

    Args:
        size: about its diameter in texels, at least 24.
    """
    return JOINTED[rng.integers(len(JOINTED))](rng, size)


def _depth(mask: np.ndarray, middle: np.ndarray, direction: np.ndarray) -> float:
    """How far one can go from the middle of a mask until shortly before its edge, texels."""
    steps = np.arange(0.0, np.hypot(*mask.shape) / 2)
    texels = np.rint(middle + steps[:, None] * direction).astype(int)
    texels = np.clip(texels, 0, np.array(mask.shape[::-1]) - 1)
    inside = mask[texels[:, 1], texels[:, 0]] > 0.5
    return max(float(steps[inside].max(initial=0.0)) - 2.0, 0.0)


def _width(rng: Generator) -> int:
    """Texels; the thin ones are more frequent."""
    return int(np.floor(np.exp(rng.uniform(np.log(THINNEST), np.log(THICKEST + 1)))))


def _direction(angle: float | np.ndarray) -> np.ndarray:
    return np.stack((np.cos(angle), np.sin(angle)), axis=-1)


def _turned(rng: Generator, strokes: list[Stroke], most: float) -> list[Stroke]:
    """Turn strokes together by an angle within +-``most``."""
    angle = rng.uniform(-most, most)
    c, s = np.cos(angle), np.sin(angle)
    rotation = np.array(((c, s), (-s, c)))
    return [Stroke(k.points @ rotation, k.width, k.hole, k.closed) for k in strokes]
