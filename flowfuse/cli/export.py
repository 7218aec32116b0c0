"""``flowfuse-export``: a network as a file that runs elsewhere."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from flowfuse.cli.console import CommandParser, leave, parse_count, run_command
from flowfuse.export import TOLERANCE, ExportSpec, write_onnx, write_package, write_program
from flowfuse.io.atomic import check_file_path
from flowfuse.model.checkpoint import load_checkpoint, resolve_checkpoint

COMMAND = "flowfuse-export"
WRITERS = {".pt2": write_program, ".onnx": write_onnx}
DYNAMIC = "dynamic"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
        if Path(arguments.output).suffix not in WRITERS:
            parser.error(
                f"-o must end in {' or '.join(WRITERS)} (machine code for C++ is a .pt2 with "
                f"--compile), got {arguments.output!r}"
            )
        if arguments.compile and Path(arguments.output).suffix != ".pt2":
            parser.error(f"--compile makes a package that ends in .pt2, got {arguments.output!r}")
    except SystemExit as stop:  # --help, or wrong usage after its message
        return int(stop.code or 0)
    return run_command(COMMAND, lambda: export(arguments), interrupted="nothing is written")


def export(arguments: Namespace) -> None:
    """Export, and say what was written."""
    path = Path(arguments.output)
    check_file_path(path)
    model, info = load_checkpoint(resolve_checkpoint(arguments.checkpoint))
    spec = ExportSpec(
        height=arguments.height,
        width=arguments.width,
        batch=None if arguments.batch == DYNAMIC else arguments.batch,
        iterations=arguments.iterations or model.config.iterations,
        channels=3 if arguments.colour else 1,
    )
    write = write_package if arguments.compile else WRITERS[path.suffix]
    doing = "tracing and compiling" if arguments.compile else "tracing"
    print(f"{doing} {model.config.name} for {spec.width} x {spec.height} px: minutes", flush=True)
    difference = write(path, model, spec, {"checkpoint": Path(info["path"]).name})
    batch = f"batch of {spec.batch}" if spec.batch else "any batch"
    print(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, {batch}, {spec.iterations} "
        f"iterations; differs from torch by up to {difference:.1g} px on the shipped recording "
        f"(allowed: {TOLERANCE:g} px)"
    )


def build_parser() -> CommandParser:
    """Build the command line."""
    parser = CommandParser(
        "Write a network as a torch.export program (.pt2, loads where flowfuse is installed), "
        "compiled for C++ (.pt2 with --compile) or as ONNX (.onnx, standard operators alone; needs "
        "flowfuse[onnx]). Sizes are fixed.",
        prog=COMMAND,
    )
    add = parser.add_argument
    add(
        "checkpoint",
        type=str,
        help="shipped checkpoint, .safetensors file, or directory of a training",
    )
    add("-o", "--output", type=str, required=True, help="the file: NAME.pt2 or NAME.onnx")
    add("--height", type=parse_count, default=480, help="of the images, px")
    add("--width", type=parse_count, default=640, help="of the images, px")
    add(
        "--batch",
        type=parse_batch,
        default=1,
        help=f"items that are estimated together, or {DYNAMIC!r}: each call has its own number",
    )
    add("--iterations", type=parse_count, help="recurrent updates (None: the network's default)")
    add(
        "--compile",
        action="store_true",
        help="an AOTInductor package: machine code for this processor and this torch, which runs "
        "without Python; needs a C++ compiler",
    )
    add("--colour", action="store_true", help="take RGB frames; without it, gray ones")
    return parser


def parse_batch(text: str) -> int | str:
    """Read a number of items, or DYNAMIC."""
    if text == DYNAMIC:
        return text
    try:
        return parse_count(text)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{error}, or {DYNAMIC!r}") from None


def command() -> None:
    """Entry point of flowfuse-export."""
    leave(main())


if __name__ == "__main__":
    command()
