"""What frames and events both measure: the brightness gradient in space and time."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from .checks import check_common_gradient
from .extension import LIBRARY, has_kernel
from .registration import call, register_differentiable


def common_gradient(
    frame0: Tensor,
    frame1: Tensor,
    event_sum: Tensor,
    flow: Tensor | None = None,
    linear: bool = False,
) -> Tensor:
    """Gradients of log intensity seen by frames and by events, and how well they agree.

    L = log(I + 1e-3), I the Rec. 601 luma (values below 0 count as 0), sRGB-decoded unless
    `linear`. S is the normalized covariance of Lt_frame and Lt_event over 7 x 7 pixels clipped at
    the border: cov / sqrt((var_a + 1e-4)(var_b + 1e-2)), 0 where either is flat.

    Args:
        frame0, frame1: [B, 1 or 3, H, W] in [0, 1], any float dtype.
        event_sum: [B, 1, H, W] float32 (float64 with float64 frames), raw exposure-weighted
        polarity sums.
        flow: [B, 2, H, W] pixels of the same dtype as event_sum, or None.
        linear: whether the frames hold linear intensity.

    Returns:
        [B, 6, H, W] float32 (float64): Lx, Ly of frame0 (1 / px), Lt_frame = L1 - L0, Lt_event, S
        in (-1, 1), and -(Lx u + Ly v), which is 0 without flow. Differentiable in every input.

    Raises:
        ValueError: a shape or dtype is wrong.
    """
    check_common_gradient(frame0, frame1, event_sum, flow)
    if has_kernel(frame0.device):
        return call("common_gradient", frame0, frame1, event_sum, flow, linear)
    return reference.common_gradient(frame0, frame1, event_sum, flow, linear)


def register() -> None:
    @torch.library.register_fake("flowfuse::common_gradient")
    def fake(frame0, frame1, event_sum, flow, linear):
        batch, _, height, width = frame0.shape
        return event_sum.new_empty((batch, 6, height, width))

    @torch.library.register_fake("flowfuse::common_gradient_backward")
    def fake_backward(grad, frame0, frame1, event_sum, flow, linear):
        flow_shape = (0,) if flow is None else flow.shape
        return (
            frame0.new_empty(frame0.shape),
            frame1.new_empty(frame1.shape),
            event_sum.new_empty(event_sum.shape),
            event_sum.new_empty(flow_shape),
        )

    def setup_context(ctx, inputs, output):
        frame0, frame1, event_sum, flow, ctx.linear = inputs
        ctx.save_for_backward(frame0, frame1, event_sum, flow)

    def backward(ctx, grad):
        flow = ctx.saved_tensors[3]
        grads = call("common_gradient_backward", grad, *ctx.saved_tensors, ctx.linear)
        return *grads[:3], None if flow is None else grads[3], None

    register_differentiable("common_gradient", backward, setup_context)


if LIBRARY is not None:
    register()
