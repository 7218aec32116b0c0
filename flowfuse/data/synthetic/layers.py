"""Textured planes under homographies: pictures at any time, and who is on top where.

A scene is a list of planes in painter's order: the first covers the whole image, later ones cover
earlier ones. Radiance is linear.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from flowfuse.data.synthetic.motion import Motion, transfer
from flowfuse.geometry.grid import pixel_grid, sample

# Footprints (texels per px) for which a receding plane keeps a blurred copy; beyond twice the last
# one its mean radiance is shown.
FOOTPRINTS = (1, 2, 4, 8)


class Plane:
    """One textured plane.

    Args:
        radiance: [h, w] float32 linear radiance.
        motion: texture to image at any time.
        mask: [h, w] float32 in [0, 1], 0 along its border; None = the texture repeats without end.
        recedes: the plane is seen at a slant down to its horizon, so it needs blurred copies.
        device: where it is rendered.
    """

    def __init__(
        self,
        radiance: np.ndarray,
        motion: Motion,
        *,
        mask: np.ndarray | None = None,
        recedes: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.motion = motion
        self.height, self.width = radiance.shape
        self.recedes = recedes
        self.bounded = mask is not None
        self.mean = float(radiance.mean())
        levels = [radiance]
        if recedes:
            levels += [
                cv2.GaussianBlur(radiance, (0, 0), 0.7 * f, borderType=cv2.BORDER_REFLECT)
                for f in FOOTPRINTS[1:]
            ]
        channels = np.stack(levels + ([mask] if mask is not None else []))
        if mask is None:  # one more row and column, so that interpolation closes the torus
            channels = np.pad(channels, ((0, 0), (0, 1), (0, 1)), mode="wrap")
        self._channels = torch.from_numpy(channels.astype(np.float32)).to(device)[None]

    @property
    def device(self) -> torch.device:
        """Where the plane is rendered."""
        return self._channels.device

    def shade(
        self, tau: np.ndarray, box: tuple[int, int, int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Render the plane alone.

        Args:
            tau: [T].
            box: image rows y0:y1 and columns x0:x1 as (y0, y1, x0, x1).

        Returns:
            Radiance [T, h, w] and opacity [T, h, w] in [0, 1], None when opaque everywhere.
        """
        inverse = np.linalg.inv(self.motion.homographies(tau))
        flat = not inverse[:, 2, :2].any()
        if flat:
            inverse = inverse / inverse[:, 2:, 2:]
        g = torch.from_numpy(inverse).to(self.device, torch.float32)[..., None, None]  # [T,3,3,1,1]
        y = torch.arange(box[0], box[1], device=self.device, dtype=torch.float32)[:, None]
        x = torch.arange(box[2], box[3], device=self.device, dtype=torch.float32)
        u, v = (g[:, i, 0] * x + (g[:, i, 1] * y + g[:, i, 2]) for i in (0, 1))
        front = None
        if not flat:
            depth = g[:, 2, 0] * x + (g[:, 2, 1] * y + g[:, 2, 2])  # 1 / distance
            # Distance in px to the plane's horizon: the picture ends there over one pixel, softly.
            slope = torch.hypot(g[:, 2, 0], g[:, 2, 1]).clamp_min(1e-12)
            front = (0.5 + depth / slope).clamp(0, 1)
            depth = depth.clamp_min(1e-7)
            u, v = u / depth, v / depth
        return self._look_up(u, v, front, None if flat else (g, depth))

    def _look_up(
        self, u: Tensor, v: Tensor, front: Tensor | None, slant: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.bounded:
            # Far outside is as good as just outside, and cannot overflow an integer cell index.
            coords = torch.stack((u.clamp(-2, self.width + 1), v.clamp(-2, self.height + 1)), dim=1)
        else:
            coords = torch.stack((self._wrap(u, self.width), self._wrap(v, self.height)), dim=1)
        values = sample(self._channels.expand(u.shape[0], -1, -1, -1), coords)  # [T, C, h, w]
        if self.recedes and slant is not None:
            radiance = self._blend_levels(values, u, v, *slant)
        else:
            radiance = values[:, 0]
        if not self.bounded:
            return radiance, front
        opacity = values[:, -1]
        return radiance, opacity if front is None else opacity * front

    @staticmethod
    def _wrap(coordinate: Tensor, period: int) -> Tensor:
        low, high = coordinate.aminmax()
        if low >= 0 and high <= period:
            return coordinate
        return torch.remainder(coordinate, period)

    def _blend_levels(
        self, values: Tensor, u: Tensor, v: Tensor, g: Tensor, depth: Tensor
    ) -> Tensor:
        """Mix the blurred copies by the texels that one pixel covers (its longer side)."""
        squares = [
            ((g[:, 0, i] - u * g[:, 2, i]) / depth) ** 2
            + ((g[:, 1, i] - v * g[:, 2, i]) / depth) ** 2
            for i in (0, 1)
        ]
        level = 0.5 * torch.log2(torch.maximum(*squares).clamp(1.0, 4.0 ** len(FOOTPRINTS)))
        radiance = torch.full_like(u, self.mean)
        for k in reversed(range(len(FOOTPRINTS))):
            radiance = torch.lerp(values[:, k], radiance, (level - k).clamp(0, 1))
        return radiance

    def opacity(self, tau: float, points: Tensor) -> Tensor:
        """Opacity at image points.

        Args:
            points: [2, H, W] in px, float64.

        Returns:
            [H, W] in [0, 1].
        """
        inverse = torch.from_numpy(np.linalg.inv(self.motion.homographies(np.array((tau,))))[0])
        texels, depth = transfer_tensor(inverse.to(points.device), points)
        visible = (depth > 0).float()
        if not self.bounded:
            return visible
        limit = torch.tensor((self.width, self.height), device=points.device, dtype=points.dtype)
        texels = torch.minimum(texels.clamp_min(-2), limit[:, None, None] + 1)
        return visible * sample(self._channels[:, -1:], texels[None].float())[0, 0]

    def box(self, tau: np.ndarray, height: int, width: int) -> tuple[int, int, int, int] | None:
        """Image rows and columns (y0, y1, x0, x1) that the plane may touch at the times ``tau``."""
        if not self.bounded:
            return (0, height, 0, width)
        corners = np.array(((0, 0), (self.width, 0), (0, self.height), (self.width, self.height)))
        points, depth = transfer(self.motion.homographies(tau), corners.astype(np.float64))
        if (depth <= 1e-6).any():
            return (0, height, 0, width)
        low = np.floor(points.min((0, 1))).astype(int)
        high = np.ceil(points.max((0, 1))).astype(int) + 1
        x0, y0 = np.maximum(low, 0)
        x1, y1 = np.minimum(high, (width, height))
        return (int(y0), int(y1), int(x0), int(x1)) if x0 < x1 and y0 < y1 else None


def render(planes: Sequence[Plane], tau: np.ndarray, height: int, width: int) -> Tensor:
    """Render the scene, sharp, at several times.

    Args:
        planes: painter's order.
        tau: [T].

    Returns:
        [T, H, W] float32 linear radiance on the planes' device.
    """
    image = planes[0].shade(tau, (0, height, 0, width))[0]
    for plane in planes[1:]:
        box = plane.box(tau, height, width)
        if box is None:
            continue
        radiance, opacity = plane.shade(tau, box)
        window = image[:, box[0] : box[1], box[2] : box[3]]
        window.copy_(radiance) if opacity is None else window.lerp_(radiance, opacity)
    return image


def label_planes(planes: Sequence[Plane], tau: float, height: int, width: int) -> Tensor:
    """Index of the topmost plane at every pixel: [H, W] int64."""
    points = pixel_grid(height, width, device=planes[0].device, dtype=torch.float64)
    labels = torch.zeros((height, width), dtype=torch.int64, device=points.device)
    for i, plane in enumerate(planes[1:], start=1):
        labels[plane.opacity(tau, points) > 0.5] = i
    return labels


def carry_points(
    planes: Sequence[Plane], labels: Tensor, points: Tensor, tau0: float, tau1: float
) -> tuple[Tensor, Tensor]:
    """Follow points from tau0 to tau1 with the plane that each lies on.

    Args:
        labels: [H, W] plane of every point.
        points: [2, H, W] px, float64.

    Returns:
        The places at tau1 [2, H, W] float64; whether each is in front of the camera [H, W] bool.
    """
    matrices = [plane.motion.homographies(np.array((tau0, tau1))) for plane in planes]
    steps = np.stack([m[1] @ np.linalg.inv(m[0]) for m in matrices])
    moved = points.clone()
    in_front = torch.ones_like(labels, dtype=torch.bool)
    for i in labels.unique().tolist():
        here = labels == i
        step = torch.from_numpy(steps[i]).to(points.device)
        images, depth = transfer_tensor(step, points[:, here])
        moved[:, here] = images
        in_front[here] = depth > 0
    return moved, in_front


def is_covered(planes: Sequence[Plane], labels: Tensor, points: Tensor, tau: float) -> Tensor:
    """Tell where a later plane lies over the given points at ``tau``: [H, W] bool."""
    covered = torch.zeros_like(labels, dtype=torch.bool)
    for i, plane in enumerate(planes[1:], start=1):
        covered |= (labels < i) & (plane.opacity(tau, points) > 0.5)
    return covered


def transfer_tensor(matrix: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`flowfuse.data.synthetic.motion.transfer` for a matrix [3, 3] and points [2, ...]."""
    m = matrix.to(points.dtype)
    x, y, depth = (m[i, 0] * points[0] + (m[i, 1] * points[1] + m[i, 2]) for i in range(3))
    return torch.stack((x, y)) / torch.where(depth.abs() > 1e-12, depth, 1e-12), depth
