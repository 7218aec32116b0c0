"""All products of two feature maps, the second one in levels of a pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .examples import Example, draw, sum_dtype
from .operator import (
    FEATURE_DTYPES,
    Gradient,
    Operator,
    Shapes,
    check_range,
    check_tensor,
    full_precision,
    require,
)

MAX_LEVELS = 16


def pool_levels(f1: Tensor, levels: int) -> list[Tensor]:
    """Pyramid of a feature map by 2 x 2 averages.

    Args:
        f1: [B, C, H, W], any float dtype.
        levels: in [1, 16].

    Returns:
        `levels` maps [B, C, H >> l, W >> l]: f1 itself, then averages made and kept in float32
        (float64 for float64). A level may have zero size.

    Raises:
        ValueError: f1 is not a feature map or levels is out of range.
    """
    return pyramid("pool_levels", f1, levels)


def correlation_volume(f0: Tensor, f1: Tensor, levels: int) -> list[Tensor]:
    """All products <f0(x), f1_l(p)> / sqrt(C) at every level of the pyramid of f1.

    Args:
        f0, f1: [B, C, H, W] and [B, C, H1, W1], any float dtype (float64 both or neither).
        levels: number of pyramid levels, in [1, 16].

    Returns:
        list of [B, H, W, H1 >> l, W1 >> l] float32 (float64 for float64).

    Raises:
        ValueError: a shape or dtype is wrong.

    Source: RAFT (Teed and Deng 2020), section 3.2.
    """
    check_tensor("correlation_volume", "f0", f0)
    f0, f1_levels = autocast_features(f0, pyramid("correlation_volume", f1, levels))
    return OPERATOR(f0, f1_levels)


def pyramid(op: str, f1: Tensor, levels: int) -> list[Tensor]:
    """[B, C, H, W] -> maps [B, C, H >> l, W >> l]; level 0 is f1, the others float32 or 64."""
    Shapes(op).check("f1", f1, ["B", "C", "H", "W"], FEATURE_DTYPES)
    check_range(op, "levels", levels, 1, MAX_LEVELS)
    maps = [f1]
    for _ in range(1, levels):
        finer = maps[-1].to(sum_dtype(f1.dtype))
        if min(finer.shape[2:]) < 2:  # avg_pool2d refuses an output of zero size
            maps.append(finer.new_zeros(*finer.shape[:2], finer.shape[2] // 2, finer.shape[3] // 2))
        else:
            maps.append(F.avg_pool2d(finer, 2, 2))
    return maps


def autocast_features(f0: Tensor, f1_levels: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Features in autocast's dtype where it is on; by hand: coordinates must keep float32."""
    device = f0.device.type
    if torch.is_autocast_enabled(device) and f0.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        return f0.to(dtype), [level.to(dtype) for level in f1_levels]
    return f0, list(f1_levels)


def check_features(op: str, f0: Tensor, f1_levels: Sequence[Tensor]) -> Shapes:
    shapes = Shapes(op)
    shapes.check("f0", f0, ["B", "C", "H", "W"], FEATURE_DTYPES)
    require(f0.shape[1] >= 1, f"{op}: f0 must have at least one channel, got {list(f0.shape)}")
    check_range(op, "levels", len(f1_levels), 1, MAX_LEVELS)
    for level, f1 in enumerate(f1_levels):
        name = f"level {level} of f1"
        shapes.check(name, f1, ["B", "C", "H_l", "W_l"], FEATURE_DTYPES)
        same = sum_dtype(f0.dtype) == sum_dtype(f1.dtype)
        require(same, f"{op}: f0 and {name} must both be float64 or neither")
    return shapes


def check(f0, f1_levels) -> None:
    check_features("correlation_volume", f0, f1_levels)


@full_precision
def reference(f0: Tensor, f1_levels: Sequence[Tensor]) -> list[Tensor]:
    """f0 [B, C, H, W], f1_levels [B, C, H_l, W_l] -> [B, H, W, H_l, W_l] float32 or 64 each."""
    dtype = sum_dtype(f0.dtype)
    f0 = f0.to(dtype) / math.sqrt(f0.shape[1])
    return [torch.einsum("bchw,bcij->bhwij", f0, level.to(dtype)) for level in f1_levels]


def fake(f0, f1_levels):
    dtype = sum_dtype(f0.dtype)
    batch, _, height, width = f0.shape
    return [f0.new_empty((batch, height, width, *f1.shape[2:]), dtype=dtype) for f1 in f1_levels]


def fake_backward(grads, f0, f1_levels):
    return empty_channels_last(f0), [empty_channels_last(f1) for f1 in f1_levels]


def empty_channels_last(features: Tensor) -> Tensor:
    return torch.empty(
        features.shape,
        dtype=features.dtype,
        device=features.device,
        memory_format=torch.channels_last,
    )


def setup_context(ctx, inputs, output):
    f0, f1_levels = inputs
    ctx.save_for_backward(f0, *f1_levels)


def backward(ctx, grads):
    f0, *f1_levels = ctx.saved_tensors
    return OPERATOR.call_backward(grads, f0, f1_levels)


# ---- on CUDA: products of matrices by cuBLAS -----------------------------------------------------


def cuda_volume(f0: Tensor, f1_levels: Sequence[Tensor]) -> list[Tensor]:
    check(f0, f1_levels)
    batch, channels, height, width = f0.shape
    volumes = []
    for f1 in f1_levels:
        volume = empty_volume(f0, f1)
        if volume.numel():
            a, b = same_dtype(f0.flatten(2), f1.flatten(2))
            product = volume.view(batch, height * width, -1)
            multiply(product, a.mT, b, 1 / math.sqrt(channels))
        volumes.append(volume)
    return volumes


def cuda_volume_backward(
    grads: Sequence[Tensor], f0: Tensor, f1_levels: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """In float32 (float64): a gradient of half precision is rounded once, at the end."""
    check(f0, f1_levels)
    count = f"one gradient for each of {len(f1_levels)} levels is needed, got {len(grads)}"
    require(len(grads) == len(f1_levels), f"correlation_volume_backward: {count}")
    dtype, scale = sum_dtype(f0.dtype), 1 / math.sqrt(f0.shape[1])
    grad_f0 = empty_channels_last(f0.to(dtype)).zero_()
    grad_levels = []
    for grad, f1 in zip(grads, f1_levels, strict=True):
        expected = (*f0.shape[:1], *f0.shape[2:], *f1.shape[2:])
        Shapes("correlation_volume_backward").check("grad", grad, expected, [dtype])
        grad_f1 = empty_channels_last(f1.to(dtype)).zero_()
        if grad.numel():
            products = grad.flatten(3).flatten(1, 2)  # [B, pixels, cells]
            multiply(rows_of(grad_f1), products.mT, f0.to(dtype).flatten(2).mT, scale)
            multiply(rows_of(grad_f0), products, f1.to(dtype).flatten(2).mT, scale, add=True)
        grad_levels.append(grad_f1.to(f1.dtype))
    return grad_f0.to(f0.dtype), grad_levels


def rows_of(features: Tensor) -> Tensor:
    """[B, C, H, W] in channels_last -> [B, H W, C], the same memory."""
    batch, channels, height, width = features.shape
    return features.permute(0, 2, 3, 1).view(batch, height * width, channels)


def empty_volume(f0: Tensor, f1: Tensor) -> Tensor:
    shape = [f0.shape[0], *f0.shape[2:], *f1.shape[2:]]
    dtype = sum_dtype(f0.dtype)
    try:
        return f0.new_empty(shape, dtype=dtype)
    except RuntimeError:  # in the words of the kernels, which `call` knows
        raise RuntimeError(
            f"correlation_volume: out of memory: {math.prod(shape) * dtype.itemsize} bytes could "
            f"not be allocated for a tensor of shape {shape}"
            '; Correlation(..., strategy="on_demand") stores no volume'
        ) from None


def same_dtype(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Features [B, C, n] whose products over the channels are those of a and b.

    A level that was pooled in float32 beside features in bfloat16 becomes the sum of two numbers in
    bfloat16, each a channel: off by up to 2^-17 of itself, and multiplied several times as fast.
    """
    if a.dtype == b.dtype:
        return a, b
    if (a.dtype, b.dtype) != (torch.bfloat16, torch.float32):
        return a.to(torch.float32), b.to(torch.float32)
    high = b.bfloat16()
    return torch.cat((a, a), 1), torch.cat((high, (b - high).bfloat16()), 1)


def multiply(out: Tensor, a: Tensor, b: Tensor, scale: float, add: bool = False) -> None:
    """out [B, n, m] = scale a [B, n, k] @ b [B, k, m], or that added to it. Summed in float32.

    The scale goes into cuBLAS: a pass of its own would cost as much as the product.
    """
    factors = {"beta": float(add), "alpha": scale}
    # Autocast would make a product of float32 in half precision.
    with torch.autocast(out.device.type, enabled=False):
        if a.dtype == out.dtype:
            torch.baddbmm(out, a, b, out=out, **factors)
        else:
            torch.ops.aten.baddbmm.dtype_out(out, a, b, out.dtype, out=out, **factors)


def example(dtype: torch.dtype, size: tuple) -> Example:
    batch, height, width = size
    f0 = draw(batch, 33, height, width, dtype=dtype)
    f1 = draw(batch, 33, height + 1, width + 2, dtype=dtype, seed=1)
    return Example(lambda f0, f1: correlation_volume(f0, f1, 2), (f0, f1), (0, 1))


OPERATOR = Operator(
    "correlation_volume",
    check=check,
    reference=reference,
    fake=fake,
    gradient=Gradient(fake_backward, setup_context, backward),
    examples={"correlation_volume": example},
    cuda=(cuda_volume, cuda_volume_backward),
)
