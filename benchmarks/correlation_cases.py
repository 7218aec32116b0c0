"""The correlation rows of benchmarks/operators.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import floors
import peers
import torch
from cases import (
    NO_TARGET,
    TOLERANCE,
    Algorithm,
    Case,
    Setting,
    Target,
    Work,
    generator,
    normal,
    smooth_flow,
    with_compiled,
    with_gradients,
)
from floors import Needed
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
        return floors.correlation(
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
    target: Target,
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

    targets = {f"{name} {s}": target if s == "auto" else NO_TARGET for s in strategies}
    return Case(shape.size(), direction, str(dtype).removeprefix("torch."), targets, build)


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

    target = Target(extra_bytes=2**30, own=None if setting.device == "cuda" else 10.0)
    targets = {f"correlation {s}": NO_TARGET for s in STRATEGIES[1:]}
    targets["correlation auto"] = NO_TARGET if setting.quick else target
    return Case(shape.size(), "forward", "float32", targets, build)


def correlation_target(middle: bool, direction: str, dtype: torch.dtype, at: Setting) -> Target:
    """From the table of targets; `middle` is the 90 x 160 size."""
    both = direction == "both"
    if at.quick:
        return NO_TARGET
    if at.device == "cuda":
        return Target(speed=3 if both else 5, floor=0.25) if dtype == BFLOAT16 else NO_TARGET
    wide = (at.instructions or "").startswith(("avx512", "amx"))
    if dtype == BFLOAT16:
        return Target(speed=12 if middle else 6) if wide else NO_TARGET
    memory = 1 / 20 if middle else 1 / 10
    if wide:
        return Target(speed=10 if middle else (5 if both else 4), memory=memory)
    if at.instructions == "avx2":
        return Target(speed=5 if middle else (2.5 if both else 2.2), memory=memory)
    return NO_TARGET


def correlation_cases(at: Setting) -> Iterator[Case]:
    sizes = ((24, 32), (32, 48), (48, 80)) if at.quick else ((60, 80), (90, 160), (270, 480))
    lookups = 4 if at.quick else 12
    shapes = [Correlated(256, *size, lookups=lookups) for size in sizes]
    native = at.limits.bfloat16_operations is not None
    for dtype in (FLOAT32, BFLOAT16) if native else (FLOAT32,):
        directions = (
            ("forward", "both") if dtype == FLOAT32 or at.device == "cuda" else ("forward",)
        )
        for middle, shape in enumerate(shapes[:2]):
            for direction in directions:
                target = correlation_target(bool(middle), direction, dtype, at)
                for noisy in (False, True):
                    placed = replace(shape, noisy=noisy)
                    yield correlation_case(placed, direction, dtype, at, target)
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
    target = NO_TARGET if at.quick or at.device == "cuda" else Target(speed=4)
    for direction in ("forward", "both"):
        for noisy in (False, True):
            placed = replace(shape, noisy=noisy)
            yield correlation_case(
                placed, direction, FLOAT32, at, target, "correlation of the model"
            )
