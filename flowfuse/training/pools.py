"""What a training learns from and is measured on.

scenes:fast, scenes:fast=2,blur=1    generated scenes of a preset, or a mixture with weights
recording:PATH                       a recording without ground truth, for self-supervision
dsec:ROOT                            the sequences of DSEC with ground truth, split by sequence
mvsec:PATH                           a sequence of MVSEC, or a directory of some
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from flowfuse import distributed
from flowfuse.data.augment import crop_centre
from flowfuse.data.datasets.dsec.dataset import DsecDataset
from flowfuse.data.datasets.mvsec.dataset import MvsecDataset
from flowfuse.data.datasets.mvsec.recording import DATA_SUFFIX, open_mvsec
from flowfuse.data.samples import Sample
from flowfuse.data.synthetic.dataset import SceneDataset
from flowfuse.training.data_spec import parse_data, scene_weights
from flowfuse.training.devices import scene_device
from flowfuse.training.finetune import RecordingPairs
from flowfuse.training.sampling import VALIDATION_SEED, Pool
from flowfuse.training.settings import TrainConfig

MVSEC_HELD_OUT = 0.1  # of every sequence's pairs, at its end: MVSEC has no split of its own


def make_pool(config: TrainConfig) -> Pool:
    """Make what a configuration trains on.

    Raises:
        FileNotFoundError: there is no such recording, or no sequence with ground truth.
        ValueError: it cannot be learned from, or is smaller than the crops.
    """
    kind, rest = parse_data(config.data)
    slicing = config.model.slices, config.model.bins
    pool: Pool
    if kind == "scenes":
        pool = make_scenes(config, config.seed, config.overfit or config.scenes)
    elif kind == "recording":
        pool = pairs = RecordingPairs(Path(rest), config.held_out, *slicing)
        _check_crops(config, (pairs.recording.height, pairs.recording.width))
    elif kind == "dsec":
        pool = dsec = DsecDataset(rest, "train", *slicing)
        _check_crops(config, (dsec.sequences[0].height, dsec.sequences[0].width))
    else:
        parts = mvsec_sequences(Path(rest), *slicing, held_out=False)
        pool = ConcatDataset(parts)
        first = parts[0].dataset
        assert isinstance(first, MvsecDataset)
        _check_crops(config, (first.recording.height, first.recording.width))
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
    kind, rest = parse_data(config.data)
    slicing = config.model.slices, config.model.bins
    if config.overfit:
        return [crop_centre(pool[i], config.crop) for i in range(len(pool))]
    if kind == "scenes":
        return make_scenes(config, VALIDATION_SEED, config.validation_scenes)
    if kind == "dsec":
        return DsecDataset(rest, "validation", *slicing)
    if kind == "mvsec":
        return ConcatDataset(mvsec_sequences(Path(rest), *slicing, held_out=True))
    return pool


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


def mvsec_sequences(path: Path, slices: int, bins: int, *, held_out: bool) -> list[Subset[Sample]]:
    """Open the sequences of MVSEC at a path, from one frame to the next.

    Args:
        path: ``<seq>_data.hdf5``, or a directory of such files, with the ground truth beside them.
        slices, bins: see :class:`flowfuse.model.ModelConfig`.
        held_out: the last tenth of every sequence's pairs with ground truth; else the pairs before,
            but for one that shares a frame with those.

    Raises:
        FileNotFoundError: there is none.
        ValueError: as of :class:`~flowfuse.data.datasets.mvsec.dataset.MvsecDataset`; or a sequence
            is too short to be divided.
    """
    files: Sequence[Path] = [path] if path.is_file() else sorted(path.glob(f"*{DATA_SUFFIX}"))
    if not files:
        raise FileNotFoundError(f"{path}: no *{DATA_SUFFIX} of MVSEC there")
    parts = []
    for file in files:
        pairs = MvsecDataset(open_mvsec(file), slices=slices, bins=bins)
        count = len(pairs)
        if count < 3:
            raise ValueError(
                f"{file}: {count} pair(s) of frames with ground truth; 3 are needed, of which the "
                "last is held out"
            )
        split = count - max(1, round(MVSEC_HELD_OUT * count))
        parts.append(Subset(pairs, range(split, count) if held_out else range(split - 1)))
    return parts


def _check_crops(config: TrainConfig, size: tuple[int, int]) -> None:
    """Check that the crops fit into the images of a recording; those of scenes are asked for."""
    plan = config.plan()
    for name, crop in (("crop", plan.crop), ("final_crop", plan.final_crop)):
        if any(c > s for c, s in zip(crop, size, strict=True)):
            raise ValueError(
                f"{name} {crop} must not be larger than the frames of {config.data}, {size}"
            )
