"""Errors on a fixed set of scenes while a model is trained, and pictures of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from flowfuse import distributed
from flowfuse.data.augment import drop_events, drop_frames
from flowfuse.data.samples import Sample
from flowfuse.evaluation.baselines import DIS, ZERO, dense_inverse_search
from flowfuse.evaluation.evaluate import (
    Estimate,
    GroundTruth,
    Pair,
    endpoint_sums,
    evaluate,
)
from flowfuse.events import Events
from flowfuse.geometry.bezier import bezier
from flowfuse.model import FlowFuse, ModelOutput
from flowfuse.visualization import (
    colour_flow,
    contact_sheet,
    largest_magnitude,
    render_boundary,
    render_events,
    render_heat,
    write_image,
)

# What the network is shown of a sample. A modality is removed as in training:
# without frames there are no exposures either, by which the event sum could be weighted.
MODES: dict[str, Callable[[Sample], Sample]] = {
    "fused": lambda sample: sample,
    "frames": drop_events,
    "events": drop_frames,
}


class Validator:
    """A fixed set of scenes to measure models on; of several processes, each measures its own.

    Args:
        samples: the scenes of this process, all of one size.
        batch: scenes per forward pass.
        device: where to compute.
        bf16: compute in bfloat16 where autocast does.

    Attributes:
        criterion: the measure that is smallest for the best model.
    """

    criterion = "epe"

    def __init__(
        self, samples: Sequence[Sample], *, batch: int, device: torch.device, bf16: bool
    ) -> None:
        self._samples = samples
        self._batch = batch
        self._device = device
        self._bf16 = bf16
        found = evaluate(map(_baseline_pair, samples), measure=endpoint_sums)
        self._references = {
            f"epe_{name}": _mean(found.sums(row)["epe"] if samples else (0.0, 0), device)
            for name, row in (("zero", ZERO), ("dis", DIS))
        }

    def measure(self, model: FlowFuse) -> dict[str, float]:
        """Measure a model, with both modalities and with each alone.

        Args:
            model: the model, in eval mode, on the device.

        Returns:
            Mean end-point errors over the valid pixels of all scenes, px: `epe` at t1, `tepe` at
            the earlier times with ground truth, `epe_frames` and `epe_events` with one modality
            (where the model has both), and, for comparison, `epe_zero` and `epe_dis` (OpenCV's
            DIS).
        """
        modes = MODES if model.config.frames and model.config.events else ("fused",)
        found = evaluate(self._pairs(model, modes), measure=endpoint_sums)
        wanted = {"epe": ("fused", "epe"), "tepe": ("fused", "tepe")}
        wanted |= {f"epe_{mode}": (mode, "epe") for mode in modes if mode != "fused"}
        return {
            name: _mean(found.sums(row)[measure] if self._samples else (0.0, 0), self._device)
            for name, (row, measure) in wanted.items()
        } | self._references

    def _pairs(self, model: FlowFuse, modes: Iterable[str]) -> Iterator[Pair]:
        """Run the model batch by batch: of every scene, mode -> estimate, and ground truth."""
        for start in range(0, len(self._samples), self._batch):
            samples = self._samples[start : start + self._batch]
            found: dict[str, np.ndarray] = {}
            for mode in modes:
                batch = Sample.collate([MODES[mode](sample) for sample in samples])
                found[mode] = bezier(self._run(model, batch).control_points, batch.tau).numpy()
            for i, sample in enumerate(samples):
                yield {mode: Estimate(flow[i]) for mode, flow in found.items()}, _truth(sample)

    def draw(self, model: FlowFuse, path: Path, scenes: int = 4) -> None:
        """Write a picture of the first scenes, one per row.

        Args:
            model: the model, in eval mode, on the device.
            path: the PNG file; its directory must exist.
            scenes: rows at most.
        """
        samples = self._samples[:scenes]
        output = self._run(model, Sample.collate(samples))
        images: list[np.ndarray] = []
        labels: list[str] = []
        for i, sample in enumerate(samples):
            row = _draw_scene(
                sample,
                output.control_points[i, -1].numpy(),
                torch.sigmoid(output.boundary[i]).numpy(),
            )
            labels += row
            images += row.values()
        write_image(path, contact_sheet(images, labels, columns=len(images) // len(samples)))

    @torch.inference_mode()
    def _run(self, model: FlowFuse, batch: Sample) -> ModelOutput:
        """Run the model on a batch; the estimates come back on the CPU, in float32."""
        inputs = batch.to(self._device).inputs
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            output = model(inputs)
        return ModelOutput(*(tensor.float().cpu() for tensor in output))


def _mean(sums: tuple[float, float], device: torch.device) -> float:
    """A sum over its divisor, of all processes together, exchanged by way of a device."""
    total, count = distributed.total(
        torch.tensor(sums, dtype=torch.float64, device=device)
    ).tolist()
    return total / count if count else float("nan")


def _truth(sample: Sample) -> GroundTruth:
    return GroundTruth(sample.flow.numpy(), sample.valid.numpy(), sample.tau.numpy())


def _baseline_pair(sample: Sample) -> Pair:
    """DIS and zero flow, at the end alone."""
    ground_truth = GroundTruth.of_flow(sample.flow[-1].numpy(), sample.valid[-1].numpy())
    flow = dense_inverse_search(*gray_frames(sample))
    return {DIS: Estimate(flow[None]), ZERO: Estimate(0 * flow[None])}, ground_truth


def gray_frames(sample: Sample) -> list[np.ndarray]:
    """Both frames of a sample as uint8 [H, W]."""
    return [(frame[0] * 255).round().byte().numpy() for frame in (sample.frame0, sample.frame1)]


def _draw_scene(sample: Sample, flow: np.ndarray, boundary: np.ndarray) -> dict[str, np.ndarray]:
    """The labelled pictures of one scene; the ground truth sets the scale of all."""
    ground_truth, valid = sample.flow[-1].numpy(), sample.valid[-1].numpy()
    frame = sample.frame0[0].numpy()
    magnitude = largest_magnitude(ground_truth, valid)
    error = np.linalg.norm(flow - ground_truth, axis=0)
    mean = error[valid].mean() if valid.any() else float("nan")
    return {
        "events": render_events(frame, polarity_events(sample)),
        f"ground truth, up to {magnitude:.1f} px": colour_flow(ground_truth, valid, magnitude),
        "flow": colour_flow(flow, None, magnitude),
        "B_e cyan, B_m orange red": render_boundary(frame, boundary),
        f"error, mean {mean:.2f} px": render_heat(error, valid, magnitude / 4),
    }


def polarity_events(sample: Sample) -> Events:
    """One event per pixel where polarities do not cancel: a sample keeps sums, not events."""
    total = sample.slices[1:].sum((0, 1)).numpy()
    y, x = np.nonzero(total)
    height, width = total.shape
    times = np.zeros(len(x), np.int64)
    return Events(x, y, times, total[y, x] > 0, height=height, width=width)
