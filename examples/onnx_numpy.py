"""Flow by ONNX Runtime and numpy alone: copy this file to where neither torch nor flowfuse is.

    python examples/onnx_numpy.py small.onnx pair.npz flow.npy

pair.npz holds x, y, t, p of the events (pixels, integer microseconds, polarity: above 0 is
brighter), t0 and t1 in microseconds, frame0 and frame1 (uint8, [H, W] or [H, W, 3] as the network
was exported), and, where they are known, exposure0 and exposure1 in microseconds. flow.npy gets the
flow from t0 to t1, [2, H, W] float32 in px.

The arrays are those of flowfuse.inputs.prepare_inputs, to the bit.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import sys
import zipfile
from collections.abc import Mapping

import numpy as np

try:
    import onnxruntime
except ModuleNotFoundError:  # needed to estimate, not for the inputs
    onnxruntime = None

FACTS = ("height", "width", "channels", "slices", "bins")  # what flowfuse-export notes, and is used
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

    Raises:
        ValueError: an array is missing or cannot be; names it, what was found and what was
            expected.
    """
    check_pair(pair, size)
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


def check_pair(pair: Mapping[str, np.ndarray], size: tuple[int, int]) -> None:
    """Refuse what :func:`make_inputs` cannot take.

    Raises:
        ValueError: as of :func:`make_inputs`.
    """
    times = [name for name in ("t0", "t1", "exposure0", "exposure1", "t") if name in pair]
    columns = [name for name in "xytp" if name in pair]
    missing = [name for name in ("t0", "t1") if name not in pair]
    missing += [name for name in "xytp" if columns and name not in pair]
    missing += ["frame0"] if "frame1" in pair and "frame0" not in pair else []
    if missing:
        raise ValueError(f"{', '.join(missing)}: missing; there are {', '.join(sorted(pair))}")
    for name in times:
        kind, shape = pair[name].dtype, pair[name].shape
        if kind.kind not in "iu":
            raise ValueError(f"{name}: expected integer microseconds, got {kind}")
        if name != "t" and pair[name].size != 1:
            raise ValueError(f"{name}: expected one number, got shape {list(shape)}")
    if not int(pair["t0"]) < int(pair["t1"]):
        raise ValueError(f"t1 must be later than t0, got {int(pair['t0'])}, {int(pair['t1'])} us")
    shapes = {name: pair[name].shape for name in columns}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        found = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(f"x, y, t, p: expected one length [N], got {found}")
    for name in ("frame0", "frame1"):
        if name not in pair:
            continue
        kind, shape = pair[name].dtype, pair[name].shape
        if shape[:2] != size or shape[2:] not in ((), (1,), (3,)):
            expected = f"{list(size)} or {[*size, 3]}, the size that the network was exported for"
            raise ValueError(f"{name}: expected shape {expected}, got {list(shape)}")
        if kind != np.uint8:
            raise ValueError(f"{name}: expected uint8 in [0, 255], got {kind}")


def load_network(path: str) -> tuple[onnxruntime.InferenceSession, dict]:
    """Open a file of flowfuse-export; gives the session and what was fixed at export.

    Raises:
        ValueError: it is no such file.
    """
    if onnxruntime is None:
        raise ValueError("ONNX Runtime is missing: pip install onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: not each constant that it leaves in the graph
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many classes, which have only Exception in common
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: ONNX Runtime cannot open it ({reason})") from error
    told = session.get_modelmeta().custom_metadata_map
    named = {name.removeprefix("flowfuse."): text for name, text in told.items()}
    missing = [name for name in FACTS if name not in named]
    if missing:
        raise ValueError(
            f"{path}: lacks the properties flowfuse.{', flowfuse.'.join(missing)}; expected a "
            "network that flowfuse-export wrote"
        )
    return session, {name: json.loads(named[name]) for name in FACTS}


def load_pair(path: str, facts: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Read the inputs of a pair from an .npz.

    Raises:
        ValueError: it is no such file, or its content does not fit the network.
    """
    size = facts["height"], facts["width"]
    try:
        with np.load(path) as file:
            pair = dict(file)
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read as an .npz with the arrays of a pair") from error
    try:
        inputs = make_inputs(pair, facts["slices"], facts["bins"], size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    channels = {name: inputs[name].shape[1] for name in ("frame0", "frame1") if name in pair}
    for name, found in channels.items():
        if found != facts["channels"]:
            expected = "gray frames, [H, W]" if facts["channels"] == 1 else "RGB frames, [H, W, 3]"
            raise ValueError(
                f"{path}: {name}: the network takes {expected}, got {list(pair[name].shape)}"
            )
    for name in ("frame0", "frame1"):  # zeros stand for one that is missing
        if name not in channels:
            inputs[name] = np.zeros((1, facts["channels"], *size), np.float32)
    return inputs


def main(model: str, pair: str, flow: str) -> None:
    """Estimate the flow of a pair.

    Raises:
        OSError: a file is not there, or cannot be written.
        ValueError: a file is not what it should be; names it.
    """
    for path in (model, pair):
        if not os.path.isfile(path):
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
    if not flow.endswith(".npy"):  # numpy would add it
        raise ValueError(f"{flow}: expected a name that ends in .npy")
    session, facts = load_network(model)
    inputs = load_pair(pair, facts)
    wanted = {entry.name: entry.shape[0] for entry in session.get_inputs()}
    for name, batch in wanted.items():
        if isinstance(batch, int) and batch != 1:
            raise ValueError(f"{model}: {name} is of a batch of {batch}, expected 1 or dynamic")
    (points,) = session.run(["control_points"], {name: inputs[name] for name in wanted})
    np.save(flow, points[0, -1])
    print(f"{flow}: {facts['width']} x {facts['height']} px")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
    except ValueError as error:
        sys.exit(f"error: {error}")
