"""What a training learns from and is measured on.

scenes:fast, scenes:fast=2,blur=1    generated scenes of a preset, or a mixture with weights
recording:PATH,PATH                  recordings with ground truth, or folders of them; for
                                     self-supervision one, without
dsec:ROOT, mvsec:PATH, ...           a data set with ground truth, which knows its own split
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flowfuse import distributed
from flowfuse.data.augment import crop_centre
from flowfuse.data.datasets.base import SampleSet, Split
from flowfuse.data.labelled import LabelledRecordings
from flowfuse.data.samples import Sample
from flowfuse.data.synthetic.dataset import SceneDataset
from flowfuse.inputs import InputSpec
from flowfuse.training.data_spec import find_labelled, parse_data, scene_weights, split_paths
from flowfuse.training.devices import scene_device
from flowfuse.training.finetune import RecordingPairs
from flowfuse.training.sampling import VALIDATION_SEED, Pool
from flowfuse.training.settings import TrainConfig


def make_pool(config: TrainConfig) -> Pool:
    """Make what a configuration trains on.

    Raises:
        FileNotFoundError: there is no such recording, or no sequence with ground truth.
        ValueError: it cannot be learned from, or is smaller than the crops.
    """
    kind, rest = parse_data(config.data)
    pool: Pool
    if kind == "scenes":
        pool = make_scenes(config, config.seed, config.overfit or config.scenes)
    elif config.is_unlabelled:
        pool = pairs = RecordingPairs(
            Path(rest), config.held_out, config.model.slices, config.model.bins
        )
        _check_crops(config, (pairs.recording.height, pairs.recording.width))
    else:
        pool = labelled = open_labelled(config, "train")
        _check_crops(config, labelled.size)
    if config.overfit > len(pool):
        raise ValueError(f"overfit {config.overfit}: {config.data} has {len(pool)} samples")
    return [pool[i] for i in range(config.overfit)] if config.overfit else pool


def make_held_out(config: TrainConfig, pool: Pool) -> Pool:
    """Make what a configuration measures on; a recording without ground truth holds it out itself.

    Args:
        config: how many, and of what kind.
        pool: what is trained on, which `overfit` measures on.

    Raises:
        FileNotFoundError, ValueError: as `make_pool`.
    """
    kind, _ = parse_data(config.data)
    if config.overfit:
        return [crop_centre(pool[i], config.crop) for i in range(len(pool))]
    if kind == "scenes":
        return make_scenes(config, VALIDATION_SEED, config.validation_scenes)
    return pool if config.is_unlabelled else open_labelled(config, "validation")


def validation_samples(config: TrainConfig, held_out: Pool) -> list[Sample]:
    """Pick the samples to measure on, evenly spaced; of several processes, each has its own."""
    count = len(held_out) if config.overfit else min(config.validation_scenes, len(held_out))
    chosen = np.linspace(0, len(held_out) - 1, count).astype(int)
    processes = distributed.this()
    return [held_out[int(i)] for i in chosen[processes.rank :: processes.count]]


def make_scenes(config: TrainConfig, seed: int, count: int) -> SceneDataset:
    """Make the generated scenes that a configuration asks for."""
    height, width = config.crop if config.overfit else config.scene_size
    return SceneDataset(
        scene_weights(parse_data(config.data)[1]),
        seed=seed,
        count=count,
        height=height,
        width=width,
        slices=config.model.slices,
        bins=config.model.bins,
        cache=None if config.cache is None else Path(config.cache),
        textures=None if config.textures is None else Path(config.textures),
        device=scene_device(config),
    )


def open_labelled(config: TrainConfig, split: Split) -> SampleSet:
    """Open the samples with ground truth that a configuration asks for."""
    kind, rest = parse_data(config.data)
    spec = InputSpec(config.model.slices, config.model.bins)
    if kind == "recording":
        paths = split_paths(rest)
        return LabelledRecordings(paths, split, config.held_out, config.held_out_by, spec)
    return find_labelled(kind).training_samples(Path(rest), split, spec)


def _check_crops(config: TrainConfig, size: tuple[int, int]) -> None:
    """Check that the crops fit into the images of a recording; those of scenes are asked for."""
    plan = config.plan()
    for name, crop in (("crop", plan.crop), ("final_crop", plan.final_crop)):
        if any(c > s for c, s in zip(crop, size, strict=True)):
            raise ValueError(
                f"{name} {crop} must not be larger than the frames of {config.data}, {size}"
            )
