"""What the benchmarks share: their arguments, their reports and how these are written."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace
from measuring import Limits, commit, machine, versions

from flowfuse import ops
from flowfuse.cli.console import CommandParser, parse_count
from flowfuse.evaluation.report import head, line
from flowfuse.io.atomic import atomic_path, check_file_path

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


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [*head(titles), *(line(cells) for cells in rows)]
