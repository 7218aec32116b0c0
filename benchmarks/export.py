"""Size and time of exported networks beside torch's own, in one run.

    python benchmarks/export.py --threads 2 --json today.json --markdown today.md
    python benchmarks/export.py --quick --only program

Every format is written by flowfuse.export, loaded by what runs it (torch, AOTInductor's runner,
ONNX Runtime) and called on the shipped recording, stretched to the size. They take turns with the
network in torch. Writing them takes minutes, which are not part of the time.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from measuring import (
    FULL,
    QUICK,
    OneLineParser,
    Row,
    add_result_arguments,
    add_run_arguments,
    chosen,
    fill,
    heading,
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
from torch import Tensor

from flowfuse.export import (
    OUTPUTS,
    ExportedFlow,
    ExportSpec,
    sample_inputs,
    write_onnx,
    write_package,
    write_program,
)
from flowfuse.inputs import ModelInputs
from flowfuse.model import FlowFuse
from flowfuse.model.checkpoint import load_checkpoint, resolve_checkpoint

TORCH = "torch"
SIZES = ((480, 640),)
QUICK_SIZES = ((32, 48),)
Run = Callable[..., Sequence[Tensor]]


def load_program(path: Path) -> Run:
    return torch.export.load(path).module()


def load_package(path: Path) -> Run:
    return torch._inductor.aoti_load_package(str(path))


def load_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    wanted = {entry.name for entry in session.get_inputs()}

    def run(*inputs: Tensor) -> list[Tensor]:
        named = zip(ModelInputs._fields, inputs, strict=True)
        feed = {name: value.numpy() for name, value in named if name in wanted}
        return [torch.from_numpy(value) for value in session.run(list(OUTPUTS), feed)]

    return run


# Name, file, what writes it, what loads it.
FORMATS = (
    ("torch.export program", "program.pt2", write_program, load_program),
    ("AOTInductor package", "package.pt2", write_package, load_package),
    ("ONNX", "network.onnx", write_onnx, load_onnx),
)


def measure(
    model: FlowFuse, size: tuple[int, int], formats: Sequence[tuple], quick: bool, folder: Path
) -> Iterator[Row]:
    """Write the formats of one size, then time all of them in turns."""
    height, width = size
    spec = ExportSpec(height, width, iterations=model.config.iterations)
    inputs = sample_inputs(model, spec)
    runs: dict[str, Run] = {TORCH: ExportedFlow(model, spec.iterations).eval()}
    facts: dict[str, Row] = {TORCH: {"bytes": None, "difference": None, "error": None}}
    for name, file, write, load in formats:
        path = folder / file
        print(f"writing {name}, {width} x {height}", file=sys.stderr, flush=True)
        try:
            difference = write(path, model, spec, {})
            runs[name] = load(path)
            facts[name] = {
                "bytes": path.stat().st_size,
                "difference": difference,
                "error": None,
            }
        except Exception as error:  # the other formats go on
            facts[name] = {"bytes": None, "difference": None, "error": reason(error)}
    calls = {name: (lambda run=run: run(*inputs)) for name, run in runs.items()}
    with torch.no_grad():
        for call in calls.values():
            call()  # what is set up on first use
        timings = time_interleaved(calls, "cpu", QUICK if quick else FULL)
    for name, known in facts.items():
        timing = timings.get(name)
        yield {
            "format": name,
            "size": f"{width} x {height}",
            "iterations": spec.iterations,
            **known,
            "time_ms": timing and timing.median,
            "spread": timing and timing.spread,
            "ratio_to_torch": timing and timings[TORCH].median / timing.median,
        }


def as_markdown(report: Mapping) -> str:
    titles = (
        "format", "size", "file, MB", "time, ms", "spread", "speed relative to torch",
        "differs from torch by up to, px",
    )  # fmt: skip
    rows = [
        (
            row["format"],
            row["size"],
            number(row["bytes"], ".1f", 1e-6),
            number(row["time_ms"], ".0f") or row["error"],
            number(row["spread"], ".2g"),
            number(row["ratio_to_torch"], ".2f"),
            number(row["difference"], ".1g"),
        )
        for row in report["rows"]
    ]
    lines = [f"Network: {report['checkpoint']}. Times are medians of one call.", ""]
    return "\n".join([*heading(report), *lines, *table(titles, rows)]) + "\n"


def build_parser() -> OneLineParser:
    parser = OneLineParser(__doc__, prog="export", formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=str, default="small", help="whose network")
    add_run_arguments(parser, "formats")
    add_result_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(argv)
    set_up(options, parser)
    if options.device != "cpu":
        parser.error("--device cuda: exported files are measured on the CPU alone")
    formats = [one for one in FORMATS if chosen(one[0], options.only)]
    if not formats:
        refuse_only(parser, options.only)
    try:
        model, _ = load_checkpoint(resolve_checkpoint(options.checkpoint))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    limits = measure_limits("cpu", options.quick)
    report = new_report("cpu", options.quick, limits) | {"checkpoint": options.checkpoint}
    for size in QUICK_SIZES if options.quick else SIZES:
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(model, size, formats, options.quick, Path(folder))
            fill(report, "rows", rows, options, as_markdown)
    print(as_markdown(report), end="")
    return tell_failures("export", report["rows"], ("format", "size"))


if __name__ == "__main__":
    sys.exit(main())
