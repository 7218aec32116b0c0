"""Correlation of two feature maps around moving points, through a stored volume or on demand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .correlation_lookup import OPERATOR as LOOKUP
from .correlation_lookup import exact_products
from .correlation_volume import (
    MAX_LEVELS,
    autocast_features,
    check_features,
    correlation_volume,
    pyramid,
)
from .examples import Example, draw, places, sum_dtype
from .extension import FACTS
from .operator import EXAMPLES, check_range, gradient_wanted, require
from .read_correlation import read_features
from .read_volume import read_volume
from .read_windows import WindowReading, read_windows
from .volume_lookup import MAX_RADIUS, volume_lookup

MULTIPLIES_BFLOAT16 = FACTS.get("cpu_capability") == "avx512_bf16"
# Bytes of the largest volume that strategy "auto" stores for a Correlation, without and with
# gradients. Below it on a CPU, "volume" is up to a half faster after many look-ups and up to a half
# slower after one; above it "on_demand" is faster for one and four (benchmarks/operators.py
# --crossover). On a GPU a volume is made by cuBLAS at the speed of memory, but each look-up would
# have a gradient of its size. Not yet measured there: a limit to the memory.
VOLUME_CAPS = {"cpu": (2 * 2**20, 2 * 2**20), "cuda": (2 * 2**30, 0)}


def channels_last(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Features as the kernels read them. A batch expanded from one map stays one map."""
    shared = features.shape[0] > 1 and features.stride(0) == 0
    if shared and features.requires_grad:  # each item has a gradient of its own
        return features
    source = features[:1] if shared else features
    source = source.to(dtype).contiguous(memory_format=torch.channels_last)
    return source.expand(features.shape) if shared else source


def packed_features(f0: Tensor, f1: Tensor, levels: int) -> tuple[Tensor, list[Tensor], bool]:
    """f0 and the pyramid of f1, ready to be multiplied: made once, not at each look-up. And whether
    they came in half precision.

    The kernels read all of them in one dtype: bfloat16 (on a GPU float16 too) where f0 and f1 are,
    the processor multiplies it and no gradient is asked for, else that of sums. Under autocast on a
    GPU all levels are in its dtype, with gradients too.
    """
    maps = pyramid("Correlation", channels_last(f1, f1.dtype), levels)  # the faster way round
    f0, maps = autocast_features(f0, maps)
    half = f0.dtype == maps[0].dtype and f0.dtype in (torch.bfloat16, torch.float16)
    on_gpu = f0.device.type != "cpu"
    multiplied = half and (on_gpu or (f0.dtype == torch.bfloat16 and MULTIPLIES_BFLOAT16))
    # Not where gradients are made: those of all look-ups would be added up in half precision. On a
    # GPU they are where autocast has put all levels in it: tensor cores are worth more than that.
    rounded = not makes_gradients(f0, f1) or (on_gpu and maps[-1].dtype == f0.dtype)
    dtype = f0.dtype if multiplied and rounded else sum_dtype(f0.dtype)
    return channels_last(f0, dtype), [channels_last(level, dtype) for level in maps], half


def makes_gradients(f0: Tensor, f1: Tensor) -> bool:
    return torch.is_grad_enabled() and (f0.requires_grad or f1.requires_grad)


def volume_bytes(f0: Tensor, f1: Tensor, levels: int) -> int:
    rows, columns = f1.shape[2:]
    cells = sum((rows >> level) * (columns >> level) for level in range(levels))
    itemsize = 8 if f0.dtype == torch.float64 else 4
    return f0.shape[0] * f0.shape[2] * f0.shape[3] * cells * itemsize


def automatic_strategy(f0: Tensor, f1: Tensor, levels: int) -> str:
    caps = VOLUME_CAPS.get(f0.device.type, VOLUME_CAPS["cuda"])
    cap = caps[makes_gradients(f0, f1)]
    return "volume" if volume_bytes(f0, f1, levels) <= cap else "on_demand"


class Correlation:
    """Holds the pyramid or the volume of a pair of feature maps between look-ups.

    Args:
        f0, f1: [B, C, H, W] and [B, C, H1, W1], any float dtype. An expanded batch is not copied,
            nor are maps in channels_last: they must not be changed in place between look-ups.
        levels: pyramid levels, in [1, 16].
        radius: r in [0, 16].
        strategy: "volume" stores all products, "on_demand" makes them at each look-up, "auto" takes
            the volume where it is small (2 MiB on a CPU; 2 GiB on a GPU, where no gradient is asked
            for): a choice by device, shape, dtype and that alone, so that resumed and compiled
            runs choose the same.

    With bfloat16 features that need no gradient, "on_demand" on a processor that multiplies
    bfloat16 (AVX-512 BF16, or a GPU, which multiplies float16 too) takes all levels in it: each
    feature of the coarser ones is rounded by up to 2^-8 of its value (2^-11 for float16). Every
    other sum is of exact products, but for those of float32 on a GPU where
    torch.set_float32_matmul_precision is below "highest".

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
        check_features("Correlation", f0, [f1])
        check_range("Correlation", "levels", levels, 1, MAX_LEVELS)
        check_range("Correlation", "radius", radius, 0, MAX_RADIUS)
        if strategy == "auto":
            strategy = automatic_strategy(f0, f1, levels)
        self.radius = radius
        self.strategy = strategy
        self.f0, self.half = f0, False
        if strategy == "volume":
            self.levels = correlation_volume(f0, f1, levels)
        else:
            self.f0, self.levels, self.half = packed_features(f0, f1, levels)

    def __call__(self, coords: Tensor) -> Tensor:
        """Look up around coords [B, 2, H, W] (px of f1) -> [B, L (2r+1)^2, H, W] float32 or 64."""
        if self.strategy == "volume":
            return volume_lookup(self.levels, coords, self.radius)
        return LOOKUP(self.f0, self.levels, coords, self.radius, self._exact())

    def read(
        self, coords: Tensor, counts: Sequence[int], readings: Sequence[WindowReading]
    ) -> list[tuple[Tensor, Tensor]]:
        """Look up windows and read them, the items in groups, each in a way of its own.

        The windows are not put into memory where no gradient is asked for, but for those of
        "on_demand" on a GPU.

        Args:
            coords: [B, 2, H, W], as to look up.
            counts: items of each group, B together.
            readings: of each group, how its windows are read.

        Returns:
            of each group, tokens and matches, as of :func:`read_windows`.
        """
        given = (self.f0, *self.levels, coords, *(part for how in readings for part in how))
        if gradient_wanted(given) or not self._reads_at_once():
            windows = self(coords).split(list(counts))
            return [read_windows(own, *how) for own, how in zip(windows, readings, strict=True)]
        found, first = [], 0
        for count, how in zip(counts, readings, strict=True):
            place = slice(first, first + count)
            levels = [level[place] for level in self.levels]
            if self.strategy == "volume":
                found.append(read_volume(levels, coords[place], self.radius, how))
            else:
                f0, exact = self.f0[place], self._exact()
                found.append(read_features(f0, levels, coords[place], self.radius, exact, how))
            first += count
        return found

    def _exact(self) -> bool:
        # What came in half precision has no digits that the tensor cores would lose.
        return exact_products() and not self.half

    def _reads_at_once(self) -> bool:
        return self.strategy == "volume" or read_on_demand(self.f0.device)


def read_on_demand(device: torch.device) -> bool:
    """Whether a device reads windows at once that it looks up on demand."""
    return device.type == "cpu"


def example(strategy: str, dtype: torch.dtype, size: tuple, channels: int = 20) -> Example:
    batch, height, width = size
    f0 = draw(batch, channels, height, width, dtype=dtype)
    f1 = draw(batch, channels, height, width, dtype=dtype, seed=1)

    def look_up(f0: Tensor, f1: Tensor, coords: Tensor) -> Tensor:
        return Correlation(f0, f1, levels=3, radius=2, strategy=strategy)(coords)

    return Example(look_up, (f0, f1, places(batch, height, width, sum_dtype(dtype))), (0, 1, 2))


def scattered_example(dtype: torch.dtype, size: tuple) -> Example:
    """Windows that lie far apart on the first levels, and overlap on the last one."""
    batch, height, width = size
    f0 = draw(batch, 20, height, width, dtype=dtype)
    f1 = draw(batch, 20, 30, 40, dtype=dtype, seed=1)
    coords = 20 + 12 * draw(batch, 2, height, width, dtype=sum_dtype(dtype), seed=2)

    def look_up(f0: Tensor, f1: Tensor, coords: Tensor) -> Tensor:
        return Correlation(f0, f1, levels=3, radius=3, strategy="on_demand")(coords)

    return Example(look_up, (f0, f1, coords), (0, 1, 2))


EXAMPLES |= {
    "correlation, volume": lambda *given: example("volume", *given),
    "correlation, on demand": lambda *given: example("on_demand", *given),
    "correlation, scattered": scattered_example,
}
