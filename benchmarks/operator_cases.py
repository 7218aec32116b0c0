"""The rows of benchmarks/operators.py: all but correlation on their own, and the list of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import floors
import peers
import torch
from cases import (
    NO_TARGET,
    Algorithm,
    Case,
    Setting,
    Target,
    View,
    Work,
    generator,
    normal,
    smooth_flow,
    with_compiled,
    with_gradients,
)
from correlation_cases import correlation_cases
from floors import Needed
from torch import Tensor

from flowfuse import ops
from flowfuse.ops import OPERATORS

DURATION = 100_000  # microseconds of an event window
GPU_FLOOR = 50e-6  # seconds; below this a launch takes as long as the work


@dataclass(frozen=True)
class Events:
    x: Tensor
    y: Tensor
    t: Tensor
    p: Tensor
    offsets: Tensor
    t0: Tensor
    t1: Tensor


def make_events(
    count: int, batch: int, height: int, width: int, device: str, rectified: bool
) -> Events:
    """Events spread evenly over the sensor, in the order of their times within each item."""
    random = generator(7)
    x, y = (torch.rand(count * batch, generator=random) * (n - 1) for n in (width, height))
    if not rectified:
        x, y = x.to(torch.int16), y.to(torch.int16)
    t = torch.randint(0, DURATION, (batch, count), generator=random).sort(dim=1).values.flatten()
    p = torch.randint(0, 2, (count * batch,), generator=random).bool()
    offsets = torch.arange(0, count * batch + 1, count)
    t0 = torch.zeros(batch, dtype=torch.int64)
    return Events(*(v.to(device) for v in (x, y, t, p, offsets, t0, t0 + DURATION)))


def raised_batch(needed: Callable[[int], Needed], at: Setting) -> int:
    """Items that put the floor above GPU_FLOOR; one on a CPU."""
    if at.device != "cuda" or at.quick:
        return 1
    return max(1, math.ceil(GPU_FLOOR * at.limits.copy_bytes / needed(1).bytes))


def batched(size: str, batch: int) -> str:
    return f"{batch} x {size}" if batch > 1 else size


def bandwidth_target(at: Setting, cpu: Target) -> Target:
    if at.quick:
        return NO_TARGET
    return Target(floor=0.6) if at.device == "cuda" else cpu


def voxelize_case(rectified: bool, at: Setting) -> Case:
    """Ours rounds weights to 2^-15, the peers round times to float32: 1e-3 of the largest value."""
    count, bins, height, width = 10**6 if at.quick else 10**7, 15, 480, 640
    name = f"voxelize {'float' if rectified else 'integer'} x, y"

    def build() -> Work:
        e = make_events(count, 1, height, width, at.device, rectified)
        grid = (bins, height, width)

        def ours(*_: Tensor) -> list[Tensor]:
            return list(ops.voxelize(e.x, e.y, e.t, e.p, e.offsets, e.t0, e.t1, *grid))

        def peer(way: Callable[..., Tensor]) -> Algorithm:
            return lambda *_: [way(e.x, e.y, e.t, e.p, 0, DURATION, *grid)]

        if rectified:
            others = with_compiled({"bilinear put_": peer(peers.voxelize_put)}, at)
        else:  # numpy has no GPU: there it only checks
            others = {"np.add.at": peer(peers.voxelize_add_at)} if at.device == "cpu" else {}

        def expected() -> list[Tensor]:
            events = (values.cpu() for values in (e.x, e.y, e.t, e.p))
            return [peers.voxelize_add_at(*events, 0, DURATION, *grid)]

        return Work(
            inputs=[],
            ours={name: ours},
            needed=floors.voxelize(count, math.prod(grid), 1, rectified, e.x.itemsize),
            peers=others,
            tolerance=1e-3,
            comparable=lambda results: [results[0].view(grid)],
            untraced=frozenset({"np.add.at"}),
            expected=None if others else expected,
            events=count,
        )

    target = Target(speed=40.0 if rectified else 5.0)
    if at.device == "cuda":
        target = Target(events=0.7e9 if rectified else 2e9)
    size = f"{count:.0e} events, {width} x {height} x {bins}".replace("e+0", "e")
    dtype = "float32" if rectified else "int16"
    return Case(size, "forward", dtype, {name: NO_TARGET if at.quick else target}, build)


def warp_case(direction: str, at: Setting) -> Case:
    count, height, width = 10**5 if at.quick else 10**6, 480, 640
    both = direction == "both"

    def need(items: int) -> Needed:
        return floors.warp_events(count * items, items, height, width, both)

    batch = raised_batch(need, at)

    def build() -> Work:
        e = make_events(count, batch, height, width, at.device, rectified=True)
        flow = smooth_flow(height, width, 6.0).repeat(batch, 1, 1, 1).to(at.device)

        def warp(way: Callable[..., Tensor]) -> Algorithm:
            events = (e.x, e.y, e.t, e.p, e.offsets)
            window = (e.t0, e.t1, e.t1, "signed", height, width)
            return lambda flow: [way(*events, flow, *window)]

        return Work(
            inputs=with_gradients(direction, flow),
            ours={"warp_events": warp(ops.warp_events)},
            needed=need(batch),
            peers={"the reference": warp(OPERATORS["warp_events"].reference)},
            events=count * batch,
        )

    size = batched(f"{count:.0e} events, {width} x {height}".replace("e+0", "e"), batch)
    target = bandwidth_target(at, Target(speed=5.0))
    return Case(size, direction, "float32", {"warp_events": target}, build)


def inner(border: int, factor: int) -> View:
    """Results and gradients away from the border, which RAFT's upsampling mixes with zeros."""

    def crop(results: Sequence[Tensor]) -> list[Tensor]:
        edges = (factor * border, border, border)  # of the result, then of the gradients if any
        return [
            values[..., edge:-edge, edge:-edge]
            for values, edge in zip(results, edges, strict=False)
        ]

    return crop


def upsample_case(direction: str, at: Setting) -> Case:
    channels, factor = 2, 8
    height, width = (30, 40) if at.quick else (60, 80)
    both = direction == "both"

    def need(items: int) -> Needed:
        return floors.convex_upsample(items, channels, height, width, factor, both)

    batch = raised_batch(need, at)

    def build() -> Work:
        fine = normal(batch, channels, height, width, seed=3, device=at.device)
        mask = normal(batch, 9 * factor**2, height, width, seed=4, device=at.device)
        return Work(
            inputs=with_gradients(direction, fine, mask),
            ours={"convex_upsample": lambda f, m: [ops.convex_upsample(f, m, factor)]},
            needed=need(batch),
            peers=with_compiled(
                {"softmax + unfold": lambda f, m: [peers.upsample_unfold(f, m, factor)]}, at
            ),
            comparable=inner(2, factor),
        )

    size = batched(f"{height} x {width} -> {factor * height} x {factor * width}, D = 2", batch)
    target = bandwidth_target(at, Target(speed=8.0 if both else 4.0))
    return Case(size, direction, "float32", {"convex_upsample": target}, build)


def gradient_case(direction: str, channels: int, at: Setting) -> Case:
    height, width = (120, 160) if at.quick else (480, 640)
    both = direction == "both"
    reference = OPERATORS["common_gradient"].reference

    def need(items: int) -> Needed:
        return floors.common_gradient(items, channels, height, width, both)

    batch = raised_batch(need, at)

    def build() -> Work:
        random = generator(5)
        shape = (batch, channels, height, width)
        frames = [torch.rand(shape, generator=random).to(at.device) for _ in range(2)]
        event_sum = 2 * normal(batch, 1, height, width, seed=6, device=at.device)
        flow = smooth_flow(height, width, 4.0).repeat(batch, 1, 1, 1).to(at.device)
        return Work(
            inputs=with_gradients(direction, *frames, event_sum, flow),
            ours={"common_gradient": lambda *inputs: [ops.common_gradient(*inputs)]},
            needed=need(batch),
            peers={"the reference": lambda *inputs: [reference(*inputs)]},
        )

    size = batched(f"{channels} x {height} x {width}", batch)
    target = bandwidth_target(at, Target(speed=10.0, floor=0.4))
    return Case(size, direction, "float32", {"common_gradient": target}, build)


def all_cases(at: Setting) -> Iterator[Case]:
    yield from correlation_cases(at)
    for rectified in (True, False):
        yield voxelize_case(rectified, at)
    directions = ("forward", "both")
    for case in (
        upsample_case,
        partial(gradient_case, channels=1),
        partial(gradient_case, channels=3),
    ):
        for direction in directions:
            yield case(direction, at=at)
    for direction in directions:
        yield warp_case(direction, at)
