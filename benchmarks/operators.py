"""Measure every operator of flowfuse.ops against the algorithm that others use, in one run.

    python benchmarks/operators.py --threads 2 --json today.json --markdown today.md
    python benchmarks/operators.py --quick --only voxelize
    FLOWFUSE_CPU_CAPABILITY=avx2 python benchmarks/operators.py --only correlation

Peers and operators take turns (peer, ours, peer, ours ...). Before they are timed, their results
and gradients are compared: a wrong kernel is a failed row. docs/performance.md says how time, extra
memory and floors are obtained.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from cases import Algorithm, Case, Setting, Target, Work
from floors import floor_seconds
from measuring import (
    FULL,
    QUICK,
    Limits,
    Timing,
    commit,
    extra_memory,
    machine,
    measure_limits,
    time_interleaved,
    versions,
)
from operator_cases import all_cases
from torch import Tensor

from flowfuse import ops
from flowfuse.atomic import atomic_path

BASELINE = "our own smaller row"  # key beside the names of operators and peers
Row = dict[str, object]


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
    name = next(name for name in work.ours if name in case.targets)
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


def reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


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
            self.errors = {name: reason(error) for name in self.case.targets}
            return self.rows()
        calls = self.check(self.calls(self.work, cotangents))
        try:
            budget = QUICK if self.setting.quick else FULL
            self.timings = time_interleaved(calls, self.setting.device, budget)
        except Exception as error:
            self.errors |= {name: reason(error) for name in self.case.targets}
        return self.rows()

    def calls(self, work: Work, cotangents: Sequence[Tensor]) -> dict[str, Callable]:
        """Peers first: they take the first turn, and their results are what is compared with."""
        peer_inputs = work.inputs if work.peer_inputs is None else work.peer_inputs
        calls = {n: partial(evaluate, a, peer_inputs, cotangents) for n, a in work.peers.items()}
        if work.baseline is not None:
            calls[BASELINE] = partial(evaluate, lambda: work.baseline(), [], [])
        for name, algorithm in work.ours.items():
            if name in self.case.targets:
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
            for name in self.case.targets
            for peer in names or [None]  # a row for each peer
        ]

    def row(self, name: str, peer: str | None) -> Row:
        case, target = self.case, self.case.targets[name]
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
            "target": target.text() or None,
        }
        if self.work is not None:
            needed = self.work.needed
            floor_ms = 1e3 * floor_seconds(needed, self.setting.limits)
            row["bytes_needed"], row["operations_needed"] = needed.bytes, needed.operations
            row["floor_ms"] = floor_ms
            row["ratio_to_floor"] = floor_ms / ours.median if ours else None
        row["met"] = self.met(target, row) if ours and target.text() else None
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

    def met(self, target: Target, row: Row) -> bool:
        """Whether all that the target asks for and that could be measured is reached."""
        own = self.own_ratio(self.timings[row["operator"]])
        extra, peer_extra = row["extra_bytes"], row["peer_extra_bytes"]
        rate = self.work.events / (1e-3 * row["time_ms"])
        reached = [
            target.speed is None or (row["ratio_to_peer"] or 0) >= target.speed,
            target.memory is None or (peer_extra or 0) * target.memory >= extra,
            target.floor is None or row["ratio_to_floor"] >= target.floor,
            target.extra_bytes is None or extra <= target.extra_bytes,
            target.own is None or (own is not None and own <= target.own),
            target.events is None or rate >= target.events,
        ]
        return all(reached)


COLUMNS = (
    "operator", "size", "direction", "dtype", "ms", "extra MiB", "peer", "peer ms",
    "peer extra MiB", "x peer", "of floor", "target", "note",
)  # fmt: skip


def number(value: float | None, form: str = ".3g", factor: float = 1.0) -> str:
    return "" if value is None else format(value * factor, form)


def cells(row: Row) -> list[str]:
    """The texts of one row of the table."""

    def milliseconds(time: str, spread: str) -> str:
        if row[time] is None:
            return ""
        return f"{row[time]:.4g} ± {row[spread]:.2g}"

    verdict = {None: "", True: ": met", False: ": missed"}[row["met"]]
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
        f"{row['target'] or ''}{verdict}",
        failure or row["note"] or "",
    ]


def limits_text(limits: Mapping[str, float | None]) -> str:
    text = (
        f"copy {limits['copy_bytes'] / 1e9:.3g} GB/s read + write, matrix product "
        f"{limits['float32_operations'] / 1e9:.4g} GFLOP/s in float32, "
        f"{limits['bfloat16_operations'] / 1e9:.4g} in bfloat16"
    )
    if limits["atomics"]:
        text += f", {limits['atomics'] / 1e9:.3g}e9 random 64-bit additions/s"
    return text


def heading(report: Mapping) -> list[str]:
    """The machine, what is installed on it and what it does at best, as lines of text."""
    facts, used = report["machine"], report["versions"]
    where = facts.get("gpu") or facts["processor"]
    return [
        f"{where}, {facts['cores']} cores, {facts['threads']} threads, "
        f"instruction set of the CPU kernels: {report['instruction_set'] or 'none (references)'}. "
        f"torch {used['torch']}, numpy {used['numpy']}, Python {used['python']}. "
        f"Commit {report['commit'] or 'unknown'}, {report['date']}"
        f"{', --quick (small sizes, few repeats)' if report['quick'] else ''}.",
        "",
        f"Limits measured in the same run: {limits_text(report['limits'])}.",
        "",
    ]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    texts = [columns, *([cell.replace("|", "/") for cell in row] for row in rows)]
    first, *rest = ("| " + " | ".join(row) + " |" for row in texts)
    return [first, "|---" * len(columns) + "|", *rest]


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


class OneLineParser(argparse.ArgumentParser):
    """Says in one line what is wrong with an argument."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def thread_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def result_file(text: str) -> Path:
    """A path that can be written, known before anything is measured."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent} is not an existing directory")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a directory")
    return path


def add_result_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the report goes."""
    parser.add_argument("--json", type=result_file, metavar="FILE", help="write the report")
    parser.add_argument("--markdown", type=result_file, metavar="FILE", help="write the table")


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="operators", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=thread_count, help="CPU threads (torch's own number)")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats: a trial")
    parser.add_argument(
        "--only", default="", metavar="SUBSTRING",
        help="rows whose operator, size, direction and dtype (as printed) contain this",
    )  # fmt: skip
    parser.add_argument(
        "--no-compiled-peers", action="store_true",
        help="on a GPU: leave out the peers under torch.compile, which take long to compile",
    )  # fmt: skip
    add_result_arguments(parser)
    return parser


def chosen_cases(setting: Setting, only: str) -> list[Case]:
    cases = [case.only(only) for case in all_cases(setting)]
    return [case for case in cases if case.targets]


def measure(setting: Setting, cases: Sequence[Case]) -> Iterator[Row]:
    """The rows, printed as they come."""
    print("| " + " | ".join(COLUMNS) + " |", flush=True)
    rows: list[Row] = []
    for case in cases:
        for row in Measurement(case, setting).run():
            add_noise_note(row, rows)
            print("| " + " | ".join(cells(row)) + " |", flush=True)
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


def new_report(device: str, quick: bool, limits: Limits) -> dict[str, Any]:
    """A report without rows: what was measured, and where."""
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "device": device,
        "quick": quick,
        "machine": machine(device),
        "versions": versions(),
        "instruction_set": ops.build_info()["cpu_capability"],
        "build_info": {key: value for key, value in ops.build_info().items() if key != "path"},
        "limits": asdict(limits),
        "rows": [],
    }


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    if options.threads:
        torch.set_num_threads(options.threads)
    instructions = ops.build_info()["cpu_capability"]
    # The rows' names do not depend on the limits: an --only that fits none is told at once.
    nominal = Limits(1.0, 1.0, 1.0, 1.0)
    if not chosen_cases(
        Setting(options.device, options.quick, nominal, instructions), options.only
    ):
        parser.error(f"--only {options.only}: no row has this in its name")
    limits = measure_limits(options.device, options.quick)
    print(limits_text(asdict(limits)), flush=True)
    setting = Setting(
        options.device, options.quick, limits, instructions, not options.no_compiled_peers
    )
    report = new_report(options.device, options.quick, limits)
    for row in measure(setting, chosen_cases(setting, options.only)):
        report["rows"].append(row)  # written each time: a run cut short keeps what it has
        write(options.json, json.dumps(report, indent=1) + "\n")
        write(options.markdown, as_markdown(report))
    failed = [row for row in report["rows"] if row["error"]]
    for row in failed:
        print(f"operators: {row['operator']}, {row['size']}: {row['error']}", file=sys.stderr)
    return 1 if failed else 0


def write(path: Path | None, text: str) -> None:
    if path is not None:
        with atomic_path(path) as partial_file:
            partial_file.write_text(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    return run(parser.parse_args(argv), parser)


if __name__ == "__main__":
    sys.exit(main())
