"""What benchmarks/model.py measures: groups of networks on one input, and the calls to be timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from networks import OURS, PEER, Network, make_ours, make_peer
from reporting import chosen
from sequences import moving_sequence
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Height, width, and whether E-RAFT runs too.
SIZES = ((480, 640, True), (720, 1280, False))
QUICK_SIZES = ((128, 160, True), (144, 256, False))


@dataclass(frozen=True)
class Target:
    """What a network is to reach at 640 x 480: the last two in a whole estimate, on a CPU.

    Attributes:
        multiplications, parameters: at most so many.
        speed: at least so many times as fast as E-RAFT.
        memory: at least so many times less extra memory.
    """

    multiplications: float
    parameters: float
    speed: float
    memory: float

    def text(self) -> str:
        return (
            f"{self.speed:g}x, 1/{self.memory:g} of its memory, "
            f"<= {self.multiplications / 1e9:g} GMAC, <= {self.parameters / 1e6:g} M parameters"
        )

    def missed(self, row: Mapping[str, object]) -> list[str]:
        """What a row misses, by the name of its column."""
        enough = {"ratio_to_peer": self.speed, "memory_ratio": self.memory}
        little = {"multiplications": self.multiplications, "parameters": self.parameters}
        return [
            *(name for name, least in enough.items() if (row[name] or 0) < least),
            *(name for name, most in little.items() if (row[name] or math.inf) > most),
        ]


TARGETS = {"small": Target(12e9, 1.5e6, 6, 2), "base": Target(45e9, 4e6, 2.5, 2)}


@dataclass(frozen=True)
class Group:
    """What is measured in turns: all networks on the same input, in the same way."""

    height: int
    width: int
    with_peer: bool
    dtype: str
    scope: str  # "estimate" or "network"
    mode: str  # "eager", "compiled" or "graph"
    names: tuple[str, ...]  # networks that make a row

    @property
    def size(self) -> str:
        return f"{self.width} x {self.height}"

    def label(self, name: str) -> str:
        return f"{name} {self.size} {self.scope} {self.dtype} {self.mode}"


def all_groups(
    device: str,
    quick: bool,
    compiled: bool = True,
    only: Sequence[str] = ("",),
    dtypes: Sequence[str] = tuple(DTYPES),
) -> list[Group]:
    """Groups with at least one row that `only` asks for; what compiles slowly last."""
    first, later = [("estimate", "eager"), ("network", "eager")], []
    if device == "cuda":
        first.append(("network", "graph"))
        later += [("network", "compiled")] * compiled
    groups = [
        Group(height, width, with_peer, dtype, scope, mode, (PEER,) * with_peer + OURS)
        for ways in (first, later)
        for height, width, with_peer in (QUICK_SIZES if quick else SIZES)
        for dtype in dtypes
        for scope, mode in ways
    ]
    groups = [
        replace(group, names=tuple(name for name in group.names if chosen(group.label(name), only)))
        for group in groups
    ]
    return [group for group in groups if group.names]


def make_networks(group: Group, device: str) -> list[Network]:
    """E-RAFT first where it takes part: it has the first turn, and every row is held against it."""
    sequence = moving_sequence(group.height, group.width)
    dtype = DTYPES[group.dtype]
    peers = [make_peer(sequence, device, dtype)] if group.with_peer else []
    ours = [name for name in OURS if name in group.names]
    return peers + [make_ours(name, sequence, device, dtype) for name in ours]


def graphed(call: Callable[[], object]) -> Callable[[], object]:
    """A call captured in a CUDA graph, as one that replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is set up on first use must not be captured
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def make_call(network: Network, group: Group, iterations: int) -> Callable[[], list[Tensor]]:
    """What is timed. It returns nothing: the memory of its results counts for every network."""
    if group.scope == "estimate":
        work = partial(network.estimate, iterations)
    else:
        module = torch.compile(network.module) if group.mode == "compiled" else None
        work = partial(network.forward, iterations, module)
        if group.mode == "graph":
            work = graphed(work)

    def call() -> list[Tensor]:
        work()
        return []

    return call


def check_estimate(network: Network, group: Group) -> None:
    """The other numbers would mean nothing if the flow were none."""
    flow = network.estimate(network.iterations)
    expected = (2, group.height, group.width)
    if flow.shape != expected or not np.isfinite(flow).all():
        raise ValueError(f"the flow must be finite and of shape {expected}, got {flow.shape}")
