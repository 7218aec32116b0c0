"""Events to voxel grids with integer weights: the same bits everywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from .checks import check_event_values, check_voxelize
from .extension import LIBRARY, has_kernel
from .registration import call, refuse_vmap


def voxelize(
    x: Tensor, y: Tensor, t: Tensor, p: Tensor, offsets: Tensor, t0: Tensor, t1: Tensor,
    bins: int, height: int, width: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Spread the polarity of events bilinearly over time bins, and over pixels when x, y are float.

    Event i of batch item b (offsets[b] <= i < offsets[b + 1]) has the time coordinate
    (bins - 1) (t - t0) / (t1 - t0); with one bin everything lands in bin 0. Weights are integers
    (2^15 parts for time, up to 2^15 for each axis) summed in int64, so the result has the same bits
    on every device, run and thread count. Not differentiable.

    On a GPU the values of offsets, t0 and t1 are not read, which would wait for the device, so a
    wrong value raises nothing there: offsets are clamped to [0, N], an item whose end comes before
    its begin has no events, and one whose window is empty or longer than 2^40 microseconds has
    them all in `ignored`.

    Args:
        x, y: [N], pixels, both uint8, uint16, int16, int32, int64 (pixel hit) or both float32,
            float64 (rectified position, integer = pixel centre).
        t: [N] int64 microseconds; need not be sorted.
        p: [N] uint8, bool or signed integer; above 0 adds +1, otherwise -1.
        offsets: [B + 1] int64, where each item's events begin and end.
        t0, t1: [B] int64 microseconds, the half-open window [t0, t1) of each item.
        bins, height, width: size of the grid.

    Returns:
        voxels [B, bins, height, width] float32 and ignored [B] int64: events outside the window,
        wholly outside the sensor or with NaN coordinates.

    Raises:
        ValueError: a shape, dtype, window or offset is wrong.
    """
    check_voxelize(x, y, t, p, offsets, t0, t1, bins, height, width)
    arguments = (x, y, t, p, offsets, t0, t1, bins, height, width)
    kernel = has_kernel(x.device)
    if x.device.type == "cpu" or not kernel:
        check_event_values("voxelize", t.shape[0], offsets, t0, t1)
    return call("voxelize", *arguments) if kernel else reference.voxelize(*arguments)


def register() -> None:
    @torch.library.register_fake("flowfuse::voxelize")
    def fake(x, y, t, p, offsets, t0, t1, bins, height, width):
        items = offsets.shape[0] - 1
        voxels = t.new_empty((items, bins, height, width), dtype=torch.float32)
        return voxels, t.new_empty((items,))

    def setup_context(ctx, inputs, output):
        # Without this, positions that require a gradient make an output that seems to have one.
        ctx.mark_non_differentiable(*output)

    def backward(ctx, *grads):
        return (None,) * 10

    torch.library.register_autograd("flowfuse::voxelize", backward, setup_context=setup_context)
    refuse_vmap("voxelize")


if LIBRARY is not None:
    register()
