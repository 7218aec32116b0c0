"""The rows of benchmarks/operators.py, and what they are made of.

Each row has a floor, derived from its task: bytes to move and operations to make. The floor is the
longer of the two at the machine's measured limits. An input is read once and a result written once;
a gradient is a second call, which reads the inputs again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import peers
import torch
from measuring import Limits, chosen
from torch import Tensor

from flowfuse import ops
from flowfuse.geometry.grid import pixel_grid
from flowfuse.model import CONFIGS
from flowfuse.ops import OPERATORS

Algorithm = Callable[..., list[Tensor]]
View = Callable[[Sequence[Tensor]], list[Tensor]]

TOLERANCE = 1e-4  # of the largest value: float32 sums of up to a few hundred terms
STRATEGIES = ("volume", "on_demand", "auto")
LARGEST_VOLUME = 2 * 2**30  # bytes; a strategy "volume" that needs more is left out
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
# bfloat16 carries 8 bits, and autograd adds the gradients of the look-ups in it one by one.
TOLERANCES = {
    (FLOAT32, "forward"): TOLERANCE,
    (FLOAT32, "both"): TOLERANCE,
    (BFLOAT16, "forward"): 1e-2,
    (BFLOAT16, "both"): 3e-2,
}

POSITION, TIME, POLARITY = 4, 8, 1  # bytes of a float32 x or y, of an int64 t, of a bool p
PIXEL = 4  # bytes of a float32 value


@dataclass(frozen=True)
class Needed:
    """Bytes, operations and additions into random cells; `kind` names the limit that the operations
    are held against.

    The additions are held against the rate of random 64-bit atomic ones on a GPU; on a CPU, where
    kernels own their cells and no such rate limits them, they do not count.
    """

    bytes: int
    operations: int
    kind: str  # "float32" or "bfloat16"
    additions: int = 0


def floor_seconds(needed: Needed, limits: Limits) -> float:
    rates = {"float32": limits.float32_operations, "bfloat16": limits.bfloat16_operations}
    added = needed.additions / limits.atomics if limits.atomics else 0.0
    moved = needed.bytes / limits.copy_bytes
    return max(moved, needed.operations / rates[needed.kind], added)


def voxelize_needs(
    events: int, cells: int, batch: int, rectified: bool, position: int = POSITION
) -> Needed:
    """Bytes: every event read (x, y, t, p), every cell of the float32 grid written.

    Additions: 2 for an event on a pixel and 8 for one between pixels. Operations: only these.
    """
    moved = events * (2 * position + TIME + POLARITY) + batch * cells * PIXEL
    additions = events * (8 if rectified else 2)
    return Needed(moved, additions, "float32", additions)


def upsample_needs(
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


def gradient_needs(batch: int, channels: int, height: int, width: int, both: bool) -> Needed:
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


def warp_needs(events: int, batch: int, height: int, width: int, both: bool) -> Needed:
    """Bytes: events and flow read, one plane written; with gradients events, flow and the plane's
    gradient read, the flow's gradient written.

    Operations per event: 8 for the four weights of the sampling and 7 for each component sampled, 4
    to move, 8 for the weights of the votes and 4 additions. The gradient: 12 for the slope of the
    votes, 8 to spread it over the flow, and the forward again.

    Additions: the 4 votes, and with gradients the 8 shares of the flow's.
    """
    read = events * (2 * POSITION + TIME + POLARITY)
    plane = batch * height * width * PIXEL
    operations = events * (8 + 14 + 4 + 8 + 4)
    if not both:
        return Needed(read + 3 * plane, operations, "float32", 4 * events)
    return Needed(2 * read + 8 * plane, 2 * operations + 20 * events, "float32", 12 * events)


@dataclass(frozen=True)
class Setting:
    device: str
    quick: bool
    limits: Limits
    instructions: str | None  # the instruction set of the CPU kernels
    compiled_peers: bool = True  # on a GPU


@dataclass(frozen=True)
class Work:
    """Inputs made, ready to run: every algorithm takes them and returns its results.

    Gradients are asked for in `inputs` that require them. `comparable` picks from results and
    gradients what peers compute too. Algorithms named in `untraced` allocate past torch. `expected`
    stands in for a peer that does not fit; `baseline` is our own smaller row.
    """

    inputs: Sequence[Tensor]
    ours: Mapping[str, Algorithm]
    needed: Needed
    peers: Mapping[str, Algorithm] = field(default_factory=dict)
    peer_inputs: Sequence[Tensor] | None = None
    tolerance: float = TOLERANCE
    comparable: View = list
    untraced: frozenset[str] = frozenset()
    expected: Callable[[], list[Tensor]] | None = None
    baseline: Callable[[], list[Tensor]] | None = None
    events: int = 0


@dataclass(frozen=True)
class Case:
    """One set of inputs; every operator in `names` makes a row of it (for every peer)."""

    size: str
    direction: str  # "forward" or "both"
    dtype: str
    names: tuple[str, ...]
    build: Callable[[], Work]

    def labels(self) -> dict[str, str]:
        rest = f"{self.size} {self.direction} {self.dtype}"
        return {name: f"{name} {rest}" for name in self.names}

    def only(self, parts: Sequence[str]) -> Case:
        labels = self.labels().items()
        return replace(self, names=tuple(name for name, label in labels if chosen(label, parts)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int, device: str) -> Tensor:
    return torch.randn(shape, generator=generator(seed)).to(device)


def smooth_flow(height: int, width: int, amplitude: float) -> Tensor:
    """A flow [1, 2, H, W] of a few pixels that turns over about a third of the image."""
    x, y = pixel_grid(height, width)
    u = torch.sin(2 * math.pi * (x / width + 1.7 * y / height))
    v = torch.cos(2 * math.pi * (1.3 * x / width - y / height))
    return amplitude * torch.stack((u, v))[None]


def with_gradients(direction: str, *tensors: Tensor) -> list[Tensor]:
    return [tensor.requires_grad_(direction == "both") for tensor in tensors]


def with_compiled(eager: Mapping[str, Algorithm], setting: Setting) -> dict[str, Algorithm]:
    """Peers as they are, and on a GPU compiled too."""
    if setting.device != "cuda" or not setting.compiled_peers:
        return dict(eager)
    torch._dynamo.reset()  # or the shapes of earlier rows count towards a recompilation limit
    compiled = {f"{name}, compiled": torch.compile(peer) for name, peer in eager.items()}
    return {f"{name}, eager": peer for name, peer in eager.items()} | compiled


DURATION = 100_000  # microseconds of an event window
GPU_FLOOR = 50e-6  # seconds; below this a launch takes as long as the work


@dataclass(frozen=True)
class Events:
    x: Tensor
    y: Tensor
    t: Tensor
    p: Tensor
    offsets: Tensor
    t0: Tensor
    t1: Tensor


def make_events(
    count: int, batch: int, height: int, width: int, device: str, rectified: bool
) -> Events:
    """Events spread evenly over the sensor, in the order of their times within each item."""
    random = generator(7)
    x, y = (torch.rand(count * batch, generator=random) * (n - 1) for n in (width, height))
    if not rectified:
        x, y = x.to(torch.int16), y.to(torch.int16)
    t = torch.randint(0, DURATION, (batch, count), generator=random).sort(dim=1).values.flatten()
    p = torch.randint(0, 2, (count * batch,), generator=random).bool()
    offsets = torch.arange(0, count * batch + 1, count)
    t0 = torch.zeros(batch, dtype=torch.int64)
    return Events(*(v.to(device) for v in (x, y, t, p, offsets, t0, t0 + DURATION)))


def raised_batch(needed: Callable[[int], Needed], at: Setting) -> int:
    """Items that put the floor above GPU_FLOOR; one on a CPU."""
    if at.device != "cuda" or at.quick:
        return 1
    return max(1, math.ceil(GPU_FLOOR * at.limits.copy_bytes / needed(1).bytes))


def batched(size: str, batch: int) -> str:
    return f"{batch} x {size}" if batch > 1 else size


def voxelize_case(rectified: bool, at: Setting) -> Case:
    """Ours rounds weights to 2^-15, the peers round times to float32: 1e-3 of the largest value."""
    count, bins, height, width = 10**6 if at.quick else 10**7, 15, 480, 640
    name = f"voxelize {'float' if rectified else 'integer'} x, y"

    def build() -> Work:
        e = make_events(count, 1, height, width, at.device, rectified)
        grid = (bins, height, width)

        def ours(*_: Tensor) -> list[Tensor]:
            return list(ops.voxelize(e.x, e.y, e.t, e.p, e.offsets, e.t0, e.t1, *grid))

        def peer(way: Callable[..., Tensor]) -> Algorithm:
            return lambda *_: [way(e.x, e.y, e.t, e.p, 0, DURATION, *grid)]

        if rectified:
            others = with_compiled({"bilinear put_": peer(peers.voxelize_put)}, at)
        else:  # numpy has no GPU: there it only checks
            others = {"np.add.at": peer(peers.voxelize_add_at)} if at.device == "cpu" else {}

        def expected() -> list[Tensor]:
            events = (values.cpu() for values in (e.x, e.y, e.t, e.p))
            return [peers.voxelize_add_at(*events, 0, DURATION, *grid)]

        return Work(
            inputs=[],
            ours={name: ours},
            needed=voxelize_needs(count, math.prod(grid), 1, rectified, e.x.itemsize),
            peers=others,
            tolerance=1e-3,
            comparable=lambda results: [results[0].view(grid)],
            untraced=frozenset({"np.add.at"}),
            expected=None if others else expected,
            events=count,
        )

    size = f"{count:.0e} events, {width} x {height} x {bins}".replace("e+0", "e")
    dtype = "float32" if rectified else "int16"
    return Case(size, "forward", dtype, (name,), build)


def warp_case(direction: str, at: Setting) -> Case:
    count, height, width = 10**5 if at.quick else 10**6, 480, 640
    both = direction == "both"

    def need(items: int) -> Needed:
        return warp_needs(count * items, items, height, width, both)

    batch = raised_batch(need, at)

    def build() -> Work:
        e = make_events(count, batch, height, width, at.device, rectified=True)
        flow = smooth_flow(height, width, 6.0).repeat(batch, 1, 1, 1).to(at.device)

        def warp(way: Callable[..., Tensor]) -> Algorithm:
            events = (e.x, e.y, e.t, e.p, e.offsets)
            window = (e.t0, e.t1, e.t1, "signed", height, width)
            return lambda flow: [way(*events, flow, *window)]

        return Work(
            inputs=with_gradients(direction, flow),
            ours={"warp_events": warp(ops.warp_events)},
            needed=need(batch),
            peers={"the reference": warp(OPERATORS["warp_events"].reference)},
            events=count * batch,
        )

    size = batched(f"{count:.0e} events, {width} x {height}".replace("e+0", "e"), batch)
    return Case(size, direction, "float32", ("warp_events",), build)


def inner(border: int, factor: int) -> View:
    """Results and gradients away from the border, which RAFT's upsampling mixes with zeros."""

    def crop(results: Sequence[Tensor]) -> list[Tensor]:
        edges = (factor * border, border, border)  # of the result, then of the gradients if any
        return [
            values[..., edge:-edge, edge:-edge]
            for values, edge in zip(results, edges, strict=False)
        ]

    return crop


def upsample_case(direction: str, at: Setting) -> Case:
    channels, factor = 2, 8
    height, width = (30, 40) if at.quick else (60, 80)
    both = direction == "both"

    def need(items: int) -> Needed:
        return upsample_needs(items, channels, height, width, factor, both)

    batch = raised_batch(need, at)

    def build() -> Work:
        fine = normal(batch, channels, height, width, seed=3, device=at.device)
        mask = normal(batch, 9 * factor**2, height, width, seed=4, device=at.device)
        return Work(
            inputs=with_gradients(direction, fine, mask),
            ours={"convex_upsample": lambda f, m: [ops.convex_upsample(f, m, factor)]},
            needed=need(batch),
            peers=with_compiled(
                {"softmax + unfold": lambda f, m: [peers.upsample_unfold(f, m, factor)]}, at
            ),
            comparable=inner(2, factor),
        )

    size = batched(f"{height} x {width} -> {factor * height} x {factor * width}, D = 2", batch)
    return Case(size, direction, "float32", ("convex_upsample",), build)


def gradient_case(direction: str, channels: int, at: Setting) -> Case:
    height, width = (120, 160) if at.quick else (480, 640)
    both = direction == "both"
    reference = OPERATORS["common_gradient"].reference

    def need(items: int) -> Needed:
        return gradient_needs(items, channels, height, width, both)

    batch = raised_batch(need, at)

    def build() -> Work:
        random = generator(5)
        shape = (batch, channels, height, width)
        frames = [torch.rand(shape, generator=random).to(at.device) for _ in range(2)]
        event_sum = 2 * normal(batch, 1, height, width, seed=6, device=at.device)
        flow = smooth_flow(height, width, 4.0).repeat(batch, 1, 1, 1).to(at.device)
        return Work(
            inputs=with_gradients(direction, *frames, event_sum, flow),
            ours={"common_gradient": lambda *inputs: [ops.common_gradient(*inputs)]},
            needed=need(batch),
            peers={"the reference": lambda *inputs: [reference(*inputs)]},
        )

    size = batched(f"{channels} x {height} x {width}", batch)
    return Case(size, direction, "float32", ("common_gradient",), build)


def correlation_needs(
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


@dataclass(frozen=True)
class Correlated:
    """Shapes of a correlation row."""

    channels: int
    height: int
    width: int
    batch: int = 1
    levels: int = 4
    radius: int = 4
    lookups: int = 12
    shared: bool = False  # one first map for the whole batch
    channels_last: bool = False
    noisy: bool = False

    def size(self) -> str:
        batch = f"{self.batch} x " if self.batch > 1 else ""
        shared = " f0 shared," if self.shared else ""
        layout = " channels_last," if self.channels_last else ""
        coordinates = " noisy" if self.noisy else " smooth"
        return (
            f"{batch}{self.channels} x {self.height} x {self.width},{shared}{layout}{coordinates}"
        )

    def volume_fits(self) -> bool:
        return self.batch * (self.height * self.width) ** 2 * 4 * 4 // 3 <= LARGEST_VOLUME

    def features(self, dtype: torch.dtype, device: str) -> list[Tensor]:
        maps = []
        for seed, batch in enumerate((1 if self.shared else self.batch, self.batch)):
            values = normal(batch, self.channels, self.height, self.width, seed=seed, device=device)
            layout = torch.channels_last if self.channels_last else torch.contiguous_format
            maps.append(values.to(dtype).contiguous(memory_format=layout))
        return maps

    def coords(self, device: str) -> list[Tensor]:
        """Where each look-up looks: along a flow that is being found, or noise around no motion."""
        grid = pixel_grid(self.height, self.width)
        shape = (self.batch, 2, self.height, self.width)
        found = []
        for k in range(self.lookups):
            if self.noisy:
                shift = 4 * torch.randn(shape, generator=generator(100 + k))
            else:
                shift = smooth_flow(self.height, self.width, 4.0) * (k + 1) / self.lookups
            found.append((grid + shift).expand(shape).contiguous().to(device))
        return found

    def needed(self, both: bool, dtype: torch.dtype) -> Needed:
        first = (1 if self.shared else self.batch, self.channels, self.height, self.width)
        kind = "bfloat16" if dtype == BFLOAT16 else "float32"
        return correlation_needs(
            first, self.batch, self.levels, self.radius, self.lookups, both, dtype.itemsize, kind
        )

    def ours(self, strategy: str, lookups: Sequence[Tensor]) -> Algorithm:
        def look_up(f0: Tensor, f1: Tensor) -> list[Tensor]:
            f0 = f0.expand(self.batch, -1, -1, -1)
            correlation = ops.Correlation(
                f0, f1, levels=self.levels, radius=self.radius, strategy=strategy
            )
            return [correlation(coords) for coords in lookups]

        return look_up

    def peer(self, lookups: Sequence[Tensor]) -> Algorithm:
        def look_up(f0: Tensor, f1: Tensor) -> list[Tensor]:
            f0 = f0.expand(self.batch, -1, -1, -1)
            return peers.correlate(f0, f1, lookups, self.levels, self.radius)

        return look_up


def correlation_case(
    shape: Correlated,
    direction: str,
    dtype: torch.dtype,
    setting: Setting,
    name: str = "correlation",
) -> Case:
    strategies = STRATEGIES if shape.volume_fits() else STRATEGIES[1:]

    def build() -> Work:
        lookups = shape.coords(setting.device)
        maps = shape.features(dtype, setting.device)
        peer_maps = [values.float() for values in maps]  # the same values: bfloat16 is exact
        return Work(
            inputs=with_gradients(direction, *maps),
            ours={f"{name} {s}": shape.ours(s, lookups) for s in strategies},
            needed=shape.needed(direction == "both", dtype),
            peers=with_compiled({"RAFT all-pairs volume": shape.peer(lookups)}, setting),
            peer_inputs=with_gradients(direction, *peer_maps),
            tolerance=TOLERANCES[dtype, direction],
        )

    names = tuple(f"{name} {s}" for s in strategies)
    return Case(shape.size(), direction, str(dtype).removeprefix("torch."), names, build)


def large_correlation_case(shape: Correlated, smaller: Correlated, setting: Setting) -> Case:
    """The size whose volume does not fit: checked on one row of pixels, timed against our own."""
    row = slice(shape.height // 2, shape.height // 2 + 1)

    def build() -> Work:
        lookups = shape.coords(setting.device)
        f0, f1 = shape.features(FLOAT32, setting.device)
        own_maps = smaller.features(FLOAT32, setting.device)
        own = smaller.ours("auto", smaller.coords(setting.device))

        def expected() -> list[Tensor]:
            coords = [values[:, :, row] for values in lookups]
            return peers.correlate(f0[:, :, row], f1, coords, shape.levels, shape.radius)

        return Work(
            inputs=[f0, f1],
            ours={f"correlation {s}": shape.ours(s, lookups) for s in STRATEGIES[1:]},
            needed=shape.needed(False, FLOAT32),
            comparable=lambda results: [values[:, :, row] for values in results],
            expected=expected,
            baseline=lambda: own(*own_maps),
        )

    names = tuple(f"correlation {s}" for s in STRATEGIES[1:])
    return Case(shape.size(), "forward", "float32", names, build)


def correlation_cases(at: Setting) -> Iterator[Case]:
    sizes = ((24, 32), (32, 48), (48, 80)) if at.quick else ((60, 80), (90, 160), (270, 480))
    lookups = 4 if at.quick else 12
    shapes = [Correlated(256, *size, lookups=lookups) for size in sizes]
    native = at.limits.bfloat16_operations is not None
    for dtype in (FLOAT32, BFLOAT16) if native else (FLOAT32,):
        directions = (
            ("forward", "both") if dtype == FLOAT32 or at.device == "cuda" else ("forward",)
        )
        for shape in shapes[:2]:
            for direction in directions:
                for noisy in (False, True):
                    yield correlation_case(replace(shape, noisy=noisy), direction, dtype, at)
    for noisy in (False, True):
        large, smaller = (replace(shape, noisy=noisy) for shape in (shapes[2], shapes[1]))
        yield large_correlation_case(large, smaller, at)

    # As flowfuse's base model asks: K + 1 event slices against the first, one look-up for the
    # first estimate and one an update.
    model = CONFIGS["base"]
    shape = Correlated(
        model.channels, *sizes[0], batch=model.slices + 1, levels=model.levels,
        radius=model.radius, lookups=model.iterations + 1, shared=True, channels_last=True,
    )  # fmt: skip
    for direction in ("forward", "both"):
        for noisy in (False, True):
            placed = replace(shape, noisy=noisy)
            yield correlation_case(placed, direction, FLOAT32, at, "correlation of the model")


def operator_cases(at: Setting) -> Iterator[Case]:
    """All rows; those of the correlation first."""
    yield from correlation_cases(at)
    for rectified in (True, False):
        yield voxelize_case(rectified, at)
    directions = ("forward", "both")
    for case in (
        upsample_case,
        partial(gradient_case, channels=1),
        partial(gradient_case, channels=3),
    ):
        for direction in directions:
            yield case(direction, at=at)
    for direction in directions:
        yield warp_case(direction, at)
