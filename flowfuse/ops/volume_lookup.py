"""Windows of a stored correlation volume around moving points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .correlation_volume import MAX_LEVELS
from .examples import Example, draw, places, sum_dtype
from .operator import COORDINATE_DTYPES, Gradient, Operator, Shapes, check_range, require

MAX_RADIUS = 16


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
    return OPERATOR(list(volumes), coords, radius)


def check_window(op: str, coords: Tensor, radius: int) -> Shapes:
    shapes = Shapes(op)
    shapes.check("coords", coords, ["B", 2, "H", "W"], COORDINATE_DTYPES)
    check_range(op, "radius", radius, 0, MAX_RADIUS)
    return shapes


def check(volumes, coords, radius, op="volume_lookup") -> None:
    check_range(op, "levels", len(volumes), 1, MAX_LEVELS)
    shapes = check_window(op, coords, radius)
    for level, volume in enumerate(volumes):
        name = f"level {level} of volumes"
        shapes.check(name, volume, ["B", "H", "W", "H_l", "W_l"], COORDINATE_DTYPES)
        found = str(volume.dtype).removeprefix("torch.")
        same = volume.dtype == volumes[0].dtype
        require(same, f"{op}: {name} must be of the dtype of level 0, got {found}")


def reference(volumes: Sequence[Tensor], coords: Tensor, radius: int) -> Tensor:
    """volumes [B, H, W, H_l, W_l], coords [B, 2, H, W] -> [B, L (2r+1)^2, H, W]."""
    window = 2 * radius + 1
    missing = torch.isnan(coords).any(1, keepdim=True)  # [B, 1, H, W]
    step = torch.arange(-radius, radius + 2, device=coords.device)
    output = []
    for level, volume in enumerate(volumes):
        batch, height, width, rows, columns = volume.shape
        centre = coords.to(torch.float64) / 2**level  # so that centre - cell is exact
        # Compared as floats: a far centre may not fit an integer. One that no tap reaches is put at
        # -(r + 2), where every tap is outside too.
        size = torch.tensor([columns, rows], device=coords.device).view(1, 2, 1, 1)
        near = ((centre >= -(radius + 1)) & (centre < size + radius)).all(1, keepdim=True)
        centre = torch.where(near, centre, torch.full_like(centre, -(radius + 2)))
        cell = centre.detach().floor()
        fx, fy = (centre - cell).to(volume.dtype)[..., None, None].unbind(1)  # [B, H, W, 1, 1]
        column, row = (cell.to(torch.int64)[..., None] + step).unbind(1)  # [B, H, W, 2r+2]
        column, row = column[..., :, None], row[..., None, :]  # x slow, y fast
        inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        if rows * columns == 0:
            tap = volume.new_zeros(inside.shape)
        else:
            index = row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)
            tap = volume.flatten(3).gather(3, index.flatten(3)).view(index.shape)
            tap = torch.where(inside, tap, torch.zeros_like(tap))
        value = (1 - fx) * (1 - fy) * tap[..., :-1, :-1] + fx * (1 - fy) * tap[..., 1:, :-1]
        value = value + (1 - fx) * fy * tap[..., :-1, 1:] + fx * fy * tap[..., 1:, 1:]
        output.append(value.reshape(batch, height, width, window * window).permute(0, 3, 1, 2))
    result = torch.cat(output, dim=1)
    return torch.where(missing, torch.full_like(result, torch.nan), result)


def empty_windows(like: Tensor, coords: Tensor, levels: int, radius: int) -> Tensor:
    batch, _, height, width = coords.shape
    return like.new_empty((batch, levels * (2 * radius + 1) ** 2, height, width))


def fake(volumes, coords, radius):
    return empty_windows(volumes[0], coords, len(volumes), radius)


def fake_backward(grad, volumes, coords, radius, coords_needed):
    shape = coords.shape if coords_needed else (0,)
    return [volume.new_empty(volume.shape) for volume in volumes], coords.new_empty(shape)


def setup_context(ctx, inputs, output):
    volumes, coords, ctx.radius = inputs
    ctx.save_for_backward(coords, *volumes)


def backward(ctx, grad):
    coords, *volumes = ctx.saved_tensors
    needed = ctx.needs_input_grad[1]
    grads, grad_coords = OPERATOR.call_backward(grad, volumes, coords, ctx.radius, needed)
    return grads, grad_coords if needed else None, None


def example(dtype: torch.dtype, size: tuple) -> Example:
    batch, height, width = size
    dtype = sum_dtype(dtype)
    shape = (batch, height, width, height, width)
    volumes = draw(*shape, dtype=dtype), draw(*shape[:3], height // 2, width // 2, dtype=dtype)
    coords = places(batch, height, width, torch.float32)
    return Example(lambda a, b, c: volume_lookup([a, b], c, 3), (*volumes, coords), (0, 1, 2))


OPERATOR = Operator(
    "volume_lookup",
    check=check,
    reference=reference,
    fake=fake,
    gradient=Gradient(fake_backward, setup_context, backward),
    examples={"volume_lookup": example},
)
