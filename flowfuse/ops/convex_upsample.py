"""Learned upsampling by convex combination of neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from .checks import check_convex_upsample
from .extension import LIBRARY, has_kernel
from .registration import call, register_differentiable


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
    check_convex_upsample(field, mask, factor)
    if has_kernel(field.device):
        return call("convex_upsample", field, mask, factor)
    return reference.convex_upsample(field, mask, factor)


def register() -> None:
    @torch.library.register_fake("flowfuse::convex_upsample")
    def fake(field, mask, factor):
        batch, channels, height, width = field.shape
        return field.new_empty((batch, channels, factor * height, factor * width))

    @torch.library.register_fake("flowfuse::convex_upsample_backward")
    def fake_backward(grad, field, mask, factor):
        return field.new_empty(field.shape), mask.new_empty(mask.shape)

    def setup_context(ctx, inputs, output):
        field, mask, ctx.factor = inputs
        ctx.save_for_backward(field, mask)

    def backward(ctx, grad):
        return *call("convex_upsample_backward", grad, *ctx.saved_tensors, ctx.factor), None

    register_differentiable("convex_upsample", backward, setup_context)


if LIBRARY is not None:
    register()
