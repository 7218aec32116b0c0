"""Images as arrays."""

from __future__ import annotations

from typing import overload

import cv2
import numpy as np
from torch import Tensor


def as_8_bits(image: np.ndarray) -> np.ndarray:
    """Return an image of 8 or 16 bits in 8 bits: 0 stays 0, 65535 becomes 255."""
    if image.dtype != np.uint16:
        return image
    return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)


@overload
def as_gray(image: np.ndarray) -> np.ndarray: ...


@overload
def as_gray(image: Tensor) -> Tensor: ...


def as_gray(image: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """Return the luma of an image by Rec. 601: 0.299 R + 0.587 G + 0.114 B.

    Args:
        image: uint8 or uint16 array [H, W] or [H, W, 3], or floating tensor [B, 1 | 3, H, W]; RGB.
            Gray images come back as they are.

    Returns:
        An array [H, W], rounded to its dtype; a tensor [B, 1, H, W], not rounded.
    """
    if isinstance(image, np.ndarray):
        return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if image.shape[1] == 1:
        return image
    red, green, blue = image.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue
