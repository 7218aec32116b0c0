"""What frames and events both measure: the brightness gradient in space and time."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from .examples import Example, draw, sum_dtype
from .operator import FEATURE_DTYPES, Gradient, Operator, Shapes, require

LUMA = (0.299, 0.587, 0.114)  # Rec. 601
LOG_OFFSET = 1e-3
WINDOW = 7  # of the similarity S, pixels
FRAME_FLOOR = 1e-4  # ea: log-intensity squared
EVENT_FLOOR = 1e-2  # eb: polarity counts squared


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
    return OPERATOR(frame0, frame1, event_sum, flow, linear)


def check(frame0, frame1, event_sum, flow, linear) -> None:
    op = "common_gradient"
    for name, frame in (("frame0", frame0), ("frame1", frame1)):
        require(
            frame.dtype != torch.uint8,
            f"{op}: {name} must be floating point in [0, 1], got uint8: divide it by 255 first",
        )
    shapes, any_channels = Shapes(op), frame0.dim() != 4 or frame0.shape[1] not in (1, 3)
    axes = ["B", "1 or 3" if any_channels else "C", "H", "W"]
    require(not any_channels, f"{op}: frame0 must have shape [B, 1 or 3, H, W], got "
            f"{list(frame0.shape)}")  # fmt: skip
    shapes.check("frame0", frame0, axes, FEATURE_DTYPES)
    shapes.check("frame1", frame1, axes, FEATURE_DTYPES)
    require(frame0.dtype == frame1.dtype, f"{op}: frame0 and frame1 must have the same dtype")
    shapes.check("event_sum", event_sum, ["B", 1, "H", "W"], (sum_dtype(frame0.dtype),))
    if flow is not None:
        shapes.check("flow", flow, ["B", 2, "H", "W"], (sum_dtype(frame0.dtype),))


def log_luma(frame: Tensor, linear: bool) -> Tensor:
    """[B, 1|3, H, W] in [0, 1] -> log intensity [B, 1, H, W] in float32 or float64."""
    frame = frame.to(sum_dtype(frame.dtype))
    if frame.shape[1] == 3:
        red, green, blue = frame.split(1, dim=1)
        frame = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    frame = frame.clamp(min=0)  # a resampled frame may dip below 0, where the log has no meaning
    if not linear:
        curve = ((frame.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
        frame = torch.where(frame <= 0.04045, frame / 12.92, curve)
    return torch.log(frame + LOG_OFFSET)


def window_moments(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Variances of a and b and their covariance over 7 x 7 windows clipped at the border."""
    batch, _, height, width = a.shape

    def windows(value: Tensor) -> Tensor:  # [B, 1, H, W] -> [B, 49, H, W]
        unfolded = F.unfold(value, WINDOW, padding=WINDOW // 2)
        return unfolded.view(batch, WINDOW * WINDOW, height, width)

    inside = windows(torch.ones_like(a))
    count = inside.sum(1, keepdim=True)
    a, b = windows(a), windows(b)  # zero outside the image
    da = (a - a.sum(1, keepdim=True) / count) * inside
    db = (b - b.sum(1, keepdim=True) / count) * inside
    aa, bb, ab = ((value.sum(1, keepdim=True) / count) for value in (da * da, db * db, da * db))
    return aa, bb, ab


def reference(
    frame0: Tensor,
    frame1: Tensor,
    event_sum: Tensor,
    flow: Tensor | None = None,
    linear: bool = False,
) -> Tensor:
    log0, log1 = log_luma(frame0, linear), log_luma(frame1, linear)
    event_sum = event_sum.to(log0.dtype)
    padded = F.pad(log0, (1, 1, 1, 1), mode="replicate")
    lx = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    ly = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    lt = log1 - log0
    var_a, var_b, covariance = window_moments(lt, event_sum)
    similarity = covariance / torch.sqrt((var_a + FRAME_FLOOR) * (var_b + EVENT_FLOOR))
    if flow is None:
        predicted = torch.zeros_like(lx)
    else:
        predicted = -(lx * flow[:, 0:1] + ly * flow[:, 1:2])
    return torch.cat([lx, ly, lt, event_sum, similarity, predicted], dim=1)


def fake(frame0, frame1, event_sum, flow, linear):
    batch, _, height, width = frame0.shape
    return event_sum.new_empty((batch, 6, height, width))


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
    grads = OPERATOR.call_backward(grad, *ctx.saved_tensors, ctx.linear)
    return *grads[:3], None if flow is None else grads[3], None


def example(dtype: torch.dtype, size: tuple, with_flow: bool = True) -> Example:
    batch, height, width = size
    shape = (batch, 3 if with_flow else 1, height, width)
    frames = [torch.sigmoid(draw(*shape, dtype=torch.float64, seed=i)).to(dtype) for i in (0, 1)]
    events = 2 * draw(batch, 1, height, width, dtype=sum_dtype(dtype), seed=2)
    flow = [draw(batch, 2, height, width, dtype=sum_dtype(dtype), seed=3)] * with_flow

    gradients = partial(common_gradient, linear=not with_flow)
    return Example(gradients, (*frames, events, *flow), tuple(range(3 + with_flow)))


OPERATOR = Operator(
    "common_gradient",
    check=check,
    reference=reference,
    fake=fake,
    gradient=Gradient(fake_backward, setup_context, backward),
    examples={
        "common_gradient": example,
        "common_gradient, no flow": lambda dtype, size: example(dtype, size, with_flow=False),
    },
)
