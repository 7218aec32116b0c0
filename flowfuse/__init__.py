"""flowfuse: dense and continuous optical flow from frames and events.

    import flowfuse
    estimator = flowfuse.load("small")
    result = estimator(frame0, frame1, events, t0=t0, t1=t1)
    result.flow, result.at(0.5)

The names below are imported when they are first used, so that ``import flowfuse`` stays light.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowfuse import ops
    from flowfuse.data.opening import open_recording
    from flowfuse.estimator import Estimator, load
    from flowfuse.events import Events
    from flowfuse.io.flow import read_flow, write_flow
    from flowfuse.result import Result, load_result
    from flowfuse.stream.settings import StreamSettings
    from flowfuse.stream.stream import Stream
    from flowfuse.tracking import Tracker

__version__ = "0.1.0"

__all__ = [
    "Estimator",
    "Events",
    "Result",
    "Stream",
    "StreamSettings",
    "Tracker",
    "__version__",
    "load",
    "load_result",
    "open_recording",
    "ops",
    "read_flow",
    "sample_recording",
    "write_flow",
]

_HOMES = {
    "Estimator": "flowfuse.estimator",
    "Events": "flowfuse.events",
    "Result": "flowfuse.result",
    "Stream": "flowfuse.stream.stream",
    "StreamSettings": "flowfuse.stream.settings",
    "Tracker": "flowfuse.tracking",
    "load": "flowfuse.estimator",
    "load_result": "flowfuse.result",
    "open_recording": "flowfuse.data.opening",
    "read_flow": "flowfuse.io.flow",
    "write_flow": "flowfuse.io.flow",
}


def sample_recording() -> Path:
    """Return the directory of the small generated recording that ships with the package.

    Raises:
        FileNotFoundError: when the installation lacks it.
    """
    path = Path(__file__).resolve().parent / "sample"
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: this installation of flowfuse lacks its sample recording")
    return path


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module("flowfuse.ops")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'flowfuse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
