"""Calls of every operator, for tests of devices: the same arguments on each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from flowfuse import ops
from flowfuse.ops import extension

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Half-precision arguments are exact in float32, in which sums are made, so only the gradients that
# are rounded to them at the end have their precision.
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 2e-5,
    torch.float16: 2**-9,
    torch.bfloat16: 2**-6,
}


@dataclass(frozen=True)
class Case:
    """A call of an operator.

    Attributes:
        function: takes the tensors; gives a tensor or several.
        tensors: the arguments that are tensors, on the CPU.
        leaves: indices of those that get a gradient.
        rounding: of results, relative to that of a sum of a few dozen products.
    """

    function: Callable[..., Any]
    tensors: tuple[Tensor, ...]
    leaves: tuple[int, ...] = ()
    rounding: float = 1.0

    def on(self, device: torch.device | str) -> Case:
        """The same call elsewhere, with the same strides."""
        return replace(self, tensors=tuple(moved(tensor, device) for tensor in self.tensors))

    def forward(self) -> list[Tensor]:
        result = self.function(*self.tensors)
        return [result] if isinstance(result, Tensor) else list(result)

    def run(self) -> list[Tensor]:
        """The results, and the gradients of all leaves for fixed gradients of the results."""
        tensors = [
            tensor.detach().requires_grad_() if i in self.leaves else tensor
            for i, tensor in enumerate(self.tensors)
        ]
        results = replace(self, tensors=tuple(tensors)).forward()
        if not self.leaves:
            return results
        kept = [result for result in results if result.requires_grad]
        grads = [weights_like(result) for result in kept]
        leaves = [tensors[i] for i in self.leaves]
        # A level of no size takes no part in the reference.
        found = torch.autograd.grad(kept, leaves, grads, allow_unused=True, materialize_grads=True)
        return [result.detach() for result in results] + list(found)


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A copy on another device, with the same strides."""
    size = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    if tensor.numel() == 0:
        return tensor.to(device)
    memory = tensor.as_strided((size,), (1,)).to(device, copy=True)
    return memory.as_strided(tensor.shape, tensor.stride())


def weights_like(result: Tensor) -> Tensor:
    """Numbers in [-1, 1] without a pattern, exact on every device; made without a copy to it."""
    index = torch.arange(result.numel(), device=result.device, dtype=torch.int64)
    index = (index * 7919 + 1231) % 1021
    return (index.to(result.dtype) / 512 - 1).view(result.shape)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def exact(dtype: torch.dtype) -> torch.dtype:
    """The dtype of coordinates, flow and sums beside features of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def places(batch: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Coordinates [B, 2, H, W]: a smooth and a jumping motion, some far out, infinite or NaN."""
    grid = torch.stack(
        torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    ).double()
    coords = grid + 0.37 + 0.3 * draw(batch, 2, height, width, dtype=torch.float64, seed=5)
    coords[..., width // 2 :] += 2.6  # a motion discontinuity
    flat = coords.flatten(2)
    for step, value in ((7, 1e6), (11, -1e30), (13, torch.inf), (17, torch.nan), (19, -0.5)):
        flat[:, step % 2, 5::step] = value
    return coords.to(dtype)


def correlation(strategy: str, dtype: torch.dtype, size: tuple, channels: int = 20) -> Case:
    batch, height, width = size
    f0 = draw(batch, channels, height, width, dtype=dtype)
    f1 = draw(batch, channels, height, width, dtype=dtype, seed=1)

    def look_up(f0: Tensor, f1: Tensor, coords: Tensor) -> Tensor:
        return ops.Correlation(f0, f1, levels=3, radius=2, strategy=strategy)(coords)

    return Case(look_up, (f0, f1, places(batch, height, width, exact(dtype))), (0, 1, 2))


def correlation_volume(dtype: torch.dtype, size: tuple) -> Case:
    batch, height, width = size
    f0 = draw(batch, 33, height, width, dtype=dtype)
    f1 = draw(batch, 33, height + 1, width + 2, dtype=dtype, seed=1)
    return Case(lambda f0, f1: ops.correlation_volume(f0, f1, 2), (f0, f1), (0, 1))


def volume_lookup(dtype: torch.dtype, size: tuple) -> Case:
    batch, height, width = size
    dtype = exact(dtype)
    shape = (batch, height, width, height, width)
    volumes = draw(*shape, dtype=dtype), draw(*shape[:3], height // 2, width // 2, dtype=dtype)
    coords = places(batch, height, width, torch.float32)
    return Case(lambda a, b, c: ops.volume_lookup([a, b], c, 3), (*volumes, coords), (0, 1, 2))


def common_gradient(dtype: torch.dtype, size: tuple, with_flow: bool = True) -> Case:
    batch, height, width = size
    shape = (batch, 3 if with_flow else 1, height, width)
    frames = [torch.sigmoid(draw(*shape, dtype=torch.float64, seed=i)).to(dtype) for i in (0, 1)]
    events = 2 * draw(batch, 1, height, width, dtype=exact(dtype), seed=2)
    flow = [draw(batch, 2, height, width, dtype=exact(dtype), seed=3)] * with_flow

    def gradients(*tensors: Tensor) -> Tensor:
        return ops.common_gradient(*tensors, linear=not with_flow)

    return Case(gradients, (*frames, events, *flow), tuple(range(3 + with_flow)))


def convex_upsample(dtype: torch.dtype, size: tuple) -> Case:
    batch, height, width = size
    field = draw(batch, 5, height, width, dtype=exact(dtype))
    mask = draw(batch, 9 * 16, height, width, dtype=dtype, seed=1)
    return Case(lambda field, mask: ops.convex_upsample(field, mask, 4), (field, mask), (0, 1))


def event_arrays(batch: int, height: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Events of several items, some of them outside the sensor or their window, or at NaN."""
    count = 300 * batch
    generator = torch.Generator().manual_seed(3)
    x, y = (
        torch.rand(count, generator=generator, dtype=torch.float64) * (side + 2) - 1
        for side in (width, height)
    )
    x[::37], y[::41] = torch.nan, torch.inf
    if not dtype.is_floating_point:
        x, y = (value.nan_to_num(0, 0, 0).clamp(min=0).floor() for value in (x, y))
    t = torch.randint(-50, 1100, (count,), generator=generator)
    p = torch.randint(0, 2, (count,), generator=generator, dtype=torch.uint8)
    offsets = torch.arange(0, count + 1, 300) if batch else torch.zeros(1, dtype=torch.int64)
    return x.to(dtype), y.to(dtype), t, p, offsets


def windows(batch: int, *limits: int) -> list[Tensor]:
    return [torch.full((batch,), limit, dtype=torch.int64) for limit in limits]


def voxelize(dtype: torch.dtype, size: tuple) -> Case:
    batch, height, width = size
    events = event_arrays(batch, height, width, dtype)

    def grids(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return ops.voxelize(*tensors, 5, height, width)

    return Case(grids, (*events, *windows(batch, 0, 1000)))


def warp_events(dtype: torch.dtype, size: tuple, mode: str = "signed", points: int = 0) -> Case:
    batch, height, width = size
    dtype = exact(dtype)
    events = event_arrays(batch, height, width, dtype)
    shape = (batch, *([points] if points else []), 2, height, width)
    trajectory = 2 * draw(*shape, dtype=dtype)
    trajectory[..., width // 2 :] += 3.3  # a motion discontinuity
    if trajectory.numel():
        trajectory.flatten()[::23] = 1e6

    def warp(*tensors: Tensor) -> Tensor:
        *arrays, trajectory, t0, t1, t_ref = tensors
        return ops.warp_events(*arrays, trajectory, t0, t1, t_ref, mode, height, width)

    # The weight of a vote has the rounding of its position, tens of pixels, in each step to it.
    return Case(warp, (*events, trajectory, *windows(batch, 0, 1000, 750)), (5,), rounding=8.0)


OPERATORS: dict[str, Callable[[torch.dtype, tuple], Case]] = {
    "correlation_volume": correlation_volume,
    "volume_lookup": volume_lookup,
    "correlation, volume": lambda *given: correlation("volume", *given),
    "correlation, on demand": lambda *given: correlation("on_demand", *given),
    "common_gradient": common_gradient,
    "common_gradient, no flow": lambda *given: common_gradient(*given, with_flow=False),
    "convex_upsample": convex_upsample,
    "voxelize, pixels": lambda dtype, size: voxelize(torch.int16, size),
    "voxelize, rectified": lambda dtype, size: voxelize(exact(dtype), size),
    "warp_events, flow": warp_events,
    "warp_events, split, curves": lambda *given: warp_events(*given, mode="split", points=3),
    "warp_events, unsigned": lambda *given: warp_events(*given, mode="unsigned"),
}
LAYOUTS = ("contiguous", "channels_last", "strided", "expanded")


def laid_out(case: Case, layout: str) -> Case:
    """The same numbers in another memory layout; "expanded" repeats the first item of the batch."""

    def change(index: int, tensor: Tensor) -> Tensor:
        if layout == "strided":
            return torch.stack((tensor, tensor), dim=-1)[..., 0]
        if layout == "channels_last" and tensor.dim() == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        if layout == "expanded" and tensor.dim() >= 4:
            return tensor[:1].expand(tensor.shape)
        return tensor

    return replace(case, tensors=tuple(change(i, t) for i, t in enumerate(case.tensors)))


class Calls(TorchDispatchMode):
    """Records every call of a flowfuse operator, forward and backward: (operator, arguments)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "flowfuse":
            self.calls.append((function, tree_map_only(Tensor, Tensor.detach, args)))
        return function(*args, **(kwargs or {}))


def recorded(case: Case) -> list[tuple[Any, tuple]]:
    """The operators that a case calls, with their arguments."""
    with Calls() as calls:
        case.run()
    return calls.calls


@contextmanager
def kernels_on(*devices: str) -> Iterator[None]:
    """Say that there are kernels for these types of devices, and for no other."""
    before = extension.KERNEL_DEVICES
    extension.KERNEL_DEVICES = devices
    try:
        yield
    finally:
        extension.KERNEL_DEVICES = before
