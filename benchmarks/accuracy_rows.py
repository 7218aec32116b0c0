"""What benchmarks/accuracy.py measures: networks as rows, and generated scenes as cases."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import flowfuse
from flowfuse.data.samples import Sample
from flowfuse.data.synthetic.camera import srgb_to_linear
from flowfuse.data.synthetic.dataset import SceneDataset
from flowfuse.data.synthetic.presets import SENSORS, find_preset
from flowfuse.data.synthetic.scenes import Scene
from flowfuse.estimator import Estimator
from flowfuse.evaluation.baselines import ZERO, baseline_flows
from flowfuse.evaluation.cases import Case
from flowfuse.evaluation.evaluate import Estimate, GroundTruth, pair_sums
from flowfuse.evaluation.metrics import Sums, event_sharpness, photometric_error
from flowfuse.evaluation.statistics import Facts, Histograms, displacement_sums
from flowfuse.evaluation.thresholds import boundary_histogram, certainty_histogram
from flowfuse.geometry.bezier import bezier
from flowfuse.geometry.laplace import expected_error
from flowfuse.model.checkpoint import read_header, resolve_checkpoint
from flowfuse.training.sampling import TEST_SEED
from flowfuse.training.validation import MODES, gray_frames, polarity_events

SETS = ("slow", "fast", "blur", "dark", "mixed", "driving", "flicker", "thin")
MAX_STEP = 0.5  # px between two instants that are rendered
Slicing = tuple[int, int]  # K slices, bins per slice: what a network wants its events in


@dataclass(frozen=True)
class Network:
    """A checkpoint as rows of the tables.

    Attributes:
        label: what its rows begin with.
        path: of the checkpoint.
        device, bf16, iterations: how it runs.
    """

    label: str
    path: Path
    device: str = "cpu"
    bf16: bool = False
    iterations: int | None = None

    @classmethod
    def parse(cls, text: str, **how: object) -> Network:
        """From "small", "runs/x.safetensors" or "label=runs/x.safetensors".

        Raises:
            FileNotFoundError, ValueError: there is no such checkpoint.
        """
        label, path = re.fullmatch(r"(?:([^=/]+)=)?(.*)", text).groups()
        return cls(label or Path(path).stem, resolve_checkpoint(path), **how)

    @cached_property
    def estimator(self) -> Estimator:
        dtype = torch.bfloat16 if self.bf16 else None
        return flowfuse.load(self.path, device=self.device, dtype=dtype)

    @cached_property
    def slicing(self) -> Slicing:
        """How it wants events sliced; read without loading the weights."""
        config = read_header(self.path)[0]
        return config.slices, config.bins

    @property
    def modes(self) -> dict[str, str]:
        """Row -> mode: first what it was built for, then, if it has both modalities, each alone."""
        config = self.estimator.model.config
        if not (config.frames and config.events):
            return {self.label: "fused"}
        return {
            f"{self.label} fused": "fused",
            f"{self.label} frames only": "frames",
            f"{self.label} events only": "events",
        }

    @property
    def row(self) -> str:
        """The row with all its modalities."""
        return next(iter(self.modes))


def estimate_all(networks: Sequence[Network], case: Case) -> dict[str, Estimate]:
    """Run every row that a case has something to show to, each once."""
    found = {
        row: case.estimate(network.estimator, mode, network.iterations)
        for network in networks
        for row, mode in network.modes.items()
        if case.frames is not None or mode == "events"
    }
    if case.frames is None:
        flows = {ZERO: np.zeros((2, case.events.height, case.events.width), np.float32)}
    else:
        flows = baseline_flows(*case.gray)
    line = case.tau[:, None, None, None]  # they know no path
    return found | {name: Estimate(line * flow) for name, flow in flows.items()}


def measure_estimate(
    estimate: Estimate, known: GroundTruth, counted: np.ndarray, outlier_fraction: float
) -> Sums:
    """All measures, and the error by bins of true displacement."""
    sums = pair_sums(estimate, known, counted, outlier_fraction)
    length = np.hypot(*known.displacements[-1].astype(np.float64))[counted]
    return sums | displacement_sums(end_point_error(estimate, known), length)


def end_point_error(estimate: Estimate, known: GroundTruth) -> np.ndarray:
    """At t1, of the valid pixels: [N] px."""
    error = estimate.displacements[-1] - known.displacements[-1]
    return np.hypot(*error.astype(np.float64))[known.valid[-1]]


def histograms(estimate: Estimate, case: Case) -> Histograms:
    """What measures need whose thresholds are those of a set; empty for flow alone."""
    found = {}
    if estimate.uncertainty is not None:
        error = end_point_error(estimate, case.known)
        expected = estimate.uncertainty[case.known.valid[-1]]
        found["certain_set"] = certainty_histogram(error, expected)
        found["certain_set_limit"] = certainty_histogram(error, error)
    if estimate.boundary is not None and case.boundary is not None:
        for i, name in enumerate(("event", "motion")):
            found[name] = boundary_histogram(estimate.boundary[i], case.boundary[i] > 0.5)
    return found


def sums_without_truth(estimate: Estimate, case: Case) -> Sums:
    """Measures that need no ground truth, of a pair with its events; each counts once per pair."""
    flow = estimate.displacements[-1]
    u, v = flow.astype(np.float64)
    measures: Mapping[str, float] = {
        "photometric": photometric_error(*case.frames, flow),
        "sharpness": event_sharpness(case.events, flow, case.t0, case.t1),
        "mean_u": u.mean(),
        "mean_v": v.mean(),
        "mean_abs_v": np.abs(v).mean(),
        "one_sign": 100 * max((u > 0).mean(), (u < 0).mean()),
    }
    # Without events in the window there is no sharpness.
    return {name: (float(m), 1) for name, m in measures.items() if np.isfinite(m)}


@dataclass(frozen=True, eq=False)
class SceneCase(Case):
    """A pair of a generated scene, which keeps the scene as samples and not as events.

    Attributes:
        samples: for every slicing.
    """

    samples: Mapping[Slicing, Sample]

    def estimate(self, estimator: Estimator, mode: str, iterations: int | None = None) -> Estimate:
        config = estimator.model.config
        sample = MODES[mode](self.samples[config.slices, config.bins])
        batch = Sample.collate([sample]).to(estimator.device)
        mixed = estimator.dtype != torch.float32
        with (
            torch.inference_mode(),
            torch.autocast(estimator.device.type, torch.bfloat16, enabled=mixed),
        ):
            output = estimator.model(batch.inputs, iterations=iterations)
        with torch.inference_mode():
            points = output.control_points.float()
            return Estimate(
                bezier(points, batch.tau)[0].cpu().numpy(),
                expected_error(output.uncertainty.float())[0].cpu().numpy(),
                torch.sigmoid(output.boundary.float())[0].cpu().numpy()
                if config.boundary
                else None,
            )


class SceneSet:
    """A fixed set of generated scenes, the same ones for every slicing.

    Args:
        preset: of the scenes, "fast" or, with another sensor, "fast@v2e".
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
        sensor = find_preset(preset).sensor
        seen = "trainings" if sensor == SENSORS[0] else f"{sensor}'s model, which no training uses"
        self.what = (
            f"Generated test scenes of {size[1]} x {size[0]} px: {count}. "
            f"Event sensor: that of {seen}."
        )
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
            known=GroundTruth(
                sample.flow.numpy(),
                sample.valid.numpy(),
                sample.tau.numpy(),
                motion_boundary=sample.boundary[1].numpy(),
                occluded=sample.occluded[-1].numpy(),
            ),
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
