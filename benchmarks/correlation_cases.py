"""The correlation's rows of benchmarks/operators.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import peers
import torch
from operator_cases import (
    PIXEL,
    TOLERANCE,
    Algorithm,
    Case,
    Needed,
    Setting,
    Work,
    generator,
    normal,
    smooth_flow,
    with_compiled,
    with_gradients,
)
from torch import Tensor

from flowfuse import ops
from flowfuse.geometry.grid import pixel_grid
from flowfuse.model import CONFIGS

STRATEGIES = ("volume", "on_demand", "auto")
LARGEST_VOLUME = 2 * 2**30  # bytes; a strategy "volume" that needs more is left out
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
# bfloat16 carries 8 bits, and autograd adds the gradients of the look-ups in it one by one.
TOLERANCES = {
    (FLOAT32, "forward"): TOLERANCE,
    (FLOAT32, "both"): TOLERANCE,
    (BFLOAT16, "forward"): 1e-2,
    (BFLOAT16, "both"): 3e-2,
}


def correlation_needs(
    f0: tuple[int, int, int, int], batch: int, levels: int, radius: int, lookups: int,
    both: bool, itemsize: int, kind: str,
) -> Needed:  # fmt: skip
    """f0 is [B or 1, C, H, W] as stored (shared by the batch when 1), f1 [batch, C, H, W].

    Operations: there are two known ways, and the floor is the cheaper one.
    - all pairs: every product of two of the H W pixels once, 2 C operations each; coarser levels
      are averages of these and cost next to nothing;
    - on demand: the (2r + 1)^2 values of a look-up share one fraction, so they need (2r + 2)^2
      products on each level, or all cells of a level that is smaller; look-ups come one after the
      other and share nothing.
    Combining the products bilinearly (8 operations a value against 2 C a product) is left out. A
    gradient makes as many products for each of the two maps: three times the work in all.

    Bytes: both maps read, the coordinates read, all look-ups written in float32. With gradients the
    maps and coordinates are read again, the gradients of the look-ups read, those of the maps
    written.
    """
    shared, channels, height, width = f0
    pixels = batch * height * width
    cells = [(height >> level) * (width >> level) for level in range(levels)]
    window = (2 * radius + 2) ** 2
    stored = pixels * cells[0]
    on_demand = lookups * pixels * sum(min(window, size) for size in cells)
    operations = 2 * channels * min(stored, on_demand)
    maps = itemsize * (shared + batch) * channels * height * width
    coords = lookups * pixels * 2 * PIXEL
    results = lookups * pixels * levels * (2 * radius + 1) ** 2 * PIXEL
    forward = maps + coords + results
    if not both:
        return Needed(forward, operations, kind)
    return Needed(forward + maps + coords + results + maps, 3 * operations, kind)


@dataclass(frozen=True)
class Correlated:
    """Shapes of a correlation row."""

    channels: int
    height: int
    width: int
    batch: int = 1
    levels: int = 4
    radius: int = 4
    lookups: int = 12
    shared: bool = False  # one first map for the whole batch
    channels_last: bool = False
    noisy: bool = False

    def size(self) -> str:
        batch = f"{self.batch} x " if self.batch > 1 else ""
        shared = " f0 shared," if self.shared else ""
        layout = " channels_last," if self.channels_last else ""
        coordinates = " noisy" if self.noisy else " smooth"
        return (
            f"{batch}{self.channels} x {self.height} x {self.width},{shared}{layout}{coordinates}"
        )

    def volume_fits(self) -> bool:
        return self.batch * (self.height * self.width) ** 2 * 4 * 4 // 3 <= LARGEST_VOLUME

    def features(self, dtype: torch.dtype, device: str) -> list[Tensor]:
        maps = []
        for seed, batch in enumerate((1 if self.shared else self.batch, self.batch)):
            values = normal(batch, self.channels, self.height, self.width, seed=seed, device=device)
            layout = torch.channels_last if self.channels_last else torch.contiguous_format
            maps.append(values.to(dtype).contiguous(memory_format=layout))
        return maps

    def coords(self, device: str) -> list[Tensor]:
        """Where each look-up looks: along a flow that is being found, or noise around no motion."""
        grid = pixel_grid(self.height, self.width)
        shape = (self.batch, 2, self.height, self.width)
        found = []
        for k in range(self.lookups):
            if self.noisy:
                shift = 4 * torch.randn(shape, generator=generator(100 + k))
            else:
                shift = smooth_flow(self.height, self.width, 4.0) * (k + 1) / self.lookups
            found.append((grid + shift).expand(shape).contiguous().to(device))
        return found

    def needed(self, both: bool, dtype: torch.dtype) -> Needed:
        first = (1 if self.shared else self.batch, self.channels, self.height, self.width)
        kind = "bfloat16" if dtype == BFLOAT16 else "float32"
        return correlation_needs(
            first, self.batch, self.levels, self.radius, self.lookups, both, dtype.itemsize, kind
        )

    def ours(self, strategy: str, lookups: Sequence[Tensor]) -> Algorithm:
        def look_up(f0: Tensor, f1: Tensor) -> list[Tensor]:
            f0 = f0.expand(self.batch, -1, -1, -1)
            correlation = ops.Correlation(
                f0, f1, levels=self.levels, radius=self.radius, strategy=strategy
            )
            return [correlation(coords) for coords in lookups]

        return look_up

    def peer(self, lookups: Sequence[Tensor]) -> Algorithm:
        def look_up(f0: Tensor, f1: Tensor) -> list[Tensor]:
            f0 = f0.expand(self.batch, -1, -1, -1)
            return peers.correlate(f0, f1, lookups, self.levels, self.radius)

        return look_up


def correlation_case(
    shape: Correlated,
    direction: str,
    dtype: torch.dtype,
    setting: Setting,
    name: str = "correlation",
) -> Case:
    strategies = STRATEGIES if shape.volume_fits() else STRATEGIES[1:]

    def build() -> Work:
        lookups = shape.coords(setting.device)
        maps = shape.features(dtype, setting.device)
        peer_maps = [values.float() for values in maps]  # the same values: bfloat16 is exact
        return Work(
            inputs=with_gradients(direction, *maps),
            ours={f"{name} {s}": shape.ours(s, lookups) for s in strategies},
            needed=shape.needed(direction == "both", dtype),
            peers=with_compiled({"RAFT all-pairs volume": shape.peer(lookups)}, setting),
            peer_inputs=with_gradients(direction, *peer_maps),
            tolerance=TOLERANCES[dtype, direction],
        )

    names = tuple(f"{name} {s}" for s in strategies)
    return Case(shape.size(), direction, str(dtype).removeprefix("torch."), names, build)


def large_correlation_case(shape: Correlated, smaller: Correlated, setting: Setting) -> Case:
    """The size whose volume does not fit: checked on one row of pixels, timed against our own."""
    row = slice(shape.height // 2, shape.height // 2 + 1)

    def build() -> Work:
        lookups = shape.coords(setting.device)
        f0, f1 = shape.features(FLOAT32, setting.device)
        own_maps = smaller.features(FLOAT32, setting.device)
        own = smaller.ours("auto", smaller.coords(setting.device))

        def expected() -> list[Tensor]:
            coords = [values[:, :, row] for values in lookups]
            return peers.correlate(f0[:, :, row], f1, coords, shape.levels, shape.radius)

        return Work(
            inputs=[f0, f1],
            ours={f"correlation {s}": shape.ours(s, lookups) for s in STRATEGIES[1:]},
            needed=shape.needed(False, FLOAT32),
            comparable=lambda results: [values[:, :, row] for values in results],
            expected=expected,
            baseline=lambda: own(*own_maps),
        )

    names = tuple(f"correlation {s}" for s in STRATEGIES[1:])
    return Case(shape.size(), "forward", "float32", names, build)


def correlation_cases(at: Setting) -> Iterator[Case]:
    sizes = ((24, 32), (32, 48), (48, 80)) if at.quick else ((60, 80), (90, 160), (270, 480))
    lookups = 4 if at.quick else 12
    shapes = [Correlated(256, *size, lookups=lookups) for size in sizes]
    native = at.limits.bfloat16_operations is not None
    for dtype in (FLOAT32, BFLOAT16) if native else (FLOAT32,):
        directions = (
            ("forward", "both") if dtype == FLOAT32 or at.device == "cuda" else ("forward",)
        )
        for shape in shapes[:2]:
            for direction in directions:
                for noisy in (False, True):
                    yield correlation_case(replace(shape, noisy=noisy), direction, dtype, at)
    for noisy in (False, True):
        large, smaller = (replace(shape, noisy=noisy) for shape in (shapes[2], shapes[1]))
        yield large_correlation_case(large, smaller, at)

    # As flowfuse's base model asks: K + 1 event slices against the first, one look-up for the
    # first estimate and one an update.
    model = CONFIGS["base"]
    shape = Correlated(
        model.channels, *sizes[0], batch=model.slices + 1, levels=model.levels,
        radius=model.radius, lookups=model.iterations + 1, shared=True, channels_last=True,
    )  # fmt: skip
    for direction in ("forward", "both"):
        for noisy in (False, True):
            placed = replace(shape, noisy=noisy)
            yield correlation_case(placed, direction, FLOAT32, at, "correlation of the model")
