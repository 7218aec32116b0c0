"""Correlation of two feature maps around moving points, through a stored volume or on demand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from .checks import (
    check_correlation_lookup,
    check_features,
    check_level_count,
    check_levels,
    check_radius,
    check_volume_lookup,
    require,
)
from .extension import FACTS, LIBRARY, has_kernel
from .registration import call, register_differentiable

MULTIPLIES_BFLOAT16 = FACTS.get("cpu_capability") in ("avx512_bf16", "amx")
# Bytes of the largest volume that strategy "auto" stores for a Correlation. Below it on a CPU,
# "volume" is up to a half faster after many look-ups and up to a half slower after one; above it
# "on_demand" is faster for one and four (benchmarks/operators.py --crossover). On a GPU not yet
# measured: a limit to the memory.
VOLUME_CAPS = {"cpu": 2 * 2**20, "cuda": 64 * 2**20}


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
    check_features("pool_levels", "f1", f1)
    check_level_count("pool_levels", levels)
    return reference.pool_levels(f1, levels)


def autocast_features(f0: Tensor, f1_levels: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Features in autocast's dtype where it is on; by hand: coordinates must keep float32."""
    device = f0.device.type
    if torch.is_autocast_enabled(device) and f0.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        return f0.to(dtype), [level.to(dtype) for level in f1_levels]
    return f0, list(f1_levels)


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
    check_levels("correlation_volume", f0, [f1])
    check_level_count("correlation_volume", levels)
    f0, f1_levels = autocast_features(f0, reference.pool_levels(f1, levels))
    if has_kernel(f0.device):
        return call("correlation_volume", f0, f1_levels)
    return reference.correlation_volume(f0, f1_levels)


def volume_lookup(volumes: Sequence[Tensor], coords: Tensor, radius: int) -> Tensor:
    """Windows of (2 radius + 1)^2 values of a correlation volume around coords / 2^l, bilinear.

    Args:
        volumes: list of [B, H, W, H_l, W_l] from correlation_volume.
        coords: [B, 2, H, W] float32 or float64, pixels of the second map (x, then y). NaN gives NaN
            at that pixel; taps outside the map are 0, infinite coordinates give 0.
        radius: r in [0, 16].

    Returns:
        [B, L (2r+1)^2, H, W] of the volumes' dtype; channel l (2r+1)^2 + (dx + r)(2r + 1) + (dy +
        r).

    Raises:
        ValueError: a shape, dtype or the radius is wrong.
    """
    volumes = list(volumes)
    check_volume_lookup(volumes, coords, radius)
    if has_kernel(coords.device):
        return call("volume_lookup", volumes, coords, radius)
    return reference.volume_lookup(volumes, coords, radius)


def correlation_lookup(
    f0: Tensor, f1_levels: Sequence[Tensor], coords: Tensor, radius: int
) -> Tensor:
    """The same windows without a stored volume: the products are made where they are looked up.

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
    check_correlation_lookup(f0, f1_levels, coords, radius)
    return look_up(*autocast_features(f0, f1_levels), coords, radius)


def look_up(f0: Tensor, f1_levels: Sequence[Tensor], coords: Tensor, radius: int) -> Tensor:
    if has_kernel(f0.device):
        return call("correlation_lookup", f0, f1_levels, coords, radius)
    return reference.correlation_lookup(f0, f1_levels, coords, radius)


def channels_last(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Features as the kernels read them. A batch expanded from one map stays one map."""
    shared = features.shape[0] > 1 and features.stride(0) == 0
    if shared and features.requires_grad:  # each item has a gradient of its own
        return features
    source = features[:1] if shared else features
    source = source.to(dtype).contiguous(memory_format=torch.channels_last)
    return source.expand(features.shape) if shared else source


def packed_features(f0: Tensor, f1: Tensor, levels: int) -> tuple[Tensor, list[Tensor]]:
    """f0 and the pyramid of f1, ready to be multiplied: made once, not at each look-up.

    The CUDA kernel reads f0 in the dtype of sums and f1 in any; the CPU's reads all of them in one:
    bfloat16 where all are, the processor multiplies it and no gradient is asked for, else that of
    sums.
    """
    pyramid = pool_levels(channels_last(f1, f1.dtype), levels)  # the faster way round
    f0, pyramid = autocast_features(f0, pyramid)
    dtype = reference.sum_dtype(f0.dtype)
    if f0.device.type != "cpu":
        return channels_last(f0, dtype), [channels_last(level, level.dtype) for level in pyramid]
    # Not where gradients are made: those of all look-ups would be added up in bfloat16.
    learning = torch.is_grad_enabled() and (f0.requires_grad or f1.requires_grad)
    if MULTIPLIES_BFLOAT16 and f0.dtype == pyramid[0].dtype == torch.bfloat16 and not learning:
        dtype = torch.bfloat16
    return channels_last(f0, dtype), [channels_last(level, dtype) for level in pyramid]


def volume_bytes(f0: Tensor, f1: Tensor, levels: int) -> int:
    rows, columns = f1.shape[2:]
    cells = sum((rows >> level) * (columns >> level) for level in range(levels))
    itemsize = 8 if f0.dtype == torch.float64 else 4
    return f0.shape[0] * f0.shape[2] * f0.shape[3] * cells * itemsize


class Correlation:
    """Holds the pyramid or the volume of a pair of feature maps between look-ups.

    Args:
        f0, f1: [B, C, H, W] and [B, C, H1, W1], any float dtype. An expanded batch is not copied,
            nor are maps in channels_last: they must not be changed in place between look-ups.
        levels: pyramid levels, in [1, 16].
        radius: r in [0, 16].
        strategy: "volume" stores all products, "on_demand" makes them at each look-up, "auto" takes
            the volume where it is small (2 MiB on a CPU, 64 MiB on a GPU): a choice by device,
            shape and dtype alone, so that resumed and compiled runs choose the same.

    With bfloat16 features that need no gradient, "on_demand" on a processor that multiplies
    bfloat16 (AVX-512 BF16, AMX) takes all levels in it: each feature of the coarser ones is rounded
    by up to 2^-8 of its value. Every other sum is of exact products.

    Raises:
        ValueError: a shape, dtype, the radius or the strategy is wrong.
    """

    def __init__(
        self, f0: Tensor, f1: Tensor, *, levels: int, radius: int, strategy: str = "auto"
    ) -> None:
        choices = ("auto", "volume", "on_demand")
        require(
            strategy in choices, f"Correlation: strategy must be one of {choices}, got {strategy!r}"
        )
        check_levels("Correlation", f0, [f1])
        check_level_count("Correlation", levels)
        check_radius("Correlation", radius)
        if strategy == "auto":
            cap = VOLUME_CAPS.get(f0.device.type, VOLUME_CAPS["cuda"])
            strategy = "volume" if volume_bytes(f0, f1, levels) <= cap else "on_demand"
        self.radius = radius
        self.strategy = strategy
        self.f0 = f0
        if strategy == "volume":
            self.levels = correlation_volume(f0, f1, levels)
        else:
            self.f0, self.levels = packed_features(f0, f1, levels)

    def __call__(self, coords: Tensor) -> Tensor:
        """Look up around coords [B, 2, H, W] (px of f1) -> [B, L (2r+1)^2, H, W] float32 or 64."""
        if self.strategy == "volume":
            return volume_lookup(self.levels, coords, self.radius)
        check_correlation_lookup(self.f0, self.levels, coords, self.radius)
        return look_up(self.f0, self.levels, coords, self.radius)


def windows(like: Tensor, coords: Tensor, levels: int, radius: int) -> Tensor:
    batch, _, height, width = coords.shape
    return like.new_empty((batch, levels * (2 * radius + 1) ** 2, height, width))


def empty_channels_last(features: Tensor) -> Tensor:
    return torch.empty(
        features.shape,
        dtype=features.dtype,
        device=features.device,
        memory_format=torch.channels_last,
    )


def register_volume() -> None:
    @torch.library.register_fake("flowfuse::correlation_volume")
    def fake(f0, f1_levels):
        dtype = reference.sum_dtype(f0.dtype)
        batch, _, height, width = f0.shape
        return [
            f0.new_empty((batch, height, width, *f1.shape[2:]), dtype=dtype) for f1 in f1_levels
        ]

    @torch.library.register_fake("flowfuse::correlation_volume_backward")
    def fake_backward(grads, f0, f1_levels):
        return empty_channels_last(f0), [empty_channels_last(f1) for f1 in f1_levels]

    def setup_context(ctx, inputs, output):
        f0, f1_levels = inputs
        ctx.save_for_backward(f0, *f1_levels)

    def backward(ctx, grads):
        f0, *f1_levels = ctx.saved_tensors
        return call("correlation_volume_backward", grads, f0, f1_levels)

    register_differentiable("correlation_volume", backward, setup_context)


def register_volume_lookup() -> None:
    @torch.library.register_fake("flowfuse::volume_lookup")
    def fake(volumes, coords, radius):
        return windows(volumes[0], coords, len(volumes), radius)

    @torch.library.register_fake("flowfuse::volume_lookup_backward")
    def fake_backward(grad, volumes, coords, radius, coords_needed):
        shape = coords.shape if coords_needed else (0,)
        return [volume.new_empty(volume.shape) for volume in volumes], coords.new_empty(shape)

    def setup_context(ctx, inputs, output):
        volumes, coords, ctx.radius = inputs
        ctx.save_for_backward(coords, *volumes)

    def backward(ctx, grad):
        coords, *volumes = ctx.saved_tensors
        needed = ctx.needs_input_grad[1]
        grads, grad_coords = call(
            "volume_lookup_backward", grad, volumes, coords, ctx.radius, needed
        )
        return grads, grad_coords if needed else None, None

    register_differentiable("volume_lookup", backward, setup_context)


def register_correlation_lookup() -> None:
    @torch.library.register_fake("flowfuse::correlation_lookup")
    def fake(f0, f1_levels, coords, radius):
        like = f0.new_empty((0,), dtype=reference.sum_dtype(f0.dtype))
        return windows(like, coords, len(f1_levels), radius)

    @torch.library.register_fake("flowfuse::correlation_lookup_backward")
    def fake_backward(grad, f0, f1_levels, coords, radius, coords_needed):
        shape = coords.shape if coords_needed else (0,)
        grads = [empty_channels_last(f1) for f1 in f1_levels]
        return empty_channels_last(f0), grads, coords.new_empty(shape)

    def setup_context(ctx, inputs, output):
        f0, f1_levels, coords, ctx.radius = inputs
        ctx.save_for_backward(f0, coords, *f1_levels)

    def backward(ctx, grad):
        f0, coords, *f1_levels = ctx.saved_tensors
        needed = ctx.needs_input_grad[2]
        grad_f0, grads, grad_coords = call(
            "correlation_lookup_backward", grad, f0, f1_levels, coords, ctx.radius, needed
        )
        return grad_f0, grads, grad_coords if needed else None, None

    register_differentiable("correlation_lookup", backward, setup_context)


if LIBRARY is not None:
    register_volume()
    register_volume_lookup()
    register_correlation_lookup()
