"""The picture of a live run: all that is known at one moment, side by side."""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np

from flowfuse.cli.infer_figures import colour_range
from flowfuse.cli.live_report import Shot
from flowfuse.tracking import TrackStep
from flowfuse.visualization import (
    add_legend,
    add_title,
    as_rgb,
    colour_flow,
    contact_sheet,
    heat_maximum,
    render_boundary,
    render_events,
    render_heat,
)

TRAIL = 20  # places of a point that are drawn
_HUES = 180  # of OpenCV's 8-bit colours
_GOLDEN = 68  # from one point to the next: neighbours in number differ in colour


class Trails:
    """The last places of the points that are followed."""

    def __init__(self) -> None:
        self._places: dict[int, deque[tuple[float, float]]] = {}

    def update(self, step: TrackStep) -> None:
        """Take note of what a result did to the tracks."""
        for number, place in zip(step.new_ids.tolist(), step.new_points.tolist(), strict=True):
            self._places[number] = deque([tuple(place)], maxlen=TRAIL)
        for number, place in zip(step.ids.tolist(), step.points.tolist(), strict=True):
            self._places.setdefault(number, deque(maxlen=TRAIL)).append(tuple(place))
        going = set(step.ids.tolist())
        self._places = {n: places for n, places in self._places.items() if n in going}

    def lines(self) -> dict[int, np.ndarray]:
        """The places of each point, oldest first, [M, 2] px, by id."""
        return {number: np.array(places) for number, places in self._places.items()}


def track_colour(number: int) -> tuple[int, int, int]:
    """A colour for a track, RGB."""
    hue = np.array([[[number * _GOLDEN % _HUES, 230, 255]]], np.uint8)
    red, green, blue = cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue


def draw_tracks(frame: np.ndarray, trails: Trails) -> np.ndarray:
    """Draw trails over a frame: uint8 RGB [H, W, 3]."""
    gray = cv2.cvtColor(as_rgb(frame), cv2.COLOR_RGB2GRAY)
    picture = np.repeat((0.7 * gray).astype(np.uint8)[..., None], 3, axis=2)
    for number, places in trails.lines().items():
        colour = track_colour(number)
        # OpenCV takes places in 16ths of a pixel.
        line = np.rint(places * 16).astype(np.int32)
        cv2.polylines(picture, [line], False, colour, 1, cv2.LINE_AA, 4)
        cv2.circle(picture, line[-1].tolist(), 32, colour, -1, cv2.LINE_AA, 4)
    return picture


def draw_shot(shot: Shot, trails: Trails | None) -> np.ndarray:
    """Draw a result: frame with events, flow, boundaries, uncertainty and tracks, with the rates.

    Args:
        shot: its arrays are numpy.
        trails: of the points that are followed; None without.

    Returns:
        uint8 RGB.
    """
    result = shot.result
    paper = shot.frame
    if paper is None:
        paper = np.full((result.height, result.width), 128, np.uint8)
    flow, uncertainty = result.flow, result.uncertainty
    largest = colour_range(flow)
    panels = {
        "frame and events": render_events(shot.frame, shot.events),
        "flow": colour_flow(flow, max_magnitude=largest),
        "B_e (cyan) and B_m (orange red)": render_boundary(paper, result.boundary),
        f"expected error, 0 to {heat_maximum(uncertainty):.2g} px": render_heat(uncertainty),
    }
    if trails is not None:
        panels["tracks"] = draw_tracks(paper if shot.frame1 is None else shot.frame1, trails)
    columns = 3 if trails is not None else 2
    sheet = add_legend(contact_sheet(list(panels.values()), list(panels), columns), largest)
    times = f"{result.t0 * 1e-6:.3f} to {result.t1 * 1e-6:.3f} s"
    return add_title(sheet, f"{times}: {shot.rates.line()}")
