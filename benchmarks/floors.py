"""What each operator needs at least: bytes to move and operations to make, derived from its task.

The floor of a row is the longer of the two at the machine's measured limits. An input is read once
and a result written once; a gradient is a second call, which reads the inputs again.
"""

from __future__ import annotations

from dataclasses import dataclass

from measuring import Limits

POSITION, TIME, POLARITY = 4, 8, 1  # bytes of a float32 x or y, of an int64 t, of a bool p
PIXEL = 4  # bytes of a float32 value


@dataclass(frozen=True)
class Needed:
    """Bytes and operations; `kind` names the limit that the operations are held against."""

    bytes: int
    operations: int
    kind: str  # "float32", "bfloat16" or "atomics"


def floor_seconds(needed: Needed, limits: Limits) -> float:
    rate = {
        "float32": limits.float32_operations,
        "bfloat16": limits.bfloat16_operations,
        "atomics": limits.atomics,
    }[needed.kind]
    moving = needed.bytes / limits.copy_bytes
    return moving if rate is None else max(moving, needed.operations / rate)


def correlation(
    f0: tuple[int, int, int, int], batch: int, levels: int, radius: int, lookups: int,
    both: bool, itemsize: int, kind: str,
) -> Needed:  # fmt: skip
    """f0 is [B or 1, C, H, W] as stored (shared by the batch when 1), f1 [batch, C, H, W].

    Operations: there are two known ways, and the floor is the cheaper one.
    - all pairs: every product of two of the H W pixels once, 2 C operations each; coarser levels
      are averages of these and cost next to nothing;
    - on demand: the (2r + 1)^2 values of a look-up share one fraction, so they need (2r + 2)^2
      products on each level, or all cells of a level that is smaller; look-ups come one after the
      other and share nothing.
    Combining the products bilinearly (8 operations a value against 2 C a product) is left out. A
    gradient makes as many products for each of the two maps: three times the work in all.

    Bytes: both maps read, the coordinates read, all look-ups written in float32. With gradients the
    maps and coordinates are read again, the gradients of the look-ups read, those of the maps
    written.
    """
    shared, channels, height, width = f0
    pixels = batch * height * width
    cells = [(height >> level) * (width >> level) for level in range(levels)]
    window = (2 * radius + 2) ** 2
    stored = pixels * cells[0]
    on_demand = lookups * pixels * sum(min(window, size) for size in cells)
    operations = 2 * channels * min(stored, on_demand)
    maps = itemsize * (shared + batch) * channels * height * width
    coords = lookups * pixels * 2 * PIXEL
    results = lookups * pixels * levels * (2 * radius + 1) ** 2 * PIXEL
    forward = maps + coords + results
    if not both:
        return Needed(forward, operations, kind)
    return Needed(forward + maps + coords + results + maps, 3 * operations, kind)


def voxelize(
    events: int, cells: int, batch: int, rectified: bool, position: int = POSITION
) -> Needed:
    """Bytes: every event read (x, y, t, p), every cell of the float32 grid written.

    Operations: the additions into cells, 2 for an event on a pixel and 8 for one between pixels.
    They are held against the rate of random 64-bit atomic additions on a GPU; on a CPU, where no
    such rate limits a kernel that owns its cells, the bytes alone count.
    """
    moved = events * (2 * position + TIME + POLARITY) + batch * cells * PIXEL
    return Needed(moved, events * (8 if rectified else 2), "atomics")


def convex_upsample(
    batch: int, channels: int, height: int, width: int, factor: int, both: bool
) -> Needed:
    """Bytes: field and mask read, the fine field written; with gradients field, mask and the fine
    gradient read, the gradients of field and mask written.

    Operations per fine pixel: 9 exponentials (as one each), 8 additions of them, 9 multiplications
    and 8 additions per channel and one division; the gradient makes the weights again, 2 per
    neighbour and channel for each of field and mask, and 4 per neighbour for the softmax.
    """
    coarse = batch * height * width
    fine = coarse * factor**2
    field, mask, result = channels * coarse * PIXEL, 9 * fine * PIXEL, channels * fine * PIXEL
    weights = 9 + 8 + 1
    operations = fine * (weights + 17 * channels)
    if not both:
        return Needed(field + mask + result, operations, "float32")
    operations += fine * (weights + 9 * 4 * channels + 9 * 4)
    return Needed(3 * (field + mask) + 2 * result, operations, "float32")


def common_gradient(batch: int, channels: int, height: int, width: int, both: bool) -> Needed:
    """Planes of float32: two frames, event sum and flow (2) read, 6 written; with gradients the
    inputs read again, 6 gradients read and those of every input written.

    Operations per pixel: luma of both frames (5 each with colour), decoding and logarithm (2 each
    at least), gradients and difference (5), the prediction (4), five window sums of which running
    sums need 4 additions each, their products (3) and S (10). The gradient: twice as many.
    """
    pixels = batch * height * width
    inputs = 2 * channels + 1 + 2
    luma = 10 if channels == 3 else 0
    operations = pixels * (luma + 4 + 5 + 4 + 20 + 3 + 10)
    if not both:
        return Needed(pixels * PIXEL * (inputs + 6), operations, "float32")
    return Needed(pixels * PIXEL * (3 * inputs + 12), 3 * operations, "float32")


def warp_events(events: int, batch: int, height: int, width: int, both: bool) -> Needed:
    """Bytes: events and flow read, one plane written; with gradients events, flow and the plane's
    gradient read, the flow's gradient written.

    Operations per event: 8 for the four weights of the sampling and 7 for each component sampled, 4
    to move, 8 for the weights of the votes and 4 additions. The gradient: 12 for the slope of the
    votes, 8 to spread it over the flow, and the forward again.
    """
    read = events * (2 * POSITION + TIME + POLARITY)
    plane = batch * height * width * PIXEL
    operations = events * (8 + 14 + 4 + 8 + 4)
    if not both:
        return Needed(read + 3 * plane, operations, "float32")
    return Needed(2 * read + 8 * plane, 2 * operations + 20 * events, "float32")
