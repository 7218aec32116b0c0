"""``flowfuse-infer``: a recording in, dense and continuous flow out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import torch

from flowfuse import __version__, distributed
from flowfuse.cli.console import ListedError, leave, run_command, run_with_arguments
from flowfuse.cli.infer_options import COMMAND, InferenceConfig, build_parser, parse_config
from flowfuse.cli.infer_recording import by_first, run_recording
from flowfuse.cli.infer_report import RunMetrics, RunReport
from flowfuse.cli.infer_submission import submit
from flowfuse.data.opening import find_recordings
from flowfuse.estimator import load, select_device
from flowfuse.evaluation.report import without_nan
from flowfuse.io.atomic import atomic_path
from flowfuse.precision import DTYPES, NO_INSTRUCTIONS, has_native_bfloat16
from flowfuse.runner import FIRST_FRAME
from flowfuse.training.devices import own_device

# Processes wait for each other at the end of a recording; one that ends is noticed at once.
TIMEOUT = timedelta(days=30)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the command's name; None takes those of the process.

    Returns:
        0, or 1 on an error, 2 on wrong usage, 130 when interrupted, 141 when the reader of what is
        printed has gone.
    """
    missing = "expected a recording and a directory for the results: "
    missing += f"{COMMAND} RECORDING -o OUT (--help explains both)"
    return run_with_arguments(build_parser(), argv, parse_config, _start, missing)


def _start(config: InferenceConfig, arguments: Sequence[str]) -> int:
    then = "nothing is written" if config.submission else "the same command goes on from here"
    return run_command(
        COMMAND, lambda: run(config, arguments), interrupted=then, output=config.output
    )


def run(config: InferenceConfig, arguments: Sequence[str] = ()) -> None:
    """Estimate, write and evaluate everything that ``config`` asks for.

    Args:
        config: the settings.
        arguments: what was typed, for the output directory's history.

    Raises:
        OSError, ValueError: with a message that names the file or setting at fault.
    """
    processes = distributed.launched()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    # Of several processes each takes the GPU of its number; they talk over the network.
    config = replace(config, device=str(own_device(config.device)))
    try:
        with distributed.joined(processes, torch.device("cpu"), TIMEOUT):
            _run(_usable_precision(config), arguments)
    except distributed.ProcessLostError as error:
        raise ValueError(
            f"{error} (seen by process {processes.rank + 1} of {processes.count}); what is done is "
            "kept, and the same command goes on from here"
        ) from error


def _run(config: InferenceConfig, arguments: Sequence[str]) -> None:
    estimator = load(config.checkpoint, config.device, DTYPES[config.precision])
    estimator.check_alignment = False  # more pairs of each recording are looked at
    if FIRST_FRAME in config.modalities and not estimator.model.config.weighs_evidence:
        raise ValueError(
            f"--from-frame: {config.checkpoint} cannot use one frame alone: it is a network of "
            f"fusion {estimator.model.config.fusion}, expected evidence with frames and events"
        )
    if config.submission is not None:
        if distributed.this().count > 1:
            raise ValueError(
                "--submission writes one zip: start it in one process, without torchrun"
            )
        print(submit(config, estimator), flush=True)
        return
    runs = by_first(lambda: _plan_runs(config))
    reports: dict[str, RunReport] = {}
    failures: list[str] = []
    for name, one in runs.items():
        if name and distributed.this().is_first:
            print(f"{one.input} -> {one.output}", flush=True)
        try:
            report = run_recording(one, estimator, arguments)
        except (FileNotFoundError, ValueError) as error:
            # Several processes would not fail alike, and wait for each other.
            if len(runs) == 1 or distributed.this().count > 1:
                raise
            warnings.warn(f"{error}; the other recordings go on", stacklevel=2)
            failures.append(f"{one.input}: {' '.join(str(error).split())}")
            continue
        if name and report is not None:
            reports[name] = report
    if reports:
        _write_summary(config, runs, reports)
    if failures:
        told = f"{len(failures)} of {len(runs)} recordings failed:"
        raise ListedError("\n  ".join([told, *failures]))


def _plan_runs(config: InferenceConfig) -> dict[str, InferenceConfig]:
    """The run of each recording, by the name of its directory in OUT; one alone has OUT itself.

    Raises:
        FileNotFoundError, ValueError: an input has no recording, or two have one name.
    """
    named = config.events is not None or config.frames is not None
    if not config.inputs or (named and len(config.inputs) == 1):
        return {"": config}
    found = [recording for path in config.inputs for recording in find_recordings(path)]
    if found == [config.input]:
        return {"": config}
    if config.events or config.frames or config.frame_times:
        raise ValueError(
            f"--events, --frames and --frame-times belong to one recording, got {len(found)}"
        )
    runs: dict[str, InferenceConfig] = {}
    for path in found:
        name = path.resolve().name
        if name in runs:
            raise ValueError(
                f"{path} and {runs[name].input} would both be written to {config.output / name}: "
                "estimate them apart, with another -o"
            )
        runs[name] = replace(config, input=path, inputs=(path,), output=config.output / name)
    return runs


def _write_summary(
    config: InferenceConfig, runs: dict[str, InferenceConfig], reports: dict[str, RunReport]
) -> None:
    """Write OUT/recordings.json: what happened to each recording, and the averages of all."""
    every = RunMetrics(config.outlier_fraction)
    for report in reports.values():
        every.extend(report.metrics)
    content = {
        "flowfuse": __version__,
        "checkpoint": config.checkpoint,
        "average": every.averages(),
        "recordings": [
            {
                "name": name,
                "input": str(runs[name].input),
                "intervals": report.total,
                "without_events": report.skipped,
                "average": report.metrics.averages(),
            }
            for name, report in reports.items()
        ],
    }
    path = config.output / "recordings.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(without_nan(content), indent=1) + "\n")
    lines = [f"all {len(reports)} recordings:", *every.lines(), f"recordings: {path}"]
    print("\n".join(lines), flush=True)


def _usable_precision(config: InferenceConfig) -> InferenceConfig:
    """The same in float32, and a warning, where bfloat16 would only be slower."""
    if config.precision == "float32" or has_native_bfloat16(select_device(config.device)):
        return config
    if distributed.this().is_first:
        warnings.warn(f"--precision bf16: {NO_INSTRUCTIONS}, and used instead", stacklevel=2)
    return replace(config, precision="float32")


def command() -> None:
    """Entry point of flowfuse-infer."""
    leave(main())


if __name__ == "__main__":
    command()
