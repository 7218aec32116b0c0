"""Windows of a stored correlation volume, looked up and read at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .examples import Example, draw, places, sum_dtype
from .operator import Operator, gradient_wanted
from .read_windows import WindowReading, check_reading, empty_reading, read_windows
from .read_windows import reference as read
from .volume_lookup import check as check_lookup
from .volume_lookup import check_window, volume_lookup
from .volume_lookup import reference as look_up


def read_volume(
    volumes: Sequence[Tensor], coords: Tensor, radius: int, reading: WindowReading
) -> tuple[Tensor, Tensor]:
    """Look up windows of a stored volume and read them, without putting them into memory.

    It gives what :func:`volume_lookup` and :func:`read_windows` give one after the other, up to
    rounding. Where a gradient is asked for, these two are called.

    Args:
        volumes, coords, radius: as of :func:`volume_lookup`.
        reading: the other arguments of :func:`read_windows`, in the dtype of the volumes; weight
            and bias in any. N is the batch of the volumes.

    Returns:
        tokens and matches, as of :func:`read_windows`.

    Raises:
        ValueError: a shape, dtype or the radius is wrong.
    """
    if gradient_wanted((*volumes, coords, *reading)):
        return read_windows(volume_lookup(volumes, coords, radius), *reading)
    return OPERATOR(list(volumes), coords, radius, *reading)


def check(volumes, coords, radius, *reading) -> None:
    op = "read_volume"
    check_lookup(volumes, coords, radius, op)
    check_looked_up(op, "volumes", volumes[0].dtype, coords, len(volumes), radius, reading)


def check_looked_up(op, source, dtype, coords, levels, radius, reading) -> None:
    """Of how windows around coords are read, taken from `source`."""
    shapes = check_window(op, coords, radius)
    batch, _, shapes.sizes["h"], shapes.sizes["w"] = coords.shape
    channels = levels * (2 * radius + 1) ** 2
    check_reading(shapes, source, dtype, batch, channels, WindowReading(*reading))


def reference(
    volumes: Sequence[Tensor],
    coords: Tensor,
    radius: int,
    fade: Tensor | None,
    gate: Tensor | None,
    offsets: Tensor,
    log_sharpness: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    windows = look_up(volumes, coords, radius)
    return read(windows, fade, gate, offsets, log_sharpness, weight, bias)


def fake(volumes, coords, radius, *reading):
    given = WindowReading(*reading)
    return empty_reading(given.offsets, coords.shape[0], coords.shape[2:], given.weight)


def example_reading(
    dtype: torch.dtype, size: tuple, channels: int, tokens: int
) -> tuple[Tensor, ...]:
    """Fade, gate, offsets, log_sharpness, weight and bias."""
    count, height, width = size
    exact = sum_dtype(dtype)
    fade, gate = (draw(count, 1, height, width, dtype=exact, seed=i).sigmoid() for i in (11, 12))
    offsets, sharpness = draw(2, channels, dtype=exact, seed=13), torch.full((), 0.3, dtype=exact)
    weight = draw(tokens, channels + 3, 1, 1, dtype=dtype, seed=14)
    return fade, gate, offsets, sharpness, weight, draw(tokens, dtype=dtype, seed=15)


def example(dtype: torch.dtype, size: tuple, *, radius: int = 3, tokens: int = 11) -> Example:
    batch, height, width = size
    exact = sum_dtype(dtype)
    volume = draw(batch, height, width, height, width, dtype=exact)
    coarse = draw(batch, height, width, height // 2, width // 2, dtype=exact, seed=1)
    reading = example_reading(dtype, size, 2 * (2 * radius + 1) ** 2, tokens)

    def run(volume: Tensor, coarse: Tensor, coords: Tensor, *reading: Tensor) -> tuple:
        return read_volume([volume, coarse], coords, radius, WindowReading(*reading))

    return Example(run, (volume, coarse, places(batch, height, width, torch.float32), *reading))


def bare_example(dtype: torch.dtype, size: tuple) -> Example:
    batch, height, width = size
    exact = sum_dtype(dtype)
    volume = draw(batch, height, width, height + 2, width, dtype=exact)
    reading = example_reading(dtype, size, 25, 1)[2:4]

    def run(volume: Tensor, coords: Tensor, *reading: Tensor) -> tuple:
        return read_volume([volume], coords, 2, WindowReading(None, None, *reading))

    return Example(run, (volume, places(batch, height, width, exact), *reading))


OPERATOR = Operator(
    "read_volume",
    check=check,
    reference=reference,
    fake=fake,
    gradient=None,
    examples={
        "read_volume": example,
        # A window in parts, and more tokens than are summed at once.
        "read_volume, large": lambda *given: example(*given, radius=4, tokens=41),
        "read_volume, no tokens": bare_example,
    },
)
