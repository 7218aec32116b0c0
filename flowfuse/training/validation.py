"""Errors on a fixed set of scenes while a model is trained, and pictures of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from flowfuse import distributed
from flowfuse.data.augment import drop_events, drop_frames
from flowfuse.data.samples import Sample
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
        zero, dis = _Mean(), _Mean()
        for sample in samples:
            ground_truth, valid = sample.flow[-1:], sample.valid[-1:]
            zero.add(ground_truth.norm(dim=1), valid)
            flow = torch.from_numpy(dense_inverse_search(*gray_frames(sample)))
            dis.add((ground_truth - flow).norm(dim=1), valid)
        self._references = {"epe_zero": zero.value(device), "epe_dis": dis.value(device)}

    def measure(self, model: FlowFuse) -> dict[str, float]:
        """Measure a model, with both modalities and with each alone.

        Args:
            model: the model, in eval mode, on the device.

        Returns:
            Mean end-point errors over the valid pixels of all scenes, px: `epe` at t1, `tepe` at
            the earlier times with truth, `epe_frames` and `epe_events` with one modality (where the
            model has both), and, for comparison, `epe_zero` and `epe_dis` (OpenCV's DIS).
        """
        both = model.config.frames and model.config.events
        names = ["epe", "tepe", *(f"epe_{name}" for name in MODES if both and name != "fused")]
        means = {name: _Mean() for name in names}
        for start in range(0, len(self._samples), self._batch):
            samples = self._samples[start : start + self._batch]
            for name, show in MODES.items():
                if name != "fused" and not both:
                    continue
                batch = Sample.collate([show(sample) for sample in samples])
                flow = bezier(self._run(model, batch).control_points, batch.tau)
                error = (flow - batch.flow).norm(dim=2)  # [B, T, H, W]
                end = means["epe" if name == "fused" else f"epe_{name}"]
                end.add(error[:, -1], batch.valid[:, -1])
                if name == "fused":
                    means["tepe"].add(error[:, :-1], batch.valid[:, :-1])
        return {name: mean.value(self._device) for name, mean in means.items()} | self._references

    def draw(self, model: FlowFuse, path: Path, scenes: int = 4) -> None:
        """Write a picture of the first scenes, one per row.

        Args:
            model: the model, in eval mode, on the device.
            path: the PNG file; its directory must exist.
            scenes: rows at most.
        """
        samples = self._samples[:scenes]
        output = self._run(model, Sample.collate(samples))
        images, labels = [], []
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


class _Mean:
    """Mean over the valid elements of many tensors; NaN where there are none."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, values: Tensor, valid: Tensor) -> None:
        self.total += float(values[valid].double().sum())
        self.count += int(valid.sum())

    def value(self, device: torch.device) -> float:
        """Return the mean over what all processes added, exchanged by way of a device."""
        sums = torch.tensor([self.total, self.count], dtype=torch.float64, device=device)
        total, count = distributed.total(sums).tolist()
        return total / count if count else float("nan")


def gray_frames(sample: Sample) -> list[np.ndarray]:
    """Both frames of a sample as uint8 [H, W]."""
    return [(frame[0] * 255).round().byte().numpy() for frame in (sample.frame0, sample.frame1)]


def dense_inverse_search(frame0: np.ndarray, frame1: np.ndarray) -> np.ndarray:
    """OpenCV's DIS flow, medium preset: two uint8 [H, W] -> [2, H, W] px."""
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return method.calc(frame0, frame1, None).transpose(2, 0, 1)


def _draw_scene(sample: Sample, flow: np.ndarray, boundary: np.ndarray) -> dict[str, np.ndarray]:
    """The labelled pictures of one scene; the truth sets the scale of all."""
    ground_truth, valid = sample.flow[-1].numpy(), sample.valid[-1].numpy()
    frame = sample.frame0[0].numpy()
    magnitude = largest_magnitude(ground_truth, valid)
    error = np.linalg.norm(flow - ground_truth, axis=0)
    mean = error[valid].mean() if valid.any() else float("nan")
    return {
        "events": render_events(frame, polarity_events(sample)),
        f"true flow, up to {magnitude:.1f} px": colour_flow(ground_truth, valid, magnitude),
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
