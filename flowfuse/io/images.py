"""Images as arrays."""

from __future__ import annotations

from typing import overload

import cv2
import numpy as np
from torch import Tensor


@overload
def as_gray(image: np.ndarray) -> np.ndarray: ...


@overload
def as_gray(image: Tensor) -> Tensor: ...


def as_gray(image: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """Return the luma of an image by Rec. 601: 0.299 R + 0.587 G + 0.114 B.

    Args:
        image: uint8 array [H, W] or [H, W, 3], or floating tensor [B, 1 | 3, H, W]; RGB. Gray
            images come back as they are.

    Returns:
        An array [H, W], rounded to uint8; a tensor [B, 1, H, W], not rounded.
    """
    if isinstance(image, np.ndarray):
        return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if image.shape[1] == 1:
        return image
    red, green, blue = image.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue
