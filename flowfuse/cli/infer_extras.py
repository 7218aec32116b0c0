"""What ``flowfuse-infer --write`` writes of an interval beside its flow; a file of each kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowfuse.evaluation.occlusion import find_occluded
from flowfuse.io.atomic import atomic_path
from flowfuse.io.flow import write_flow
from flowfuse.result import Result
from flowfuse.visualization import write_image


@dataclass(frozen=True)
class Estimates:
    """What was estimated of an interval.

    Attributes:
        result: forwards.
        backward: [2, H, W] px, from t1 to t0; None where no output asks for it.
        encoding: of flow in 16-bit PNG.
    """

    result: Result
    backward: np.ndarray | None
    encoding: str


@dataclass(frozen=True)
class Extra:
    """A kind of output.

    Attributes:
        folder: in OUT.
        suffix: of its files, without the dot; None = that of the flow files.
        write: makes the file of an interval, complete or not at all.
        backward: whether it needs the backward flow.
    """

    folder: str
    suffix: str | None
    write: Callable[[Path, Estimates], None]
    backward: bool = False


def _write_array(path: Path, values: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        np.save(temporary, values)


def _write_backward(path: Path, estimates: Estimates) -> None:
    assert estimates.backward is not None
    write_flow(path, estimates.backward, encoding=estimates.encoding)


def _write_occlusion(path: Path, estimates: Estimates) -> None:
    assert estimates.backward is not None
    occluded = find_occluded(estimates.result.flow, estimates.backward)
    write_image(path, np.where(occluded, 255, 0).astype(np.uint8))


def _write_uncertainty(path: Path, estimates: Estimates) -> None:
    _write_array(path, estimates.result.uncertainty)


def _write_boundaries(path: Path, estimates: Estimates) -> None:
    _write_array(path, estimates.result.boundary)


def _write_control_points(path: Path, estimates: Estimates) -> None:
    estimates.result.save(path)


EXTRAS = {
    "backward": Extra("flow_backward", None, _write_backward, backward=True),
    "occlusion": Extra("occlusion", "png", _write_occlusion, backward=True),
    "uncertainty": Extra("uncertainty", "npy", _write_uncertainty),
    "boundaries": Extra("boundaries", "npy", _write_boundaries),
    "control-points": Extra("control_points", "npz", _write_control_points),
}
