"""What most tests of the estimator estimate, with what."""

from __future__ import annotations

import numpy as np
import pytest
from estimator_cases import HEIGHT, WIDTH, make_events, make_model

from flowfuse.estimator import Estimator
from flowfuse.events import Events


@pytest.fixture(scope="module")
def estimator() -> Estimator:
    return Estimator(make_model())


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH), np.uint8)


@pytest.fixture(scope="module")
def events() -> Events:
    return make_events(0, 70_000)
