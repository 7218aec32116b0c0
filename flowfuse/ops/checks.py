"""Argument checks of the operators: ValueError in the words of csrc/checks.h (direct calls)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FEATURE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
COORDINATE_DTYPES = (torch.float32, torch.float64)
INTEGER_DTYPES = (torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64)
MAX_LEVELS = 16
MAX_RADIUS = 16
MAX_FACTOR = 64
MAX_DURATION = 2**40  # us, of a window of events
MAX_POINTS = 16  # control points of a trajectory in warp_events
POLARITY_DTYPES = (torch.uint8, torch.bool, torch.int8, torch.int16, torch.int32, torch.int64)


def eager(check: Callable[..., None]) -> Callable[..., None]:
    """Leave a check out while torch.compile traces: the kernel checks when the graph runs."""

    @functools.wraps(check)
    def checked(*args: object, **kwargs: object) -> None:
        if not torch.compiler.is_compiling():
            check(*args, **kwargs)

    return checked


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def sizes(tensor: Tensor) -> str:
    return f"[{', '.join(str(int(size)) for size in tensor.shape)}]"


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_tensors(op: str, tensors: dict[str, object]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{op}: {name} must be a torch.Tensor, got {type(tensor).__name__}")


@eager
def check_integer(op: str, name: str, value: object) -> None:
    if not hasattr(value, "__index__"):  # as integers of numpy and sizes that torch traces have it
        raise ValueError(f"{op}: {name} must be an int, got {type(value).__name__}")


def check_dtype(op: str, name: str, tensor: Tensor, allowed: Sequence[torch.dtype]) -> None:
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise ValueError(f"{op}: {name} must be of dtype {names}, got {dtype_name(tensor)}")


def check_shape(op: str, name: str, tensor: Tensor, form: str, matches: bool) -> None:
    if not matches:
        raise ValueError(f"{op}: {name} must have shape {form}, got {sizes(tensor)}")


def check_device(op: str, first: str, tensors: dict[str, Tensor]) -> None:
    device = tensors[first].device
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ValueError(f"{op}: {name} must be on {device} like {first}, got {tensor.device}")


def check_events(
    op: str, x: Tensor, y: Tensor, t: Tensor, p: Tensor, offsets: Tensor, **times: Tensor
) -> None:
    """Dtypes and shapes of a batch of events; `times` are per batch item. No value is read."""
    check_tensors(op, {"x": x, "y": y, "t": t, "p": p, "offsets": offsets, **times})
    check_shape(op, "t", t, "[N]", t.dim() == 1)
    for name, tensor in (("x", x), ("y", y), ("p", p)):
        check_shape(op, name, tensor, f"[{t.shape[0]}]", tensor.shape == t.shape)
    matches = offsets.dim() == 1 and offsets.shape[0] >= 2
    check_shape(op, "offsets", offsets, "[B + 1], B at least 1", matches)
    items = offsets.shape[0] - 1
    check_dtype(op, "x", x, INTEGER_DTYPES + COORDINATE_DTYPES)
    check_dtype(op, "y", y, (x.dtype,))
    check_dtype(op, "p", p, POLARITY_DTYPES)
    for name, tensor in {"t": t, "offsets": offsets, **times}.items():
        check_dtype(op, name, tensor, (torch.int64,))
    for name, tensor in times.items():
        check_shape(op, name, tensor, f"[{items}]", tensor.dim() == 1 and tensor.shape[0] == items)
    check_device(op, "x", {"x": x, "y": y, "t": t, "p": p, "offsets": offsets, **times})


def check_size(op: str, name: str, value: int, limit: int) -> None:
    check_integer(op, name, value)
    require(1 <= value <= limit, f"{op}: {name} must be in [1, {limit}], got {value}")


@eager
def check_event_values(op: str, count: int, offsets: Tensor, t0: Tensor, t1: Tensor) -> None:
    """What the values of offsets and times must obey (reads them: a synchronization on a GPU)."""
    bounds = offsets.tolist()
    ordered = all(a <= b for a, b in itertools.pairwise(bounds))
    if bounds[0] < 0 or bounds[-1] > count or not ordered:
        raise ValueError(
            f"{op}: offsets must not decrease and must lie within [0, {count}], got "
            + (str(bounds) if len(bounds) <= 8 else f"{bounds[:3]} ... {bounds[-3:]}")
        )
    for item, (start, end) in enumerate(zip(t0.tolist(), t1.tolist(), strict=True)):
        if not start < end:
            raise ValueError(
                f"{op}: t1 must be later than t0, got t0 = {start}, t1 = {end} in item {item}"
            )
        if end - start > MAX_DURATION:
            raise ValueError(
                f"{op}: t1 - t0 must be at most 2^40 microseconds, "
                f"got t0 = {start}, t1 = {end} in item {item}"
            )


@eager
def check_voxelize(
    x: Tensor, y: Tensor, t: Tensor, p: Tensor, offsets: Tensor, t0: Tensor, t1: Tensor,
    bins: int, height: int, width: int,
) -> None:  # fmt: skip
    op = "voxelize"
    check_events(op, x, y, t, p, offsets, t0=t0, t1=t1)
    check_size(op, "bins", bins, 2**16)
    check_size(op, "height", height, 2**20)
    check_size(op, "width", width, 2**20)


def check_level_count(op: str, levels: int) -> None:
    check_integer(op, "levels", levels)
    require(1 <= levels <= MAX_LEVELS, f"{op}: levels must be in [1, {MAX_LEVELS}], got {levels}")


def check_radius(op: str, radius: int) -> None:
    check_integer(op, "radius", radius)
    require(0 <= radius <= MAX_RADIUS, f"{op}: radius must be in [0, {MAX_RADIUS}], got {radius}")


@eager
def check_features(op: str, name: str, features: Tensor) -> None:
    check_tensors(op, {name: features})
    check_shape(op, name, features, "[B, C, H, W]", features.dim() == 4)
    check_dtype(op, name, features, FEATURE_DTYPES)
    found = sizes(features)
    require(features.shape[1] >= 1, f"{op}: {name} must have at least one channel, got {found}")


@eager
def check_levels(op: str, f0: Tensor, f1_levels: Sequence[Tensor]) -> None:
    check_features(op, "f0", f0)
    check_level_count(op, len(f1_levels))
    for level, f1 in enumerate(f1_levels):
        name = f"level {level} of f1"
        check_tensors(op, {name: f1})
        matches = f1.dim() == 4 and f1.shape[:2] == f0.shape[:2]
        check_shape(op, name, f1, f"[{f0.shape[0]}, {f0.shape[1]}, H_l, W_l]", matches)
        check_dtype(op, name, f1, FEATURE_DTYPES)
        wide = (f0.dtype == torch.float64) == (f1.dtype == torch.float64)
        require(wide, f"{op}: f0 and {name} must both be float64 or neither")
        check_device(op, "f0", {"f0": f0, name: f1})


def check_lookup(op: str, first: Tensor, coords: Tensor, radius: int) -> None:
    """`first` is f0 or the first volume."""
    check_tensors(op, {"coords": coords})
    matches = coords.dim() == 4 and coords.shape[1] == 2
    check_shape(op, "coords", coords, "[B, 2, H, W]", matches)
    check_dtype(op, "coords", coords, COORDINATE_DTYPES)
    check_radius(op, radius)
    check_device(op, "coords", {"coords": coords, "features": first})


@eager
def check_correlation_lookup(
    f0: Tensor, f1_levels: Sequence[Tensor], coords: Tensor, radius: int
) -> None:
    op = "correlation_lookup"
    check_levels(op, f0, f1_levels)
    check_lookup(op, f0, coords, radius)
    form = f"[{f0.shape[0]}, 2, {f0.shape[2]}, {f0.shape[3]}]"
    matches = coords.shape[0] == f0.shape[0] and coords.shape[2:] == f0.shape[2:]
    check_shape(op, "coords", coords, form, matches)


@eager
def check_volume_lookup(volumes: Sequence[Tensor], coords: Tensor, radius: int) -> None:
    op = "volume_lookup"
    check_level_count(op, len(volumes))
    check_tensors(op, {f"level {level} of volumes": v for level, v in enumerate(volumes)})
    check_lookup(op, volumes[0], coords, radius)
    batch, _, height, width = coords.shape
    for level, volume in enumerate(volumes):
        name = f"level {level} of volumes"
        matches = volume.dim() == 5 and tuple(volume.shape[:3]) == (batch, height, width)
        check_shape(op, name, volume, f"[{batch}, {height}, {width}, H_l, W_l]", matches)
        check_dtype(op, name, volume, COORDINATE_DTYPES)
        require(
            volume.dtype == volumes[0].dtype,
            f"{op}: {name} must be of the dtype of level 0, got {dtype_name(volume)}",
        )
        check_device(op, "coords", {"coords": coords, name: volume})


@eager
def check_common_gradient(
    frame0: Tensor, frame1: Tensor, event_sum: Tensor, flow: Tensor | None
) -> None:
    op = "common_gradient"
    check_tensors(op, {"frame0": frame0, "frame1": frame1, "event_sum": event_sum})
    matches = frame0.dim() == 4 and frame0.shape[1] in (1, 3)
    check_shape(op, "frame0", frame0, "[B, 1 or 3, H, W]", matches)
    check_shape(op, "frame1", frame1, sizes(frame0), frame1.shape == frame0.shape)
    batch, _, height, width = frame0.shape
    form = (batch, 1, height, width)
    check_shape(
        op,
        "event_sum",
        event_sum,
        f"[{batch}, 1, {height}, {width}]",
        tuple(event_sum.shape) == form,
    )
    for name, frame in (("frame0", frame0), ("frame1", frame1)):
        require(
            frame.dtype != torch.uint8,
            f"{op}: {name} must be floating point in [0, 1], got uint8: divide it by 255 first",
        )
        check_dtype(op, name, frame, FEATURE_DTYPES)
    require(
        frame0.dtype == frame1.dtype,
        f"{op}: frame0 and frame1 must have the same dtype, got {frame0.dtype} and {frame1.dtype}",
    )
    exact = (torch.float64,) if frame0.dtype == torch.float64 else (torch.float32,)
    check_dtype(op, "event_sum", event_sum, exact)
    tensors = {"frame0": frame0, "frame1": frame1, "event_sum": event_sum}
    if flow is not None:
        check_tensors(op, {"flow": flow})
        form = (batch, 2, height, width)
        check_shape(op, "flow", flow, f"[{batch}, 2, {height}, {width}]", tuple(flow.shape) == form)
        check_dtype(op, "flow", flow, exact)
        tensors["flow"] = flow
    check_device(op, "frame0", tensors)


@eager
def check_convex_upsample(field: Tensor, mask: Tensor, factor: int) -> None:
    op = "convex_upsample"
    check_tensors(op, {"field": field, "mask": mask})
    check_integer(op, "factor", factor)
    require(1 <= factor <= MAX_FACTOR, f"{op}: factor must be in [1, {MAX_FACTOR}], got {factor}")
    check_shape(op, "field", field, "[B, D, h, w]", field.dim() == 4)
    batch, _, height, width = field.shape
    form = (batch, 9 * factor * factor, height, width)
    check_shape(op, "mask", mask, f"[{', '.join(map(str, form))}]", tuple(mask.shape) == form)
    check_dtype(op, "field", field, COORDINATE_DTYPES)
    check_dtype(op, "mask", mask, FEATURE_DTYPES)
    check_device(op, "field", {"field": field, "mask": mask})


@eager
def check_warp_events(
    x: Tensor, y: Tensor, t: Tensor, p: Tensor, offsets: Tensor, trajectory: Tensor,
    t0: Tensor, t1: Tensor, t_ref: Tensor, mode: str, height: int, width: int,
) -> None:  # fmt: skip
    op = "warp_events"
    check_events(op, x, y, t, p, offsets, t0=t0, t1=t1, t_ref=t_ref)
    items = offsets.shape[0] - 1
    require(
        mode in ("signed", "unsigned", "split"),
        f"{op}: mode must be 'signed', 'unsigned' or 'split', got {mode!r}",
    )
    check_size(op, "height", height, 2**20)
    check_size(op, "width", width, 2**20)
    check_tensors(op, {"trajectory": trajectory})
    shape = tuple(trajectory.shape)
    flow = shape == (items, 2, height, width)
    points = (
        len(shape) == 5 and shape[1] >= 1 and (shape[0], *shape[2:]) == (items, 2, height, width)
    )
    form = f"[{items}, 2, {height}, {width}] or [{items}, n, 2, {height}, {width}]"
    check_shape(op, "trajectory", trajectory, form, flow or points)
    require(
        flow or shape[1] <= MAX_POINTS,
        f"{op}: trajectory must have at most {MAX_POINTS} control points, got {shape[1]}",
    )
    check_dtype(op, "trajectory", trajectory, COORDINATE_DTYPES)
    check_device(op, "x", {"x": x, "trajectory": trajectory})
