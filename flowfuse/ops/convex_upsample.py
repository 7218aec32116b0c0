"""Learned upsampling by convex combination of neighbours."""

from __future__ import annotations

from torch import Tensor

from . import reference
from .checks import check_convex_upsample


def convex_upsample(field: Tensor, mask: Tensor, factor: int) -> Tensor:
    """Each fine pixel is a convex combination of the 3 x 3 coarse neighbours that lie inside the
    field.

    The softmax runs over the inside neighbours only, so a constant field stays constant up to its
    border. The field is not scaled: a flow must be multiplied by `factor` by the caller.

    Args:
        field: [B, D, h, w] float32 or float64.
        mask: [B, 9 f^2, h, w] logits, any float dtype; channel k f^2 + i f + j for neighbour k
            (row-major over 3 x 3) and the fine pixel in row i, column j of the coarse one.
        factor: f, at least 1.

    Returns:
        [B, D, f h, f w] of the field's dtype.

    Raises:
        ValueError: a shape, dtype or the factor is wrong.

    Source: RAFT (Teed and Deng 2020), section 3.3; the border is ours.
    """
    check_convex_upsample(field, mask, factor)
    return reference.convex_upsample(field, mask, factor)
