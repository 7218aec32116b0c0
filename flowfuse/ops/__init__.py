"""The operators of flowfuse: compiled kernels where they exist, plain torch elsewhere."""

from .common_gradient import common_gradient
from .convex_upsample import convex_upsample
from .correlation import Correlation
from .correlation_lookup import correlation_lookup
from .correlation_volume import correlation_volume, pool_levels
from .extension import build_info
from .fit_trajectories import fit_trajectories
from .group_norm_activate import group_norm_activate
from .lucas_kanade_step import lucas_kanade_step
from .operator import EXAMPLES, OPERATORS
from .propagate import propagate
from .propagation_weights import propagation_weights
from .read_correlation import read_correlation
from .read_volume import read_volume
from .read_windows import WindowReading, read_windows
from .volume_lookup import volume_lookup
from .voxelize import voxelize
from .warp_events import warp_events

__all__ = [
    "EXAMPLES",
    "OPERATORS",
    "Correlation",
    "WindowReading",
    "build_info",
    "common_gradient",
    "convex_upsample",
    "correlation_lookup",
    "correlation_volume",
    "fit_trajectories",
    "group_norm_activate",
    "lucas_kanade_step",
    "pool_levels",
    "propagate",
    "propagation_weights",
    "read_correlation",
    "read_volume",
    "read_windows",
    "volume_lookup",
    "voxelize",
    "warp_events",
]
