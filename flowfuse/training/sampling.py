"""Which sample belongs to which step: a function of (seed, step) alone.

Samples are numbered through a training; a step takes the next B of them (see StepPlan). Sample n is
an item of the pool of scenes, picked by a permutation of the pool that (seed, epoch) fixes, and
varied by draws that (seed, n) fixes. A training resumed at step s therefore sees what an
uninterrupted one sees, with any number of worker processes.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from flowfuse import distributed
from flowfuse.data.augment import AugmentConfig, augment, crop_centre
from flowfuse.data.samples import Sample

# Held-out scenes of every run: same scenes, comparable numbers. No training may use this seed.
VALIDATION_SEED = 2_000_000_011
# Scenes of benchmarks/accuracy.py.
TEST_SEED = 3_000_000_019
# Streams of draws from one seed.
_ORDER, _VARIATION, _ITERATIONS = 1, 2, 3


def iterations_of(seed: int, step: int, usual: int, most: int) -> int:
    """Return how many recurrent updates a step takes: half of the steps any number up to `most`.

    The others take the usual number. The recurrence then has to get better with every update.
    """
    rng = np.random.default_rng([seed, _ITERATIONS, step])
    number = int(rng.integers(1, most + 1))
    return number if rng.random() < 0.5 else usual


@dataclass(frozen=True)
class StepPlan:
    """Number and size of the samples of each step, in an early stage and a final one.

    Args:
        early_steps: steps of the early stage; all later ones are of the final stage.
        crop, batch: (height, width) in px, and samples per step, in the early stage.
        final_crop, final_batch: the same in the final stage.
    """

    early_steps: int
    crop: tuple[int, int]
    batch: int
    final_crop: tuple[int, int]
    final_batch: int

    def sample_indices(self, step: int) -> range:
        """Return the numbers of the samples of a step; steps count from 1, samples from 0."""
        early = min(step - 1, self.early_steps)
        first = early * self.batch + (step - 1 - early) * self.final_batch
        return range(first, first + (self.batch if step <= self.early_steps else self.final_batch))

    def crop_of(self, number: int) -> tuple[int, int]:
        """Return the (height, width) of sample `number`, px."""
        return self.crop if number < self.early_steps * self.batch else self.final_crop


class Pool(Protocol):
    """What a training learns from or is measured on: a data set of known length, or a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class StepSamples(Dataset):
    """Sample number n of a training, n = 0, 1, 2, ... without end.

    Args:
        scenes: the pool: items are samples, a function of their index alone.
        seed: fixes order and variation.
        plan: which sample belongs to which step, and its size.
        variation: how samples are varied; None cuts out the middle, the same each time.
    """

    def __init__(
        self,
        scenes: Pool,
        seed: int,
        plan: StepPlan,
        variation: AugmentConfig | None,
    ) -> None:
        self.scenes = scenes
        self.seed = seed
        self.plan = plan
        self.variation = variation

    def __getitem__(self, number: int) -> Sample:
        sample, crop = self.scenes[self.pool_index(number)], self.plan.crop_of(number)
        if self.variation is None:
            return crop_centre(sample, crop)
        rng = np.random.default_rng([self.seed, _VARIATION, number])
        return augment(sample, rng, self.variation, crop)

    def pool_index(self, number: int) -> int:
        """Return the pool's index of sample `number`: each scene once per epoch, shuffled."""
        epoch, place = divmod(number, len(self.scenes))
        order = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(len(self.scenes))
        return int(order[place])


def batches(
    samples: StepSamples, *, first_step: int, last_step: int, workers: int, pin: bool
) -> Iterator[Sample]:
    """Yield the batches of steps first_step .. last_step (counted from 1), in order.

    Of several processes, each gets its share of every batch.

    Args:
        samples: where sample n comes from.
        first_step, last_step: both included.
        workers: processes that prepare samples; 0 prepares them here. The batches are the same.
        pin: page-locked memory, for a GPU.
    """
    steps, share = range(first_step, last_step + 1), distributed.this().share
    numbers: list[Any] = [share(samples.plan.sample_indices(step)) for step in steps]  # ranges
    loader = DataLoader(
        samples,
        batch_sampler=numbers,
        num_workers=workers,
        collate_fn=Sample.collate,
        pin_memory=pin,
        worker_init_fn=_leave_signals_to_the_parent,
        # A generator of its own: the default would spend a draw of the global one.
        generator=torch.Generator(),
    )
    return iter(loader)


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the parent stops at a step's end and ends us then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
