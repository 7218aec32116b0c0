"""Bezier trajectories: where every pixel of t0 is at any time up to t1.

A trajectory is x(tau) = sum_i binom(n, i) tau^i (1 - tau)^(n - i) P_i, tau = (t - t0) / (t1 - t0),
with P_0 = 0 and P_1 .. P_n given: displacements in px from the pixel's place at t0. x(1) = P_n is
the flow from t0 to t1; the curve is as smooth as motion is, and its control points bound it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import torch
from torch import Tensor


def bernstein(degree: int, tau: Tensor) -> Tensor:
    """Return the weights of P_1 .. P_n at ``tau``.

    Args:
        degree: n >= 1.
        tau: any shape [...], in [0, 1].

    Returns:
        [..., n].
    """
    weights = [comb(degree, i) * tau**i * (1 - tau) ** (degree - i) for i in range(1, degree + 1)]
    return torch.stack(weights, dim=-1)


def bernstein_rows(degree: int, times: Sequence[float]) -> list[list[float]]:
    """The same weights at times that are known beforehand: a row of n numbers for each."""
    return [
        [comb(degree, i) * tau**i * (1 - tau) ** (degree - i) for i in range(1, degree + 1)]
        for tau in times
    ]


def bezier(control_points: Tensor, tau: Tensor | float) -> Tensor:
    """Evaluate the displacement at ``tau``.

    Args:
        control_points: [B, n, 2, H, W] in px.
        tau: a number, or [B], or [B, T] for several times per item; in [0, 1].

    Returns:
        [B, 2, H, W], or [B, T, 2, H, W] when ``tau`` is [B, T]; px, displacement since t0.
    """
    return _combine(bernstein(control_points.shape[1], _times(control_points, tau)), control_points)


def bezier_velocity(control_points: Tensor, tau: Tensor | float) -> Tensor:
    """Evaluate the derivative of the displacement with respect to tau.

    Args and shapes are those of :func:`bezier`.

    Returns:
        px per unit of tau; divide by (t1 - t0) in seconds for px/s.
    """
    degree = control_points.shape[1]
    tau = _times(control_points, tau)
    # x'(tau) = n sum_i binom(n-1, i) tau^i (1-tau)^(n-1-i) (P_{i+1} - P_i), with P_0 = 0
    lower = [comb(degree - 1, i) * tau**i * (1 - tau) ** (degree - 1 - i) for i in range(degree)]
    following = [*lower[1:], torch.zeros_like(tau)]
    weights = torch.stack([degree * (a - b) for a, b in zip(lower, following, strict=True)], dim=-1)
    return _combine(weights, control_points)


def restrict_bezier(control_points: Tensor, first: float, last: float) -> Tensor:
    """The same curves over another span of tau, shorter or longer.

    Args:
        control_points: [B, n, 2, H, W] in px; P_0 = 0.
        first, last: the span, which becomes tau = 0 to 1.

    Returns:
        [B, n + 1, 2, H, W] px: P_0 .. P_n.

    Source: the blossom of the curve (Ramshaw 1989), whose values at ``first`` and ``last`` in all
    mixtures are the new control points.
    """
    degree = control_points.shape[1]
    rows = []
    for count in range(degree + 1):
        weights = [1.0]  # of P_0 .. : a product of linear functions, one for each argument
        for tau in [first] * (degree - count) + [last] * count:
            low, high = [(1 - tau) * w for w in weights] + [0.0], [0.0] + [tau * w for w in weights]
            weights = [a + b for a, b in zip(low, high, strict=True)]
        rows.append(weights[1:])
    # By numbers: a tensor of them would be copied to a GPU, which waits for it.
    points = control_points.unbind(dim=1)
    sums = []
    for row in rows:
        total = row[0] * points[0]
        for weight, point in zip(row[1:], points[1:], strict=True):
            total = total + weight * point
        sums.append(total)
    return torch.stack(sums, dim=1)


def fit_bezier(displacements: Tensor, tau: Tensor, degree: int) -> Tensor:
    """Fit control points to displacements sampled in time, by least squares.

    Args:
        displacements: [B, T, 2, H, W] in px, T >= ``degree``.
        tau: [T], or [B, T] for each item its own; distinct times in (0, 1].
        degree: n.

    Returns:
        [B, n, 2, H, W] control points.

    Raises:
        ValueError: when there are fewer samples than control points.
    """
    if tau.shape[-1] < degree:
        raise ValueError(
            f"fit_bezier: {degree} control points need at least {degree} times, got {tau.shape[-1]}"
        )
    weights = bernstein(degree, tau.double())  # [(B,) T, n]
    # By the normal equations, which float64 has digits for up to degree 8: a pseudo-inverse waits
    # for the GPU.
    transposed = weights.transpose(-1, -2)
    inverse = torch.linalg.inv_ex(transposed @ weights).inverse @ transposed  # [(B,) n, T]
    inverse = inverse.to(displacements.dtype).expand(displacements.shape[0], -1, -1)
    return torch.einsum("bnt,bt...->bn...", inverse, displacements)


def _times(control_points: Tensor, tau: Tensor | float) -> Tensor:
    if not isinstance(tau, Tensor):
        tau = control_points.new_full((control_points.shape[0],), float(tau))
    return tau.to(control_points.dtype)


def _combine(weights: Tensor, control_points: Tensor) -> Tensor:
    # Elementwise: autocast would run an einsum in bfloat16, whose spacing is 4 px at 600 px.
    if weights.dim() == 3:  # [B, T, n]
        control_points = control_points.unsqueeze(1)
    return (weights[..., None, None, None] * control_points).sum(dim=-4)
