"""Measure whole estimates of flowfuse against E-RAFT, in one run.

    python benchmarks/model.py --threads 2 --json today.json --markdown today.md
    python benchmarks/model.py --quick --only "small"
    python benchmarks/model.py --profile

An "estimate" is all that a user waits for: from frames and raw events to the flow in numpy. A
"network" is the model alone, on tensors that are ready. A "batch" is 8 estimates in one call, which
takes turns with 8 calls of one. E-RAFT (benchmarks/peers.py) makes its
estimate of the same events; networks take turns (E-RAFT, ours, E-RAFT, ours ...). Every network is
timed at its own number of iterations; to compare at equal numbers, E-RAFT runs at ours and ours at
E-RAFT's as well. Extra memory is the peak during a call beyond weights and inputs, results
included. GMAC are multiply-adds of the network: those that torch counts (convolutions, matrix
products) and those of flowfuse's operators. Weights do not change what is computed, so they may be
random. On a GPU the networks also run compiled and in a CUDA graph, and our estimates by the graphs
of the estimator (eager ones without).

What an estimate moves in memory is counted, not measured: benchmarks/launches.py prints the bytes,
and those of look-ups apart.

--profile measures no rows but prints where the time of our estimates goes, by operation.
--training times steps of a training instead, in turns: ours with all losses but those of evidence,
and E-RAFT's with 12 iterations and the loss of the last one alone. Both print, and write no file.
"""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from jsonargparse import Namespace
from measuring import (
    FULL,
    QUICK,
    OneLineParser,
    Row,
    Timing,
    add_result_arguments,
    add_run_arguments,
    chosen,
    extra_memory,
    fill,
    heading,
    limits_text,
    measure_limits,
    new_report,
    number,
    reason,
    refuse_only,
    set_up,
    synchronize,
    table,
    tell_failures,
    time_interleaved,
)
from networks import OURS, PEER, Network, make_ours, make_peer, moving_sequence, training_step
from operators import Measurement
from torch import Tensor

from flowfuse.evaluation.report import head, line
from flowfuse.precision import has_native_bfloat16

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Height, width, and whether E-RAFT runs too.
SIZES = ((480, 640, True), (720, 1280, False))
QUICK_SIZES = ((128, 160, True), (144, 256, False))
BATCH = 8
CROP, CROPS = (128, 160), 2  # what a step of a training takes: height and width, and how many
PROFILED_ROUNDS = 3
PROFILED_ROWS = 25


@dataclass(frozen=True)
class Group:
    """What is measured in turns: all networks on the same input, in the same way."""

    height: int
    width: int
    with_peer: bool
    dtype: str
    scope: str  # "estimate", "network" or "batch"
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
    first, later = [("estimate", "eager"), ("network", "eager"), ("batch", "eager")], []
    if device == "cuda":
        # E-RAFT's estimate has no graph: its row of the network has one.
        first += [("estimate", "graph"), ("network", "graph")]
        later += [("network", "compiled")] * compiled
    groups = [
        Group(height, width, peer, dtype, scope, mode, (PEER,) * peer + OURS)
        for ways in (first, later)
        for height, width, with_peer in (QUICK_SIZES if quick else SIZES)
        for dtype in dtypes
        for scope, mode in ways
        for peer in [with_peer and (scope, mode) != ("estimate", "graph")]
    ]
    groups = [  # E-RAFT takes no batch of events; of the larger size, 8 are more than patience
        replace(group, with_peer=False, names=OURS) if group.scope == "batch" else group
        for group in groups
        if group.scope != "batch" or group.with_peer
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
    graph = group.mode == "graph"
    return peers + [make_ours(name, sequence, device, dtype, graph) for name in ours]


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
    elif group.scope == "batch":
        assert network.estimate_batch is not None, "all but peers have it"
        work = partial(network.estimate_batch, iterations, BATCH)
    else:
        module = torch.compile(network.module) if group.mode == "compiled" else None
        work = partial(network.forward, iterations, module)
        if group.mode == "graph":  # estimates have graphs of their own
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


def check_batch(network: Network, group: Group) -> None:
    """The same of a batch, whose items are all alike."""
    assert network.estimate_batch is not None, "all but peers have it"
    flow = network.estimate_batch(network.iterations, 2)
    expected = (2, 2, group.height, group.width)
    if flow.shape != expected or not np.isfinite(flow).all():
        raise ValueError(f"the flow must be finite and of shape {expected}, got {flow.shape}")


def make_single_calls(network: Network) -> Callable[[], list[Tensor]]:
    """As many estimates as a batch has, one call after the other."""

    def call() -> list[Tensor]:
        for _ in range(BATCH):
            network.estimate(network.iterations)
        return []

    return call


class GroupMeasurement:
    """Times the networks of a group in turns and makes its rows."""

    def __init__(self, group: Group, device: str, quick: bool) -> None:
        self.group, self.device, self.quick = group, device, quick
        self.timings: dict[str, Timing] = {}
        self.memory: dict[str, int | None] = {}
        self.multiplications: dict[str, int] = {}
        self.errors: dict[str, str] = {}
        self.networks: dict[str, Network] = {}

    def run(self) -> list[Row]:
        try:
            if self.group.mode == "compiled":
                torch._dynamo.reset()  # or earlier groups count towards a recompilation limit
            found = make_networks(self.group, self.device)
            self.networks = {network.name: network for network in found}
            calls = {}
            for network in found:
                calls |= self.prepare(network)
            self.timings = time_interleaved(calls, self.device, QUICK if self.quick else FULL)
        except Exception as error:  # any failure is this group's, never the run's
            self.errors = {name: reason(error) for name in self.group.names} | self.errors
        return [self.row(name) for name in self.group.names]

    def prepare(self, network: Network) -> dict[str, Callable[[], list[Tensor]]]:
        """Check and warm up a network; its calls, or none and an error."""
        name, group = network.name, self.group
        try:
            if group.scope == "estimate":
                check_estimate(network, group)
            if group.scope == "batch":
                check_batch(network, group)
            self.multiplications[name] = network.multiplications()
            calls = {
                key(name, iterations): make_call(network, group, iterations)
                for iterations in self.iteration_counts(network)
            }
            if group.scope == "batch":
                calls[key(name, SINGLE)] = make_single_calls(network)
            for call in calls.values():
                call()
            synchronize(self.device)
            # A graph owns its memory, which a replay does not ask for again.
            own = calls[key(name, network.iterations)]
            self.memory[name] = None if group.mode == "graph" else extra_memory(own, self.device)
            return calls
        except Exception as error:
            self.errors[name] = reason(error)
            return {}

    def iteration_counts(self, network: Network) -> list[int]:
        """The network's own number and, where that costs no compilation, those of its opponents."""
        if self.group.mode != "eager" or not self.group.with_peer:
            return [network.iterations]
        if network.name == PEER:
            others = [other.iterations for other in self.networks.values()]
        else:
            others = [self.networks[PEER].iterations]
        return list(dict.fromkeys((network.iterations, *others)))

    def row(self, name: str) -> Row:
        network, peer = self.networks.get(name), self.networks.get(PEER)
        time = self.time(network, network)
        theirs = self.time(peer, peer) if name != PEER else None
        extra = self.memory.get(name) if time else None
        peer_extra = self.memory.get(PEER) if theirs else None
        row: Row = {
            "network": name,
            "weights": network and network.weights,
            "size": self.group.size,
            "scope": self.group.scope,
            "dtype": self.group.dtype,
            "mode": self.group.mode,
            "events": moving_sequence(self.group.height, self.group.width).count,
            "iterations": network and network.iterations,
            "parameters": network and network.parameters,
            "multiplications": self.multiplications.get(name),
            "time_ms": time and time.median,
            "spread": time and time.spread,
            "extra_bytes": extra,
            "peer": PEER if peer and name != PEER else None,
            "peer_iterations": peer.iterations if peer and name != PEER else None,
            "peer_time_ms": theirs and theirs.median,
            "peer_spread": theirs and theirs.spread,
            "peer_extra_bytes": peer_extra,
            "ratio_to_peer": ratio(theirs, time),
            "ratio_at_own_iterations": None,
            "ratio_at_peer_iterations": None,
            "memory_ratio": peer_extra / extra if peer_extra and extra else None,
            "ratio_to_calls": ratio(self.timings.get(key(name, SINGLE)), time),
        }
        if theirs:
            row["ratio_at_own_iterations"] = ratio(self.time(peer, network), time)
            row["ratio_at_peer_iterations"] = ratio(theirs, self.time(network, peer))
        row["note"] = Measurement.unsteady(time, theirs)
        row["error"] = self.errors.get(name) or (self.errors.get(PEER) if peer else None)
        return row

    def time(self, network: Network | None, count: Network | None) -> Timing | None:
        """Of a network at as many iterations as another one makes."""
        if network is None or count is None or network.name in self.errors:
            return None
        return self.timings.get(key(network.name, count.iterations))


SINGLE = 0  # in place of a number of iterations: calls of one in place of a batch


def key(name: str, iterations: int) -> str:
    return f"{name}, {iterations} iterations"


def ratio(theirs: Timing | None, ours: Timing | None) -> float | None:
    return theirs.median / ours.median if theirs and ours else None


COLUMNS = (
    "network", "weights", "size", "scope", "dtype", "mode", "iterations", "ms", "x E-RAFT",
    "x at our iterations", "x at its iterations", "x 8 calls", "extra MiB",
    "1/x of its memory", "parameters, M", "GMAC", "note",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """The texts of one row of the table."""
    failure = f"failed: {row['error']}" if row["error"] else ""
    labels = ("network", "weights", "size", "scope", "dtype", "mode", "iterations")
    time = "" if row["time_ms"] is None else f"{row['time_ms']:.4g} ± {row['spread']:.2g}"
    return [
        *(str(row[label] or "") for label in labels),
        time,
        number(row["ratio_to_peer"], ".2f"),
        number(row["ratio_at_own_iterations"], ".2f"),
        number(row["ratio_at_peer_iterations"], ".2f"),
        number(row["ratio_to_calls"], ".2f"),
        number(row["extra_bytes"], ".1f", 2**-20),
        number(row["memory_ratio"], ".1f"),
        number(row["parameters"], ".3f", 1e-6),
        number(row["multiplications"], ".2f", 1e-9),
        failure or row["note"] or "",
    ]


def as_markdown(report: Mapping) -> str:
    """A report, as run() makes it or as its JSON holds it, as text with one table."""
    lines = [
        "Times are medians ± the distance between the quartiles. x above 1 is faster than "
        "E-RAFT at its own number of iterations, at ours, or with ours at E-RAFT's; 1/x of its "
        "memory above 1 is less. x 8 calls above 1 is faster than 8 calls; the time of a batch is "
        "that of all 8.",
        "",
        *table(COLUMNS, [cells(row) for row in report["rows"]]),
    ]
    return "\n".join([*heading(report), *lines]) + "\n"


def build_parser() -> OneLineParser:
    parser = OneLineParser(__doc__, prog="model", formatter_class=RawDescriptionHelpFormatter)
    add_run_arguments(parser, "network, size, scope, dtype and mode")
    parser.add_argument(
        "--no-compiled", action="store_true",
        help="on a GPU: leave out torch.compile, which takes long",
    )  # fmt: skip
    parser.add_argument("--profile", action="store_true", help="the operations of our estimates")
    parser.add_argument("--training", action="store_true", help="steps of a training")
    add_result_arguments(parser)
    return parser


def measured_rows(groups: Sequence[Group], device: str, quick: bool) -> Iterator[Row]:
    """The rows of the comparison, printed as they come."""
    print(*head(COLUMNS), sep="\n", flush=True)
    for group in groups:
        for row in GroupMeasurement(group, device, quick).run():
            print(line(cells(row)), flush=True)
            yield row


def print_profiles(groups: Sequence[Group], device: str) -> None:
    """Say in which operations the time of our estimates goes, as torch's profiler sees it."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    for group in groups:
        if (group.scope, group.mode) != ("estimate", "eager"):
            continue
        for network in make_networks(replace(group, with_peer=False), device):
            with torch.profiler.profile(activities=kinds) as profile:
                for _ in range(PROFILED_ROUNDS):
                    network.estimate(network.iterations)
            print(f"{group.label(network.name)}, {PROFILED_ROUNDS} estimates")
            order = f"self_{device}_time_total"
            print(profile.key_averages().table(sort_by=order, row_limit=PROFILED_ROWS), flush=True)


def print_training(device: str, quick: bool, only: Sequence[str]) -> None:
    """Print how long steps of a training take, without the runs on single modalities."""
    height, width = CROP
    calls: dict[str, Callable[[], list[Tensor]]] = {}
    for name in (PEER, "nano", *OURS):
        if chosen(name, only):
            step = training_step(name, device, CROP, CROPS)
            calls[name] = lambda step=step: step() or []
            calls[name]()
    print(f"steps of a training, {CROPS} crops of {width} x {height} px, float32, {device}:")
    for name, timing in time_interleaved(calls, device, QUICK if quick else FULL).items():
        print(f"{name}: {timing.median:.4g} ± {timing.spread:.1f} ms", flush=True)


def run(options: Namespace, parser: OneLineParser) -> int:
    set_up(options, parser)
    device, quick = options.device, options.quick
    if (options.training or options.profile) and (options.json or options.markdown):
        parser.error("--training and --profile print what they find; they write no file")
    if options.training:
        print_training(device, quick, options.only)
        return 0
    native = has_native_bfloat16(torch.device(device))
    dtypes = [name for name in DTYPES if native or name != "bfloat16"]
    groups = all_groups(device, quick, not options.no_compiled, options.only, dtypes)
    if options.profile:
        groups = [g for g in groups if set(g.names) & set(OURS) and g.scope == "estimate"]
    if not groups:
        refuse_only(parser, options.only)
    if options.profile:
        print_profiles(groups, device)
        return 0
    limits = measure_limits(device, quick)
    print(limits_text(asdict(limits)), flush=True)
    report = new_report(device, quick, limits)
    fill(report, "rows", measured_rows(groups, device, quick), options, as_markdown)
    return tell_failures("model", report["rows"], ("network", "size"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    return run(parser.parse_args(argv), parser)


if __name__ == "__main__":
    sys.exit(main())
