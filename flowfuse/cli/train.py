"""flowfuse-train: train on generated scenes, data sets or recordings, or finetune without truth.

    flowfuse-train --model small --data scenes:fast --steps 20000 -o runs/small
    flowfuse-train --config dsec --data dsec:ROOT -o runs/dsec
    flowfuse-train --init small --data recording:A,B -o runs/own
    flowfuse-train --config recipe.yaml --learning-rate 2e-4 -o runs/mine
    flowfuse-train -o runs/mine --resume
    flowfuse-train --self-supervised RECORDING -o runs/adapted
    torchrun --nproc-per-node 2 -m flowfuse.train --model base --batch 8 -o runs/base

A run directory holds config.yaml (the resolved configuration), history.jsonl (every command),
checkpoints/, model.safetensors and best.safetensors (the averaged weights of the last step and of
the best validation, for flowfuse-infer), log.csv, validation.csv, pictures/ and tensorboard/.
Resuming is exact: on the CPU, with the same number of threads, the weights have the same bits as
those of an uninterrupted training. Processes that torchrun starts share every batch: each draws and
measures its part of the samples, the first one writes and prints.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing

import torch
from torch.distributed import DistError

from flowfuse import __version__, distributed
from flowfuse.cli.console import INTERRUPTED, plain_log, plain_warnings
from flowfuse.cli.train_options import PROGRAM, RunOptions, read_command_line
from flowfuse.config import changed_keys, config_to_dict, write_yaml
from flowfuse.io.history import record_call
from flowfuse.model.checkpoint import resolve_checkpoint
from flowfuse.precision import NO_INSTRUCTIONS, has_native_bfloat16
from flowfuse.training.devices import own_device
from flowfuse.training.finetune import compare
from flowfuse.training.pools import make_held_out, make_pool
from flowfuse.training.settings import TrainConfig
from flowfuse.training.state import RunDirectory, TrainingState, count_parameters
from flowfuse.training.stopping import StoppedError, StopRequest
from flowfuse.training.trainer import NotFiniteError, Trainer


def check_shares(config: TrainConfig) -> None:
    """Check that every batch divides evenly among the processes.

    Raises:
        ValueError: it does not.
    """
    count = distributed.launched().count
    for name in ("batch", "final_batch"):
        if (getattr(config, name) or 0) % count:
            raise ValueError(
                f"{name} is that of all processes together and must be a multiple of their "
                f"number, {count}, got {getattr(config, name)}"
            )


def prepare(
    config: TrainConfig,
    options: RunOptions,
    device: torch.device,
    argv: Sequence[str] | None = None,
) -> tuple[RunDirectory, TrainingState]:
    """Open the run's directory, new or resumed, and make the state to go on from.

    Raises:
        ValueError: the directory already has a training, or files like those of one; or the
            training is of another model, or longer.
        OSError: the directory cannot be written.
    """
    run, first = RunDirectory(options.output), distributed.this().is_first
    saved = distributed.from_first(run.checkpoints())
    if saved and not options.resume:
        raise ValueError(
            f"{options.output} already holds a training, up to {saved[-1].name}: "
            "add --resume to go on with it, or choose another -o"
        )
    foreign = distributed.from_first(run.foreign_files())
    if foreign and not options.resume:
        raise ValueError(
            f"{options.output} holds {', '.join(foreign)}, but no checkpoints/: no training made "
            "them, and they would be replaced; choose another -o"
        )
    state = TrainingState(
        config.model,
        device,
        seed=config.seed,
        weight_decay=config.weight_decay,
        evidence_rate=config.evidence_rate,
        decay=config.ema,
        channels_last=config.channels_last,
    )
    # Whatever is refused so far is refused before anything is written.
    if config.init is not None and not saved:
        state.start_from(resolve_checkpoint(config.init))
        _tell(f"starting from the weights of {config.init}")
    if first:
        run.create()
    if saved:
        # The first process chooses, and sets aside what it cannot read; the others follow.
        path, settings = distributed.from_first(run.restore_newest(state) if first else None)
        if not first:
            state.restore(path)
        if state.step > config.steps:
            raise ValueError(
                f"steps must not be less than what the run has done, {state.step}, "
                f"got {config.steps}"
            )
        _tell(f"resuming from {path}")
        if settings.get("supervision") == "truth":  # what it was called before
            settings = {**settings, "supervision": "ground_truth"}
        for key, (old, new) in changed_keys(settings, config_to_dict(config)).items():
            _tell(f"changed since then: {key} = {new} (was {old})")
    elif options.resume:
        _tell(f"{options.output} has no checkpoint yet: starting from the beginning")
    if first:
        write_yaml(run.config, config)
        record_call(run.path, PROGRAM, argv, config_to_dict(config), __version__)
    count = distributed.this().count
    _tell(
        f"{config.model.name}: {count_parameters(state.model) / 1e6:.2f} M parameters on {device}, "
        + (f"{count} processes, " if count > 1 else "")
        + f"from step {state.step} to {config.steps}"
    )
    return run, state


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        0 when the training is done or its time is up; 1 when it failed; 2 when what was asked for
        cannot be done; 130 after Ctrl-C.
    """
    # Not by run_command: the exit codes say more, and of several processes one speaks for all.
    started = time.monotonic()
    try:
        processes = distributed.launched()
    except ValueError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    stop = StopRequest(insist=processes.count == 1, tell=processes.is_first)
    with stop, plain_log(PROGRAM):
        return _run(argv, processes, stop, started)


def _run(
    argv: Sequence[str] | None,
    processes: distributed.Processes,
    stop: StopRequest,
    started: float,
) -> int:
    """Read the settings, prepare, train and say how it ended; returns the exit code."""
    try:
        with plain_warnings(PROGRAM):
            config, options = read_command_line(argv)
        if options.stop_after_minutes is not None:
            stop.deadline = started + 60.0 * options.stop_after_minutes
        check_shares(config)
        device = own_device(config.device)
        if config.bf16 and not has_native_bfloat16(device):
            _tell(f"warning: bf16: {NO_INSTRUCTIONS} (--no-bf16); going on as asked")
        if config.source != "scenes":
            _tell(f"opening {config.data}")
        elif config.overfit:
            _tell(f"generating {config.overfit} samples of {config.data} to overfit")
        pool = make_pool(config)
        held_out = make_held_out(config, pool)
    except (ValueError, OSError, ImportError) as error:  # the same in every process
        _tell(f"error: {_one_line(error)}")
        return 2
    except KeyboardInterrupt:  # scenes to overfit are made here, which takes its time
        _tell("stopped before anything was written")
        return INTERRUPTED
    # All batches of a stage have one size, so the search pays; runs on a GPU differ in rounding.
    torch.backends.cudnn.benchmark = True
    state = None
    try:
        with distributed.joined(processes, device):
            run, state = prepare(config, options, device, argv)
            _tell(f"preparing what is measured on: {config.validation_scenes} samples at most")
            with closing(Trainer(config, run, state, pool, held_out, stop)) as trainer:
                trainer.train(stop)
    except NotFiniteError as error:  # every process has seen it
        _tell(f"error: {error}")
        return 1
    except distributed.ProcessLostError as error:
        _tell_of_failure(f"{error}; when its own message is seen to, --resume goes on")
        return 1
    except (ValueError, OSError, torch.OutOfMemoryError, DistError) as error:
        _tell_of_failure(_one_line(error))
        return 2 if state is None else 1
    except StoppedError:
        _tell("the time is up during the preparation: nothing was trained in this call")
        return 0
    except KeyboardInterrupt:
        if not stop.patient:
            _tell("stopped during the preparation: nothing was trained in this call")
            return INTERRUPTED
        where = "" if state is None else f" in step {state.step + 1}"
        _tell(f"stopped{where}; --resume goes on from the last checkpoint")
        return INTERRUPTED
    if not stop.patient:
        _tell("the time is up before the first step: nothing was trained in this call")
        return 0
    if state.step < config.steps:
        _tell(f"stopped after step {state.step}, checkpoint saved; --resume goes on from there")
        _tell(run.describe_models(state))
        return INTERRUPTED if stop.requested else 0
    if processes.is_first and config.is_unlabelled:
        _tell(compare(run.validation))
    _tell(f"done: step {state.step}; {run.describe_models(state)}")
    return 0


def command() -> None:
    """Entry point of flowfuse-train."""
    sys.exit(main())


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        # Without the number. A write to a full disk knows no file name.
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    # What a worker process raises has its traceback in front of the message.
    return (str(error).strip() or repr(error)).splitlines()[-1]


def _tell(message: str) -> None:
    """Say something once, whatever the number of processes."""
    if distributed.launched().is_first:
        print(f"{PROGRAM}: {message}", file=sys.stderr)


def _tell_of_failure(message: str) -> None:
    """Say what ends this process, perhaps no other."""
    processes = distributed.launched()
    where = "" if processes.count == 1 else f" (process {processes.rank + 1} of {processes.count})"
    print(f"{PROGRAM}: error{where}: {message}", file=sys.stderr)


if __name__ == "__main__":
    command()
