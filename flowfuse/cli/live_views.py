"""Ways to show a live run: lines of text or JSON, a window, a stream for rerun."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flowfuse.cli.live_figures import Trails, draw_shot, track_colour
from flowfuse.cli.live_report import Shot
from flowfuse.io.atomic import check_file_path
from flowfuse.visualization import colour_flow, render_boundary, render_events, render_heat

_LINES = 1.0  # s between two lines of text
_QUIT = (ord("q"), 27)  # keys: q, escape
_JPEG = 85


class View:
    """Shows nothing; the base of those that do.

    Attributes:
        closed: whether the user has closed it.
    """

    closed = False

    def __enter__(self) -> View:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def show(self, shot: Shot) -> None:
        """Show a result."""


class TextView(View):
    """A line of rates every second."""

    def __init__(self) -> None:
        self._last = 0.0

    def show(self, shot: Shot) -> None:
        if time.monotonic() - self._last >= _LINES:
            self._last = time.monotonic()
            motion = np.hypot(*shot.result.flow).mean()
            seconds = shot.result.t1 * 1e-6
            print(f"{seconds:.3f} s: mean motion {motion:.2f} px; {shot.rates.line()}", flush=True)


class JsonView(View):
    """One line of JSON for each result, for other programs."""

    def show(self, shot: Shot) -> None:
        result, rates = shot.result, shot.rates
        row: dict[str, Any] = {
            "t0_us": result.t0,
            "t1_us": result.t1,
            "from": list(result.modalities),
            "mean_flow_px": [round(float(v), 4) for v in result.flow.mean(axis=(1, 2))],
            "mean_motion_px": round(float(np.hypot(*result.flow).mean()), 4),
            "mean_uncertainty_px": round(float(result.uncertainty.mean()), 4),
            "latency_s": round(rates.latency, 6),
            "results_per_s": round(rates.results, 3),
            "events_per_s": round(rates.events, 1),
            "events_dropped": rates.dropped,
            "intervals_skipped": rates.skipped,
        }
        if shot.step is not None:
            row |= {"tracks": len(shot.step.ids), "tracks_lost": len(shot.step.lost)}
        print(json.dumps(row), flush=True)


class WindowView(View):
    """A window of OpenCV; q, escape or closing it ends the run.

    Args:
        title: of the window.

    Raises:
        ValueError: this OpenCV has no windows, or there is no screen.
    """

    def __init__(self, title: str) -> None:
        self._title = f"flowfuse: {title}"
        self._trails = Trails()
        try:
            cv2.namedWindow(self._title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        except cv2.error as error:
            raise ValueError(
                "--view window: this OpenCV opens no window (opencv-python-headless has none, and "
                "others need a screen): install opencv-python in its place, or take --view rerun "
                "or --view text"
            ) from error
        self._sized = False

    def show(self, shot: Shot) -> None:
        if shot.step is not None:
            self._trails.update(shot.step)
        picture = draw_shot(shot, None if shot.step is None else self._trails)
        if not self._sized:
            cv2.resizeWindow(self._title, picture.shape[1], picture.shape[0])
            self._sized = True
        cv2.imshow(self._title, np.ascontiguousarray(picture[:, :, ::-1]))
        pressed = cv2.waitKey(1) & 0xFF
        visible = cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1
        self.closed = pressed in _QUIT or not visible

    def __exit__(self, *exception: object) -> None:
        cv2.destroyAllWindows()


class RerunView(View):
    """A stream for rerun: pictures and tracks on a time line of the sensor, rates beside them.

    Args:
        output: .rrd file; None: the viewer is opened.
        title: of the stream.

    Raises:
        ModuleNotFoundError: rerun is not installed.
        OSError: the file cannot be written.
    """

    def __init__(self, output: Path | None, title: str) -> None:
        try:
            self._rerun = importlib.import_module("rerun")
        except ImportError as error:
            raise ModuleNotFoundError(
                "--view rerun needs rerun-sdk, which is not installed: pip install rerun-sdk, or "
                '"flowfuse[view]"'
            ) from error
        if output is not None:
            check_file_path(output)
        elif sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
            raise OSError(
                "--view rerun needs a screen: there is none; --output FILE.rrd writes a file"
            )
        self._trails = Trails()
        self._stream = self._rerun.RecordingStream("flowfuse-live")
        self._stream.send_recording_name(title)
        if output is None:
            self._stream.spawn()
        else:
            self._stream.save(str(output))
        self._stream.send_blueprint(self._blueprint())

    def _blueprint(self) -> Any:
        blueprint = self._rerun.blueprint
        pictures = [
            blueprint.Spatial2DView(origin=name, name=name)
            for name in ("events", "flow", "boundary", "uncertainty", "tracks")
        ]
        rates = [blueprint.TimeSeriesView(origin=f"rates/{name}", name=name) for name in _RATES]
        return blueprint.Blueprint(
            blueprint.Vertical(
                blueprint.Grid(*pictures), blueprint.Horizontal(*rates), row_shares=[3, 1]
            )
        )

    def show(self, shot: Shot) -> None:
        result, log = shot.result, self._stream.log
        self._stream.set_time("sensor", duration=result.t0 * 1e-6)
        paper = shot.frame
        if paper is None:
            paper = np.full((result.height, result.width), 128, np.uint8)
        for name, picture in (
            ("events", render_events(shot.frame, shot.events)),
            ("flow", colour_flow(result.flow)),
            ("boundary", render_boundary(paper, result.boundary)),
            ("uncertainty", render_heat(result.uncertainty)),
            ("tracks/frame", paper if shot.frame1 is None else shot.frame1),
        ):
            log(name, self._rerun.Image(picture).compress(jpeg_quality=_JPEG))
        if shot.step is not None:
            self._trails.update(shot.step)
            lines = self._trails.lines()
            colours = [track_colour(number) for number in lines]
            log("tracks/lines", self._rerun.LineStrips2D(list(lines.values()), colors=colours))
        values = (shot.rates.latency * 1e3, shot.rates.results, shot.rates.events)
        for name, value in zip(_RATES, values, strict=True):
            log(f"rates/{name}", self._rerun.Scalars(value))

    def __exit__(self, *exception: object) -> None:
        self._stream.flush()
        self._stream.disconnect()


_RATES = ("latency_ms", "results_per_s", "events_per_s")


def make_view(kind: str, output: Path | None, title: str) -> View:
    """Make the view that --view names."""
    if kind == "window":
        return WindowView(title)
    if kind == "rerun":
        return RerunView(output, title)
    return {"text": TextView, "json": JsonView, "none": View}[kind]()
