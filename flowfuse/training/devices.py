"""Where a process of a training computes, and where it renders scenes."""

from __future__ import annotations

import torch

from flowfuse import distributed
from flowfuse.estimator import select_device
from flowfuse.training.settings import TrainConfig


def own_device(name: str) -> torch.device:
    """Check that this process can use a device; of several, each takes the GPU of its number.

    Raises:
        ValueError: there is no such device, or one GPU is named for several processes.
    """
    device, processes = select_device(name), distributed.launched()
    if processes.count == 1 or device.type == "cpu":
        return device
    if device.index is not None:
        raise ValueError(
            f"device '{name}' is one GPU, and {processes.count} processes take one each: "
            "use device 'cuda'"
        )
    return select_device(f"cuda:{processes.local_rank}")


def scene_device(config: TrainConfig) -> torch.device:
    """Where scenes are rendered; worker processes, which are forked, cannot use a GPU."""
    forked = config.workers > 0 and config.scene_device == "auto"
    return own_device("cpu" if forked else config.scene_device)
