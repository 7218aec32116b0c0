"""Trajectories that fit the matches of all pairs best, pixel by pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from .examples import Example, draw, sum_dtype
from .operator import COORDINATE_DTYPES, Operator, Shapes, full_precision, require

MAX_DEGREE = 16


def fit_trajectories(
    matches: Tensor,
    scores: Tensor | None,
    basis: Tensor,
    stiffness: Tensor,
    log_trust: Tensor,
    log_stiffness: Tensor,
) -> Tensor:
    """Least-squares control points P_1 .. P_n for the displacements d_p of all pairs p.

    At each pixel the minimum of

        sum_p w_p |sum_i basis[p, i] P_i - d_p|^2 + e^log_stiffness sum_ij P_i stiffness[i, j] P_j

    with w the softmax over the pairs of e^log_trust certainty_p + scores_p.

    Args:
        matches: [B, P, 3, h, w] float32 or float64: x, y and certainty, as of
            :func:`read_windows`.
        scores: [B, P, 1, h, w], or None: 0.
        basis: [P, n], Bernstein weights of the control points at the time of each pair; n in
            [1, 16].
        stiffness: [n, n], symmetric; with the basis it must leave one minimum.
        log_trust, log_stiffness: [].

    Returns:
        [B, n, 2, h, w] of the dtype of the matches, which all arguments share. The kernels are for
        inference: where a gradient is asked for, plain torch computes it.

    Raises:
        ValueError: a shape or dtype is wrong.
    """
    return OPERATOR(matches, scores, basis, stiffness, log_trust, log_stiffness)


def check(matches, scores, basis, stiffness, log_trust, log_stiffness) -> None:
    op = "fit_trajectories"
    shapes = Shapes(op)
    shapes.check("matches", matches, ["B", "P", 3, "h", "w"], COORDINATE_DTYPES)
    found = list(matches.shape)
    form = "[B, P, 3, h, w] with P >= 1"
    require(found[1] >= 1, f"{op}: matches must have shape {form}, got {found}")
    exact = [matches.dtype]
    if scores is not None:
        shapes.check("scores", scores, ["B", "P", 1, "h", "w"], exact)
    shapes.check("basis", basis, ["P", "n"], exact)
    form = f"[P, n] with n in [1, {MAX_DEGREE}]"
    fits = 1 <= basis.shape[1] <= MAX_DEGREE
    require(fits, f"{op}: basis must have shape {form}, got {list(basis.shape)}")
    shapes.check("stiffness", stiffness, ["n", "n"], exact)
    shapes.check("log_trust", log_trust, [], exact)
    shapes.check("log_stiffness", log_stiffness, [], exact)


@full_precision
def reference(
    matches: Tensor,
    scores: Tensor | None,
    basis: Tensor,
    stiffness: Tensor,
    log_trust: Tensor,
    log_stiffness: Tensor,
) -> Tensor:
    residual, trust = matches[:, :, :2], matches[:, :, 2:] * log_trust.exp()
    if scores is not None:
        trust = trust + scores
    share = trust.softmax(dim=1).flatten(2).transpose(1, 2)  # [B, h w, P]
    outer = (basis.unsqueeze(-1) * basis.unsqueeze(-2)).flatten(1)  # [P, n n]
    normal = (share @ outer).unflatten(2, stiffness.shape)
    normal = normal + log_stiffness.exp() * stiffness
    weighted = residual.flatten(3).permute(0, 3, 1, 2) * share.unsqueeze(-1)  # [B, h w, P, 2]
    moments = basis.transpose(0, 1) @ weighted  # [B, h w, n, 2]
    change = torch.linalg.solve_ex(normal, moments).result
    return change.permute(0, 2, 3, 1).unflatten(3, residual.shape[-2:])


def fake(matches, scores, basis, stiffness, log_trust, log_stiffness):
    batch, _, _, height, width = matches.shape
    return matches.new_empty((batch, basis.shape[1], 2, height, width))


def example(dtype: torch.dtype, size: tuple, *, degree: int = 3) -> Example:
    batch, height, width = size
    dtype = sum_dtype(dtype)
    matches = draw(batch, 6, 3, height, width, dtype=dtype)
    scores = draw(batch, 6, 1, height, width, dtype=dtype, seed=1)
    basis = draw(6, degree, dtype=dtype, seed=2)
    roots = draw(degree, degree, dtype=dtype, seed=3)
    stiffness = roots @ roots.T + torch.eye(degree, dtype=dtype)
    trust, stiff = (torch.full((), value, dtype=dtype) for value in (0.3, -1.0))
    # Of systems whose condition number is some hundreds.
    return Example(
        fit_trajectories, (matches, scores, basis, stiffness, trust, stiff), rounding=10.0
    )


OPERATOR = Operator(
    "fit_trajectories",
    check=check,
    reference=reference,
    fake=fake,
    gradient=None,
    examples={
        "fit_trajectories": example,
        "fit_trajectories, one point": lambda *given: example(*given, degree=1),
        "fit_trajectories, many points": lambda *given: example(*given, degree=6),
    },
    trained_by_reference=True,
)
