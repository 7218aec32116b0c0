"""What accuracy is measured on: generated test sets, and recordings without truth.

A case is one frame pair with its events, on which a network can be run, and with its truth where
there is one.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accuracy_statistics import Facts
from torch import Tensor, nn
from tqdm import tqdm

from flowfuse.data.opening import open_recording
from flowfuse.data.samples import Sample
from flowfuse.data.synthetic.camera import srgb_to_linear
from flowfuse.data.synthetic.dataset import SceneDataset
from flowfuse.data.synthetic.scenes import Scene
from flowfuse.estimator import Estimator
from flowfuse.events import Events
from flowfuse.geometry.bezier import bezier
from flowfuse.geometry.laplace import expected_error
from flowfuse.io.images import as_gray
from flowfuse.model import FlowFuse
from flowfuse.training.sampling import TEST_SEED
from flowfuse.training.validation import MODES, gray_frames, polarity_events

SETS = ("slow", "fast", "blur", "dark", "mixed", "driving", "flicker")
GROUND_TRUTH_BOUNDARIES = "true boundaries"  # a mode: both senses, and told where boundaries are
SURE = 6.0  # logit of a boundary where the localizer is told the truth
MAX_STEP = 0.5  # px between two instants that are rendered
Slicing = tuple[int, int]  # K slices, bins per slice: what a network wants its events in


@dataclass(frozen=True)
class Estimate:
    """What a method finds for a pair.

    Attributes:
        displacements: [T, 2, H, W] px, at the case's times; the last is the flow to t1.
        uncertainty: [H, W] px, or None where the method gives none.
        boundary: [2, H, W] probabilities of B_e and B_m, or None.
    """

    displacements: np.ndarray
    uncertainty: np.ndarray | None = None
    boundary: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Case(ABC):
    """A frame pair.

    Attributes:
        facts: its name, exposure and light.
        frames: two images uint8, [H, W] or [H, W, 3].
        events: the stream; of a generated scene one event where polarities do not cancel, to draw.
        tau: [T] times; the last one is 1.
        truth: [T, 2, H, W] px displacement at these times, or None.
        valid: [T, H, W] bool, or None without truth.
        boundary: [2, H, W] true B_e and B_m, or None.
    """

    facts: Facts
    frames: tuple[np.ndarray, np.ndarray]
    events: Events
    tau: np.ndarray
    ground_truth: np.ndarray | None
    valid: np.ndarray | None
    boundary: np.ndarray | None

    @property
    def gray(self) -> list[np.ndarray]:
        """Both frames as uint8 [H, W]."""
        return [as_gray(frame) for frame in self.frames]

    @property
    def events_between(self) -> Events:
        """The events between the two frames."""
        return self.events

    @abstractmethod
    def estimate(self, estimator: Estimator, mode: str) -> Estimate:
        """Run a network.

        Args:
            estimator: the network.
            mode: one of ``flowfuse.training.validation.MODES``, what is shown to it; of a generated
                scene TRUE_BOUNDARIES, too.
        """


@dataclass(frozen=True, eq=False)
class SceneCase(Case):
    """A pair of a generated scene, which keeps the scene as samples and not as events.

    Attributes:
        samples: for every slicing.
    """

    samples: Mapping[Slicing, Sample]

    def estimate(self, estimator: Estimator, mode: str) -> Estimate:
        config = estimator.model.config
        if mode == GROUND_TRUTH_BOUNDARIES:
            with told_boundaries(estimator.model, torch.from_numpy(self.boundary)):
                return replace(self.estimate(estimator, "fused"), boundary=None)
        sample = MODES[mode](self.samples[config.slices, config.bins])
        batch = Sample.collate([sample]).to(estimator.device)
        mixed = estimator.dtype != torch.float32
        with (
            torch.inference_mode(),
            torch.autocast(estimator.device.type, torch.bfloat16, enabled=mixed),
        ):
            output = estimator.model(batch.inputs)
        with torch.inference_mode():
            points = output.control_points.float()
            return Estimate(
                bezier(points, batch.tau)[0].cpu().numpy(),
                expected_error(output.uncertainty.float())[0].cpu().numpy(),
                torch.sigmoid(output.boundary.float())[0].cpu().numpy()
                if config.boundary
                else None,
            )


@dataclass(frozen=True, eq=False)
class PairCase(Case):
    """A pair with its event stream, given to a network as a user would; exposures are unknown.

    Attributes:
        t0, t1: times of the frames, us.
    """

    t0: int
    t1: int

    @property
    def events_between(self) -> Events:
        return self.events.slice_time(self.t0, self.t1)

    def estimate(self, estimator: Estimator, mode: str) -> Estimate:
        if mode not in MODES:
            raise ValueError(f"{self.facts.name}: there is no mode {mode!r} of a pair of images")
        result = estimator(
            *(self.frames if mode != "events" else (None, None)),
            self.events if mode != "frames" else None,
            t0=self.t0,
            t1=self.t1,
        )
        boundary = result.boundary if estimator.model.config.boundary else None
        return Estimate(result.at(self.tau), result.uncertainty, boundary)


@contextmanager
def told_boundaries(model: FlowFuse, ground_truth: Tensor) -> Iterator[None]:
    """Have a network's localizer give the true boundaries, [2, H, W], whatever it sees.

    The network was not trained on maps that are as sure.
    """

    def tell(module: nn.Module, given: object, found: Tensor) -> Tensor:
        padding = (
            0,
            found.shape[-1] - ground_truth.shape[-1],
            0,
            found.shape[-2] - ground_truth.shape[-2],
        )
        logits = F.pad(SURE * (2 * ground_truth - 1), padding, value=-SURE)
        return logits.to(found).expand_as(found)

    hook = model.localizer.register_forward_hook(tell)
    try:
        yield
    finally:
        hook.remove()


class SceneSet:
    """A fixed set of generated scenes, the same ones for every slicing.

    Args:
        preset: of the scenes.
        count: how many.
        size: height and width, px.
        slicings: in which samples are wanted.
        cache: folder that keeps the samples between runs, or None.
    """

    def __init__(
        self,
        preset: str,
        count: int,
        size: tuple[int, int],
        slicings: Collection[Slicing],
        cache: Path | None,
    ) -> None:
        self.name, self.count = preset, count
        self.what = f"Generated test scenes of {size[1]} x {size[0]} px: {count}."
        self._datasets: dict[Slicing, _SharedScenes] = {}
        for slicing in sorted(set(slicings)):
            dataset = _SharedScenes(
                preset, TEST_SEED, count, *size, *slicing, cache, max_step=MAX_STEP, split="test"
            )
            dataset.source = next(iter(self._datasets.values()), None)
            self._datasets[slicing] = dataset

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> SceneCase:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        samples = {key: dataset[index] for key, dataset in self._datasets.items()}
        sample = next(iter(samples.values()))  # what they differ in is how events are binned
        frames = tuple(gray_frames(sample))
        light = float(np.mean([srgb_to_linear(frame).mean() for frame in frames]))
        return SceneCase(
            facts=Facts(f"{self.name} {index}", float(sample.exposure.mean()), light),
            frames=frames,
            events=polarity_events(sample),
            tau=sample.tau.numpy(),
            ground_truth=sample.flow.numpy(),
            valid=sample.valid.numpy(),
            boundary=sample.boundary.numpy(),
            samples=samples,
        )


class _SharedScenes(SceneDataset):
    """Scenes that are generated once, though they are kept as samples of several slicings.

    Attributes:
        source: the data set that has the scenes, or None: this one.
    """

    source: _SharedScenes | None = None
    _latest: tuple[int, Scene] | None = None

    def scene(self, index: int) -> Scene:
        if self.source is not None:
            return self.source.scene(index)
        if self._latest is None or self._latest[0] != index:
            self._latest = (index, super().scene(index))
        return self._latest[1]


def prepare(sets: Sequence[SceneSet], workers: int) -> None:
    """Generate all scenes into the cache of the sets, in ``workers`` processes of one thread."""
    jobs = [(scenes, index) for scenes in sets for index in range(len(scenes))]
    if workers == 1:
        for job in tqdm(jobs, desc="scenes"):
            _generate(job)
        return
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for _ in tqdm(pool.map(_generate, jobs), desc="scenes", total=len(jobs)):
            pass


def _generate(job: tuple[SceneSet, int]) -> None:
    scenes, index = job
    scenes[index]


def recording_cases(path: Path) -> Iterator[PairCase]:
    """The frame pairs of a recording, without truth; one is held at a time.

    Raises:
        ValueError, FileNotFoundError: no recording with events and at least two frames.
    """
    recording = open_recording(path)
    times = [int(time) for time in recording.frame_times]
    if len(times) < 2:
        raise ValueError(f"{path}: two frames or more are needed, found {len(times)}")
    if not recording.has_events:
        raise ValueError(f"{path}: the recording has no events")
    for i, (t0, t1) in enumerate(itertools.pairwise(times)):
        yield PairCase(
            facts=Facts(f"{path.name} {i}", math.nan, math.nan),
            frames=(recording.frame(i), recording.frame(i + 1)),
            events=recording.events(t0 - (t1 - t0), t1),
            tau=np.ones(1, np.float32),
            ground_truth=None,
            valid=None,
            boundary=None,
            t0=t0,
            t1=t1,
        )
