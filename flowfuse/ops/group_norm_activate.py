"""Group normalization with what follows it: a residual and a leaky ReLU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .examples import Example, draw, sum_dtype
from .operator import (
    FEATURE_DTYPES,
    Operator,
    Shapes,
    check_range,
    check_tensor,
    gradient_wanted,
    require,
)

SLOPE = 0.1  # of the leaky ReLU below 0
EPSILON = 1e-5


def group_norm_activate(
    values: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, groups: int
) -> Tensor:
    """leaky_relu(group_norm(values) + residual), with the slope 0.1 and epsilon 1e-5.

    Args:
        values: [N, C, h, w], any float dtype.
        residual: the same shape; None: 0.
        weight, bias: [C] float32 (float64 for float64).
        groups: C is a multiple of it.

    Returns:
        [N, C, h, w] of the dtype of the values; sums are made in float32 or better. The kernels are
        for inference: where a gradient is asked for, plain torch computes it, as autocast has it.

    Raises:
        ValueError: a shape, dtype or the number of groups is wrong.

    Source: Wu and He 2018.
    """
    check_tensor("group_norm_activate", "values", values)
    # In training, autocast has residuals in float32 beside half-precision values.
    if residual is not None and not gradient_wanted((values, residual, weight, bias)):
        residual = residual.to(values.dtype)
    return OPERATOR(values, residual, weight, bias, groups)


def check(values, residual, weight, bias, groups) -> None:
    op = "group_norm_activate"
    check_range(op, "groups", groups, 1, 65536)
    shapes = Shapes(op)
    shapes.check("values", values, ["N", "C", "h", "w"], FEATURE_DTYPES)
    channels = values.shape[1]
    fits = channels > 0 and channels % groups == 0
    form = "[N, C, h, w] with C a multiple of groups"
    require(fits, f"{op}: values must have shape {form}, got {list(values.shape)}")
    if residual is not None:
        exact = sum_dtype(values.dtype)
        dtypes = [dtype for dtype in FEATURE_DTYPES if sum_dtype(dtype) == exact]
        shapes.check("residual", residual, ["N", "C", "h", "w"], dtypes)
    for name, tensor in (("weight", weight), ("bias", bias)):
        shapes.check(name, tensor, ["C"], [sum_dtype(values.dtype)])


def reference(
    values: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, groups: int
) -> Tensor:
    normal = F.group_norm(values, groups, weight, bias, EPSILON)
    if residual is not None:
        normal = residual + normal
    return F.leaky_relu(normal, SLOPE)


def fake(values, residual, weight, bias, groups):
    return values.new_empty(values.shape)


def example(dtype: torch.dtype, size: tuple) -> Example:
    batch, height, width = size
    exact = sum_dtype(dtype)
    values = 3 * draw(batch, 12, height, width, dtype=torch.float64) + 2
    residual = draw(batch, 12, height, width, dtype=dtype, seed=1)
    weight, bias = (draw(12, dtype=exact, seed=seed) for seed in (2, 3))
    return Example(
        lambda values, residual, weight, bias: group_norm_activate(
            values, residual, weight, bias, 3
        ),
        (values.to(dtype), residual, weight, bias),
    )


def bare_example(dtype: torch.dtype, size: tuple) -> Example:
    exact = sum_dtype(dtype)
    values, weight, bias = draw(size[0], 5, *size[1:], dtype=dtype), *draw(2, 5, dtype=exact)
    return Example(
        lambda values, weight, bias: group_norm_activate(values, None, weight, bias, 1),
        (values, weight, bias),
    )


OPERATOR = Operator(
    "group_norm_activate",
    check=check,
    reference=reference,
    fake=fake,
    gradient=None,
    examples={
        "group_norm_activate": example,
        "group_norm_activate, no residual": bare_example,
    },
    trained_by_reference=True,
)
