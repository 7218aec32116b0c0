"""Flow by ONNX Runtime and numpy alone: copy this file to where neither torch nor flowfuse is.

    python examples/onnx_numpy.py small.onnx pair.npz flow.npy

pair.npz holds x, y, t, p of the events (pixels, integer microseconds, polarity: above 0 is
brighter), t0 and t1 in microseconds, frame0 and frame1 (uint8, [H, W] or [H, W, 3] as the network
was exported), and, where they are known, exposure0 and exposure1 in microseconds. flow.npy gets the
flow from t0 to t1, [2, H, W] float32 in px.

The arrays are those of flowfuse.inputs.prepare_inputs, to the bit.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping

import numpy as np

TIME_UNIT = 1 << 15  # weights in time are whole multiples of its inverse


def voxel_grid(
    events: Mapping[str, np.ndarray], t0: int, t1: int, bins: int, size: tuple[int, int], end: int
) -> np.ndarray:
    """Sum polarities of the events in [t0, t1), spread linearly over bins in time.

    Args:
        events: x, y, t, p: [N] each.
        t0, t1: microseconds.
        bins: the first lies at t0, the last at ``end``.
        size: height and width, px; events elsewhere are left out.
        end: microseconds, t1 or later.

    Returns:
        [bins, H, W] float32.
    """
    height, width = size
    x, y, t, p = (np.asarray(events[name]).astype(np.int64) for name in "xytp")
    used = (t >= t0) & (t < t1) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y, t, p = x[used], y[used], t[used], p[used]
    sign = np.where(p > 0, 1, -1)
    position, duration = (bins - 1) * (t - t0), end - t0
    first = position // duration
    late = ((position % duration) * TIME_UNIT) // duration
    sums = np.zeros((bins + 1, height, width), np.int64)
    np.add.at(sums, (first, y, x), sign * (TIME_UNIT - late))
    np.add.at(sums, (first + 1, y, x), sign * late)  # 0 where that is no bin
    return (sums[:bins] / TIME_UNIT).astype(np.float32)


def voxel_grids(
    events: Mapping[str, np.ndarray],
    t0: int,
    t1: int,
    slices: int,
    bins: int,
    size: tuple[int, int],
) -> np.ndarray:
    """The slices E_0 .. E_K, of which E_0 ends at t0 and E_K at t1: [K + 1, bins, H, W] float32."""
    limits = [t0 + k * (t1 - t0) // slices for k in range(-1, slices + 1)]
    grids = [
        voxel_grid(events, start, end, bins, size, end) for start, end in itertools.pairwise(limits)
    ]
    return np.stack(grids)


def event_sum(
    events: Mapping[str, np.ndarray],
    t0: int,
    t1: int,
    exposures: tuple[int | None, int | None],
    size: tuple[int, int],
) -> np.ndarray:
    """Polarities from frame 0 to frame 1, weighted by what the exposures see: [1, H, W] float32."""
    half0, half1 = ((exposure or 0) // 2 for exposure in exposures)
    start, end = t0 + half0, t1 - half1
    if start > end:  # overlapping exposures: both are cut in the middle
        start = end = (start + end) // 2
    total = np.zeros((1, *size), np.float32)
    if start < end:
        total += voxel_grid(events, start, end, 1, size, end)
    if t0 - half0 < start:  # the weight rises from 0 to 1
        total += voxel_grid(events, t0 - half0, start, 2, size, start)[1:]
    if end < t1 + half1:  # and falls again
        total += voxel_grid(events, end, t1 + half1, 2, size, t1 + half1)[:1]
    return total


def make_inputs(
    pair: Mapping[str, np.ndarray], slices: int, bins: int, size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """All inputs of the network, a batch of one.

    Args:
        pair: see above; without frame0 and frame1, flow comes from the events alone, without
            frame1 from frame0 and the events, and without x, y, t, p from the frames alone.
        slices, bins: K and bins of the network.
        size: height and width, px.
    """
    t0, t1 = int(pair["t0"]), int(pair["t1"])
    events = {name: pair[name] if "t" in pair else np.zeros(0, np.int64) for name in "xytp"}
    has = ["frame0" in pair, "frame0" in pair and "frame1" in pair]
    durations = [int(pair[name]) if name in pair else None for name in ("exposure0", "exposure1")]
    exposures = (durations[0], durations[1])
    frames = []
    for name, there in zip(("frame0", "frame1"), has, strict=True):
        frame = np.asarray(pair[name]) if there else np.zeros(size, np.uint8)
        image = frame.reshape(*size, -1).transpose(2, 0, 1)
        frames.append(image.astype(np.float32) / np.float32(255))
    t = np.asarray(events["t"])
    inside = bool(((t >= t0) & (t < t1)).any())
    item = {
        "slices": voxel_grids(events, t0, t1, slices, bins, size),
        "frame0": frames[0],
        "frame1": frames[1],
        "event_sum": event_sum(events, t0, t1, exposures, size),
        "exposure": np.array([(e or 0) / (t1 - t0) for e in exposures], np.float32),
        "modality_mask": np.array(
            [has[0], inside, inside and bool((t < t0).any()), has[1]], np.float32
        ),
    }
    return {name: value[None] for name, value in item.items()}


def main(model: str, pair: str, flow: str) -> None:
    """Estimate the flow of a pair."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    facts = {name.removeprefix("flowfuse."): json.loads(text) for name, text in told.items()}
    with np.load(pair) as file:
        inputs = make_inputs(
            dict(file), facts["slices"], facts["bins"], (facts["height"], facts["width"])
        )
    (points,) = session.run(["control_points"], inputs)
    np.save(flow, points[0, -1])
    print(f"{flow}: {facts['width']} x {facts['height']} px")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
