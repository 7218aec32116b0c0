"""What a training is: one frozen dataclass, saved with every checkpoint."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Literal

from flowfuse.data.augment import AugmentConfig
from flowfuse.losses.self_supervised import SelfSupervisionConfig
from flowfuse.losses.supervised import LossConfig
from flowfuse.model import CONFIGS, ModelConfig
from flowfuse.model.flowfuse import MINIMUM_SIZE
from flowfuse.training.data_spec import parse_data, split_paths
from flowfuse.training.sampling import (
    TEST_SEED,
    VALIDATION_SEED,
    StepPlan,
)

MAX_SEED = 2**63 - 1  # of torch.manual_seed, among those that are not negative


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Args:
        model: architecture.
        supervision: "ground_truth" (formerly "truth"), or "self": from frames and events alone.
        loss: weights of the supervised losses.
        self_loss: weights of the self-supervised losses.
        augment: how samples are varied.
        data: what to train on: generated scenes (scenes:PRESET, or a mixture,
            scenes:fast=2,blur=1), a data set (dsec:ROOT, mvsec:PATH), or recordings with ground
            truth, or folders of them (recording:PATH,PATH); for supervision = self one recording.
        held_out: share of the recordings that is measured on: of the pairs of each, the last ones.
        held_out_by: "time", or "recording": the last of the recordings, whole.
        scenes: size of the pool of generated scenes.
        scene_size: height and width of the scenes, px.
        crop: height and width of what the network sees, px.
        textures: directory of photographs that half of the scenes' textures are taken from; every
            fifth by name is left for tests; null: generated textures alone.
        cache: directory that keeps generated scenes from run to run.
        init: checkpoint whose weights the training starts from: a shipped name, a file, or the
            directory of a run; a resumed run goes on from its own.
        seed: fixes the first weights, the scenes, their order and every variation.
        steps: length of the training; the learning rate falls to zero over it.
        batch: samples per step.
        final_share: share of the steps, at the end, that take final_crop and final_batch.
        final_crop: height and width of what the network sees in these steps, px; crop by default.
        final_batch: samples per step in these steps; batch by default.
        iterations: recurrent updates in training; the model's own number by default.
        max_iterations: half of the steps take a random number of updates, from 1 to this; null: all
            steps take `iterations`.
        learning_rate: highest learning rate (AdamW; linear warm-up, then half a cosine).
        warmup: share of the steps in which the learning rate rises.
        evidence_rate: learning rate of the evidence head over that of the rest. The head is small,
            taught at every second step only, and new where the given weights have none.
        weight_decay: of the weights with more than one axis.
        clip: largest norm of the gradient.
        ema: decay of the moving average of the weights; with `init`, the average of n steps keeps a
            share of ema ** n of the weights that it started from.
        bf16: compute in bfloat16 where autocast does; the weights stay float32. Slower than float32
            on a CPU without bfloat16 instructions, which is told but obeyed.
        channels_last: memory layout of the weights on a GPU; not used on a CPU, where it is slower.
        compile: compile the model with torch.compile.
        device: auto, cpu, cuda or cuda:N.
        scene_device: where scenes are rendered: cpu, cuda or cuda:N (with workers = 0), or auto.
        workers: processes that prepare samples; the result does not depend on it.
        log_every: steps between two lines of log.csv.
        validate_every: steps between two validations.
        validation_scenes: held-out scenes to validate on; of a recording, frame pairs at most.
        checkpoint_every: steps between two checkpoints.
        keep: how many of the newest checkpoints to keep; the best one stays too.
        tensorboard: write TensorBoard event files where TensorBoard is installed.
        overfit: train on this many fixed scenes without variation, and validate on them; 0 = no.
    """

    model: ModelConfig = CONFIGS["small"]
    supervision: Literal["ground_truth", "self", "truth"] = "ground_truth"
    loss: LossConfig = field(default_factory=LossConfig)
    self_loss: SelfSupervisionConfig = field(default_factory=SelfSupervisionConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    data: str = "scenes:slow=1,fast=3,blur=1,dark=1,mixed=1"
    held_out: float = 0.2
    held_out_by: Literal["time", "recording"] = "time"
    scenes: int = 2000
    scene_size: tuple[int, int] = (160, 192)
    crop: tuple[int, int] = (128, 160)
    textures: str | None = None
    cache: str | None = None
    init: str | None = None
    seed: int = 0
    steps: int = 20000
    batch: int = 4
    final_share: float = 0.0
    final_crop: tuple[int, int] | None = None
    final_batch: int | None = None
    iterations: int | None = None
    max_iterations: int | None = None
    learning_rate: float = 4e-4
    warmup: float = 0.05
    evidence_rate: float = 8.0
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.999
    bf16: bool = False
    channels_last: bool = True
    compile: bool = False
    device: str = "auto"
    scene_device: str = "cpu"
    workers: int = 0
    log_every: int = 50
    validate_every: int = 1000
    validation_scenes: int = 16
    checkpoint_every: int = 500
    keep: int = 3
    tensorboard: bool = True
    overfit: int = 0

    def __post_init__(self) -> None:
        if self.supervision == "truth":  # for one release
            warnings.warn("supervision truth is now called ground_truth", FutureWarning, 3)
            object.__setattr__(self, "supervision", "ground_truth")
        for name, lowest in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and not value >= lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {value}")
        for name in ("learning_rate", "evidence_rate", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        for name in ("warmup", "ema", "final_share", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.seed > MAX_SEED:
            raise ValueError(f"seed must be at most {MAX_SEED}, got {self.seed}")
        if self.seed in (VALIDATION_SEED, TEST_SEED):
            raise ValueError(f"seed {self.seed} is kept for the held-out scenes")
        parse_data(self.data)
        for name in ("crop", "final_crop"):
            self._check_crop(name)
        if self.final_share > 0 and self.overfit:
            raise ValueError(
                f"overfit trains in one stage: final_share must be 0, got {self.final_share}"
            )
        if self.final_share > 0 and self.final_crop is None and self.final_batch is None:
            raise ValueError(
                f"final_share {self.final_share} needs final_crop, final_batch or both: "
                "what is to change in the last steps"
            )
        if self.workers > 0 and self.scene_device not in ("cpu", "auto"):
            raise ValueError(
                f"scene_device {self.scene_device} needs workers = 0, got {self.workers}: "
                "a forked process cannot use the GPU"
            )
        if self.is_unlabelled and self.augment.warm_start > 0:
            raise ValueError(
                "augment.warm_start starts from ground truth, which supervision = self has not; "
                f"it must be 0, got {self.augment.warm_start}"
            )
        if self.is_unlabelled and (self.overfit or len(split_paths(parse_data(self.data)[1])) > 1):
            raise ValueError(
                f"data {self.data}: supervision = self learns from one recording, with overfit = 0"
            )

    @property
    def is_unlabelled(self) -> bool:
        """Whether a recording is learned from without ground truth."""
        return self.source == "recording" and self.supervision == "self"

    @property
    def source(self) -> str:
        """The kind of the data, see :func:`flowfuse.training.data_spec.parse_data`."""
        return parse_data(self.data)[0]

    def plan(self) -> StepPlan:
        """Say which samples make which step."""
        return StepPlan(
            early_steps=self.steps - round(self.final_share * self.steps),
            crop=self.crop,
            batch=self.batch,
            final_crop=self.final_crop or self.crop,
            final_batch=self.final_batch or self.batch,
        )

    def _check_crop(self, name: str) -> None:
        crop = getattr(self, name)
        if crop is None:
            return
        if min(crop) < MINIMUM_SIZE:
            raise ValueError(
                f"{name} must be at least {MINIMUM_SIZE} x {MINIMUM_SIZE} px, got {crop}"
            )
        if self.source != "scenes":  # its size is not known yet
            return
        if any(c > s for c, s in zip(crop, self.scene_size, strict=True)):
            raise ValueError(f"{name} {crop} must not be larger than scene_size {self.scene_size}")


_LOWEST = {
    "scenes": 1,
    "seed": 0,
    "steps": 1,
    "batch": 1,
    "final_batch": 1,
    "iterations": 1,
    "max_iterations": 1,
    "weight_decay": 0,
    "workers": 0,
    "log_every": 1,
    "validate_every": 1,
    "validation_scenes": 1,
    "checkpoint_every": 1,
    "keep": 1,
    "overfit": 0,
}
