"""The networks of benchmarks/model.py, each ready to estimate one sequence, and that sequence:
events of moving edges and two frames."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np
import torch
from operator_cases import gradient_needs, upsample_needs
from peers import BINS, ITERATIONS, ERaft, voxel_grid
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flowfuse import ops
from flowfuse.data.samples import Sample
from flowfuse.estimator import Estimator, load
from flowfuse.events import Events
from flowfuse.losses.supervised import LossConfig, supervised_loss
from flowfuse.model import CONFIGS, FlowFuse, ModelConfig
from flowfuse.model.checkpoint import CheckpointError

OURS = ("small", "base")
PEER = "E-RAFT"
WINDOW = 100_000  # us
EVENTS_PER_PIXEL = 1e6 / (640 * 480)  # in one window
EDGES_PER_PIXEL = 200 / (640 * 480)
JITTER = 0.5  # px across an edge: threshold and latency differ from pixel to pixel


@dataclass(frozen=True)
class Sequence:
    """Frames [H, W] uint8 at t0 and t1; events of [t0 - (t1 - t0), t1), rectified (float32)."""

    frame0: np.ndarray
    frame1: np.ndarray
    events: Events
    t0: int
    t1: int

    @property
    def count(self) -> int:
        """Events between the frames."""
        return len(self.events.slice_time(self.t0, self.t1))


def moving_edges(height: int, width: int) -> Events:
    """Straight edges, each with a place, length, direction, speed and contrast of its own."""
    random = np.random.default_rng(0)
    number = max(1, round(EDGES_PER_PIXEL * height * width))
    start = random.random((2, number)) * np.array([[width - 1], [height - 1]])
    angle = random.uniform(0, 2 * np.pi, number)
    length = random.uniform(0.05, 0.5, number) * width
    speed = random.normal(0, 20, number)  # px a window
    brighter = random.integers(0, 2, number, dtype=np.uint8)

    shape = 2, round(EVENTS_PER_PIXEL * height * width)  # before t0, after it
    t = np.sort(random.integers(0, WINDOW, shape)) + np.array([[0], [WINDOW]])
    t, count = t.ravel(), t.size
    edge = random.integers(0, number, count)
    along = random.random(count) * length[edge]
    across = speed[edge] * t / WINDOW + random.normal(0, JITTER, count)
    sine, cosine = np.sin(angle[edge]), np.cos(angle[edge])
    # What leaves the image comes in again on the other side: the number of events stays.
    x = np.mod(start[0, edge] + along * cosine - across * sine, width - 1)
    y = np.mod(start[1, edge] + along * sine + across * cosine, height - 1)
    x, y = x.astype(np.float32), y.astype(np.float32)
    return Events(x, y, t, brighter[edge], height=height, width=width)


@lru_cache(maxsize=1)  # groups of one size follow each other
def moving_sequence(height: int, width: int) -> Sequence:
    """Events of moving edges beside a smooth texture that moves by a few pixels."""
    noise = np.random.default_rng(1).integers(0, 256, (height, width), dtype=np.uint8)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    shifted = np.roll(texture, (2, 5), axis=(0, 1))
    return Sequence(texture, shifted, moving_edges(height, width), WINDOW, 2 * WINDOW)


@dataclass(frozen=True)
class Network:
    """A network and what it takes.

    `estimate` makes the flow, [2, H, W] numpy, from frames and raw events in a number of
    iterations; `inputs` are the tensors that it makes of them for `module`. `estimate_batch` does
    so for as many items in one call, [B, 2, H, W]; a peer has none.
    """

    name: str
    weights: str  # "shipped" or "random"
    iterations: int
    device: str
    dtype: torch.dtype
    module: nn.Module
    inputs: tuple
    estimate: Callable[[int], np.ndarray]
    estimate_batch: Callable[[int, int], np.ndarray] | None = None

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


def make_ours(
    name: str, sequence: Sequence, device: str, dtype: torch.dtype, graph: bool = False
) -> Network:
    """A configuration of flowfuse: the shipped weights, or random ones where none fit.

    `graph`: whether estimates go by CUDA graphs.
    """
    try:
        weights, estimator = "shipped", load(name, device, dtype, graph)
    except (FileNotFoundError, CheckpointError) as error:
        # The network may have changed since the weights were trained; the row says "random".
        print(f"model: random weights for {name}: {error}", file=sys.stderr)
        torch.manual_seed(0)
        weights = "random"
        estimator = Estimator(FlowFuse(CONFIGS[name]), device=device, dtype=dtype, graph=graph)
    times = {"t0": sequence.t0, "t1": sequence.t1}

    def estimate(iterations: int) -> np.ndarray:
        frames = sequence.frame0, sequence.frame1
        return estimator(*frames, sequence.events, **times, iterations=iterations).flow

    def estimate_batch(iterations: int, count: int) -> np.ndarray:
        given = ([part] * count for part in (sequence.frame0, sequence.frame1, sequence.events))
        results = estimator.estimate_batch(*given, **times, iterations=iterations)
        return np.stack([result.flow for result in results])

    # The inputs as the estimator makes them, whatever it does to make them.
    taken: list[tuple] = []
    hook = estimator.model.register_forward_pre_hook(lambda module, inputs: taken.append(inputs))
    estimate(1)
    hook.remove()
    iterations = estimator.model.config.iterations
    return Network(
        name, weights, iterations, device, dtype, estimator.model, taken[0], estimate,
        estimate_batch,
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


def training_step(name: str, device: str, size: tuple[int, int], batch: int) -> Callable[[], None]:
    """One step of a training of a network on random images: forward, losses, backward, AdamW."""
    torch.manual_seed(0)
    inputs = [torch.rand(batch, BINS, *size, device=device) for _ in range(2)]
    flow = torch.randn(batch, 2, *size, device=device)
    module: nn.Module
    if name == PEER:
        module = ERaft().to(device).train()

        def loss() -> Tensor:
            return (module(*inputs) - flow).abs().mean()

    else:
        config = CONFIGS[name]
        layout = torch.channels_last if device != "cpu" else torch.contiguous_format  # as trainings
        module = FlowFuse(config).to(device, memory_format=layout).train()
        sample = random_sample(config, size, batch).to(device)

        def loss() -> Tensor:
            return supervised_loss(module(sample.inputs), sample, LossConfig())[0]

    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    return step


def random_sample(config: ModelConfig, size: tuple[int, int], batch: int) -> Sample:
    """A batch of random images with random ground truth at four times."""
    times = 4
    return Sample(
        slices=torch.randn(batch, config.slices + 1, config.bins, *size).round(),
        frame0=torch.rand(batch, 1, *size),
        frame1=torch.rand(batch, 1, *size),
        event_sum=torch.randn(batch, 1, *size).round(),
        exposure=torch.zeros(batch, 2),
        modality_mask=torch.ones(batch, 4),
        tau=torch.linspace(0, 1, times + 1)[1:].repeat(batch, 1),
        flow=torch.randn(batch, times, 2, *size),
        valid=torch.ones(batch, times, *size, dtype=torch.bool),
        occluded=torch.zeros(batch, times, *size, dtype=torch.bool),
        boundary=(torch.rand(batch, 2, *size) > 0.9).float(),
    )


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
        f0: list, f1_levels: list, coords: list, radius: int, *_: object, **__: object
    ) -> int:
        # The (2 r + 1)^2 values of a window share one fraction, hence (2 r + 2)^2 products.
        batch, channels, height, width = f0
        products = sum(min((2 * radius + 2) ** 2, level[2] * level[3]) for level in f1_levels)
        return 2 * channels * batch * height * width * products

    def volume_lookup(*_: object, out_shape: list, **__: object) -> int:
        return 2 * 4 * int(np.prod(out_shape))  # four taps each

    def reading(count: int, height: int, width: int, how: tuple) -> int:
        """``how``: fade, gate, offsets, log_sharpness, weight and bias."""
        offsets, weight = how[2], how[4]
        tokens = 0 if weight is None else weight[0] * weight[1]
        # Two moments and a sum of each window, and the tokens.
        return 2 * count * height * width * (3 * offsets[1] + tokens)

    def read_windows(windows: list, *how: list, **_: object) -> int:
        return reading(windows[0], *windows[2:], how)

    def read_correlation(
        f0: list, f1_levels: list, coords: list, radius: int, exact: object, *how: list, **_: object
    ) -> int:
        looked_up = correlation_lookup(f0, f1_levels, coords, radius)
        return looked_up + reading(coords[0], *coords[2:], how)

    def read_volume(volumes: list, coords: list, radius: int, *how: list, **_: object) -> int:
        taps = 4 * coords[0] * how[2][1] * coords[2] * coords[3]
        return 2 * taps + reading(coords[0], *coords[2:], how)

    def gradient(frame0: list, *_: object, **__: object) -> int:
        return gradient_needs(*frame0, both=False).operations

    def upsample(field: list, mask: list, factor: int, **_: object) -> int:
        return upsample_needs(*field, factor, both=False).operations

    names = torch.ops.flowfuse
    return {
        names.correlation_volume: correlation_volume,
        names.correlation_lookup: correlation_lookup,
        names.volume_lookup: volume_lookup,
        names.read_windows: read_windows,
        names.read_correlation: read_correlation,
        names.read_volume: read_volume,
        names.common_gradient: gradient,
        names.convex_upsample: upsample,
    }
