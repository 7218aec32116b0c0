"""Generated scenes as training samples, kept on disk between epochs if wanted."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from flowfuse.data.samples import Sample
from flowfuse.data.synthetic.presets import SPLITS, SceneConfig, Split, find_preset
from flowfuse.data.synthetic.scenes import Scene, generate_scene
from flowfuse.data.synthetic.textures import list_images
from flowfuse.inputs import InputSpec, Modality, prepare_inputs
from flowfuse.io.atomic import atomic_path

# Counts whatever changes what a seed gives: samples kept by an older generator are not used.
GENERATOR_VERSION = 3

# Polarity sums and flow are kept as int16 in steps of 1/64: exact to 1/128 of an event or pixel,
# up to +-511.98.
STEPS = 64
LIMIT = 32767 / STEPS


def scene_sample(scene: Scene, *, spec: InputSpec, seed: int) -> Sample:
    """Make a training sample of the first frame pair of a scene.

    Args:
        spec: slices and bins; the scene has the history of one slice before t0 if K >= 2.
        seed: of the times at which the ground truth is given.

    Returns:
        The sample, with ground truth at four times: one at random in each third of (0.05, 0.95),
        and 1. It is not valid beyond +-511 px. ``modality_mask`` is all ones: where nothing fires,
        nothing has moved. Polarity sums and flow are rounded to 1/64, so that kept samples are the
        same to the bit.

    Raises:
        ValueError: for slices < 2.
    """
    if spec.slices < 2:
        raise ValueError(f"scene_sample: slices must be at least 2, got {spec.slices}")
    rng = np.random.Generator(np.random.PCG64(seed))
    tau = np.append(0.05 + 0.3 * (np.arange(3) + rng.random(3)), 1.0).astype(np.float32)
    ground_truth = [scene.ground_truth(float(t)) for t in tau]
    flow, valid, occluded = (torch.stack(parts) for parts in zip(*ground_truth, strict=True))
    exposure0, exposure1 = (int(e) for e in scene.exposures[:2])
    inputs = prepare_inputs(
        scene.frames[0],
        scene.frames[1],
        scene.events,
        t0=scene.t0,
        t1=scene.t1,
        spec=spec,
        exposures=(exposure0, exposure1),
    )
    inputs = inputs._replace(
        slices=_rounded(inputs.slices),
        event_sum=_rounded(inputs.event_sum),
        modality_mask=torch.ones(len(Modality)),
    )
    return Sample(
        *inputs,
        tau=torch.from_numpy(tau),
        flow=_rounded(flow),
        valid=valid & (flow.abs() <= LIMIT).all(dim=1),
        occluded=occluded,
        boundary=scene.boundary(),
    )


class SceneDataset(Dataset):
    """Training samples of generated scenes; item i depends on (seed, i) and the settings alone.

    Args:
        preset: a preset, or presets with their weights (of any sum).
        seed: disjoint data sets need different seeds; the seeds of their scenes then differ (up to
            chance collisions in 63 bits).
        count: number of items.
        height, width: size, px.
        slices, bins: see :class:`flowfuse.inputs.InputSpec`.
        cache: folder to keep samples in, or None. Many processes may share it. Samples made with
            other settings, or by another version of the generator, live in other sub-folders.
        textures: a folder of images to take textures from, beside the procedural ones.
        max_step: see :func:`~flowfuse.data.synthetic.scenes.generate_scene`.
        split: see :func:`~flowfuse.data.synthetic.scenes.generate_scene`.
        device: where scenes are rendered and watched. Items are on the CPU; those of a GPU differ
            in rounding, and live in a sub-folder of their own. A GPU cannot be used from forked
            worker processes.
    """

    def __init__(  # noqa: PLR0913 - the settings that make a data set
        self,
        preset: str | Mapping[str, float],
        seed: int,
        count: int,
        height: int,
        width: int,
        slices: int,
        bins: int,
        cache: Path | None = None,
        *,
        textures: Path | None = None,
        max_step: float = 1.0,
        split: Split = "train",
        device: torch.device | str = "cpu",
    ) -> None:
        weights = {preset: 1.0} if isinstance(preset, str) else dict(preset)
        configs = {name: find_preset(name) for name in weights}
        if not weights or min(weights.values()) < 0 or sum(weights.values()) <= 0:
            raise ValueError(
                f"SceneDataset: preset weights must be >= 0 and not all 0, got {weights}"
            )
        for name, value in (("count", count), ("seed", seed)):
            if value < 0:
                raise ValueError(f"SceneDataset: {name} must not be negative, got {value}")
        if split not in SPLITS:
            raise ValueError(
                f"SceneDataset: split must be one of {', '.join(SPLITS)}, got {split!r}"
            )
        self.count, self.seed, self.height, self.width = count, seed, height, width
        self.slices, self.bins = slices, bins
        self.textures, self.max_step, self.split = textures, max_step, split
        self.device = torch.device(device)
        self._presets = tuple(weights)
        self._shares = np.array(tuple(weights.values()), dtype=np.float64) / sum(weights.values())
        self._folder = None if cache is None else Path(cache) / self._identity(configs)[:16]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"SceneDataset: index {index} of {self.count} items")
        if self._folder is None:
            return self._make(index)
        path = self._folder / f"{index:07d}.npz"
        if path.exists():
            return read_sample(path)
        sample = self._make(index)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_sample(path, sample)
        return sample

    def scene(self, index: int) -> Scene:
        """The whole scene behind an item."""
        seed, preset = self._draw(index)
        return generate_scene(
            seed,
            preset,
            self.height,
            self.width,
            textures=self.textures,
            device=self.device,
            max_step=self.max_step,
            split=self.split,
        )

    def _make(self, index: int) -> Sample:
        scene = self.scene(index)
        spec = InputSpec(self.slices, self.bins)
        return scene_sample(scene, spec=spec, seed=self._draw(index)[0])

    def _draw(self, index: int) -> tuple[int, str]:
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, index))))
        return int(rng.integers(2**63)), self._presets[
            rng.choice(len(self._shares), p=self._shares)
        ]

    def _identity(self, configs: Mapping[str, SceneConfig]) -> str:
        settings = {
            "generator": GENERATOR_VERSION,
            "presets": [
                [n, float(w), _described(configs[n])]
                for n, w in zip(self._presets, self._shares, strict=True)
            ],
            "seed": self.seed,
            "size": [self.height, self.width],
            "slices": [self.slices, self.bins],
            "textures": None if self.textures is None else _image_names(Path(self.textures)),
            "max_step": self.max_step,
            "split": self.split,
        }
        if self.device.type != "cpu":
            settings["device"] = self.device.type
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _described(config: SceneConfig) -> dict[str, object]:
    """What a preset says. Where a later setting is not used, samples kept before it are found."""
    later = {"thin_share": 0.0, "swarm_share": 0.0, "still_share": 0.0, "sensor": "default"}
    settings = asdict(config)
    unused = {name for name, default in later.items() if settings[name] == default}
    return {name: value for name, value in settings.items() if name not in unused}


def _image_names(folder: Path) -> list[object]:
    """A folder of textures: where it is, and the names and sizes of its images."""
    sizes = [[str(p.relative_to(folder)), p.stat().st_size] for p in list_images(folder)]
    return [str(folder.resolve()), *sizes]


def write_sample(path: Path, sample: Sample) -> None:
    """Keep a sample of :func:`scene_sample` as a compressed .npz, whole or not at all."""
    frames = torch.cat((sample.frame0, sample.frame1))
    packed = {
        "slices": (sample.slices * STEPS).to(torch.int16),
        "event_sum": (sample.event_sum * STEPS).to(torch.int16),
        "flow": (sample.flow * STEPS).to(torch.int16),
        "frames": (frames * 255).round().to(torch.uint8),
        "masks": torch.cat((sample.valid, sample.occluded, sample.boundary.bool())),
        "exposure": sample.exposure,
        "tau": sample.tau,
    }
    # numpy's own savez_compressed takes five times as long for a tenth less: its level is fixed.
    with (
        atomic_path(path) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for name, values in packed.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, values.numpy(), allow_pickle=False)


def read_sample(path: Path) -> Sample:
    """Read what :func:`write_sample` wrote; the same bits come back.

    Raises:
        ValueError: when the file is damaged: naming it, so that it can be deleted.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            data = {name: torch.from_numpy(file[name]) for name in file.files}
        frames, masks, times = data["frames"].float() / 255, data["masks"], len(data["tau"])
        return Sample(
            slices=data["slices"].float() / STEPS,
            frame0=frames[:1],
            frame1=frames[1:],
            event_sum=data["event_sum"].float() / STEPS,
            exposure=data["exposure"],
            modality_mask=torch.ones(len(Modality)),
            tau=data["tau"],
            flow=data["flow"].float() / STEPS,
            valid=masks[:times],
            occluded=masks[times : 2 * times],
            boundary=masks[2 * times :].float(),
        )
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"cached sample {path} is damaged ({error}): delete it") from error


def _rounded(values: Tensor) -> Tensor:
    return (values * STEPS).round_().clamp_(-32767, 32767) / STEPS
