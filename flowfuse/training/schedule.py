"""The learning rate over a training."""

from __future__ import annotations

import math


def learning_rate_at(step: int, steps: int, peak: float, warmup: float) -> float:
    """Learning rate of a step: linear warm-up, then half a cosine down to zero.

    Args:
        step: 1 .. steps.
        steps: length of the training.
        peak: highest rate.
        warmup: share of the steps before the peak, in [0, 1).
    """
    rising = max(1, round(steps * warmup))
    if step <= rising:
        return peak * step / rising
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - rising) / (steps - rising + 1)))
