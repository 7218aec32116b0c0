"""What a case of benchmarks/operators.py is made of, and the inputs that cases share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from floors import Needed
from measuring import Limits
from reporting import chosen
from torch import Tensor

from flowfuse.geometry.grid import pixel_grid

Algorithm = Callable[..., list[Tensor]]
View = Callable[[Sequence[Tensor]], list[Tensor]]

TOLERANCE = 1e-4  # of the largest value: float32 sums of up to a few hundred terms


@dataclass(frozen=True)
class Setting:
    device: str
    quick: bool
    limits: Limits
    instructions: str | None  # the instruction set of the CPU kernels
    compiled_peers: bool = True  # on a GPU


@dataclass(frozen=True)
class Target:
    """What a row should reach; None where nothing is asked."""

    speed: float | None = None  # times as fast as the peer
    memory: float | None = None  # extra bytes over the peer's, at most
    floor: float | None = None  # share of the floor's speed
    extra_bytes: int | None = None  # at most
    own: float | None = None  # times our own smaller row, at most
    events: float | None = None  # per second

    def text(self) -> str:
        parts = {
            "{:g} x the peer": self.speed,
            "extra memory <= 1/{:g} of the peer's": self.memory and 1 / self.memory,
            "{:.0f} % of the floor": self.floor and 100 * self.floor,
            "extra memory <= {:g} MiB": self.extra_bytes and self.extra_bytes / 2**20,
            "<= {:g} x our own 90 x 160": self.own,
            "{:g} events/s": self.events,
        }
        return ", ".join(form.format(value) for form, value in parts.items() if value is not None)


NO_TARGET = Target()


@dataclass(frozen=True)
class Work:
    """Inputs made, ready to run: every algorithm takes them and returns its results.

    Gradients are asked for in `inputs` that require them. `comparable` picks from results and
    gradients what peers compute too. Algorithms named in `untraced` allocate past torch. `expected`
    stands in for a peer that does not fit; `baseline` is our own smaller row.
    """

    inputs: Sequence[Tensor]
    ours: Mapping[str, Algorithm]
    needed: Needed
    peers: Mapping[str, Algorithm] = field(default_factory=dict)
    peer_inputs: Sequence[Tensor] | None = None
    tolerance: float = TOLERANCE
    comparable: View = list
    untraced: frozenset[str] = frozenset()
    expected: Callable[[], list[Tensor]] | None = None
    baseline: Callable[[], list[Tensor]] | None = None
    events: int = 0


@dataclass(frozen=True)
class Case:
    """One set of inputs; every operator in `targets` makes a row of it (for every peer)."""

    size: str
    direction: str  # "forward" or "both"
    dtype: str
    targets: Mapping[str, Target]
    build: Callable[[], Work]

    def labels(self) -> dict[str, str]:
        rest = f"{self.size} {self.direction} {self.dtype}"
        return {name: f"{name} {rest}" for name in self.targets}

    def only(self, parts: Sequence[str]) -> Case:
        labels = self.labels().items()
        kept = {name: self.targets[name] for name, label in labels if chosen(label, parts)}
        return replace(self, targets=kept)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int, device: str) -> Tensor:
    return torch.randn(shape, generator=generator(seed)).to(device)


def smooth_flow(height: int, width: int, amplitude: float) -> Tensor:
    """A flow [1, 2, H, W] of a few pixels that turns over about a third of the image."""
    x, y = pixel_grid(height, width)
    u = torch.sin(2 * math.pi * (x / width + 1.7 * y / height))
    v = torch.cos(2 * math.pi * (1.3 * x / width - y / height))
    return amplitude * torch.stack((u, v))[None]


def with_gradients(direction: str, *tensors: Tensor) -> list[Tensor]:
    return [tensor.requires_grad_(direction == "both") for tensor in tensors]


def with_compiled(eager: Mapping[str, Algorithm], setting: Setting) -> dict[str, Algorithm]:
    """Peers as they are, and on a GPU compiled too."""
    if setting.device != "cuda" or not setting.compiled_peers:
        return dict(eager)
    torch._dynamo.reset()  # or the shapes of earlier rows count towards a recompilation limit
    compiled = {f"{name}, compiled": torch.compile(peer) for name, peer in eager.items()}
    return {f"{name}, eager": peer for name, peer in eager.items()} | compiled
