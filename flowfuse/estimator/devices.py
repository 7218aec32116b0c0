"""Where a network can run here, and in which precision."""

from __future__ import annotations

import torch

from flowfuse.ops.extension import announce
from flowfuse.precision import NO_INSTRUCTIONS, has_native_bfloat16


def select_device(device: str | torch.device) -> torch.device:
    """Check that a device can be used here; "auto" is CUDA where torch sees a GPU, else the CPU.

    Raises:
        ValueError: saying what is there instead.
    """
    wrong = f"device must be auto, cpu, cuda or cuda:N, got '{device}'"
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(wrong) from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(wrong)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= (device.index or 0):
            found = f"sees {count} CUDA device(s)" if count else "sees no CUDA device"
            if torch.version.cuda is None:
                found = "is built without CUDA and sees no GPU"
            raise ValueError(
                f"device '{device}' was asked for, but torch {torch.__version__} {found} here; "
                f"use device '{'cuda:0' if count else 'cpu'}'"
            )
    return device


def select_dtype(dtype: torch.dtype | None, device: torch.device) -> torch.dtype:
    """Check that a network can run in this precision on a device; None is float32.

    Bfloat16 on a CPU without instructions for it is used, and warned of once.

    Raises:
        ValueError: naming those that it can.
    """
    usable: tuple[torch.dtype | None, ...] = (None, torch.float32, torch.bfloat16)
    if device.type == "cuda":
        usable += (torch.float16,)
    if dtype not in usable:
        names = ", ".join(str(choice) for choice in usable)
        raise ValueError(f"dtype on {device.type} must be one of {names}; got {dtype}")
    if dtype == torch.bfloat16 and not has_native_bfloat16(device):
        announce(f"dtype torch.bfloat16: {NO_INSTRUCTIONS}")
    return torch.float32 if dtype is None else dtype
