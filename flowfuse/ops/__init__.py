"""The operators of flowfuse: compiled kernels where they exist, plain torch elsewhere."""

from .common_gradient import common_gradient
from .convex_upsample import convex_upsample
from .correlation import (
    Correlation,
    correlation_lookup,
    correlation_volume,
    pool_levels,
    volume_lookup,
)
from .extension import build_info
from .voxelize import voxelize
from .warp_events import warp_events

__all__ = [
    "Correlation",
    "build_info",
    "common_gradient",
    "convex_upsample",
    "correlation_lookup",
    "correlation_volume",
    "pool_levels",
    "volume_lookup",
    "voxelize",
    "warp_events",
]
