"""Calls of operators: what the self-test, tests on other devices and the emulator run.

Each operator has its own in its file; all of them are flowfuse.ops.EXAMPLES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LAYOUTS = ("contiguous", "channels_last", "strided", "expanded")
# Half-precision arguments are exact in float32, in which sums are made, so only the gradients that
# are rounded to them at the end have their precision.
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 2e-5,
    torch.float16: 2**-9,
    torch.bfloat16: 2**-6,
}


@dataclass(frozen=True)
class Example:
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

    def on(self, device: torch.device | str) -> Example:
        """The same call elsewhere, with the same strides."""
        return replace(self, tensors=tuple(moved(tensor, device) for tensor in self.tensors))

    def double(self) -> Example:
        """The same numbers in float64."""
        return replace(
            self, tensors=tuple(t.double() if t.is_floating_point() else t for t in self.tensors)
        )

    def laid_out(self, layout: str) -> Example:
        """The same numbers in another memory layout; "expanded" repeats the first item."""

        def change(tensor: Tensor) -> Tensor:
            if layout == "strided":
                return torch.stack((tensor, tensor), dim=-1)[..., 0]
            if layout == "channels_last" and tensor.dim() == 4:
                return tensor.contiguous(memory_format=torch.channels_last)
            if layout == "expanded" and tensor.dim() >= 4:
                return tensor[:1].expand(tensor.shape)
            return tensor

        return replace(self, tensors=tuple(map(change, self.tensors)))

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


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, coordinates and flow beside features of `dtype`."""
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


def times(batch: int, *values: int) -> list[Tensor]:
    """A time [B] for each value, the same in every item."""
    return [torch.full((batch,), value, dtype=torch.int64) for value in values]
