"""`python -m flowfuse.ops`: what the operators run on, and whether they compute what they should.

Every operator, forward and backward, on every device present, against its reference in float64 on
the CPU. The exit code is 1 where one is off, or where a GPU has no kernels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from flowfuse import ops
from flowfuse.geometry.grid import pixel_grid
from flowfuse.ops import reference

# Relative to the largest value: float32 sums of up to a few hundred terms.
TOLERANCE = 1e-4

Operator = Callable[..., Tensor | Sequence[Tensor]]


def random(*shape: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape)).double()  # values that float32 holds exactly


def events(count: int, height: int, width: int) -> tuple[Tensor, ...]:
    x = torch.rand(count) * (width - 1)
    y = torch.rand(count) * (height - 1)
    t = torch.randint(0, 50_000, (count,))
    p = torch.randint(0, 2, (count,))
    return x, y, t, p, torch.tensor([0, count // 2, count])


def cases() -> Iterator[tuple[str, list[Tensor], Operator, Operator]]:
    """Name, arguments (floating ones receive gradients), operator and reference."""
    height, width = 37, 43
    zeros, ones = torch.zeros(2, dtype=torch.int64), torch.full((2,), 50_000)
    windows = (zeros, ones)

    def voxels(*arguments: Tensor) -> Sequence[Tensor]:
        return ops.voxelize(*arguments, 5, height, width)

    def reference_voxels(*arguments: Tensor) -> Sequence[Tensor]:
        return reference.voxelize(*arguments, 5, height, width)

    yield "voxelize", [*events(4000, height, width), *windows], voxels, reference_voxels

    coords = pixel_grid(13, 11).double() + random(2, 2, 13, 11, scale=4.0)
    maps = [random(2, 37, 13, 11), random(2, 37, 13, 11), coords]
    for strategy in ("volume", "on_demand"):

        def look_up(f0: Tensor, f1: Tensor, at: Tensor, strategy: str = strategy) -> Tensor:
            return ops.Correlation(f0, f1, levels=3, radius=4, strategy=strategy)(at)

        def reference_look_up(f0: Tensor, f1: Tensor, at: Tensor) -> Tensor:
            return reference.correlation_lookup(f0, reference.pool_levels(f1, 3), at, 4)

        yield f"correlation ({strategy})", maps, look_up, reference_look_up

    # Products of bfloat16 have instructions of their own.
    half = [random(2, 37, 13 >> n, 11 >> n).detach().bfloat16() for n in (0, 0, 1, 2)]

    def look_up_half(f0: Tensor, *rest: Tensor) -> Tensor:
        return ops.correlation_lookup(f0, rest[:-1], rest[-1], 4)

    def reference_look_up_half(f0: Tensor, *rest: Tensor) -> Tensor:
        levels = [level.double() for level in rest[:-1]]
        return reference.correlation_lookup(f0.double(), levels, rest[-1].double(), 4)

    halves = [*half, coords.detach().float()]
    yield "correlation (bfloat16)", halves, look_up_half, reference_look_up_half

    frames = [torch.rand(2, 3, height, width).double() for _ in range(2)]
    gradient = [*frames, random(2, 1, height, width, scale=2.0), random(2, 2, height, width)]
    yield "common_gradient", gradient, ops.common_gradient, reference.common_gradient

    def upsample(field: Tensor, mask: Tensor) -> Tensor:
        return ops.convex_upsample(field, mask, 4)

    def reference_upsample(field: Tensor, mask: Tensor) -> Tensor:
        return reference.convex_upsample(field, mask, 4)

    yield (
        "convex_upsample",
        [random(2, 3, 13, 37), random(2, 144, 13, 37)],
        upsample,
        reference_upsample,
    )

    moving = events(4000, height, width)
    points = random(2, 3, 2, height, width)

    def warped(trajectory: Tensor) -> Tensor:
        on = [value.to(trajectory.device) for value in (*moving, *windows, ones)]
        return ops.warp_events(*on[:5], trajectory, *on[5:], "split", height, width)

    def reference_warped(trajectory: Tensor) -> Tensor:
        return reference.warp_events(
            *moving, trajectory, *windows, ones, "split", height, width
        )  # fmt: skip

    yield "warp_events", [points], warped, reference_warped


def run(operator: Operator, arguments: list[Tensor], device: str, dtype: torch.dtype):
    """Results and gradients of a weighted sum of the results, in float64 on the CPU."""

    def placed(value: Tensor) -> Tensor:
        wide = value.dtype == torch.float64
        return value.to(device, dtype if wide else value.dtype).requires_grad_(wide)

    inputs = [placed(value) for value in arguments]
    results = operator(*inputs)
    results = list(results) if isinstance(results, (list, tuple)) else [results]
    wanted = [value for value in inputs if value.requires_grad]
    gradients: Sequence[Tensor] = []
    if wanted:
        generator = torch.Generator().manual_seed(1)
        loss = sum(
            (value * torch.randn(value.shape, generator=generator).to(value)).sum()
            for value in results
        )
        gradients = torch.autograd.grad(loss, wanted)
    values = [[value.detach().cpu().double() for value in part] for part in (results, gradients)]
    return values[0], values[1]


def deviation(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference over the largest value; NaN where there is one."""
    ratios = [
        (a - b).abs().max() / b.abs().max().clamp(min=1e-30)
        for a, b in zip(found, expected, strict=True)
    ]
    return float(torch.stack(ratios).max()) if ratios else 0.0


def main() -> int:
    info = ops.build_info()
    for key, value in info.items():
        print(f"{key:20} {', '.join(value) if isinstance(value, tuple) else value}")
    devices = ["cpu"]
    for index in range(torch.cuda.device_count()):
        devices.append(f"cuda:{index}")
        name, (major, minor) = (
            torch.cuda.get_device_name(index),
            torch.cuda.get_device_capability(index),
        )
        print(f"{devices[-1]:20} {name}, compute capability {major}.{minor}")
    if len(devices) == 1:
        print("cuda                 no GPU: nothing is tested there")
    print(f"\n{'operator':24}{'device':10}{'forward':>12}{'backward':>12}  error / largest value")
    failed = 0
    for name, arguments, operator, ground_truth in cases():
        expected = run(ground_truth, arguments, "cpu", torch.float64)
        for device in devices:
            try:
                found = run(operator, arguments, device, torch.float32)
            except RuntimeError as error:  # a GPU without kernels, say: the next may have them
                failed += 1
                print(f"{name:24}{device:10}FAILED: {error}")
                if "CUDA error" in str(error):  # mostly nothing runs there after it in this process
                    print(f"{failed} FAILED; {device} may be lost: what comes after is not tested")
                    return 1
                continue
            errors = [deviation(*pair) for pair in zip(found, expected, strict=True)]
            good = all(error <= TOLERANCE for error in errors)  # false for NaN
            failed += not good
            backward = f"{errors[1]:12.1e}" if expected[1] else f"{'-':>12}"
            verdict = "ok" if good else "WRONG"
            if torch.device(device).type not in info["devices"]:
                verdict += ", but no kernel: this is the reference"
                failed += device != "cpu"  # a GPU is there, and nothing of flowfuse runs on it
            print(f"{name:24}{device:10}{errors[0]:12.1e}{backward}  {verdict}")
    print(f"{failed} FAILED" if failed else "every operator agrees with its reference")
    return 1 if failed else 0


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(main())
