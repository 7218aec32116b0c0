"""What the benchmarks share: arguments, time, extra memory, the machine's limits, reports."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch: its profiler prints every start

import numpy as np
import torch
from jsonargparse import Namespace
from torch import Tensor
from torch.nn import functional as F

from flowfuse import ops
from flowfuse.cli.console import CommandParser, parse_count
from flowfuse.evaluation.report import head, line
from flowfuse.io.atomic import atomic_path, check_file_path
from flowfuse.precision import has_native_bfloat16

MEMORY_EVENT = "[memory]"  # what torch.profiler calls an allocation or a release
CUDA_SAMPLE_MS = 5.0  # one sample on a GPU lasts at least this long: launches overlap as in use
Call = Callable[[], Sequence[Tensor]]
Row = dict[str, object]


class OneLineParser(CommandParser):
    """Says in one line what is wrong with an argument."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def result_file(text: str) -> Path:
    """A path that can be written, known before anything is measured."""
    path = Path(text)
    if path.is_dir():
        raise ArgumentTypeError(f"{path} is a directory")
    try:
        check_file_path(path)
    except OSError as error:
        raise ArgumentTypeError(str(error)) from None
    return path


def add_result_arguments(parser: OneLineParser) -> None:
    """Where the report goes."""
    parser.add_argument("--json", type=result_file, metavar="FILE", help="write the report")
    parser.add_argument("--markdown", type=result_file, metavar="FILE", help="write the table")


def add_run_arguments(parser: OneLineParser, only: str) -> None:
    """Where and how much is measured.

    Args:
        parser: of a benchmark whose rows have names.
        only: what makes up these names.
    """
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=parse_count, help="CPU threads (torch's own number)")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats: a trial")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="SUBSTRING",
        help=f"rows whose {only} (as printed) contain one of these",
    )  # fmt: skip


def chosen(label: str, only: Sequence[str]) -> bool:
    """Whether a row of this name belongs to what --only asks for."""
    return any(part in label for part in only)


def refuse_only(parser: OneLineParser, only: Sequence[str]) -> NoReturn:
    """End with a message: no row has the name."""
    parser.error(f"--only {' '.join(only)}: no row has this in its name")


def set_up(options: Namespace, parser: OneLineParser) -> None:
    """Take up what add_run_arguments read, or end with a message."""
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    if options.threads:
        torch.set_num_threads(options.threads)


@dataclass(frozen=True)
class Budget:
    """How often an interleaved measurement goes round: until `seconds`, within these bounds."""

    least: int
    most: int
    seconds: float


FULL = Budget(least=5, most=60, seconds=4.0)
QUICK = Budget(least=2, most=3, seconds=0.1)


@dataclass(frozen=True)
class Timing:
    median: float  # ms
    spread: float  # ms, between the quartiles


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def cpu_sample(call: Call) -> float:
    start = time.perf_counter()
    results = call()
    duration = time.perf_counter() - start
    del results  # giving the memory back is not part of the call
    return 1e3 * duration


def cuda_sample(call: Call, iterations: int) -> float:
    """Average of `iterations` calls in a row, by the device's own clock."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(iterations):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / iterations


def sampler(call: Call, device: str) -> Callable[[], float]:
    """What takes one sample of a call that has been warmed up, in ms."""
    if device != "cuda":
        return lambda: cpu_sample(call)
    iterations = max(1, min(100, round(CUDA_SAMPLE_MS / max(cuda_sample(call, 1), 1e-3))))
    return lambda: cuda_sample(call, iterations)


def timing(samples: Sequence[float]) -> Timing:
    if len(samples) < 2:
        return Timing(samples[0], 0.0)
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, upper - lower)


def time_interleaved(calls: Mapping[str, Call], device: str, budget: Budget) -> dict[str, Timing]:
    """Time calls in turns, so that a machine that slows down slows all of them down."""
    gc.collect()
    samplers = {name: sampler(call, device) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    start, rounds = time.perf_counter(), 0
    while rounds < budget.least or (
        rounds < budget.most and time.perf_counter() - start < budget.seconds
    ):
        for name, sample in samplers.items():
            samples[name].append(sample())
        rounds += 1
    return {name: timing(values) for name, values in samples.items()}


def storage_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of the memory behind tensors, shared memory once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def peak_of(sizes: Sequence[int]) -> int:
    """Largest running sum of allocations (positive) and releases (negative)."""
    peak = held = 0
    for size in sizes:
        held += size
        peak = max(peak, held)
    return peak


def cpu_peak(call: Call) -> tuple[int, Sequence[Tensor]]:
    """Bytes that torch's allocator had handed out at most during the call, and its results."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        results = call()
    # The averages that torch.profiler offers have no order in time; its raw events do.
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == MEMORY_EVENT]
    events.sort(key=lambda event: event.start_ns())
    return peak_of([event.nbytes() for event in events]), results


def cuda_peak(call: Call) -> tuple[int, Sequence[Tensor]]:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, results


def extra_memory(call: Call, device: str) -> int:
    """Bytes at the peak of a call beyond what it returns: workspace, copies, what autograd keeps.

    Memory of the inputs exists before, so it does not count. What a call allocates past torch's
    allocator (numpy) is not seen.
    """
    gc.collect()  # a release of older memory during the call would hide as much of its own
    peak, results = cuda_peak(call) if device == "cuda" else cpu_peak(call)
    return max(0, peak - storage_bytes(results))


@dataclass(frozen=True)
class Limits:
    """What this machine does at best, measured in the same run; per second."""

    copy_bytes: float
    float32_operations: float
    bfloat16_operations: float | None  # None on a CPU without instructions for it
    atomics: float | None  # random 64-bit additions; None on the CPU, where no kernel uses them


def best_seconds(call: Callable[[], object], device: str, repeats: int = 7) -> float:
    call()
    synchronize(device)
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        synchronize(device)
        durations.append(time.perf_counter() - start)
    return min(durations)  # a limit: the best, where operators show their median


def copy_rate(device: str, size: int) -> float:
    source = torch.ones(size // 4, device=device)
    target = torch.zeros_like(source)
    return 2 * size / best_seconds(lambda: target.copy_(source), device)


def product_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """Operations per second of a square matrix product; on the CPU the faster of two ways to it.

    A 1 x 1 convolution is a matrix product too, made by another library: on some CPUs that one uses
    wider instructions. (On a GPU it would use TensorFloat-32, which is not float32.)
    """
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = best_seconds(lambda: a @ b, device)
    if device == "cpu":
        pixels = a.view(1, 32, size // 32, size).permute(0, 3, 1, 2)  # channels_last
        kernel = b[:, :, None, None]
        seconds = min(seconds, best_seconds(lambda: F.conv2d(pixels, kernel), device))
    return 2 * size**3 / seconds


def atomic_rate(device: str, count: int) -> float:
    """Random 64-bit additions per second into a grid of 640 x 480 x 15."""
    cells = torch.zeros(640 * 480 * 15, dtype=torch.int64, device=device)
    index = torch.randint(0, cells.numel(), (count,), device=device)
    ones = torch.ones_like(index)
    return count / best_seconds(lambda: cells.scatter_add_(0, index, ones), device)


@torch.no_grad()
def measure_limits(device: str, quick: bool) -> Limits:
    if device == "cuda":
        size, side = 2**30, 8192
    else:
        size, side = (2**26, 1024) if quick else (2**28, 2048)
    native = has_native_bfloat16(torch.device(device))
    return Limits(
        copy_bytes=copy_rate(device, size),
        float32_operations=product_rate(device, torch.float32, side),
        bfloat16_operations=product_rate(device, torch.bfloat16, side) if native else None,
        atomics=atomic_rate(device, 10**7) if device == "cuda" else None,
    )


def processor() -> str:
    """The CPU's name, as far as the system tells; with family and model, which tell generations."""
    facts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    name = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in facts:
        name += f" (family {facts['cpu family']}, model {facts['model']})"
    return name


def machine(device: str) -> dict[str, object]:
    facts: dict[str, object] = {
        "processor": processor(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts["gpu"] = properties.name
        facts["gpu_memory_bytes"] = properties.total_memory
        facts["compute_capability"] = f"{properties.major}.{properties.minor}"
    return facts


def versions() -> dict[str, str | None]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "numpy": np.__version__,
    }


def commit() -> str | None:
    """The commit measured, `+changes` added where files differ from it; None without git."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        name = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
        return f"{name}+changes" if changed else name
    except (OSError, subprocess.CalledProcessError):
        return None


def new_report(device: str, quick: bool, limits: Limits | None) -> dict[str, Any]:
    """A report without rows: what was measured, and where; limits where speed was."""
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "device": device,
        "quick": quick,
        "machine": machine(device),
        "versions": versions(),
        "instruction_set": ops.build_info()["cpu_capability"],
        "build_info": {key: value for key, value in ops.build_info().items() if key != "path"},
        "limits": limits and asdict(limits),
        "rows": [],
    }


def fill(
    report: dict[str, Any],
    key: str,
    rows: Iterable[Row],
    options: Namespace,
    as_markdown: Callable[[Mapping], str],
) -> None:
    """Add rows to a report as they come, and write it each time: a run cut short keeps them.

    Args:
        report: of new_report, perhaps with more in it.
        key: of the list in it that the rows belong to.
        rows: what is measured.
        options: with what add_result_arguments read.
        as_markdown: the report's text.
    """
    for row in rows:
        report[key].append(row)
        write(options.json, json.dumps(report, indent=1) + "\n")
        write(options.markdown, as_markdown(report))


def tell_failures(program: str, rows: Sequence[Row], names: Sequence[str]) -> int:
    """Print which rows failed, called by the values of some of their keys; the exit code."""
    failed = [row for row in rows if row["error"]]
    for row in failed:
        called = ", ".join(str(row[name]) for name in names)
        print(f"{program}: {called}: {row['error']}", file=sys.stderr)
    return 1 if failed else 0


def write(path: Path | None, text: str) -> None:
    if path is not None:
        with atomic_path(path) as partial_file:
            partial_file.write_text(text)


def reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def number(value: float | None, form: str = ".3g", factor: float = 1.0) -> str:
    return "" if value is None else format(value * factor, form)


def limits_text(limits: Mapping[str, float | None]) -> str:
    text = (
        f"copy {limits['copy_bytes'] / 1e9:.3g} GB/s read + write, matrix product "
        f"{limits['float32_operations'] / 1e9:.4g} GFLOP/s in float32, "
    )
    if limits["bfloat16_operations"]:
        text += f"{limits['bfloat16_operations'] / 1e9:.4g} in bfloat16"
    else:
        text += "none in bfloat16, for which this CPU has no instructions"
    if limits["atomics"]:
        text += f", {limits['atomics'] / 1e9:.3g}e9 random 64-bit additions/s"
    return text


def heading(report: Mapping) -> list[str]:
    """The machine, what is installed on it and what it does at best, as lines of text."""
    facts, used = report["machine"], report["versions"]
    where = facts.get("gpu") or facts["processor"]
    limits = report["limits"]
    told = [f"Limits measured in the same run: {limits_text(limits)}.", ""] if limits else []
    return [
        f"{where}, {facts['cores']} cores, {facts['threads']} threads, "
        f"instruction set of the CPU kernels: {report['instruction_set'] or 'none (references)'}. "
        f"torch {used['torch']}, numpy {used['numpy']}, Python {used['python']}. "
        f"Commit {report['commit'] or 'unknown'}, {report['date']}"
        f"{', --quick (small sizes, few repeats)' if report['quick'] else ''}.",
        "",
        *told,
    ]


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [*head(titles), *(line(cells) for cells in rows)]
