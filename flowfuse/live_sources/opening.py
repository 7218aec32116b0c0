"""A source by its name."""

from __future__ import annotations

import re

from flowfuse.data.opening import open_recording
from flowfuse.live_sources.base import Source
from flowfuse.live_sources.dv_camera import open_camera, open_network
from flowfuse.live_sources.metavision import MetavisionSource
from flowfuse.live_sources.replay import Replay
from flowfuse.live_sources.webcam import WebcamSource

_LAST_PORT = 65535


def open_source(name: str, *, speed: float = 1.0) -> Source:
    """Open a source of live frames and events.

    Args:
        name: "dv:" or "dv:SERIAL": a camera of iniVation; "dv://HOST:PORT" or
            "dv://HOST:PORT+PORT": streams of the network; "metavision:" or "metavision:SERIAL": a
            camera of Prophesee; "webcam:" or "webcam:N": frames of a camera, with simulated events;
            else a recording, see :func:`flowfuse.open_recording`.
        speed: of a recording, see :class:`Replay`.

    Raises:
        FileNotFoundError, ConnectionError: it is not there.
        ModuleNotFoundError: the package that reads it is not installed; says which.
        ValueError: it is no source; says what was expected.
    """
    kind, colon, rest = name.partition(":")
    if colon and kind == "dv" and rest.startswith("//"):
        found = re.fullmatch(r"//([^/:]+|\[[^\]]+\]):(\d+(?:\+\d+)*)/?", rest)
        ports = [int(port) for port in found[2].split("+")] if found else []
        if not found or not all(1 <= port <= _LAST_PORT for port in ports):
            raise ValueError(
                f"{name}: expected dv://HOST:PORT, or dv://HOST:PORT+PORT for events and frames"
            )
        return open_network(found[1], ports)
    if colon and kind == "dv":
        return open_camera(rest)
    if colon and kind == "metavision":
        return MetavisionSource(rest)
    if colon and kind == "webcam":
        return WebcamSource(int(rest) if rest.isdecimal() else rest or 0)
    return Replay(open_recording(name), speed=speed)
