"""The loop of a training: batches in, steps, what is written and shown."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from tqdm import tqdm

from flowfuse import distributed
from flowfuse.config import config_to_dict
from flowfuse.data.samples import Sample
from flowfuse.io.progress import progress
from flowfuse.losses.self_supervised import self_supervised_loss
from flowfuse.losses.supervised import masked_mean, single_errors, supervised_loss
from flowfuse.model import ModelOutput
from flowfuse.training.finetune import RecordingPairs, RecordingValidator
from flowfuse.training.log import TrainingLog
from flowfuse.training.pools import Pool, validation_samples
from flowfuse.training.sampling import (
    StepSamples,
    batches,
    iterations_of,
)
from flowfuse.training.schedule import learning_rate_at
from flowfuse.training.settings import TrainConfig
from flowfuse.training.state import RunDirectory, TrainingState
from flowfuse.training.stopping import StoppedError, StopRequest
from flowfuse.training.validation import Validator

# Steps from one that runs the network on each modality alone to the next: it takes two forwards.
EVIDENCE_EVERY = 2


class NotFiniteError(RuntimeError):
    """The loss or the gradient is NaN or infinite."""


class Trainer:
    """One run: the state, what feeds it and what watches it.

    Args:
        config: how to train.
        run: where everything is written.
        state: what is trained, at the step to go on from.
        pool: what is trained on; see :func:`flowfuse.training.pools.make_pool`.
        held_out: what is measured on; see :func:`flowfuse.training.pools.make_held_out`.
        stop: asked before every sample that is prepared.

    Raises:
        StoppedError: it is time to stop, in this process or in another.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: RunDirectory,
        state: TrainingState,
        pool: Pool,
        held_out: Pool,
        stop: StopRequest,
    ) -> None:
        self.config = config
        self.run = run
        self.state = state
        self.settings = config_to_dict(config)
        self.device = next(state.model.parameters()).device
        self.network: Callable[..., ModelOutput] = (
            torch.compile(state.model) if config.compile else state.model
        )
        self.validator: RecordingValidator | Validator
        if isinstance(pool, RecordingPairs):
            self.validator = RecordingValidator(pool, config.validation_scenes, self.device)
        else:
            self.validator = Validator(
                _prepare_held_out(config, held_out, stop),
                batch=config.batch,
                device=self.device,
                bf16=config.bf16,
            )
        self.samples = StepSamples(
            pool, config.seed, config.plan(), None if config.overfit else config.augment
        )
        self.is_first = distributed.this().is_first
        self.log = TrainingLog(run.path, state.step, config.tensorboard) if self.is_first else None

    def close(self) -> None:
        """Close the log's files."""
        if self.log is not None:
            self.log.close()

    def train(self, stop: StopRequest) -> None:
        """Train until the last step, or until `stop` says so after a step; then save.

        Args:
            stop: asked after every step; all processes stop when it says so to one of them.

        Raises:
            NotFiniteError: the loss or gradient is NaN or infinite; the batch is saved.
            ProcessLostError: another process has ended, or does not answer.
        """
        config, state = self.config, self.state
        if state.step == 0 and config.init is not None:
            if self.is_first:
                tqdm.write("measuring the model before its first step", file=sys.stderr)
            self._validate()  # what there is to improve on
            if distributed.anywhere(stop()):
                return
        stop.patient = True
        feed = batches(
            self.samples,
            first_step=state.step + 1,
            last_step=config.steps,
            workers=config.workers,
            pin=self.device.type == "cuda",
        )
        with progress(
            total=config.steps, initial=state.step, unit=" steps", disable=not self.is_first
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

    def take_step(self, batch: Sample) -> dict[str, float]:
        """Train on one batch.

        Args:
            batch: collated samples, on the CPU; of several processes, the share of this one.

        Returns:
            loss, its parts, `gradient` (norm before clipping), `learning_rate`, and where there is
            ground truth `epe` (px, at t1) and `epe_zero` (that of zero flow); all of the whole
            batch.

        Raises:
            NotFiniteError: the loss or gradient is NaN or infinite; nothing is changed.
        """
        config, state = self.config, self.state
        step = state.step + 1
        # Whatever the network may draw is a function of (seed, step), as all other draws are.
        torch.manual_seed((config.seed * 2**32 + step) % 2**63)
        moved = batch.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.bf16):
            output = self.network(
                moved.inputs,
                iterations=self._iterations(step),
                flow_init=moved.flow_init,
                grad_through_steps=config.supervision == "self",
            )
        if config.supervision == "ground_truth":
            single = None
            if state.model.config.weighs_evidence and step % EVIDENCE_EVERY == 0:
                single = single_errors(state.average, moved)
            loss, parts = supervised_loss(output, moved, config.loss, single)
        else:
            loss, parts = self_supervised_loss(output, moved, config.self_loss)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        distributed.sum_gradients(state.model.parameters())
        gradient = nn.utils.clip_grad_norm_(state.model.parameters(), config.clip)
        if moved.flow is not None:
            motion = moved.flow[:, -1].norm(dim=1)
            parts["epe_zero"] = masked_mean(motion, moved.valid[:, -1])
        shares = distributed.total(torch.stack([loss.detach(), *parts.values()]))
        # One transfer for all numbers: each one costs a synchronization on a GPU.
        numbers = torch.cat((shares, gradient[None])).tolist()
        values = dict(zip(["loss", *parts, "gradient"], numbers, strict=True))
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

    def _iterations(self, step: int) -> int | None:
        """Recurrent updates of a step, a function of (seed, step); None: the model's own number."""
        config = self.config
        if config.max_iterations is None:
            return config.iterations
        usual = config.iterations or self.state.model.config.iterations
        return iterations_of(config.seed, step, usual, config.max_iterations)

    def _record(self, values: dict[str, float], bar: tqdm) -> None:
        """Add a step's numbers to those that the log averages, and write them when it is time."""
        state = self.state
        for name, value in values.items():
            state.sums[name] = state.sums.get(name, 0.0) + value
        state.summed += 1
        means = {name: total / state.summed for name, total in state.sums.items()}
        error = ""
        if "epe" in means:
            means["epe_ratio"] = means["epe"] / max(means["epe_zero"], 1e-9)
            error = f", EPE {means['epe']:.2f} px ({means['epe_ratio']:.2f} of zero flow)"
        bar.set_postfix_str(
            f"loss {means['loss']:.3f}{error}, lr {values['learning_rate']:.1e}", refresh=False
        )
        if state.step % self.config.log_every == 0 or state.step == self.config.steps:
            assert self.log is not None, "the first process has it"
            self.log.log_training(state.step, means)
            state.sums, state.summed = {}, 0

    def _validate(self) -> bool:
        """Measure and draw the averaged model; tell whether it is the best so far."""
        state, criterion = self.state, self.validator.criterion
        values = self.validator.measure(state.average)
        if self.log is not None:  # the first process
            self.log.log_validation(state.step, values)
            self.run.pictures.mkdir(exist_ok=True)
            self.validator.draw(state.average, self.run.pictures / f"step_{state.step:08d}.png")
            numbers = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
            tqdm.write(f"step {state.step}: held out: {numbers}", file=sys.stderr)
        best = values[criterion] < state.best.get(criterion, math.inf)
        if best:
            state.best = {"step": state.step, criterion: values[criterion]}
            if self.is_first:
                self.run.save_best(state, self.settings)
        return best

    def _save_bad_batch(self, batch: Sample, step: int) -> None:
        """Save the whole batch, of which each process has its share."""
        shares = distributed.gathered(batch)
        if self.is_first:
            tensors = [share.tensors() for share in shares]
            whole = {name: torch.cat([share[name] for share in tensors]) for name in tensors[0]}
            self.run.save_bad_batch(whole, step, self.settings)

    def _last_checkpoint(self) -> str:
        saved = self.run.checkpoints()
        return f"the last checkpoint is {saved[-1]}" if saved else "there was no checkpoint yet"


class _Watched:
    """A pool that tells how many of its samples were made, and stops when it is time."""

    def __init__(self, pool: Pool, stop: StopRequest, bar: tqdm) -> None:
        self._pool, self._stop, self._bar = pool, stop, bar

    def __len__(self) -> int:
        return len(self._pool)

    def __getitem__(self, index: int) -> Sample:
        self._stop.check()
        sample = self._pool[index]
        self._bar.update()
        return sample


def _prepare_held_out(config: TrainConfig, held_out: Pool, stop: StopRequest) -> list[Sample]:
    """Make the samples to measure on, unless it is time to stop in any process."""
    stopped, samples = False, []
    with progress(
        desc="held-out samples: ", unit=" made", disable=not distributed.this().is_first
    ) as bar:
        try:
            samples = validation_samples(config, _Watched(held_out, stop, bar))
        except StoppedError:
            stopped = True
    if distributed.anywhere(stopped):  # the others would wait for this one
        raise StoppedError
    return samples
