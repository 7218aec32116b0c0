"""flowfuse-train: train a model on generated scenes.

    flowfuse-train --model small --data scenes:fast --steps 20000 -o runs/small
    flowfuse-train --config recipe.yaml --learning-rate 2e-4 -o runs/mine
    flowfuse-train -o runs/mine --resume

A run directory holds config.yaml (the resolved configuration), checkpoints/, model.safetensors
(the averaged weights, for flowfuse-infer), log.csv, validation.csv, pictures/ and tensorboard/.
Resuming is exact: on the CPU, with the same number of threads, the weights have the same bits as
those of an uninterrupted training.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

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
from flowfuse.training.validation import Validator

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it


class NotFiniteError(RuntimeError):
    """The loss or the gradient is NaN or infinite."""


class StopRequest:
    """Turns the first Ctrl-C (or SIGTERM) into a flag; the second one interrupts at once.

    Attributes:
        requested: whether to stop at the next good moment.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


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
        self.log = TrainingLog(run.path, state.step, config.tensorboard)

    def train(self, stop: Callable[[], bool]) -> None:
        """Train until the last step, or until `stop` says so after a step; then save.

        Raises:
            NotFiniteError: the loss or gradient is NaN or infinite; the batch is saved.
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
            mininterval=0.5 if sys.stderr.isatty() else 30.0,  # a file needs no animation
        ) as bar:
            while state.step < config.steps:
                start = time.monotonic()
                values = self.take_step(next(feed))
                values["seconds_per_step"] = time.monotonic() - start
                state.seconds += values["seconds_per_step"]
                bar.update()
                self._record(values, bar)
                stopping = stop()
                last = state.step == config.steps
                best = (last or state.step % config.validate_every == 0) and self._validate()
                if last or best or stopping or state.step % config.checkpoint_every == 0:
                    self.run.save(state, self.settings, config.keep)
                if stopping:
                    return

    def take_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Train on one batch.

        Args:
            batch: collated samples, on the CPU.

        Returns:
            loss, its parts (with `epe`, px, at t1), `gradient` (norm before clipping), `epe_zero`
            (EPE of zero flow) and `learning_rate`.

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
        gradient = nn.utils.clip_grad_norm_(state.model.parameters(), config.clip)
        # One transfer for all numbers: each one costs a synchronization on a GPU.
        names = ["loss", *parts, "gradient"]
        numbers = torch.stack([loss.detach(), *parts.values(), gradient]).tolist()
        values = dict(zip(names, numbers, strict=True))
        if not (math.isfinite(values["loss"]) and math.isfinite(values["gradient"])):
            self.run.save_bad_batch(batch, step, self.settings)
            raise NotFiniteError(
                f"step {step}: the loss is {values['loss']:g} and the gradient's norm "
                f"{values['gradient']:g}; the batch is in {self.run.nan_batch}; "
                f"{self._last_checkpoint()}"
            )
        rate = learning_rate_at(step, config.steps, config.learning_rate, config.warmup)
        state.apply_gradients(rate)
        motion = batch["flow"][:, -1].norm(dim=1)
        values["epe_zero"] = masked_mean(motion, batch["valid"][:, -1]).item()
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
        if self.config.overfit:
            pool = range(self.config.overfit)
            return [crop_centre(self.samples.scenes[i], self.config.crop) for i in pool]
        scenes = make_scenes(self.config, VALIDATION_SEED, self.config.validation_scenes)
        return [with_present(scenes[i]) for i in range(self.config.validation_scenes)]

    def _last_checkpoint(self) -> str:
        saved = self.run.checkpoints()
        return f"the last checkpoint is {saved[-1]}" if saved else "there was no checkpoint yet"


def scene_device(config: TrainConfig) -> torch.device:
    """Where scenes are rendered; worker processes, which are forked, cannot use a GPU."""
    forked = config.workers > 0 and config.scene_device == "auto"
    return select_device("cpu" if forked else config.scene_device)


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


def prepare(config: TrainConfig, options: RunOptions) -> tuple[RunDirectory, TrainingState]:
    """Open the run's directory, new or resumed, and make the state to go on from.

    Raises:
        ValueError: the directory already has a training; or it is of another model, or longer.
        OSError: the directory cannot be written.
    """
    run = RunDirectory(options.output)
    saved = run.checkpoints()
    if saved and not options.resume:
        raise ValueError(
            f"{options.output} already holds a training, up to {saved[-1].name}: "
            "add --resume to go on with it, or choose another -o"
        )
    device = select_device(config.device)
    scene_device(config)
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
    run.create()
    if saved:
        path, settings = run.restore_newest(state)
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
    write_yaml(run.config, config)
    _tell(
        f"{config.model.name}: {count_parameters(state.model) / 1e6:.2f} M parameters on {device}, "
        f"from step {state.step} to {config.steps}"
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
        config, options = read_command_line(argv)
        run, state = prepare(config, options)
    except (ValueError, OSError) as error:
        _tell(f"error: {_one_line(error)}")
        return 2
    # All batches have one size, so the search pays; it makes runs on a GPU differ in rounding.
    torch.backends.cudnn.benchmark = True
    minutes = options.stop_after_minutes
    try:
        with StopRequest() as request:
            trainer = Trainer(config, run, state)

            def stop() -> bool:
                late = minutes is not None and time.monotonic() - started > 60.0 * minutes
                return request.requested or late

            try:
                trainer.train(stop)
            finally:
                trainer.log.close()
    except (NotFiniteError, ValueError, OSError, torch.OutOfMemoryError) as error:
        _tell(f"error: {_one_line(error)}")
        return 1
    except KeyboardInterrupt:
        _tell(f"stopped in step {state.step + 1}; --resume goes on from the last checkpoint")
        return INTERRUPTED
    if state.step < config.steps:
        _tell(f"stopped after step {state.step}, checkpoint saved; --resume goes on from there")
        return INTERRUPTED if request.requested else 0
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
    print(f"{PROGRAM}: {message}", file=sys.stderr)


if __name__ == "__main__":
    command()
