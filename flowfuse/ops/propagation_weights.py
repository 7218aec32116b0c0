"""Weights of the boundary-guided propagation: attention over neighbours at growing distances."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .examples import Example, draw, sum_dtype
from .operator import FEATURE_DTYPES, Gradient, Operator, Shapes, full_precision, require

MAX_STEPS = 8
DIRECTIONS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))


def propagation_weights(query_key: Tensor, boundary: Tensor, strength: Tensor) -> Tensor:
    """Attention weights over the 3 x 3 neighbours at the distances 1, 2, 4, ..

    The score of the neighbour n of pixel x at distance 2^s is

        <query_s(x), key_s(n)> / sqrt(D) + strength[s, 0] B_e(n) - strength[s, 1] max B_m

    with the maximum over all pixels of the straight way from x to n, both ends included. A softmax
    over the neighbours inside the image makes weights of the scores.

    Args:
        query_key: [B, 2 S D, h, w], any float dtype: queries of all S steps, then keys.
        boundary: [B, 2, h, w] float32 (float64 for float64): B_e, B_m.
        strength: [S, 2] of the boundary's dtype; S in [1, 8].

    Returns:
        [B, S, 9, h, w] of the boundary's dtype, neighbours row-major; 0 for those outside. Where
        several pixels of a way have the largest B_m, the first one has the gradient.

    Raises:
        ValueError: a shape or dtype is wrong.
    """
    return OPERATOR(query_key, boundary, strength)


def check(query_key, boundary, strength) -> None:
    op = "propagation_weights"
    shapes = Shapes(op)
    shapes.check("query_key", query_key, ["B", "channels", "h", "w"], FEATURE_DTYPES)
    exact = [sum_dtype(query_key.dtype)]
    shapes.check("strength", strength, ["S", 2], exact)
    steps, channels = strength.shape[0], query_key.shape[1]
    require(1 <= steps <= MAX_STEPS, f"{op}: strength must have shape [S, 2] with S in [1, 8]")
    fits = channels > 0 and channels % (2 * steps) == 0
    require(fits, f"{op}: query_key must have shape [B, 2 S D, h, w], got {list(query_key.shape)}")
    shapes.check("boundary", boundary, ["B", 2, "h", "w"], exact)


def shift(x: Tensor, dy: int, dx: int) -> Tensor:
    """out(y, x) = in(y + dy, x + dx), zero outside: [B, C, h, w] -> same."""
    height, width = x.shape[-2:]
    if abs(dy) >= height or abs(dx) >= width:
        return torch.zeros_like(x)
    # Negative padding crops: one operator, forward and backward.
    return F.pad(x, (-dx, dx, -dy, dy))


@full_precision
def reference(query_key: Tensor, boundary: Tensor, strength: Tensor) -> Tensor:
    steps = strength.shape[0]
    halves = query_key.to(boundary.dtype).chunk(2, dim=1)
    queries, keys = (half.chunk(steps, dim=1) for half in halves)
    edge, stop = boundary[:, :1], boundary[:, 1:]
    inside = torch.ones_like(stop)
    result = []
    for step in range(steps):
        distance = 2**step
        scores = []
        for dy, dx in DIRECTIONS:
            way = [shift(stop, m * dy, m * dx) for m in range(distance + 1 if dy or dx else 1)]
            strongest = torch.stack(way).max(dim=0).values
            dy, dx = dy * distance, dx * distance
            product = (queries[step] * shift(keys[step], dy, dx)).sum(1, keepdim=True)
            score = product / math.sqrt(queries[step].shape[1])
            score = score + strength[step, 0] * shift(edge, dy, dx) - strength[step, 1] * strongest
            scores.append(score.masked_fill(shift(inside, dy, dx) == 0, float("-inf")))
        result.append(torch.cat(scores, dim=1).softmax(dim=1))
    return torch.stack(result, dim=1)


def fake(query_key, boundary, strength):
    batch, _, height, width = query_key.shape
    return boundary.new_empty((batch, strength.shape[0], 9, height, width))


def fake_backward(grad, query_key, boundary, strength, weights):
    rows = (query_key.shape[0], query_key.shape[2], *strength.shape)
    return (
        query_key.new_empty(query_key.shape),
        boundary.new_empty(boundary.shape),
        strength.new_empty(rows),
    )


def setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output)


def backward(ctx, grad):
    query_key, boundary, rows = OPERATOR.call_backward(grad, *ctx.saved_tensors)
    return query_key, boundary, rows.sum(dim=(0, 1))


def example(dtype: torch.dtype, size: tuple) -> Example:
    batch, height, width = size
    exact = sum_dtype(dtype)
    query_key = draw(batch, 2 * 3 * 5, height, width, dtype=dtype)
    boundary = draw(batch, 2, height, width, dtype=exact, seed=1)
    strength = draw(3, 2, dtype=exact, seed=2)
    return Example(propagation_weights, (query_key, boundary, strength), (0, 1, 2))


OPERATOR = Operator(
    "propagation_weights",
    check=check,
    reference=reference,
    fake=fake,
    gradient=Gradient(fake_backward, setup_context, backward),
    examples={"propagation_weights": example},
)
