"""Where the time of an estimate goes: the stages of flowfuse, timed from outside.

Modules are timed by hooks, functions by wrapping them for as long as it takes. Stages nest: a
second counts for the innermost only. What is in none (checks, copies, glue) is "other".
"""

from __future__ import annotations

import functools
import pkgutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from measuring import synchronize
from networks import Network
from torch import nn

STAGES = (
    "voxelize", "normalize", "encode", "correlate", "match", "first estimate", "localize", "fuse",
    "update", "refine", "upsample", "follow gradients",
)  # fmt: skip
OTHER = "other"
# Parts of the network; what is not named here belongs to the part around it, or is its own stage.
MODULES = {
    "event_stem": "encode", "frame_stem": "encode", "trunk": "encode", "fine": "encode",
    "matching": "match", "refinement.matching": "match",
    "init_head": "first estimate",
    "localizer": "localize",
    "tokens": "fuse", "gates": "fuse", "propagation": "fuse", "motion": "fuse",
    "context": "update", "context_norm": "update", "boundary_context": "update",
    "update": "update", "head": "update",
    "refinement": "refine",
    "refinement.start_mask": "upsample", "refinement.mask": "upsample",
}  # fmt: skip
FUNCTIONS = {
    "flowfuse.inputs.slice_events": "voxelize",
    "flowfuse.inputs.sum_events": "voxelize",
    "flowfuse.model.normalization.normalize_slices": "normalize",
    "flowfuse.model.flowfuse.FlowFuse._encode": "encode",
    "flowfuse.model.flowfuse.FlowFuse._correlate": "correlate",
    "flowfuse.model.flowfuse.FlowFuse._localize": "localize",
    "flowfuse.model.correlation.WindowMatching.fit": "match",
    "flowfuse.model.correlation.PairCorrelations.__init__": "correlate",
    "flowfuse.model.correlation.PairCorrelations.__call__": "correlate",
    "flowfuse.model.fusion.BoundaryPropagation.weights": "fuse",
    "flowfuse.model.refinement.convex_upsample": "upsample",
    "flowfuse.model.flowfuse.lucas_kanade_refine": "follow gradients",
}


def stage_of(module: str) -> str:
    """The stage of a module by its dotted name."""
    part = module
    while part and part not in MODULES:
        part = part.rpartition(".")[0]
    return MODULES[part] if part else module.partition(".")[0].replace("_", " ")


class Stopwatch:
    """Seconds by stage; the time of an inner stage is not the outer one's."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.running: list[str] = []
        self.since = 0.0

    def lap(self) -> None:
        """Credit the time since the last lap to the innermost stage."""
        synchronize(self.device)
        now = time.perf_counter()
        if self.running:
            self.seconds[self.running[-1]] += now - self.since
        self.since = now

    def enter(self, stage: str) -> None:
        self.lap()
        self.running.append(stage)

    def leave(self) -> None:
        self.lap()
        self.running.pop()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def wrapped(self, name: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*arguments: object, **options: object) -> object:
            with self.stage(name):
                return function(*arguments, **options)

        return call


@contextmanager
def watched(model: nn.Module, watch: Stopwatch) -> Iterator[None]:
    """Have a watch told of every stage that `model` and what surrounds it go through."""
    with ExitStack() as stack:
        for target, stage in FUNCTIONS.items():
            owner, _, name = target.rpartition(".")
            owner = pkgutil.resolve_name(owner)
            replacement = watch.wrapped(stage, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, replacement))
        for name, module in model.named_modules():
            if not name:
                continue
            stage = stage_of(name)
            before = module.register_forward_pre_hook(
                lambda module, inputs, stage=stage: watch.enter(stage)
            )
            after = module.register_forward_hook(
                lambda module, inputs, output: watch.leave(), always_call=True
            )
            stack.callback(before.remove)
            stack.callback(after.remove)
        yield


def stage_times(network: Network, rounds: int) -> dict[str, float]:
    """Median ms of every stage over some estimates, in the order of STAGES, then any others."""
    network.estimate(network.iterations)
    taken = []
    for _ in range(rounds):
        watch = Stopwatch(network.device)
        with watched(network.module, watch), watch.stage(OTHER):
            network.estimate(network.iterations)
        taken.append(watch.seconds)
    others = {name for seconds in taken for name in seconds} - {*STAGES, OTHER}
    return {
        name: 1e3 * statistics.median(seconds[name] for seconds in taken)
        for name in (*STAGES, *sorted(others), OTHER)
    }
