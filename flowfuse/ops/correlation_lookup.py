"""The windows of a correlation volume that is not stored: products are made where asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .correlation_volume import autocast_features, check_features, empty_channels_last
from .correlation_volume import reference as make_volume
from .examples import Example, draw, places, sum_dtype
from .operator import COORDINATE_DTYPES, Gradient, Operator, check_tensor
from .volume_lookup import check_window, empty_windows
from .volume_lookup import reference as look_up


def correlation_lookup(
    f0: Tensor, f1_levels: Sequence[Tensor], coords: Tensor, radius: int
) -> Tensor:
    """The same windows without a stored volume: the products are made where they are looked up.

    On a GPU features in float16 or bfloat16 are multiplied by the tensor cores. So are those in
    float32 where torch.set_float32_matmul_precision is below "highest": each as a sum of two
    bfloat16, off by up to 2^-17 of itself.

    Args:
        f0: [B, C, H, W], any float dtype.
        f1_levels: list of [B, C, H_l, W_l] from pool_levels.
        coords, radius: as in volume_lookup.

    Returns:
        [B, L (2r+1)^2, H, W] float32 (float64 for float64), equal to volume_lookup up to the
        rounding of a sum of C products.

    Raises:
        ValueError: a shape, dtype or the radius is wrong.
    """
    check_tensor("correlation_lookup", "f0", f0)  # its device says whether autocast is on
    return OPERATOR(*autocast_features(f0, f1_levels), coords, radius, exact_products())


def exact_products() -> bool:
    """Whether float32 is to be multiplied in full precision, by torch's setting.

    Dynamo cannot trace the question, but traces anew when the answer changes.
    """
    return torch.get_float32_matmul_precision() == "highest"


# As torch.compiler.assume_constant_result does, which would import Dynamo: seconds, for everyone.
exact_products._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check(f0, f1_levels, coords, radius, exact, op="correlation_lookup") -> None:
    shapes = check_features(op, f0, f1_levels)
    check_window(op, coords, radius)
    shapes.check("coords", coords, ["B", 2, "H", "W"], COORDINATE_DTYPES)


def reference(
    f0: Tensor, f1_levels: Sequence[Tensor], coords: Tensor, radius: int, exact: bool = True
) -> Tensor:
    """f0 [B, C, H, W], f1_levels [B, C, H_l, W_l], coords [B, 2, H, W] -> [B, L (2r+1)^2, H, W]."""
    return look_up(make_volume(f0, f1_levels), coords, radius)


def fake(f0, f1_levels, coords, radius, exact):
    like = f0.new_empty((0,), dtype=sum_dtype(f0.dtype))
    return empty_windows(like, coords, len(f1_levels), radius)


def fake_backward(grad, f0, f1_levels, coords, radius, coords_needed, exact):
    shape = coords.shape if coords_needed else (0,)
    grads = [empty_channels_last(f1) for f1 in f1_levels]
    return empty_channels_last(f0), grads, coords.new_empty(shape)


def setup_context(ctx, inputs, output):
    f0, f1_levels, coords, ctx.radius, ctx.exact = inputs
    ctx.save_for_backward(f0, coords, *f1_levels)


def backward(ctx, grad):
    f0, coords, *f1_levels = ctx.saved_tensors
    needed = ctx.needs_input_grad[2]
    grad_f0, grads, grad_coords = OPERATOR.call_backward(
        grad, f0, f1_levels, coords, ctx.radius, needed, ctx.exact
    )
    return grad_f0, grads, grad_coords if needed else None, None, None


def example(dtype: torch.dtype, size: tuple) -> Example:
    """All levels in one dtype: products of bfloat16 have instructions of their own."""
    batch, height, width = size
    f0 = draw(batch, 37, height, width, dtype=dtype)
    levels = [draw(batch, 37, height >> n, width >> n, dtype=dtype, seed=1 + n) for n in range(3)]
    coords = places(batch, height, width, sum_dtype(dtype))
    return Example(
        lambda f0, a, b, c, coords: correlation_lookup(f0, [a, b, c], coords, 4),
        (f0, *levels, coords),
        (0, 1, 2, 3, 4),
    )


def tensor_core_example(dtype: torch.dtype, size: tuple) -> Example:
    """What tensor cores multiply where a GPU has them: whole vectors of channels, and float32 in
    reduced precision.
    """
    batch, height, width = size
    f0 = draw(batch, 72, height, width, dtype=dtype)
    levels = [draw(batch, 72, height >> n, width >> n, dtype=dtype, seed=1 + n) for n in range(3)]
    coords = places(batch, height, width, sum_dtype(dtype))

    def look_up(f0: Tensor, a: Tensor, b: Tensor, c: Tensor, coords: Tensor) -> Tensor:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return correlation_lookup(f0, [a, b, c], coords, 4)
        finally:
            torch.set_float32_matmul_precision(before)

    return Example(look_up, (f0, *levels, coords), (0, 1, 2, 3, 4), rounding=4)


OPERATOR = Operator(
    "correlation_lookup",
    check=check,
    reference=reference,
    fake=fake,
    gradient=Gradient(fake_backward, setup_context, backward),
    examples={
        "correlation_lookup": example,
        "correlation_lookup, tensor cores": tensor_core_example,
    },
)
