"""A tiny network, frames and events that tests of the estimator share."""

from __future__ import annotations

import numpy as np
import torch

from flowfuse.events import Events
from flowfuse.model import FlowFuse, ModelConfig

T0, T1 = 20_000, 60_000
HEIGHT, WIDTH = 37, 50  # no multiples of 8
CONFIG = ModelConfig(
    name="tiny", slices=2, stem_channels=8, channels=8, hidden=8, token_channels=8,
    boundary_channels=8, iterations=2, radius=1, levels=1, dilations=(1, 2),
)  # fmt: skip
GOOD = dict(t0=T0, t1=T1)
FLAT = np.zeros((HEIGHT, WIDTH), np.uint8)


def make_model(**changes) -> FlowFuse:
    torch.manual_seed(0)
    model = FlowFuse(ModelConfig(**{**vars(CONFIG), **changes}))
    for name, parameter in model.named_parameters():
        if not parameter.any() and name.endswith("weight"):  # zero at step 0: let it matter
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def make_events(first: int, last: int, count: int = 3000) -> Events:
    rng = np.random.default_rng(1)
    return Events(
        rng.integers(0, WIDTH, count), rng.integers(0, HEIGHT, count),
        np.sort(rng.integers(first, last, count)), rng.integers(0, 2, count),
        height=HEIGHT, width=WIDTH,
    )  # fmt: skip


def wanted_events(count=4000, factor=1.0, start=T0, end=T1):
    rng = np.random.default_rng(0)
    t = np.sort(rng.integers(start, end, count)) * factor
    x, y = rng.integers(0, WIDTH, count), rng.integers(0, HEIGHT, count)
    return Events(x, y, t.astype(np.int64), rng.integers(0, 2, count), height=HEIGHT, width=WIDTH)
