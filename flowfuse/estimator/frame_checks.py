"""Frames that a caller gives: checked, and brought to what a network's inputs are made of."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowfuse.model.flowfuse import MINIMUM_SIZE

# Of numpy; in the byte order of the machine, as torch takes them.
FRAME_DTYPES = tuple(map(np.dtype, ("uint8", "uint16", "float16", "float32", "float64")))


def as_frame(name: str, frame: Any) -> Tensor | None:
    """Check an image that a caller gives.

    Args:
        name: of the argument, for messages.
        frame: [H, W], [H, W, 1] or [H, W, 3]; uint8, or floating in [0, 1]; None: there is none.

    Returns:
        It as uint8 or as float32 in [0, 1], on the device it came on; a copy of a numpy array.

    Raises:
        ValueError: it is none; naming what was found and what was expected.
    """
    if frame is None:
        return None
    if not isinstance(frame, (np.ndarray, Tensor)):
        raise ValueError(f"{name} must be a numpy array or a tensor, got {type(frame).__name__}")
    if isinstance(frame, np.ndarray) and frame.dtype not in FRAME_DTYPES:
        raise ValueError(
            f"{name} must be uint8, uint16, or float16, float32 or float64 in [0, 1]; "
            f"got dtype {frame.dtype}"
        )
    image = frame.detach() if isinstance(frame, Tensor) else torch.from_numpy(frame.copy())
    if not (image.dim() == 2 or (image.dim() == 3 and image.shape[2] in (1, 3))):
        raise ValueError(f"{name} must have shape [H, W] or [H, W, 3], got {list(image.shape)}")
    height, width = image.shape[:2]
    if min(height, width) < MINIMUM_SIZE:
        raise ValueError(
            f"{name} must be at least {MINIMUM_SIZE} x {MINIMUM_SIZE} px, got {width} x {height}"
        )
    if image.dtype == torch.uint8:
        return image
    if image.dtype == torch.uint16:
        _check_depth(name, int(image.int().max()))
        return image
    if not image.is_floating_point():
        raise ValueError(f"{name} must be uint8, uint16, or floating in [0, 1]; got {image.dtype}")
    image = image.float()
    # Both at once: a frame on a GPU is waited for. Of NaN, both are NaN.
    low, high = torch.stack(torch.aminmax(image)).tolist()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    # Interpolation and rounding overshoot a little; anything more is another range.
    if low < -1e-3 or high > 1 + 1e-3:
        hint = "; divide by 255, or give uint8" if high > 2 else ""
        raise ValueError(f"{name}: a float image must lie in [0, 1], got {low:g} to {high:g}{hint}")
    return image.clamp(0, 1)


def _check_depth(name: str, largest: int) -> None:
    """Warn of a 16-bit image that seems to hold 8, 10 or 12 bits."""
    if 0 < largest < 1 << 12:
        bits = next(bits for bits in (8, 10, 12) if largest >> bits == 0)
        warnings.warn(
            f"{name}: values up to {largest} of 65535: black to the network; if the camera has "
            f"{bits} bits, multiply by 65535 / {(1 << bits) - 1}",
            stacklevel=4,
        )
