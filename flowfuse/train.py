"""flowfuse-train: train a model on generated scenes.

    flowfuse-train --model small --data scenes:fast --steps 20000 -o runs/small
    flowfuse-train --config recipe.yaml --learning-rate 2e-4 -o runs/mine
    flowfuse-train -o runs/mine --resume
    torchrun --nproc-per-node 4 -m flowfuse.train --config small -o runs/small

A run directory holds config.yaml (the resolved configuration), checkpoints/, model.safetensors
(the averaged weights, for flowfuse-infer), log.csv, validation.csv, pictures/ and tensorboard/.
Resuming is exact: on the CPU, with the same number of threads, the weights have the same bits as
those of an uninterrupted training. Processes that torchrun starts share every batch: each draws and
measures its part of the samples, the first one writes and prints.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from flowfuse import distributed
from flowfuse.checkpoint import resolve_checkpoint
from flowfuse.config import changed_keys, config_to_dict, write_yaml
from flowfuse.data.dataset import SceneDataset
from flowfuse.data.transforms import Sample, crop_centre, with_present
from flowfuse.estimator import select_device
from flowfuse.losses import masked_mean, supervised_loss
from flowfuse.self_supervision import self_supervised_loss
from flowfuse.training.log import TrainingLog
from flowfuse.training.samples import (
    VALIDATION_SEED,
    StepSamples,
    batches,
    model_inputs,
    parse_data,
)
from flowfuse.training.settings import PROGRAM, RunOptions, TrainConfig, read_command_line
from flowfuse.training.state import (
    RunDirectory,
    TrainingState,
    count_parameters,
    learning_rate_at,
)
from flowfuse.training.stopping import StopRequest
from flowfuse.training.validation import Validator

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it


class NotFiniteError(RuntimeError):
    """The loss or the gradient is NaN or infinite."""


class Trainer:
    """One run: the state, what feeds it and what watches it.

    Args:
        config: how to train.
        run: where everything is written.
        state: what is trained, at the step to go on from.
    """

    def __init__(self, config: TrainConfig, run: RunDirectory, state: TrainingState) -> None:
        self.config = config
        self.run = run
        self.state = state
        self.settings = config_to_dict(config)
        self.device = next(state.model.parameters()).device
        self.network: nn.Module = torch.compile(state.model) if config.compile else state.model
        self.samples = StepSamples(
            make_scenes(config, config.seed, config.overfit or config.scenes),
            config.seed,
            config.plan(),
            None if config.overfit else config.augment,
        )
        self.validator = Validator(
            self._validation_samples(), batch=config.batch, device=self.device, bf16=config.bf16
        )
        self.is_first = distributed.this().is_first
        self.log = TrainingLog(run.path, state.step, config.tensorboard) if self.is_first else None

    def close(self) -> None:
        """Close the log's files."""
        if self.log is not None:
            self.log.close()

    def train(self, stop: Callable[[], bool]) -> None:
        """Train until the last step, or until `stop` says so after a step; then save.

        Args:
            stop: asked after every step; all processes stop when it says so to one of them.

        Raises:
            NotFiniteError: the loss or gradient is NaN or infinite; the batch is saved.
            ProcessLostError: another process has ended, or does not answer.
        """
        config, state = self.config, self.state
        feed = batches(
            self.samples,
            first_step=state.step + 1,
            last_step=config.steps,
            workers=config.workers,
            pin=self.device.type == "cuda",
        )
        with tqdm(
            total=config.steps,
            initial=state.step,
            unit="step",
            dynamic_ncols=True,
            disable=not self.is_first,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,  # a file needs no animation
        ) as bar:
            while state.step < config.steps:
                start = time.monotonic()
                values = self.take_step(next(feed))
                values["seconds_per_step"] = time.monotonic() - start
                state.seconds += values["seconds_per_step"]
                bar.update()
                if self.is_first:
                    self._record(values, bar)
                stopping = distributed.anywhere(stop())
                last = state.step == config.steps
                best = (last or state.step % config.validate_every == 0) and self._validate()
                due = last or best or stopping or state.step % config.checkpoint_every == 0
                if due and self.is_first:
                    self.run.save(state, self.settings, config.keep)
                if stopping:
                    return

    def take_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Train on one batch.

        Args:
            batch: collated samples, on the CPU; of several processes, the share of this one.

        Returns:
            loss, its parts (with `epe`, px, at t1), `gradient` (norm before clipping), `epe_zero`
            (EPE of zero flow) and `learning_rate`; all of the whole batch.

        Raises:
            NotFiniteError: the loss or gradient is NaN or infinite; nothing is changed.
        """
        config, state = self.config, self.state
        step = state.step + 1
        # Whatever the network may draw is a function of (seed, step), as all other draws are.
        torch.manual_seed((config.seed * 2**32 + step) % 2**63)
        moved = {name: t.to(self.device, non_blocking=True) for name, t in batch.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.bf16):
            output = self.network(model_inputs(moved), iterations=config.iterations)
        if config.supervision == "truth":
            loss, parts = supervised_loss(output, moved, config.loss)
        else:
            loss, parts = self_supervised_loss(output, moved, config.self_loss)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        distributed.sum_gradients(state.model.parameters())
        gradient = nn.utils.clip_grad_norm_(state.model.parameters(), config.clip)
        # One transfer for all numbers: each one costs a synchronization on a GPU.
        epe_zero = masked_mean(moved["flow"][:, -1].norm(dim=1), moved["valid"][:, -1])
        shares = distributed.total(torch.stack([loss.detach(), *parts.values(), epe_zero]))
        numbers = torch.cat((shares[:-1], gradient[None], shares[-1:])).tolist()
        values = dict(zip(["loss", *parts, "gradient", "epe_zero"], numbers, strict=True))
        if not (math.isfinite(values["loss"]) and math.isfinite(values["gradient"])):
            self._save_bad_batch(batch, step)
            raise NotFiniteError(
                f"step {step}: the loss is {values['loss']:g} and the gradient's norm "
                f"{values['gradient']:g}; the batch is in {self.run.nan_batch}; "
                f"{self._last_checkpoint()}"
            )
        rate = learning_rate_at(step, config.steps, config.learning_rate, config.warmup)
        state.apply_gradients(rate)
        values["learning_rate"] = rate
        return values

    def _record(self, values: dict[str, float], bar: tqdm) -> None:
        """Add a step's numbers to those that the log averages, and write them when it is time."""
        state = self.state
        for name, value in values.items():
            state.sums[name] = state.sums.get(name, 0.0) + value
        state.summed += 1
        means = {name: total / state.summed for name, total in state.sums.items()}
        means["epe_ratio"] = means["epe"] / max(means["epe_zero"], 1e-9)
        bar.set_postfix_str(
            f"loss {means['loss']:.3f}, EPE {means['epe']:.2f} px "
            f"({means['epe_ratio']:.2f} of zero flow), lr {values['learning_rate']:.1e}",
            refresh=False,
        )
        if state.step % self.config.log_every == 0 or state.step == self.config.steps:
            self.log.log_training(state.step, means)
            state.sums, state.summed = {}, 0

    def _validate(self) -> bool:
        """Measure and draw the averaged model; tell whether it is the best so far."""
        state = self.state
        values = self.validator.measure(state.average)
        if self.is_first:
            self.log.log_validation(state.step, values)
            self.run.pictures.mkdir(exist_ok=True)
            self.validator.draw(state.average, self.run.pictures / f"step_{state.step:08d}.png")
            numbers = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
            tqdm.write(f"step {state.step}: held-out scenes: {numbers}", file=sys.stderr)
        best = not state.best or values["epe"] < state.best["epe"]
        if best:
            state.best = {"step": state.step, "epe": values["epe"]}
        return best

    def _validation_samples(self) -> list[dict[str, Tensor]]:
        """Of several processes, each has its own."""
        processes = distributed.this()
        count = self.config.overfit or self.config.validation_scenes
        pool = range(count)[processes.rank :: processes.count]
        if self.config.overfit:
            return [crop_centre(self.samples.scenes[i], self.config.crop) for i in pool]
        scenes = make_scenes(self.config, VALIDATION_SEED, count)
        return [with_present(scenes[i]) for i in pool]

    def _save_bad_batch(self, batch: dict[str, Tensor], step: int) -> None:
        """Save the whole batch, of which each process has its share."""
        shares = distributed.gathered(batch)
        if self.is_first:
            whole = {name: torch.cat([share[name] for share in shares]) for name in batch}
            self.run.save_bad_batch(whole, step, self.settings)

    def _last_checkpoint(self) -> str:
        saved = self.run.checkpoints()
        return f"the last checkpoint is {saved[-1]}" if saved else "there was no checkpoint yet"


def scene_device(config: TrainConfig) -> torch.device:
    """Where scenes are rendered; worker processes, which are forked, cannot use a GPU."""
    forked = config.workers > 0 and config.scene_device == "auto"
    return own_device("cpu" if forked else config.scene_device)


def make_scenes(config: TrainConfig, seed: int, count: int) -> Dataset | list[Sample]:
    """Make the pool of scenes that a configuration asks for; those of `overfit` in memory."""
    height, width = config.crop if config.overfit else config.scene_size
    scenes = SceneDataset(
        parse_data(config.data),
        seed=seed,
        count=count,
        height=height,
        width=width,
        slices=config.model.slices,
        bins=config.model.bins,
        cache=None if config.cache is None else Path(config.cache),
        device=scene_device(config),
    )
    return [scenes[i] for i in range(count)] if config.overfit else scenes


def own_device(name: str) -> torch.device:
    """Check that this process can use a device; of several, each takes the GPU of its number.

    Raises:
        ValueError: there is no such device, or one GPU is named for several processes.
    """
    device, processes = select_device(name), distributed.launched()
    if processes.count == 1 or device.type == "cpu":
        return device
    if device.index is not None:
        raise ValueError(
            f"device '{name}' is one GPU, and {processes.count} processes take one each: "
            "use device 'cuda'"
        )
    return select_device(f"cuda:{processes.local_rank}")


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
    config: TrainConfig, options: RunOptions, device: torch.device
) -> tuple[RunDirectory, TrainingState]:
    """Open the run's directory, new or resumed, and make the state to go on from.

    Raises:
        ValueError: the directory already has a training; or it is of another model, or longer.
        OSError: the directory cannot be written.
    """
    run, first = RunDirectory(options.output), distributed.this().is_first
    saved = distributed.from_first(run.checkpoints())
    if saved and not options.resume:
        raise ValueError(
            f"{options.output} already holds a training, up to {saved[-1].name}: "
            "add --resume to go on with it, or choose another -o"
        )
    state = TrainingState(
        config.model,
        device,
        seed=config.seed,
        weight_decay=config.weight_decay,
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
        for key, (old, new) in changed_keys(settings, config_to_dict(config)).items():
            _tell(f"changed since then: {key} = {new} (was {old})")
    elif options.resume:
        _tell(f"{options.output} has no checkpoint yet: starting from the beginning")
    if first:
        write_yaml(run.config, config)
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
    started = time.monotonic()
    try:
        processes = distributed.launched()
    except ValueError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    try:
        config, options = read_command_line(argv)
        check_shares(config)
        device = own_device(config.device)
        scene_device(config)
    except (ValueError, OSError) as error:  # the same in every process
        _tell(f"error: {_one_line(error)}")
        return 2
    # All batches of a stage have one size, so the search pays; runs on a GPU differ in rounding.
    torch.backends.cudnn.benchmark = True
    minutes, state = options.stop_after_minutes, None
    deadline = None if minutes is None else started + 60.0 * minutes
    try:
        with (
            distributed.joined(processes, device),
            StopRequest(deadline, insist=processes.count == 1) as stop,
        ):
            run, state = prepare(config, options, device)
            with closing(Trainer(config, run, state)) as trainer:
                trainer.train(stop)
    except NotFiniteError as error:  # every process has seen it
        _tell(f"error: {error}")
        return 1
    except distributed.ProcessLostError as error:
        _tell_of_failure(f"{error}; when its own message is seen to, --resume goes on")
        return 1
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        _tell_of_failure(_one_line(error))
        return 2 if state is None else 1
    except KeyboardInterrupt:
        where = "" if state is None else f" in step {state.step + 1}"
        _tell(f"stopped{where}; --resume goes on from the last checkpoint")
        return INTERRUPTED
    if state.step < config.steps:
        _tell(f"stopped after step {state.step}, checkpoint saved; --resume goes on from there")
        return INTERRUPTED if stop.requested else 0
    _tell(f"done: step {state.step}; the model is {run.model}")
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
