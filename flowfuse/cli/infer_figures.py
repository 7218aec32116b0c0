"""Pictures of one estimate, for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowfuse.events import Events
from flowfuse.result import Result
from flowfuse.visualization import (
    EVENT_COLOURS,
    add_legend,
    add_title,
    as_rgb,
    colour_flow,
    contact_sheet,
    heat_maximum,
    render_boundary,
    render_events,
    render_heat,
    upscale,
)

PICTURES = ("flow", "events", "boundary", "times")
# Times that the contact sheet shows when none are asked for.
SHEET_TIMES = (0.25, 0.5, 0.75)
MAX_COLUMNS = 6
# The colours span nearly all pixels; without a floor, noise of a still scene would fill the wheel.
MAGNITUDE_PERCENTILE = 99
LEAST_MAGNITUDE = 1.0  # px

Truth = tuple[np.ndarray, np.ndarray]  # flow [2, H, W] px, valid [H, W]


def colour_range(*flows: np.ndarray) -> float:
    """Magnitude (px) at the rim of the colour wheel for flows [2, H, W] shown side by side."""
    magnitudes = [np.percentile(np.hypot(*flow), MAGNITUDE_PERCENTILE) for flow in flows]
    return max(LEAST_MAGNITUDE, *map(float, magnitudes))


def write_figures(
    title: str,
    result: Result,
    frame0: np.ndarray | None,
    events: Events,
    ground_truths: dict[float, Truth],
    times: Sequence[float],
) -> dict[str, np.ndarray]:
    """Draw an estimate.

    Args:
        title: what it is an estimate of.
        result: the estimate.
        frame0: uint8 [H, W] or [H, W, 3]; None = white paper.
        events: those to draw over the frame.
        ground_truths: true displacement at those tau where it is known (1.0 = the flow).
        times: the tau of the contact sheet; () = SHEET_TIMES.

    Returns:
        One uint8 RGB picture for each of PICTURES.
    """
    paper = frame0 if frame0 is not None else np.full((result.height, result.width), 128, np.uint8)
    boundary, uncertainty = result.boundary, result.uncertainty
    maps = {
        "B_e (cyan) and B_m (orange red)": render_boundary(paper, boundary),
        "B_e: informative moving edge": as_rgb(boundary[0]),
        "B_m: motion discontinuity": as_rgb(boundary[1]),
        f"expected error, 0 to {heat_maximum(uncertainty):.2g} px": render_heat(uncertainty),
    }
    return {
        "flow": add_title(_draw_flow(result.flow, ground_truths.get(1.0)), f"flow, {title}"),
        "events": add_title(
            upscale(render_events(frame0, events)), f"events ({EVENT_COLOURS}), {title}"
        ),
        "boundary": contact_sheet(list(maps.values()), list(maps), columns=2),
        "times": _draw_times(result, ground_truths, times or SHEET_TIMES),
    }


def _draw_flow(flow: np.ndarray, ground_truth: Truth | None) -> np.ndarray:
    """Colour flow with its legend; where ground truth is known, the ground truth and the error
    beside it."""
    largest = colour_range(flow, *([ground_truth[0]] if ground_truth else []))
    if ground_truth is None:
        return add_legend(upscale(colour_flow(flow, max_magnitude=largest)), largest)
    ground_truth_flow, valid = ground_truth
    error = np.hypot(*(flow - ground_truth_flow))
    panels = {
        "estimate": colour_flow(flow, max_magnitude=largest),
        "ground truth": colour_flow(ground_truth_flow, valid, largest),
        f"endpoint error, 0 to {heat_maximum(error, valid):.2g} px": render_heat(error, valid),
    }
    return add_legend(contact_sheet(list(panels.values()), list(panels), columns=3), largest)


def _draw_times(
    result: Result, ground_truths: dict[float, Truth], times: Sequence[float]
) -> np.ndarray:
    """Displacement from t0 to several times in one row, the ground truth below it, in one colour
    scale."""
    every = sorted({*times, 1.0})
    shown = np.linspace(0, len(every) - 1, min(len(every), MAX_COLUMNS)).astype(int)
    times = [every[i] for i in shown]
    flows = result.at(times)
    largest = colour_range(
        *flows, *(ground_truths[tau][0] for tau in times if tau in ground_truths)
    )
    panels = [colour_flow(flow, max_magnitude=largest) for flow in flows]
    labels = [f"t0 to tau = {tau:g}" for tau in times]
    if ground_truths:
        blank = np.full_like(panels[0], 255)
        panels += [
            colour_flow(*ground_truths[tau], max_magnitude=largest)
            if tau in ground_truths
            else blank
            for tau in times
        ]
        labels += [
            f"ground truth at {tau:g}" if tau in ground_truths else "no ground truth"
            for tau in times
        ]
    return add_legend(contact_sheet(panels, labels, columns=len(times)), largest)
