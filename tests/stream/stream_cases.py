"""A tiny network, and events and frames of a tiny sensor, that tests of streams share."""

from __future__ import annotations

import numpy as np
import torch

from flowfuse.estimator import Estimator
from flowfuse.events import Events
from flowfuse.model import FlowFuse, ModelConfig

HEIGHT, WIDTH, SLICES = 16, 24, 2
CONFIG = ModelConfig(
    name="tiny", slices=SLICES, stem_channels=8, channels=8, hidden=8, token_channels=8,
    boundary_channels=8, iterations=1, radius=1, levels=1, dilations=(1, 2),
)  # fmt: skip


def make_estimator() -> Estimator:
    torch.manual_seed(0)
    model = FlowFuse(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():  # no zero output: estimates must differ
            parameter += 0.05 * torch.randn_like(parameter)
    return Estimator(model)


def make_events(first: int, last: int, count: int = 400, seed: int = 0) -> Events:
    """Events of [first, last) us, one of them at ``first``."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(first, last, count))
    t[0] = first
    return Events(
        rng.integers(0, WIDTH, count), rng.integers(0, HEIGHT, count), t,
        rng.integers(0, 2, count), height=HEIGHT, width=WIDTH,
    )  # fmt: skip


def make_frame(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH), np.uint8)


def columns(events: Events) -> tuple[np.ndarray, ...]:
    return events.x, events.y, events.t, events.p
