"""Measure every operator of flowfuse.ops against the algorithm that others use, in one run.

    python benchmarks/operators.py --threads 2 --json today.json --markdown today.md
    python benchmarks/operators.py --quick --only voxelize warp_events
    FLOWFUSE_CPU_CAPABILITY=avx2 python benchmarks/operators.py --only correlation
    python benchmarks/operators.py --threads 2 --crossover

Peers and operators take turns (peer, ours, peer, ours ...). Before they are timed, their results
and gradients are compared: a wrong kernel is a failed row. docs/results/speed.md says how time,
extra memory and floors are obtained. --crossover times both strategies of flowfuse.ops.Correlation
over sizes, channels, numbers of look-ups and directions instead: VOLUME_CAPS in
flowfuse/ops/correlation.py is the largest volume below which "volume" loses nowhere much, since
strategy "auto" knows the shape and not the look-ups to come.
"""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial

import torch
from jsonargparse import Namespace
from measuring import (
    FULL,
    QUICK,
    Budget,
    Limits,
    OneLineParser,
    Row,
    Timing,
    add_result_arguments,
    add_run_arguments,
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
    table,
    tell_failures,
    time_interleaved,
)
from operator_cases import (
    Algorithm,
    Case,
    Correlated,
    Setting,
    Work,
    floor_seconds,
    operator_cases,
    with_gradients,
)
from torch import Tensor

from flowfuse import ops
from flowfuse.evaluation.report import head, line
from flowfuse.ops.correlation import volume_bytes
from flowfuse.precision import has_native_bfloat16

CROSSOVER_SIZES = ((8, 10), (12, 16), (16, 20), (24, 32), (30, 40), (45, 60), (60, 80))
CROSSOVER_CHANNELS = (64, 128, 256)
CROSSOVER_LOOKUPS = (1, 4, 12)
CROSSOVER_BUDGET = Budget(least=3, most=40, seconds=0.4)
BASELINE = "our own smaller row"  # key beside the names of operators and peers


class MismatchError(Exception):
    """Results that should be equal are not."""


def evaluate(
    algorithm: Algorithm, inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> list[Tensor]:
    """Results, and with cotangents (gradients of the results) the gradients of the inputs too."""
    if not cotangents:
        with torch.no_grad():
            return algorithm(*inputs)
    results = algorithm(*inputs)
    gradients = torch.autograd.grad(results, inputs, cotangents)
    return [*(values.detach() for values in results), *gradients]


def make_cotangents(case: Case, work: Work) -> list[Tensor]:
    """Random gradients of the results, whose shapes one forward run gives; none for "forward"."""
    if case.direction == "forward":
        return []
    name = next(name for name in work.ours if name in case.names)
    generator = torch.Generator().manual_seed(11)
    return [
        torch.randn(values.shape, generator=generator).to(values)
        for values in evaluate(work.ours[name], work.inputs, [])
    ]


def compare(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """Raise MismatchError where a difference exceeds `tolerance` times the largest value."""
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        theirs = theirs.to(ours.device)
        difference = (ours.float() - theirs.float()).abs().max()
        allowed = tolerance * theirs.abs().max()
        if not bool(difference <= allowed):  # true for NaN
            raise MismatchError(
                f"result {index} is off by {float(difference):.3g}, allowed {float(allowed):.3g}"
            )


def out_of_memory(error: BaseException) -> bool:
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        word in str(error) for word in words
    )


class Measurement:
    """One case: checks and measures its algorithms, then makes rows of them."""

    def __init__(self, case: Case, setting: Setting) -> None:
        self.case, self.setting = case, setting
        self.errors: dict[str, str] = {}  # by algorithm
        self.absent: dict[str, str] = {}  # peers that do not fit
        self.memory: dict[str, int | None] = {}
        self.timings: dict[str, Timing] = {}
        self.work: Work | None = None

    def run(self) -> list[Row]:
        try:
            self.work = self.case.build()
            cotangents = make_cotangents(self.case, self.work)
        except Exception as error:  # any failure is one row's, never the run's
            self.errors = {name: reason(error) for name in self.case.names}
            return self.rows()
        calls = self.check(self.calls(self.work, cotangents))
        try:
            budget = QUICK if self.setting.quick else FULL
            self.timings = time_interleaved(calls, self.setting.device, budget)
        except Exception as error:
            self.errors |= {name: reason(error) for name in self.case.names}
        return self.rows()

    def calls(self, work: Work, cotangents: Sequence[Tensor]) -> dict[str, Callable]:
        """Peers first: they take the first turn, and their results are what is compared with."""
        peer_inputs = work.inputs if work.peer_inputs is None else work.peer_inputs
        calls = {n: partial(evaluate, a, peer_inputs, cotangents) for n, a in work.peers.items()}
        if work.baseline is not None:
            calls[BASELINE] = partial(evaluate, lambda: work.baseline(), [], [])
        for name, algorithm in work.ours.items():
            if name in self.case.names:
                calls[name] = partial(evaluate, algorithm, work.inputs, cotangents)
        return calls

    def check(self, calls: Mapping[str, Callable]) -> dict[str, Callable]:
        """Run each algorithm once against the first that ran, once for its memory; those left."""
        good: dict[str, Callable] = {}
        work = self.work
        expected = None
        for name, call in calls.items():
            try:
                if expected is None and work.expected is not None and name != BASELINE:
                    expected = work.expected()
                found = call() if name == BASELINE else work.comparable(call())
                if name != BASELINE and expected is None:
                    expected = found
                elif name != BASELINE:
                    compare(found, expected, work.tolerance)
                del found
                untraced = name in work.untraced
                self.memory[name] = None if untraced else extra_memory(call, self.setting.device)
                good[name] = call
            except Exception as error:
                fits_not = name in work.peers and out_of_memory(error)
                (self.absent if fits_not else self.errors)[name] = reason(error)
        return good

    def rows(self) -> list[Row]:
        names = list(self.work.peers) if self.work else []
        return [
            self.row(name, peer)
            for name in self.case.names
            for peer in names or [None]  # a row for each peer
        ]

    def row(self, name: str, peer: str | None) -> Row:
        case = self.case
        ours, theirs = self.timings.get(name), self.timings.get(peer)
        if name in self.errors:
            ours = None
        row: Row = {
            "operator": name,
            "size": case.size,
            "direction": case.direction,
            "dtype": case.dtype,
            "time_ms": ours and ours.median,
            "spread": ours and ours.spread,
            "extra_bytes": self.memory.get(name) if ours else None,
            "peer": peer,
            "peer_time_ms": theirs and theirs.median,
            "peer_spread": theirs and theirs.spread,
            "peer_extra_bytes": self.memory.get(peer) if theirs else None,
            "ratio_to_peer": theirs.median / ours.median if ours and theirs else None,
            "ratio_to_floor": None,
        }
        if self.work is not None:
            needed = self.work.needed
            floor_ms = 1e3 * floor_seconds(needed, self.setting.limits)
            row["bytes_needed"], row["operations_needed"] = needed.bytes, needed.operations
            row["floor_ms"] = floor_ms
            row["ratio_to_floor"] = floor_ms / ours.median if ours else None
        notes = [self.note(peer, ours), self.unsteady(ours, theirs)]
        row["note"] = "; ".join(note for note in notes if note) or None
        row["error"] = self.errors.get(name) or self.errors.get(peer)
        return row

    def own_ratio(self, ours: Timing | None) -> float | None:
        baseline = self.timings.get(BASELINE)
        return ours.median / baseline.median if ours and baseline else None

    def note(self, peer: str | None, ours: Timing | None) -> str | None:
        if peer in self.absent:
            return f"the peer does not fit: {self.absent[peer]}"
        own = self.own_ratio(ours)
        if own is not None:
            baseline = self.timings[BASELINE].median
            return f"{own:.2f} x {BASELINE}, {baseline:.4g} ms"
        if ours and self.work and self.work.events:
            return f"{1e3 * self.work.events / ours.median:.3g} events/s"
        return None

    @staticmethod
    def unsteady(*timings: Timing | None) -> str | None:
        """A word where the middle half of the samples is wide: something else ran, most often."""
        wide = any(timing and timing.spread > 0.25 * timing.median for timing in timings)
        return "unsteady" if wide else None


COLUMNS = (
    "operator", "size", "direction", "dtype", "ms", "extra MiB", "peer", "peer ms",
    "peer extra MiB", "x peer", "of floor", "note",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """The texts of one row of the table."""

    def milliseconds(time: str, spread: str) -> str:
        if row[time] is None:
            return ""
        return f"{row[time]:.4g} ± {row[spread]:.2g}"

    failure = f"failed: {row['error']}" if row["error"] else ""
    return [
        *(str(row[key]) for key in ("operator", "size", "direction", "dtype")),
        milliseconds("time_ms", "spread"),
        number(row["extra_bytes"], ".1f", 2**-20),
        row["peer"] or "",
        milliseconds("peer_time_ms", "peer_spread"),
        number(row["peer_extra_bytes"], ".1f", 2**-20),
        number(row["ratio_to_peer"], ".2f"),
        number(row["ratio_to_floor"], ".0%"),
        failure or row["note"] or "",
    ]


def as_markdown(report: Mapping) -> str:
    """A report, as run() makes it or as its JSON holds it, as text with one table."""
    lines = [
        *heading(report),
        "Times are medians ± the distance between the quartiles; x peer above 1 is faster than the "
        "peer; of floor is the floor's time over ours.",
        "",
        *table(COLUMNS, [cells(row) for row in report["rows"]]),
    ]
    return "\n".join(lines) + "\n"


def strategy_ratio(shape: Correlated, direction: str, device: str, budget: Budget) -> float:
    """Time of strategy "on_demand" over that of "volume"."""
    maps = with_gradients(direction, *shape.features(torch.float32, device))
    lookups = shape.coords(device)
    strategies = {name: shape.ours(name, lookups) for name in ("volume", "on_demand")}
    cotangents = []
    if direction == "both":
        results = evaluate(strategies["on_demand"], maps, [])
        cotangents = [torch.randn_like(values) for values in results]
    calls = {
        name: partial(evaluate, algorithm, maps, cotangents)
        for name, algorithm in strategies.items()
    }
    for call in calls.values():
        call()
    times = time_interleaved(calls, device, budget)
    return times["on_demand"].median / times["volume"].median


def measure_crossover(device: str, quick: bool) -> Iterator[Row]:
    """A row of ratios for every size, number of channels and direction, printed as they come."""
    print(*head(CROSSOVER_COLUMNS), sep="\n", flush=True)
    for height, width in CROSSOVER_SIZES[:2] if quick else CROSSOVER_SIZES:
        for channels in CROSSOVER_CHANNELS:
            for direction in ("forward", "both"):
                shapes = [
                    Correlated(channels, height, width, lookups=count)
                    for count in CROSSOVER_LOOKUPS
                ]
                budget = QUICK if quick else CROSSOVER_BUDGET
                row: Row = {
                    "size": f"{channels} x {height} x {width}",
                    "volume_bytes": volume_bytes(*shapes[0].features(torch.float32, device), 4),
                    "direction": direction,
                    "ratios": [
                        strategy_ratio(shape, direction, device, budget) for shape in shapes
                    ],
                }
                print(line(crossover_cells(row)), flush=True)
                yield row


CROSSOVER_COLUMNS = (
    "size", "volume MiB", "direction", *(f"{count} look-ups" for count in CROSSOVER_LOOKUPS)
)  # fmt: skip


def crossover_cells(row: Row) -> list[str]:
    """The texts of one row of the table of strategies."""
    size = number(row["volume_bytes"], ".2f", 2**-20)
    return [row["size"], size, row["direction"], *(f"{ratio:.2f}" for ratio in row["ratios"])]


def crossover_markdown(report: Mapping) -> str:
    """The report of --crossover as text with one table."""
    rows = [crossover_cells(row) for row in report["rows"]]
    told = 'Time of "on_demand" over that of "volume"; on_demand wins below 1.'
    return "\n".join([*heading(report), told, "", *table(CROSSOVER_COLUMNS, rows)]) + "\n"


def build_parser() -> OneLineParser:
    parser = OneLineParser(__doc__, prog="operators", formatter_class=RawDescriptionHelpFormatter)
    add_run_arguments(parser, "operator, size, direction and dtype")
    parser.add_argument(
        "--no-compiled-peers", action="store_true",
        help="on a GPU: leave out the peers under torch.compile, which take long to compile",
    )  # fmt: skip
    parser.add_argument(
        "--crossover", action="store_true", help="time the strategies of the correlation instead"
    )
    add_result_arguments(parser)
    return parser


def chosen_cases(setting: Setting, only: Sequence[str]) -> list[Case]:
    cases = [case.only(only) for case in operator_cases(setting)]
    return [case for case in cases if case.names]


def measure(setting: Setting, cases: Sequence[Case]) -> Iterator[Row]:
    """The rows, printed as they come."""
    print(*head(COLUMNS), sep="\n", flush=True)
    rows: list[Row] = []
    for case in cases:
        for row in Measurement(case, setting).run():
            add_noise_note(row, rows)
            print(line(cells(row)), flush=True)
            rows.append(row)
            yield row


def add_noise_note(row: Row, before: Sequence[Row]) -> None:
    """On a row with noisy coordinates, say how its speed compares with the smooth ones."""
    smooth = {**row, "size": str(row["size"]).replace("noisy", "smooth")}
    keys = ("operator", "size", "direction", "dtype", "peer")
    for other in before:
        alike = row["size"] != other["size"] and all(other[key] == smooth[key] for key in keys)
        if alike and row["time_ms"] and other["time_ms"]:
            speed = f"{other['time_ms'] / row['time_ms']:.2f} of the smooth row's speed"
            row["note"] = f"{row['note']}; {speed}" if row["note"] else speed


def run(options: Namespace, parser: OneLineParser) -> int:
    set_up(options, parser)
    if options.crossover:
        report = new_report(options.device, options.quick, measure_limits(options.device, True))
        rows = measure_crossover(options.device, options.quick)
        fill(report, "rows", rows, options, crossover_markdown)
        return 0
    instructions = ops.build_info()["cpu_capability"]
    # The rows' names do not depend on these numbers: an --only that fits none is told at once.
    native = has_native_bfloat16(torch.device(options.device))
    nominal = Limits(1.0, 1.0, 1.0 if native else None, 1.0)
    if not chosen_cases(
        Setting(options.device, options.quick, nominal, instructions), options.only
    ):
        refuse_only(parser, options.only)
    limits = measure_limits(options.device, options.quick)
    print(limits_text(asdict(limits)), flush=True)
    setting = Setting(
        options.device, options.quick, limits, instructions, not options.no_compiled_peers
    )
    report = new_report(options.device, options.quick, limits)
    fill(
        report, "rows", measure(setting, chosen_cases(setting, options.only)), options, as_markdown
    )
    return tell_failures("operators", report["rows"], ("operator", "size"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    return run(parser.parse_args(argv), parser)


if __name__ == "__main__":
    sys.exit(main())
