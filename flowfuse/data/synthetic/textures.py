"""Textures and shapes of generated scenes: patterns and masks in [0, 1], linear radiance.

Every pattern is low-pass filtered (Gaussian, sigma of at least 0.7 texels): a texture that moves by
fractions of a pixel under bilinear interpolation would otherwise flicker and make false events.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator

from flowfuse.data.formats.frames import IMAGE_SUFFIXES, is_image
from flowfuse.data.synthetic.presets import Split
from flowfuse.io.opencv import opencv_name

TEST_IMAGES = 5  # every fifth image of a folder is for tests


def make_texture(
    rng: Generator,
    height: int,
    width: int,
    *,
    contrast: float,
    brightness: float,
    images: tuple[Path, ...] = (),
    split: Split = "train",
) -> np.ndarray:
    """Draw a random texture.

    Args:
        rng: source of every random choice.
        height, width: size in texels.
        contrast: peak-to-peak contrast of the log radiance (1 = a ratio of 2.7).
        brightness: median radiance; 1 is diffuse white.
        images: when given, crops of these files are used in half of the cases.
        split: whose families of patterns to use.

    Returns:
        [height, width] float32 linear radiance, positive.
    """
    if images and rng.random() < 0.5:
        pattern = _image_crop(rng, height, width, images)
    else:
        kinds = tuple(FAMILIES[split])
        kind = kinds[rng.choice(len(kinds), p=tuple(FAMILIES[split].values()))]
        pattern = PATTERNS[kind](rng, height, width)
        # Real surfaces are rarely clean. And bands or a gradient alone do not tell their motion.
        if kind in AMBIGUOUS or rng.random() < 0.5:
            share = rng.uniform(0.1, 0.5)
            pattern = (1 - share) * pattern + share * PATTERNS[GRIME[split]](rng, height, width)
    pattern = cv2.GaussianBlur(pattern.astype(np.float32), (0, 0), rng.uniform(0.7, 1.2))
    return (brightness * np.exp(contrast * (pattern - 0.5))).astype(np.float32)


def natural_noise(rng: Generator, height: int, width: int) -> np.ndarray:
    """Noise with the 1/f^b amplitude spectrum of natural images, b in [0.8, 1.6]."""
    exponent = rng.uniform(0.8, 1.6)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1.0
    # Wavelengths beyond 64 texels are held back: they would eat the whole contrast.
    amplitude = np.maximum(frequency, 1 / 64) ** -exponent
    amplitude[0, 0] = 0.0
    noise = rng.standard_normal((height, width), dtype=np.float32)
    field = np.fft.irfft2(np.fft.rfft2(noise) * amplitude, s=(height, width))
    return _normalise(field)


def cells(rng: Generator, height: int, width: int) -> np.ndarray:
    """Voronoi cells of one value each, around the points of a jittered lattice."""
    size = rng.uniform(5, 28)
    rows, columns = int(height / size) + 3, int(width / size) + 3
    jitter = rng.random((rows, columns, 2), dtype=np.float32)
    value = rng.random((rows, columns), dtype=np.float32)
    y, x = _lattice(height, width, size)
    row, column = np.floor(y).astype(np.int32), np.floor(x).astype(np.int32)
    nearest = np.full((height, width), np.inf, dtype=np.float32)
    pattern = np.zeros((height, width), dtype=np.float32)
    for dy in (-1, 0, 1):  # the nearest point is nearly always in the 3 x 3 neighbouring squares
        for dx in (-1, 0, 1):
            r, c = row + dy + 1, column + dx + 1
            point = jitter[r, c]
            distance = (r - 1 + point[..., 0] - y) ** 2 + (c - 1 + point[..., 1] - x) ** 2
            closer = distance < nearest
            nearest = np.where(closer, distance, nearest)
            pattern = np.where(closer, value[r, c], pattern)
    return pattern


def stripes(rng: Generator, height: int, width: int) -> np.ndarray:
    """Parallel bands: sharp or soft, often bent by a smooth field."""
    return _bands(_phase(rng, height, width, rng.uniform(6, 40)), rng.uniform(1, 8))


def checkers(rng: Generator, height: int, width: int) -> np.ndarray:
    """Product of two crossed bands."""
    period, angle, sharpness = rng.uniform(8, 40), rng.uniform(0, np.pi), rng.uniform(2, 8)
    first = _bands(_phase(rng, height, width, period, angle), sharpness)
    second = _bands(_phase(rng, height, width, period, angle + np.pi / 2), sharpness)
    return first + second - 2 * first * second


def dots(rng: Generator, height: int, width: int) -> np.ndarray:
    """Discs of random radius and value on a ground."""
    canvas = np.full((height, width), rng.random(), dtype=np.float32)
    count = int(height * width / rng.uniform(60, 900)) + 1
    radius = rng.uniform(1.0, 6.0, count)
    for (x, y), r, value in zip(
        _places(rng, count, height, width), radius, rng.random(count), strict=True
    ):
        _disc(canvas, x, y, r, value)
    return canvas


def dead_leaves(rng: Generator, height: int, width: int) -> np.ndarray:
    """Shapes of all sizes thrown over each other: the occlusion statistics of natural images."""
    canvas = np.full((height, width), rng.random(), dtype=np.float32)
    count = min(int(height * width / 60) + 8, 700)
    # p(r) ~ r^-3 between r_min and r_max makes the picture scale-invariant.
    r_min, r_max = rng.uniform(1.5, 4.0), max(height, width) / rng.uniform(3, 8)
    u = rng.random(count)
    radius = 1 / np.sqrt(u / r_min**2 + (1 - u) / max(r_max, r_min + 1) ** 2)
    angle, value, boxy = rng.uniform(0, np.pi, count), rng.random(count), rng.random() < 0.5
    places = _places(rng, count, height, width)
    for i in np.argsort(-radius, kind="stable") if rng.random() < 0.5 else range(count):
        if boxy:
            corners = np.pi / 4 + np.pi / 2 * np.arange(4) + angle[i]
            outline = places[i] + radius[i] * np.stack((np.cos(corners), np.sin(corners)), axis=1)
            cv2.fillPoly(canvas, [_fixed_point(outline)], float(value[i]), cv2.LINE_8, 4)
        else:
            x, y = places[i]
            _disc(canvas, x, y, radius[i], value[i])
    return canvas


def strokes(rng: Generator, height: int, width: int) -> np.ndarray:
    """Rows of short strokes: what print looks like to a camera."""
    canvas = np.ones((height, width), dtype=np.float32)
    letter = rng.uniform(5, 18)
    thickness = 1 if letter < 9 else 2
    for y in np.arange(letter, height + letter, 1.6 * letter):
        for x in np.arange(letter / 2, width, 0.8 * letter):
            if rng.random() < 0.15:
                continue
            points = np.array((x, y)) + letter * (rng.random((4, 2)) - (0.0, 1.0)) * (0.7, 1.0)
            cv2.polylines(canvas, [_fixed_point(points)], False, 0.0, thickness, cv2.LINE_8, 4)
    return canvas if rng.random() < 0.7 else 1 - canvas


def smooth_field(rng: Generator, height: int, width: int) -> np.ndarray:
    """A slow gradient with almost no edge."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle, period = rng.uniform(0, 2 * np.pi), max(height, width) * rng.uniform(0.7, 2.0)
    phase = (np.cos(angle) * x + np.sin(angle) * y) / period
    return 0.5 + 0.5 * np.sin(2 * np.pi * phase + rng.uniform(0, 6.28))


def ridged_noise(rng: Generator, height: int, width: int) -> np.ndarray:
    """Veins as in marble: octaves of smooth noise, folded at its middle."""
    field = np.zeros((height, width), dtype=np.float32)
    size = rng.uniform(16, 56)
    for octave in range(4):
        cell = size / 2**octave
        rows, columns = int(height / cell) + 3, int(width / cell) + 3
        grid = rng.standard_normal((rows, columns), dtype=np.float32)
        extent = (int(np.ceil(columns * cell)), int(np.ceil(rows * cell)))
        smooth = cv2.resize(grid, extent, interpolation=cv2.INTER_CUBIC)
        field -= 0.65**octave * np.abs(smooth[:height, :width])
    return _normalise(field)


def bricks(rng: Generator, height: int, width: int) -> np.ndarray:
    """Courses of bricks, every one of its own value, with joints, at any angle."""
    course, length = rng.uniform(6, 20), rng.uniform(1.3, 3.5)
    joint = rng.uniform(0.08, 0.2)  # of a course
    y, x = _turned(rng, height, width, course)
    row = np.floor(y).astype(np.int32)
    x = x / length + rng.random(64, dtype=np.float32)[row % 64]
    column = np.floor(x).astype(np.int32)
    value = rng.random((64, 64), dtype=np.float32)[row % 64, column % 64]
    solid = (y - row > joint) & ((x - column) * length > joint)
    return np.where(solid, value, np.float32(rng.random()))


def fibres(rng: Generator, height: int, width: int) -> np.ndarray:
    """Long bent threads thrown over each other: grass, hair, cloth."""
    canvas = np.full((height, width), rng.random(), dtype=np.float32)
    count = min(int(height * width / rng.uniform(100, 500)) + 8, 900)
    heading = rng.uniform(0, 2 * np.pi, (count, 1)) + rng.normal(0, 0.3, (count, 12)).cumsum(1)
    steps = rng.uniform(2, 6) * np.stack((np.cos(heading), np.sin(heading)), axis=-1)
    threads = _places(rng, count, height, width)[:, None] + steps.cumsum(1)
    thickness = int(rng.integers(1, 4))
    for thread, value in zip(threads, rng.random(count), strict=True):
        points = [_fixed_point(thread)]
        cv2.polylines(canvas, points, False, float(value), thickness, cv2.LINE_8, 4)
    return canvas


def rings(rng: Generator, height: int, width: int) -> np.ndarray:
    """Bands around a centre, bent and of uneven width: cut wood."""
    period = rng.uniform(6, 24)
    y, x = _turned(rng, height, width, period)
    radius = np.hypot(y, x * np.float32(rng.uniform(0.3, 1.0)))
    angle = np.arctan2(y, x)
    bend = rng.uniform(0.1, 0.8) * np.sin(rng.integers(2, 6) * angle + rng.uniform(0, 6.28))
    uneven = rng.uniform(0, 0.8) * np.sin(radius * rng.uniform(0.3, 1.5))
    return _bands(radius + bend + uneven, rng.uniform(1, 6))


PATTERNS: dict[str, Callable[[Generator, int, int], np.ndarray]] = {
    "natural_noise": natural_noise,
    "dead_leaves": dead_leaves,
    "cells": cells,
    "stripes": stripes,
    "checkers": checkers,
    "dots": dots,
    "strokes": strokes,
    "smooth_field": smooth_field,
    "ridged_noise": ridged_noise,
    "bricks": bricks,
    "fibres": fibres,
    "rings": rings,
}
AMBIGUOUS = ("stripes", "checkers", "smooth_field", "rings")
# The probability of each pattern. No pattern is in both splits.
FAMILIES: dict[Split, dict[str, float]] = {
    "train": {
        "natural_noise": 0.3,
        "dead_leaves": 0.3,
        "stripes": 0.1,
        "dots": 0.1,
        "strokes": 0.1,
        "smooth_field": 0.1,
    },
    "test": {
        "ridged_noise": 0.25,
        "fibres": 0.25,
        "cells": 0.15,
        "bricks": 0.15,
        "checkers": 0.1,
        "rings": 0.1,
    },
}
GRIME: dict[Split, str] = {"train": "natural_noise", "test": "ridged_noise"}


def make_shape(rng: Generator, size: float, *, kind: str | None = None) -> np.ndarray:
    """Draw the mask of an object, soft by about a pixel at its edge and 0 along its border.

    Args:
        rng: source of every random choice.
        size: diameter in texels.
        kind: ``"blob"``, ``"polygon"``, ``"ellipse"``, ``"box"``, ``"bar"`` (thin) or ``"ring"``;
            None = any.

    Returns:
        [h, w] float32 in [0, 1].
    """
    kind = kind or str(rng.choice(("blob", "polygon", "ellipse", "box", "bar", "ring")))
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    turn = rng.uniform(0, np.pi)
    if kind in ("box", "bar"):
        aspect = rng.uniform(2.5, 6.0) / size if kind == "bar" else rng.uniform(0.3, 1.0)
        outline = np.array(((-1, -aspect), (1, -aspect), (1, aspect), (-1, aspect)))
    elif kind == "polygon":
        angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
        outline = rng.uniform(0.4, 1.0, (angle.size, 1)) * _circle(angle)
    elif kind == "blob":
        harmonics = np.arange(2, 7)[:, None]
        weights = rng.normal(0, 0.5, (5, 1)) / harmonics
        wave = np.sin(harmonics * angle + rng.uniform(0, 6.28, (5, 1)))
        outline = np.clip(0.75 + (weights * wave).sum(0), 0.25, 1.0)[:, None] * _circle(angle)
    else:
        outline = _circle(angle) * (1.0, rng.uniform(0.35, 1.0))
    rotation = np.array(((np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))))
    outline = size / 2 * outline @ rotation.T
    low = outline.min(0) - 6  # texels of nothing around: more than the softening reaches
    extent = np.ceil(outline.max(0) + 6 - low).astype(int)
    mask = np.zeros((extent[1], extent[0]), dtype=np.uint8)
    cv2.fillPoly(mask, [_fixed_point(outline - low)], 255, cv2.LINE_AA, 4)
    if kind == "ring":
        inner = (outline - outline.mean(0)) * rng.uniform(0.4, 0.75) + outline.mean(0)
        cv2.fillPoly(mask, [_fixed_point(inner - low)], 0, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), 0.6)


def rectangle_mask(height: int, width: int) -> np.ndarray:
    """Mask of a full rectangle with the same soft edge and empty border as :func:`make_shape`."""
    mask = np.zeros((height, width), dtype=np.float32)
    mask[3:-3, 3:-3] = 1
    return cv2.GaussianBlur(mask, (0, 0), 0.6)


@lru_cache(maxsize=8)
def list_images(folder: Path) -> tuple[Path, ...]:
    """List the images of a folder in the order of their names.

    Raises:
        FileNotFoundError: when the folder is missing or holds no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"texture folder {folder} does not exist")
    images = tuple(sorted(path for path in folder.rglob("*") if is_image(path)))
    if not images:
        raise FileNotFoundError(
            f"texture folder {folder} holds no image ({', '.join(IMAGE_SUFFIXES)})"
        )
    return images


def images_of_split(folder: Path, split: Split) -> tuple[Path, ...]:
    """Choose the images of a folder for one split: every fifth one by name is for tests.

    Raises:
        FileNotFoundError: when the folder is missing or holds no image for this split.
    """
    images = list_images(folder)
    first = TEST_IMAGES - 1
    chosen = tuple(
        p for i, p in enumerate(images) if (i % TEST_IMAGES == first) == (split == "test")
    )
    if not chosen:
        raise FileNotFoundError(
            f"texture folder {folder} holds {len(images)} image(s); every fifth one is for tests: "
            f"at least {TEST_IMAGES} are needed"
        )
    return chosen


@lru_cache(maxsize=64)
def _read_gray(path: Path) -> np.ndarray:
    image = cv2.imread(opencv_name(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise ValueError(f"texture {path} cannot be read as an image")
    return image


def _image_crop(rng: Generator, height: int, width: int, images: tuple[Path, ...]) -> np.ndarray:
    image = _read_gray(images[rng.integers(len(images))])
    scale = max(height / image.shape[0], width / image.shape[1], rng.uniform(0.4, 1.0))
    size = (max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale)))
    shrinks = size[0] < image.shape[1]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    y = rng.integers(image.shape[0] - height + 1)
    x = rng.integers(image.shape[1] - width + 1)
    # Codes are roughly perceptual: the logarithm of the linear value, floored, as the pattern.
    log = np.log(np.maximum(image[y : y + height, x : x + width] / 255.0, 0.03) ** 2.2)
    return _normalise(log)


def _normalise(field: np.ndarray) -> np.ndarray:
    """Centre a field on 0.5 with a deviation of 0.2, clipped to [0, 1]."""
    deviation = max(float(field.std()), 1e-6)
    return np.clip(0.5 + 0.2 * (field - float(field.mean())) / deviation, 0, 1)


def _phase(
    rng: Generator, height: int, width: int, period: float, angle: float | None = None
) -> np.ndarray:
    angle = rng.uniform(0, np.pi) if angle is None else angle
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    phase = (np.cos(angle) * x + np.sin(angle) * y) / period
    if rng.random() < 0.5:
        across = (np.cos(angle) * y - np.sin(angle) * x) / (period * rng.uniform(2, 6))
        phase = phase + rng.uniform(0.1, 0.6) * np.sin(2 * np.pi * across)
    return phase + rng.random()


def _bands(phase: np.ndarray, sharpness: float) -> np.ndarray:
    return 0.5 + 0.5 * np.clip(sharpness * np.sin(2 * np.pi * phase), -1, 1)


def _lattice(height: int, width: int, size: float) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return y / size, x / size


def _turned(rng: Generator, height: int, width: int, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (y, x) in units of ``size``, about a random texel and at a random angle."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    y, x = (y - height * rng.random()) / size, (x - width * rng.random()) / size
    angle = rng.uniform(0, 2 * np.pi)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * y - s * x, s * y + c * x


def _places(rng: Generator, count: int, height: int, width: int) -> np.ndarray:
    return rng.random((count, 2)) * (width, height)


def _circle(angle: np.ndarray) -> np.ndarray:
    return np.stack((np.cos(angle), np.sin(angle)), axis=1)


def _fixed_point(points: np.ndarray) -> np.ndarray:
    """Coordinates with the 4 fractional bits that OpenCV's drawing calls take as ``shift=4``."""
    return np.round(points * 16).astype(np.int32)


def _disc(canvas: np.ndarray, x: float, y: float, radius: float, value: float) -> None:
    centre = (round(x * 16), round(y * 16))
    cv2.circle(canvas, centre, max(round(radius * 16), 1), float(value), -1, cv2.LINE_8, 4)
