"""A frame pair as the viewer takes it: quantised, predicted, deflated, in JSON.

Maps are stored in whole steps. A step is one unit of the last digit that the viewer prints, so that
a printed number is that of the file, rounded. Each value is predicted from its neighbours (left,
above, above left) by the median predictor of JPEG-LS; what remains is small and compresses well.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import cv2
import numpy as np

from flowfuse.events import Events
from flowfuse.result import Result

# Steps, in the units of the maps.
FLOW_STEP = 0.01  # px; flow files are shown to 2 digits
BEND_STEP = 0.05  # px, of how far trajectories leave the straight line
UNCERTAINTY_STEP = 0.1  # px
BOUNDARY_STEP = 0.01
EVENT_BINS = 24  # times in a pair at which the browser can tell events apart
MAX_EVENTS = 100_000  # of a pair; of more, every second, third, ... is kept
JPEG_QUALITY = 88

GroundTruth = tuple[np.ndarray, np.ndarray]  # flow [2, H, W] px, valid [H, W]


def encode_pair(
    result: Result,
    frame: np.ndarray | None,
    events: Events,
    ground_truth: GroundTruth | None,
    *,
    index: int,
    colour_range: float,
) -> str:
    """Encode a frame pair, or another time interval.

    Args:
        result: its estimate.
        frame: uint8 [H, W] or [H, W, 3] RGB at t0; None = without.
        events: those of [t0, t1).
        ground_truth: flow to t1 and where it is known; None = unknown.
        index: number of its flow file.
        colour_range: px, magnitude of full colour.

    Returns:
        JSON of one line. Maps have the keys of :func:`encode_map`; events those of
        :func:`encode_events`.
    """
    points = result.control_points
    count = len(points)
    flow = points[-1]
    straight = np.arange(1, count, dtype=np.float32)[:, None, None, None] / count * flow
    content: dict[str, Any] = {
        "index": index,
        "t0": result.t0,
        "t1": result.t1,
        "width": result.width,
        "height": result.height,
        "modalities": list(result.modalities),
        "range": colour_range,
        "frame": None if frame is None else _encode_jpeg(frame),
        "flow": encode_map(flow, FLOW_STEP),
        "bend": encode_map((points[:-1] - straight).reshape(-1, *flow.shape[1:]), BEND_STEP),
        "uncertainty": encode_map(result.uncertainty[None], UNCERTAINTY_STEP),
        "boundary": encode_map(result.boundary, BOUNDARY_STEP),
        "events": encode_events(events, result.t0, result.t1, result.height, result.width),
    }
    if ground_truth is not None:
        true_flow, valid = ground_truth
        content["ground_truth"] = encode_map(np.where(valid, true_flow, 0), FLOW_STEP)
        content["valid"] = encode_map(valid[None].astype(np.float32), 1)
    return json.dumps(content, separators=(",", ":"))


def encode_map(values: np.ndarray, step: float) -> dict[str, Any]:
    """Encode maps.

    Args:
        values: [C, H, W]; what is not finite counts as 0.
        step: values are rounded to multiples of it.

    Returns:
        ``step``; ``channels``, C; ``bytes``, B per value; ``data``, base64 of a zlib stream of B
        planes of C H W bytes, the lowest bytes first: of each value's residual e to its prediction,
        2 e where e >= 0, else -2 e - 1.
    """
    finite = np.where(np.isfinite(values), values, 0).astype(np.float64)
    # By the number of steps in 1, which is exact: 1.005 / 0.01 would not be.
    codes = np.rint(np.rint(1 / step) * finite).astype(np.int64)
    left = np.pad(codes, ((0, 0), (0, 0), (1, 0)))[:, :, :-1]
    above = np.pad(codes, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    corner = np.pad(codes, ((0, 0), (1, 0), (1, 0)))[:, :-1, :-1]
    predicted = np.clip(left + above - corner, np.minimum(left, above), np.maximum(left, above))
    residual = codes - predicted
    folded = np.where(residual >= 0, 2 * residual, -2 * residual - 1).astype("<u8")
    count = max(1, (int(folded.max(initial=0)).bit_length() + 7) // 8)
    planes = folded.ravel().view(np.uint8).reshape(-1, 8)[:, :count].T
    return {
        "step": step,
        "channels": len(values),
        "bytes": count,
        "data": _deflate(planes.tobytes()),
    }


def encode_events(events: Events, t0: int, t1: int, height: int, width: int) -> dict[str, Any]:
    """Encode which pixels have events in each of EVENT_BINS equal parts of [t0, t1).

    Args:
        events: any; those of other times, or that round to places outside the image, are left out.

    Returns:
        ``every``: of so many events one is kept; ``count``, of all; ``bins``, EVENT_BINS;
        ``data``, base64 of a zlib stream of numbers, each in base 128 with the lowest digit first
        and 128 added to all digits but the last. For each bin: how many pixels it has; then for
        each, in the order of the image, twice the distance from the one before (the first: from
        pixel -1), and 1 more where most of its events are of positive polarity.
    """
    events = events.slice_time(t0, t1)
    every = max(1, -(-len(events) // MAX_EVENTS))
    x = np.rint(np.asarray(events.x[::every], np.float64)).astype(np.int64)
    y = np.rint(np.asarray(events.y[::every], np.float64)).astype(np.int64)
    shown = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    place = (y * width + x)[shown]
    bins = ((events.t[::every] - t0) * EVENT_BINS // (t1 - t0))[shown]
    sign = 2 * events.p[::every].astype(np.int64)[shown] - 1
    keys, where = np.unique(bins * height * width + place, return_inverse=True)
    positive = np.bincount(where, sign, len(keys)) >= 0
    numbers: list[np.ndarray] = []
    for number in range(EVENT_BINS):
        first, last = np.searchsorted(keys, np.array([number, number + 1]) * height * width)
        places = keys[first:last] - number * height * width
        steps = np.diff(places, prepend=-1)
        numbers += [np.array([len(places)]), 2 * steps + positive[first:last]]
    return {
        "every": every,
        "count": len(events),
        "bins": EVENT_BINS,
        "data": _deflate(_base_128(np.concatenate(numbers))),
    }


def _base_128(numbers: np.ndarray) -> bytes:
    """Write numbers >= 0 with the lowest digit first; all digits but the last have bit 7."""
    digits = []
    rest = numbers.astype(np.int64)
    while True:
        digits.append(rest & 127)
        rest = rest >> 7
        if not rest.any():
            break
    table = np.stack(digits, axis=1)  # [N, digits]
    used = np.maximum(1, (table > 0) * np.arange(1, table.shape[1] + 1)).max(axis=1)
    column = np.arange(table.shape[1])
    table = np.where(column < used[:, None] - 1, table | 128, table)
    return table[column < used[:, None]].astype(np.uint8).tobytes()


def _encode_jpeg(frame: np.ndarray) -> str:
    image = frame if frame.ndim == 2 else frame[:, :, ::-1]
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise OSError("OpenCV could not encode a frame as JPEG for the viewer")
    return base64.b64encode(data.tobytes()).decode()


def _deflate(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode()
