"""A flow to start from, such as that of the interval before: for training.

What an estimate of the interval before says of the present one is right but for some things: the
speed has changed, estimates are wrong by an error that is smooth, boundaries of objects lie a few
pixels away, and where something has come into view, or where the estimate was not to be trusted,
nothing is known.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flowfuse.data.samples import Sample

SPEED = 0.15  # standard deviation of the relative change of speed
ERROR = 0.08  # standard deviation of the error, of the root mean square of the flow; at most,
SMALLEST_ERROR = 0.3  # and in px beside that
SHIFT = 3  # px by which the field is displaced, at most
UNKNOWN = 0.25  # share of the blocks without flow, at most
BLOCK = 32  # px, over which errors are alike, and flow is known or not


def add_warm_start(sample: Sample, rng: np.random.Generator, share: float) -> Sample:
    """Give a sample a flow to start from, with some probability.

    Args:
        sample: with ground truth.
        rng: where every draw comes from.
        share: the probability.

    Returns:
        The sample with ``flow_init``; NaN everywhere where it starts from nothing.

    Raises:
        ValueError: the sample has no ground truth.
    """
    if sample.flow is None:
        raise ValueError("augment.warm_start needs samples with ground truth, got one without")
    flow, valid = sample.flow[-1], sample.valid[-1]
    if rng.random() < share:
        flow_init = perturb_flow(flow, valid, rng)
    else:
        flow_init = torch.full_like(flow, torch.nan)
    return sample._replace(flow_init=flow_init)


def perturb_flow(flow: Tensor, valid: Tensor, rng: np.random.Generator) -> Tensor:
    """Make of the true flow what a carried estimate might have been.

    Args:
        flow: [2, H, W] px.
        valid: [H, W] bool, where it is known.
        rng: where every draw comes from.

    Returns:
        [2, H, W] float32, NaN where nothing is known.
    """
    height, width = flow.shape[1:]
    rows, columns = -(-height // BLOCK) + 1, -(-width // BLOCK) + 1
    strength = float(rng.random())
    speed = 1 + strength * SPEED * float(rng.standard_normal())
    error = torch.from_numpy(rng.standard_normal((1, 2, rows, columns)).astype(np.float32))
    shift = tuple(int(v) for v in rng.integers(-SHIFT, SHIFT + 1, 2))
    unknown = torch.from_numpy(rng.random((1, 1, rows, columns)) < UNKNOWN * rng.random())

    known = torch.where(valid, flow, 0.0)
    size = float((known.square().sum() / valid.sum().clamp(min=1)).sqrt())
    smooth = F.interpolate(error, size=(height, width), mode="bilinear")[0]
    smooth = strength * (ERROR * size + SMALLEST_ERROR) * smooth
    holes = F.interpolate(unknown.float(), size=(height, width), mode="nearest")[0, 0] > 0
    carried = torch.where(valid & ~holes, speed * flow + smooth, torch.nan)
    # What comes in over a border is not known.
    moved = F.pad(carried, (SHIFT,) * 4, value=torch.nan)
    return torch.roll(moved, shift, dims=(1, 2))[:, SHIFT:-SHIFT, SHIFT:-SHIFT].float()
