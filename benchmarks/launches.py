"""Count the kernels that one estimate of a network launches, and the bytes that they move.

    python benchmarks/launches.py [--model small base] [--strategy volume on_demand] [--by-function]

Counted are calls of torch's dispatcher that compute, as a GPU would get them: images and pairs all
at once, no views, no memory that is only reserved. A call may launch more than one kernel (a step
of ``propagate``, the parts of a group norm), a convolution's bias among them. Bytes are those of
all arguments and results, once a call; of a stored correlation volume, those that the windows ask
for. Both are exact and the same on every machine: a small image shows the launches of a large one,
and its bytes are scaled to 640 x 480. "look-ups" are what correlations are looked up and read by:
from features or volumes to tokens and matches.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flowfuse.evaluation.report import head, line
from flowfuse.inputs import ModelInputs
from flowfuse.model import CONFIGS, FlowFuse, ModelConfig

SIZE = (120, 160)
FULL_SIZE = (480, 640)
# Functions and operators from features or volumes to tokens and matches.
LOOK_UPS = ("model.correlation.", "model.fusion.read_pairs", "ops.correlation.", "ops.read_")
LOOK_UPS += ("ops.volume_lookup", "ops.correlation_lookup")
OF_VOLUMES = {"volume_lookup", "read_volume"}
RESERVED = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
VIEWS = {"detach", "alias", "_unsafe_view", "lift_fresh"}  # that do not say so
PACKAGE = f"{os.sep}flowfuse{os.sep}"


class Launches(TorchDispatchMode):
    """Counts calls that compute, and the bytes of their tensors, by the function that asks."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        results = operator(*args, **(kwargs or {}))
        if launches(operator):
            name = operator.__name__.partition(".")[0]
            place = f"ops.{name}" if operator.namespace == "flowfuse" else caller()
            self.calls[place] += 1
            moved = 0
            if name in OF_VOLUMES:
                moved, args = taps_bytes(*args[:3]), args[1:]
            tensors = [t for t in tree_leaves((args, kwargs, results)) if isinstance(t, Tensor)]
            self.bytes[place] += moved + sum(t.numel() * t.element_size() for t in tensors)
        return results

    def of_look_ups(self) -> tuple[int, int]:
        """Calls and bytes of look-ups."""
        places = [place for place in self.calls if place.startswith(LOOK_UPS)]
        return sum(self.calls[at] for at in places), sum(self.bytes[at] for at in places)


def taps_bytes(volumes: Sequence[Tensor], coords: Tensor, radius: int) -> int:
    """Bytes of the (2 radius + 2)^2 values of each level that a window is made of."""
    taps = len(volumes) * (2 * radius + 2) ** 2
    return coords.numel() // 2 * taps * volumes[0].element_size()


def launches(operator: torch._ops.OpOverload) -> bool:
    """Whether an operator computes: it gives no view, and more than memory."""
    name = operator.__name__.partition(".")[0]
    if name in RESERVED | VIEWS:
        return False
    aliases = [result.alias_info for result in operator._schema.returns]
    return not any(alias is not None and not alias.is_write for alias in aliases)


def caller() -> str:
    """The function of flowfuse that called torch: "module.function"."""
    frame = sys._getframe(1)
    while frame is not None:
        _, found, path = frame.f_code.co_filename.rpartition(PACKAGE)
        if found:
            return f"{path.removesuffix('.py').replace(os.sep, '.')}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "outside"


@contextmanager
def all_at_once() -> Iterator[None]:
    """Let networks work on all images and pairs at once, as on a GPU."""
    with (
        patch("flowfuse.model.encoders.SCARCE", frozenset()),
        patch("flowfuse.ops.correlation.read_on_demand", lambda device: False),
    ):
        yield


def count(config: ModelConfig, size: tuple[int, int] = SIZE) -> Launches:
    """Count one estimate of a network with random weights on random inputs."""
    network = FlowFuse(config).eval()
    frames = torch.rand(3, 1, 1, *size)
    inputs = ModelInputs(
        torch.rand(1, config.slices + 1, config.bins, *size),
        *frames,
        torch.zeros(1, 2),
        torch.ones(1, 4),
    )
    with torch.no_grad(), all_at_once(), Launches() as counted:
        network(inputs)
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", nargs="+", default=["small", "base"], choices=list(CONFIGS))
    parser.add_argument(
        "--strategy", nargs="+", default=["volume"], choices=["volume", "on_demand"],
        help="of the correlation",
    )  # fmt: skip
    parser.add_argument(
        "--iterations", type=int, help="recurrent updates; the network's own number by default"
    )
    parser.add_argument("--by-function", action="store_true", help="say where they come from")
    options = parser.parse_args()
    scale = FULL_SIZE[0] * FULL_SIZE[1] / SIZE[0] / SIZE[1]
    print(*head(("network", "correlation", "function", "launches", "MB at 640 x 480")), sep="\n")
    for name in options.model:
        for strategy in options.strategy:
            config = replace(CONFIGS[name], correlation=strategy)
            if options.iterations is not None:
                config = replace(config, iterations=options.iterations)
            counted = count(config)
            rows = [("all", sum(counted.calls.values()), sum(counted.bytes.values()))]
            rows.append(("look-ups", *counted.of_look_ups()))
            if options.by_function:
                rows += [(at, n, counted.bytes[at]) for at, n in counted.calls.most_common()]
            for function, calls, moved in rows:
                print(line((name, strategy, function, str(calls), f"{moved * scale / 1e6:.1f}")))


if __name__ == "__main__":
    main()
