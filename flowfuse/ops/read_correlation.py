"""Windows of a correlation that is not stored, looked up and read at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .correlation_lookup import OPERATOR as LOOKUP
from .correlation_lookup import check as check_lookup
from .correlation_lookup import exact_products
from .correlation_lookup import reference as look_up
from .correlation_volume import autocast_features
from .examples import Example, draw, places, sum_dtype
from .operator import Operator, check_tensor, gradient_wanted
from .read_volume import check_looked_up, example_reading
from .read_windows import OPERATOR as READ
from .read_windows import WindowReading, empty_reading, read_windows
from .read_windows import reference as read


def read_correlation(
    f0: Tensor,
    f1_levels: Sequence[Tensor],
    coords: Tensor,
    radius: int,
    reading: WindowReading,
) -> tuple[Tensor, Tensor]:
    """Look up windows without a stored volume and read them.

    It gives what :func:`correlation_lookup` and :func:`read_windows` give one after the other, up
    to rounding. Where a gradient is asked for, and on a GPU, these two are called; on a CPU the
    windows are never in memory.

    Args:
        f0, f1_levels, coords, radius: as of :func:`correlation_lookup`.
        reading: the other arguments of :func:`read_windows`, float32 (float64 for float64); weight
            and bias of any float dtype. N is the batch of f0.

    Returns:
        tokens and matches, as of :func:`read_windows`.

    Raises:
        ValueError: a shape, dtype or the radius is wrong.
    """
    check_tensor("read_correlation", "f0", f0)  # its device says whether autocast is on
    features, levels = autocast_features(f0, f1_levels)
    return read_features(features, levels, coords, radius, exact_products(), reading)


def read_features(
    f0: Tensor,
    f1_levels: list[Tensor],
    coords: Tensor,
    radius: int,
    exact: bool,
    reading: WindowReading,
) -> tuple[Tensor, Tensor]:
    """The same of features that are ready; `exact` as of the operator correlation_lookup."""
    if gradient_wanted((f0, *f1_levels, coords, *reading)):
        return read_windows(LOOKUP(f0, f1_levels, coords, radius, exact), *reading)
    return OPERATOR(f0, f1_levels, coords, radius, exact, *reading)


def check(f0, f1_levels, coords, radius, exact, *reading) -> None:
    op, dtype = "read_correlation", sum_dtype(f0.dtype)
    check_lookup(f0, f1_levels, coords, radius, exact, op)
    check_looked_up(op, "f0", dtype, coords, len(f1_levels), radius, reading)


def reference(
    f0: Tensor,
    f1_levels: Sequence[Tensor],
    coords: Tensor,
    radius: int,
    exact: bool,
    fade: Tensor | None,
    gate: Tensor | None,
    offsets: Tensor,
    log_sharpness: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    windows = look_up(f0, f1_levels, coords, radius, exact)
    return read(windows, fade, gate, offsets, log_sharpness, weight, bias)


def fake(f0, f1_levels, coords, radius, exact, *reading):
    given = WindowReading(*reading)
    return empty_reading(given.offsets, coords.shape[0], coords.shape[2:], given.weight)


def cuda_reading(f0, f1_levels, coords, radius, exact, *reading):
    """On a GPU tensor cores make the products, in tiles of another shape than windows are read."""
    check(f0, f1_levels, coords, radius, exact, *reading)
    return READ.call(LOOKUP.call(f0, f1_levels, coords, radius, exact), *reading)


def example(dtype: torch.dtype, size: tuple, *, tokens: int = 11) -> Example:
    batch, height, width = size
    f0 = draw(batch, 37, height, width, dtype=dtype)
    levels = [draw(batch, 37, height >> n, width >> n, dtype=dtype, seed=1 + n) for n in range(2)]
    reading = example_reading(dtype, size, 2 * 49, tokens)

    def run(f0: Tensor, fine: Tensor, coarse: Tensor, coords: Tensor, *reading: Tensor) -> tuple:
        return read_correlation(f0, [fine, coarse], coords, 3, WindowReading(*reading))

    coords = places(batch, height, width, sum_dtype(dtype))
    return Example(run, (f0, *levels, coords, *reading))


def bare_example(dtype: torch.dtype, size: tuple) -> Example:
    batch, height, width = size
    f0 = draw(batch, 20, height, width, dtype=dtype)
    f1 = draw(batch, 20, height + 3, width, dtype=dtype, seed=1)
    reading = example_reading(dtype, size, 25, 1)[2:4]

    def run(f0: Tensor, f1: Tensor, coords: Tensor, *reading: Tensor) -> tuple:
        return read_correlation(f0, [f1], coords, 2, WindowReading(None, None, *reading))

    coords = places(batch, height, width, sum_dtype(dtype))
    return Example(run, (f0, f1, coords, *reading))


OPERATOR = Operator(
    "read_correlation",
    check=check,
    reference=reference,
    fake=fake,
    gradient=None,
    examples={
        "read_correlation": example,
        "read_correlation, many tokens": lambda *given: example(*given, tokens=41),
        "read_correlation, no tokens": bare_example,
    },
    cuda=(cuda_reading,),
)
