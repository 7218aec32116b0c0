"""Parts of the recurrent update."""

from __future__ import annotations

import pytest
import torch

from flowfuse.geometry.grid import pixel_grid
from flowfuse.model.update import UpsampleMask
from flowfuse.ops import convex_upsample


@pytest.mark.parametrize("factor", [2, 4])
def test_upsampling_keeps_linear_fields_before_training(factor):
    mask = UpsampleMask(8, factor)
    field = pixel_grid(7, 9)[None]  # of the cells' centres
    fine = convex_upsample(field, mask(torch.zeros(1, 8, 7, 9)), factor)
    pixels = (pixel_grid(7 * factor, 9 * factor)[None] + 0.5) / factor - 0.5
    inner = (..., slice(factor, -factor), slice(factor, -factor))
    torch.testing.assert_close(fine[inner], pixels[inner])


def test_upsampling_is_steered_by_features():
    torch.manual_seed(0)
    mask = UpsampleMask(8, 4)
    with torch.no_grad():
        mask.out.weight.mul_(100)
    field, features = torch.randn(1, 2, 5, 6), torch.randn(1, 8, 5, 6)
    smooth = convex_upsample(field, mask(torch.zeros_like(features)), 4)
    steered = convex_upsample(field, mask(features), 4)
    assert (steered - smooth).abs().mean() > 0.1 * smooth.abs().mean()
