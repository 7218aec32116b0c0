"""Draws the errors of methods over their times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

Curve = list[tuple[float, float, int]]  # ms, EPE in px, iterations (0: none)


def ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20 ... within limits, and the next ones outside, for a logarithmic axis."""
    known = [digit * 10.0**power for power in range(-3, 7) for digit in (1, 2, 5)]
    below = max((tick for tick in known if tick <= low), default=known[0])
    above = min((tick for tick in known if tick >= high), default=known[-1])
    return [tick for tick in known if below <= tick <= above]


def draw_curves(lines: Mapping[str, Curve], width: int = 900, height: int = 620) -> np.ndarray:
    """Draw EPE over time, both logarithmic: [H, W, 3] uint8 RGB."""
    image = np.full((height, width, 3), 255, np.uint8)
    left, right, top, bottom = 60, width - 200, 20, height - 50
    values = np.array([point[:2] for line in lines.values() for point in line])
    across, up = (ticks(values[:, i].min(), values[:, i].max()) for i in (0, 1))
    ends = [np.log([axis[0], max(axis[-1], 1.01 * axis[0])]) for axis in (across, up)]

    def place(ms: float, epe: float) -> tuple[int, int]:
        x, y = (np.interp(np.log(v), end, (0, 1)) for v, end in zip((ms, epe), ends, strict=True))
        return round(left + x * (right - left)), round(bottom - y * (bottom - top))

    def text(label: str, x: int, y: int, colour: Sequence[int] = (60, 60, 60)) -> None:
        cv2.putText(image, label, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)

    for tick in across:
        x, _ = place(tick, up[0])
        cv2.line(image, (x, top), (x, bottom), (225, 225, 225), 1)
        text(f"{tick:g}", x - 10, bottom + 20)
    for tick in up:
        _, y = place(across[0], tick)
        cv2.line(image, (left, y), (right, y), (225, 225, 225), 1)
        text(f"{tick:g}", 10, y + 5)
    text("ms", (left + right) // 2, bottom + 40)
    for i, (name, line) in enumerate(lines.items()):
        hue = np.uint8([[[180 * i // len(lines), 230, 190]]])
        colour = tuple(int(c) for c in cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0])
        points = [place(ms, epe) for ms, epe, _ in sorted(line)]
        cv2.polylines(image, [np.array(points, np.int32)], False, colour, 2, cv2.LINE_AA)
        for point, (_, _, count) in zip(points, sorted(line), strict=True):
            cv2.circle(image, point, 5, colour, -1, cv2.LINE_AA)
            text(str(count or ""), point[0] + 6, point[1] - 6, colour)
        text(name, right + 12, top + 15 + 22 * i, colour)
    return image
