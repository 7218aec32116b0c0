"""Carry features along the weights of the boundary-guided propagation."""

from __future__ import annotations

import torch
from torch import Tensor

from .examples import Example, draw, sum_dtype
from .operator import FEATURE_DTYPES, Gradient, Operator, Shapes, full_precision, require
from .propagation_weights import DIRECTIONS, MAX_STEPS, shift


def propagate(values: Tensor, weights: Tensor) -> Tensor:
    """S weighted sums of the 3 x 3 neighbours, one after the other, at the distances 1, 2, 4, ..

    Args:
        values: [B, C, h, w], any float dtype.
        weights: [B, S, 9, h, w] float32 (float64 for float64), S in [1, 8], neighbours row-major,
            as :func:`propagation_weights` makes them. Neighbours outside the image count as 0.

    Returns:
        [B, C, h, w] of the dtype of the values; between two steps they are float32.

    Raises:
        ValueError: a shape or dtype is wrong.
    """
    return OPERATOR(values, weights)


def check(values, weights) -> None:
    op = "propagate"
    shapes = Shapes(op)
    shapes.check("values", values, ["B", "C", "h", "w"], FEATURE_DTYPES)
    shapes.check("weights", weights, ["B", "S", 9, "h", "w"], [sum_dtype(values.dtype)])
    steps = weights.shape[1]
    require(1 <= steps <= MAX_STEPS, f"{op}: weights must have S in [1, 8] steps, got {steps}")


@full_precision
def reference(values: Tensor, weights: Tensor) -> Tensor:
    carried = values.to(weights.dtype)
    for step in range(weights.shape[1]):
        arrived = torch.zeros_like(carried)
        for i, (dy, dx) in enumerate(DIRECTIONS):
            arrived = arrived + weights[:, step, i : i + 1] * shift(carried, dy << step, dx << step)
        carried = arrived
    return carried.to(values.dtype)


def fake(values, weights):
    return values.new_empty(values.shape)


def fake_backward(grad, values, weights):
    return values.new_empty(values.shape), weights.new_empty(weights.shape)


def setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def backward(ctx, grad):
    return OPERATOR.call_backward(grad, *ctx.saved_tensors)


def example(dtype: torch.dtype, size: tuple) -> Example:
    batch, height, width = size
    values = draw(batch, 5, height, width, dtype=dtype)
    weights = draw(batch, 3, 9, height, width, dtype=sum_dtype(dtype), seed=1)
    return Example(propagate, (values, weights), (0, 1))


OPERATOR = Operator(
    "propagate",
    check=check,
    reference=reference,
    fake=fake,
    gradient=Gradient(fake_backward, setup_context, backward),
    examples={"propagate": example},
)
