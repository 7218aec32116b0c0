"""How the planes of a generated scene move: smooth curves in time and the homographies they give.

Time here is tau, in units of the first frame interval: tau = (t - t0) / (t1 - t0), also below 0 and
above 1. A homography maps texture coordinates (texels) to image coordinates (px); its third
homogeneous coordinate is positive in front of the camera.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.random import Generator

from flowfuse.data.synthetic.presets import Split


class Motion(Protocol):
    """Anything that says where a plane is."""

    def homographies(self, tau: np.ndarray) -> np.ndarray:
        """Return [T, 3, 3] float64, texture to image, at the times ``tau`` [T]."""


class SmoothCurve(Protocol):
    """A smooth curve q in D dimensions, q(0) = 0."""

    def __call__(self, tau: np.ndarray) -> np.ndarray:
        """Return [T, D] at the times ``tau`` [T]."""

    def scaled(self, factor: float | np.ndarray) -> SmoothCurve:
        """Return the curve times a number or times one number per component."""


@dataclass(frozen=True)
class Curve:
    """q(tau) = rate tau + sum_k amplitude_k (sin(frequency_k tau + phase_k) - sin(phase_k)).

    q(0) = 0.

    Attributes:
        rate: [D] mean velocity per interval.
        amplitude: [K, D].
        frequency, phase: [K], radians per interval and radians.
    """

    rate: np.ndarray
    amplitude: np.ndarray
    frequency: np.ndarray
    phase: np.ndarray

    def __call__(self, tau: np.ndarray) -> np.ndarray:
        """See :class:`SmoothCurve`."""
        tau = np.asarray(tau, dtype=np.float64)
        waves = np.sin(np.outer(tau, self.frequency) + self.phase) - np.sin(self.phase)
        return np.outer(tau, self.rate) + waves @ self.amplitude

    def scaled(self, factor: float | np.ndarray) -> Curve:
        """See :class:`SmoothCurve`."""
        return replace(self, rate=self.rate * factor, amplitude=self.amplitude * factor)


@dataclass(frozen=True)
class RampCurve:
    """A velocity that is linear between knots and constant before the first and after the last.

    Attributes:
        knots: [K] increasing times, K >= 2.
        velocity: [K, D] at the knots, per interval.
    """

    knots: np.ndarray
    velocity: np.ndarray

    def __call__(self, tau: np.ndarray) -> np.ndarray:
        """See :class:`SmoothCurve`."""
        places = self._integral(np.append(np.asarray(tau, dtype=np.float64), 0.0))
        return places[:-1] - places[-1]

    def scaled(self, factor: float | np.ndarray) -> RampCurve:
        """See :class:`SmoothCurve`."""
        return replace(self, velocity=self.velocity * factor)

    def _integral(self, tau: np.ndarray) -> np.ndarray:
        """The way from the first knot to ``tau``, [T, D]."""
        steps = np.diff(self.knots)[:, None]
        means = (self.velocity[1:] + self.velocity[:-1]) / 2
        rest = np.zeros_like(self.velocity[:1])
        reached = np.concatenate((rest, np.cumsum(means * steps, axis=0)))
        slopes = np.concatenate((np.diff(self.velocity, axis=0) / steps, rest))
        knot = np.maximum(np.searchsorted(self.knots, tau, side="right") - 1, 0)
        since = (tau - self.knots[knot])[:, None]  # negative before the first knot: no slope there
        bend = slopes[knot] * np.maximum(since, 0) ** 2 / 2
        return reached[knot] + self.velocity[knot] * since + bend


def waves(rng: Generator, direction: np.ndarray, strength: float, end: float) -> Curve:
    """A curve along ``direction`` whose velocity oscillates with two frequencies."""
    frequency = rng.uniform(0.6, 4.0, 2)  # periods of 1.6 to 10 intervals
    noise = rng.normal(0, strength, (2, direction.size)) * np.linalg.norm(direction)
    return Curve(direction, noise / frequency[:, None], frequency, rng.uniform(0, 2 * np.pi, 2))


def spline(rng: Generator, direction: np.ndarray, strength: float, end: float) -> RampCurve:
    """A random quadratic spline along ``direction``: a new acceleration from knot to knot."""
    spacing = rng.uniform(0.4, 0.9)
    knots = np.arange(-1.0 - spacing * rng.random(), end + 1.0 + spacing, spacing)
    noise = rng.normal(0, 1.5 * strength, (knots.size, direction.size))
    return RampCurve(knots, direction + noise * np.linalg.norm(direction))


def arc(rng: Generator, direction: np.ndarray, strength: float, end: float) -> Curve:
    """A part of an ellipse that starts along ``direction``; components turn in pairs (x with y)."""
    rate = (0.1 + strength) * rng.uniform(0.5, 2.0) * rng.choice((-1, 1))  # rad per interval
    aside = rng.uniform(0.5, 1.5) * np.stack((-direction[1::2], direction[::2]), axis=1).ravel()
    # Velocity direction cos(rate tau) + aside sin(rate tau): sin(x - pi/2) = -cos(x).
    amplitude = np.stack((direction, aside)) / rate
    frequency, phase = np.array((rate, rate)), np.array((0.0, -np.pi / 2))
    return Curve(np.zeros_like(direction), amplitude, frequency, phase)


def coasting(rng: Generator, direction: np.ndarray, strength: float, end: float) -> RampCurve:
    """A curve that gains speed, then goes on straight at constant speed."""
    begin, duration = rng.uniform(-0.5, max(end, 1.0) - 0.5), rng.uniform(0.3, 1.0)
    aside = rng.normal(0, strength, direction.size) * np.linalg.norm(direction)
    slow = (1 - min(0.2 + strength, 0.9)) * direction + aside
    return RampCurve(np.array((begin, begin + duration)), np.stack((slow, direction)))


def braking_wave(rng: Generator, direction: np.ndarray, strength: float, end: float) -> Curve:
    """A straight curve that is fast at one frame and slow at the next, alternately.

    The velocity is direction (1 + strength cos(pi tau)), the sign drawn at random, so that it
    changes between two frames by 2 strength / (1 + strength) of the larger one.
    """
    phase = np.array((0.0,)) if rng.random() < 0.5 else np.array((np.pi,))
    return Curve(direction, strength / np.pi * direction[None], np.array((np.pi,)), phase)


def braking_ramps(rng: Generator, direction: np.ndarray, strength: float, end: float) -> RampCurve:
    """The same as :func:`braking_wave` by ramps: constant for half an interval at every frame."""
    frame = np.arange(-1, int(np.ceil(end)) + 2)
    sign = (-1.0) ** (frame + rng.integers(2))
    knots = (frame[:, None] + np.array((-0.25, 0.25))).ravel()
    return RampCurve(knots, (1 + strength * sign.repeat(2)[:, None]) * direction)


# Each draws a curve from (rng, direction, strength, end): direction [D] is the displacement in one
# interval without changes of velocity, strength their size relative to |direction|, and end the
# last tau of interest.
CurveFamily = Callable[[Generator, np.ndarray, float, float], SmoothCurve]
CURVES: dict[Split, dict[str, CurveFamily]] = {
    "train": {"waves": waves},
    "test": {"spline": spline, "arc": arc, "coasting": coasting},
}
BRAKING_CURVES: dict[Split, dict[str, CurveFamily]] = {
    "train": {"braking_wave": braking_wave},
    "test": {"braking_ramps": braking_ramps},
}


@dataclass(frozen=True)
class LayerMotion:
    """A similarity in the image: the plane faces the camera.

    Attributes:
        curve: components x (px), y (px), rotation (rad), logarithm of scale.
        place: [2] image position of the anchor at tau = 0, px.
        anchor: [2] the texel that turns and scales in place.
    """

    curve: SmoothCurve
    place: np.ndarray
    anchor: np.ndarray

    def homographies(self, tau: np.ndarray) -> np.ndarray:
        """See :class:`Motion`."""
        q = self.curve(tau)
        scale = np.exp(q[:, 3])
        linear = scale[:, None, None] * _rotation_2d(q[:, 2])
        matrices = np.zeros((q.shape[0], 3, 3))
        matrices[:, :2, :2] = linear
        matrices[:, :2, 2] = self.place + q[:, :2] - linear @ self.anchor
        matrices[:, 2, 2] = 1
        return matrices


@dataclass(frozen=True)
class JointMotion:
    """A part that a body carries along, and that turns about a joint.

    Attributes:
        body: the motion of what it hangs on.
        angle: its first component is the turn against the body, rad.
        joint: [2] texel of the body that it hangs on.
        anchor: [2] texel of the part that stays there.
    """

    body: Motion
    angle: SmoothCurve
    joint: np.ndarray
    anchor: np.ndarray

    def homographies(self, tau: np.ndarray) -> np.ndarray:
        """See :class:`Motion`."""
        turn = _rotation_2d(self.angle(tau)[:, 0])
        matrices = np.zeros((len(turn), 3, 3))
        matrices[:, :2, :2] = turn
        matrices[:, :2, 2] = self.joint - turn @ self.anchor
        matrices[:, 2, 2] = 1
        return self.body.homographies(tau) @ matrices


@dataclass(frozen=True)
class Camera:
    """A pinhole camera on a smooth path. Axes: x right, y down, z forward, at tau = 0.

    Attributes:
        curve: components rotation vector (rad, 3) and position (scene units, 3).
        focal: focal length, px.
        centre: [2] principal point, px.
    """

    curve: SmoothCurve
    focal: float
    centre: np.ndarray

    def extrinsics(self, tau: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rotation world to camera [T, 3, 3] and the camera's position [T, 3]."""
        q = self.curve(tau)
        return rotation_matrices(q[:, :3]).transpose(0, 2, 1), q[:, 3:]

    @property
    def intrinsics(self) -> np.ndarray:
        """The 3 x 3 matrix from camera axes to homogeneous pixels."""
        return np.array(
            ((self.focal, 0, self.centre[0]), (0, self.focal, self.centre[1]), (0, 0, 1.0))
        )


@dataclass(frozen=True)
class WorldPlaneMotion:
    """A plane in the world that does not turn, seen by a moving camera.

    Attributes:
        origin: [3] world position of texel (0, 0), or its direction for a plane at infinity.
        step_x, step_y: [3] world vectors of one texel to the right and down.
        at_infinity: only the camera's rotation moves it (the sky).
        drive: components x and z of the plane's own way over the ground; None: it stands still.
    """

    camera: Camera
    origin: np.ndarray
    step_x: np.ndarray
    step_y: np.ndarray
    at_infinity: bool = False
    drive: SmoothCurve | None = None

    def homographies(self, tau: np.ndarray) -> np.ndarray:
        """See :class:`Motion`."""
        rotation, position = self.camera.extrinsics(tau)
        offset = self.origin - (0 if self.at_infinity else 1) * position  # [T, 3]
        if self.drive is not None:
            offset[:, ::2] += self.drive(tau)
        axes = np.broadcast_to(np.stack((self.step_x, self.step_y), axis=1), (len(tau), 3, 2))
        return self.camera.intrinsics @ rotation @ np.concatenate((axes, offset[..., None]), axis=2)


@dataclass(frozen=True)
class ShiftedMotion:
    """A motion in an image whose origin lies elsewhere: everything is ``shift`` further.

    Attributes:
        shift: [2] px.
    """

    motion: Motion
    shift: np.ndarray

    def homographies(self, tau: np.ndarray) -> np.ndarray:
        """See :class:`Motion`."""
        translation = np.eye(3)
        translation[:2, 2] = self.shift
        return translation @ self.motion.homographies(tau)


def rotation_matrices(vectors: np.ndarray) -> np.ndarray:
    """Rotation matrices of rotation vectors (Rodrigues' formula).

    Args:
        vectors: [T, 3], axis times angle in radians.

    Returns:
        [T, 3, 3].
    """
    angle = np.linalg.norm(vectors, axis=1)[:, None, None]
    x, y, z = vectors.T
    zero = np.zeros_like(x)
    cross = np.stack((zero, -z, y, z, zero, -x, -y, x, zero), axis=1).reshape(-1, 3, 3)
    # np.sinc(a / pi) = sin(a) / a is defined at 0; (1 - cos a) / a^2 = sinc(a / 2)^2 / 2.
    first, second = np.sinc(angle / np.pi), 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.eye(3) + first * cross + second * (cross @ cross)


def transfer(matrices: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Apply homographies to points.

    Args:
        matrices: [..., 3, 3].
        points: [..., N, 2].

    Returns:
        The images [..., N, 2] and their third homogeneous coordinates [..., N]; where that is not
        positive the point is behind the camera and its image means nothing.
    """
    linear = points @ np.swapaxes(matrices[..., :2, :2], -1, -2) + matrices[..., None, :2, 2]
    depth = (points @ matrices[..., 2, :2, None])[..., 0] + matrices[..., 2, 2, None]
    safe = np.where(np.abs(depth) > 1e-12, depth, 1e-12)
    return linear / safe[..., None], depth


def _rotation_2d(angle: np.ndarray) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.stack((np.stack((c, -s), axis=-1), np.stack((s, c), axis=-1)), axis=-2)
