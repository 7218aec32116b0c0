"""The networks of benchmarks/model.py, each ready to estimate one sequence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from eraft import ITERATIONS, ERaft, voxel_grid
from operator_cases import gradient_needs, upsample_needs
from sequences import Sequence
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flowfuse import ops
from flowfuse.estimator import Estimator, load
from flowfuse.model import CONFIGS, FlowFuse
from flowfuse.model.checkpoint import CheckpointError

OURS = ("small", "base")
PEER = "E-RAFT"


@dataclass(frozen=True)
class Network:
    """A network and what it takes.

    `estimate` makes the flow, [2, H, W] numpy, from frames and raw events in a number of
    iterations; `inputs` are the tensors that it makes of them for `module`.
    """

    name: str
    weights: str  # "shipped" or "random"
    iterations: int
    device: str
    dtype: torch.dtype
    module: nn.Module
    inputs: tuple
    estimate: Callable[[int], np.ndarray]

    @property
    def parameters(self) -> int:
        return sum(values.numel() for values in self.module.parameters())

    def forward(self, iterations: int, module: Callable | None = None) -> object:
        """The network alone; `module` is another form of it."""
        module = self.module if module is None else module
        with torch.no_grad(), precision(self.device, self.dtype):
            return module(*self.inputs, iterations=iterations)

    def multiplications(self) -> int:
        """Multiply-adds of the network at its own number of iterations."""
        counter = FlopCounterMode(display=False, custom_mapping=operator_operations())
        with counter:
            self.forward(self.iterations)
        return counter.get_total_flops() // 2


def precision(device: str, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16)


def make_ours(name: str, sequence: Sequence, device: str, dtype: torch.dtype) -> Network:
    """A configuration of flowfuse: the shipped weights, or random ones where none fit."""
    try:
        weights, estimator = "shipped", load(name, device, dtype)
    except (FileNotFoundError, CheckpointError) as error:
        # The network may have changed since the weights were trained; the row says "random".
        print(f"model: random weights for {name}: {error}", file=sys.stderr)
        torch.manual_seed(0)
        weights = "random"
        estimator = Estimator(FlowFuse(CONFIGS[name]), device=device, dtype=dtype)
    times = {"t0": sequence.t0, "t1": sequence.t1}

    def estimate(iterations: int) -> np.ndarray:
        frames = sequence.frame0, sequence.frame1
        return estimator(*frames, sequence.events, **times, iterations=iterations).flow

    # The inputs as the estimator makes them, whatever it does to make them.
    taken: list[tuple] = []
    hook = estimator.model.register_forward_pre_hook(lambda module, inputs: taken.append(inputs))
    estimate(1)
    hook.remove()
    iterations = estimator.model.config.iterations
    return Network(
        name, weights, iterations, device, dtype, estimator.model, taken[0], estimate
    )  # fmt: skip


def make_peer(sequence: Sequence, device: str, dtype: torch.dtype) -> Network:
    """E-RAFT on the window before t0 and the one after it."""
    torch.manual_seed(0)
    module = ERaft().to(device).eval()
    limits = (2 * sequence.t0 - sequence.t1, sequence.t0, sequence.t1)

    def grids() -> tuple[Tensor, ...]:
        return tuple(voxel_grid(sequence.events, *window, device) for window in pairwise(limits))

    def estimate(iterations: int) -> np.ndarray:
        with torch.inference_mode(), precision(device, dtype):
            return module(*grids(), iterations=iterations)[0].cpu().numpy()

    return Network(PEER, "random", ITERATIONS, device, dtype, module, grids(), estimate)


def operator_operations() -> dict[object, Callable[..., int]]:
    """What FlopCounterMode should count for flowfuse's operators: from shapes to operations.

    A multiply-add is two operations. Without the compiled operators there is nothing to add:
    products of the references are counted as torch's own.
    """
    if not ops.build_info()["extension"]:
        return {}

    def correlation_volume(f0: list, f1_levels: list, **_: object) -> int:
        batch, channels, height, width = f0
        cells = sum(level[2] * level[3] for level in f1_levels)
        return 2 * channels * batch * height * width * cells

    def correlation_lookup(
        f0: list, f1_levels: list, coords: list, radius: int, **_: object
    ) -> int:
        # The (2 r + 1)^2 values of a window share one fraction, hence (2 r + 2)^2 products.
        batch, channels, height, width = f0
        products = sum(min((2 * radius + 2) ** 2, level[2] * level[3]) for level in f1_levels)
        return 2 * channels * batch * height * width * products

    def volume_lookup(*_: object, out_shape: list, **__: object) -> int:
        return 2 * 4 * int(np.prod(out_shape))  # four taps each

    def gradient(frame0: list, *_: object, **__: object) -> int:
        return gradient_needs(*frame0, both=False).operations

    def upsample(field: list, mask: list, factor: int, **_: object) -> int:
        return upsample_needs(*field, factor, both=False).operations

    names = torch.ops.flowfuse
    return {
        names.correlation_volume: correlation_volume,
        names.correlation_lookup: correlation_lookup,
        names.volume_lookup: volume_lookup,
        names.common_gradient: gradient,
        names.convex_upsample: upsample,
    }
