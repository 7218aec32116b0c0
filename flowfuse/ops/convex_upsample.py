"""Learned upsampling by convex combination of neighbours."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .examples import Example, draw, sum_dtype
from .operator import (
    COORDINATE_DTYPES,
    FEATURE_DTYPES,
    Gradient,
    Operator,
    Shapes,
    check_range,
    full_precision,
)


def convex_upsample(field: Tensor, mask: Tensor, factor: int) -> Tensor:
    """Each fine pixel is a convex combination of the 3 x 3 coarse neighbours that lie inside the
    field.

    The softmax runs over the inside neighbours only, so a constant field stays constant up to its
    border. The field is not scaled: a flow must be multiplied by `factor` by the caller.

    Args:
        field: [B, D, h, w] float32 or float64.
        mask: [B, 9 f^2, h, w] logits, any float dtype; channel k f^2 + i f + j for neighbour k
            (row-major over 3 x 3) and the fine pixel in row i, column j of the coarse one.
        factor: f, in [1, 64].

    Returns:
        [B, D, f h, f w] of the field's dtype.

    Raises:
        ValueError: a shape, dtype or the factor is wrong.

    Source: RAFT (Teed and Deng 2020), section 3.3; the border is ours.
    """
    return OPERATOR(field, mask, factor)


def check(field, mask, factor) -> None:
    check_range("convex_upsample", "factor", factor, 1, 64)
    shapes = Shapes("convex_upsample")
    shapes.check("field", field, ["B", "D", "h", "w"], COORDINATE_DTYPES)
    shapes.check("mask", mask, ["B", 9 * factor**2, "h", "w"], FEATURE_DTYPES)


@full_precision
def reference(field: Tensor, mask: Tensor, factor: int) -> Tensor:
    batch, channels, height, width = field.shape
    dtype = sum_dtype(field.dtype)
    inside = F.unfold(torch.ones(1, 1, height, width, device=field.device), 3, padding=1)
    inside = inside.view(1, 9, 1, 1, height, width) > 0
    mask = mask.to(dtype).view(batch, 9, factor, factor, height, width)
    weight = torch.softmax(mask.masked_fill(~inside, -torch.inf), dim=1)
    neighbours = F.unfold(field.to(dtype), 3, padding=1).view(batch, channels, 9, height, width)
    fine = torch.einsum("bkijhw,bdkhw->bdhiwj", weight, neighbours)
    return fine.reshape(batch, channels, factor * height, factor * width)


def fake(field, mask, factor):
    batch, channels, height, width = field.shape
    return field.new_empty((batch, channels, factor * height, factor * width))


def fake_backward(grad, field, mask, factor):
    return field.new_empty(field.shape), mask.new_empty(mask.shape)


def setup_context(ctx, inputs, output):
    field, mask, ctx.factor = inputs
    ctx.save_for_backward(field, mask)


def backward(ctx, grad):
    return *OPERATOR.call_backward(grad, *ctx.saved_tensors, ctx.factor), None


def example(dtype: torch.dtype, size: tuple) -> Example:
    batch, height, width = size
    field = draw(batch, 5, height, width, dtype=sum_dtype(dtype))
    mask = draw(batch, 9 * 16, height, width, dtype=dtype, seed=1)
    return Example(lambda field, mask: convex_upsample(field, mask, 4), (field, mask), (0, 1))


OPERATOR = Operator(
    "convex_upsample",
    check=check,
    reference=reference,
    fake=fake,
    gradient=Gradient(fake_backward, setup_context, backward),
    examples={"convex_upsample": example},
)
