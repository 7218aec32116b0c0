"""From a checkpoint to an estimator."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

from flowfuse.estimator.devices import select_device
from flowfuse.estimator.estimator import Estimator
from flowfuse.model.checkpoint import load_checkpoint, resolve_checkpoint

_log = logging.getLogger(__name__)


def load(
    checkpoint: str | Path = "small",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    graph: bool | str = "auto",
) -> Estimator:
    """Load a trained network.

    Args:
        checkpoint: the name of a shipped checkpoint ("small") or the path of a .safetensors file.
        device: "cpu", "cuda", "cuda:N", or "auto" (CUDA where torch sees a GPU).
        dtype: None or torch.float32 for full precision; torch.bfloat16 (or, on CUDA, torch.float16)
            for automatic mixed precision. Coordinates and flow are float32 in either. On a CPU
            without bfloat16 instructions bfloat16 is slower than float32: it is used as asked for,
            and a RuntimeWarning says so once.
        graph: whether the network runs by CUDA graphs: "auto", True or False, see
            :class:`Estimator`.

    Returns:
        The estimator; ``estimator.info`` tells where the weights come from.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the file is no checkpoint of flowfuse, or the device, dtype or graph cannot be
            used.
    """
    if not isinstance(checkpoint, (str, os.PathLike)):
        raise ValueError(f"load: checkpoint must be a name or a path, got {checkpoint!r}")
    device = select_device(device)
    path = resolve_checkpoint(checkpoint)
    model, info = load_checkpoint(path, map_location=device)
    _log.info("%s: network %s on %s", path, model.config.name, device)
    return Estimator(model, device=device, dtype=dtype, info=info, graph=graph)
