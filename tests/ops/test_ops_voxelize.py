from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from thread_cases import using_threads, with_thread_counts

from flowfuse import ops
from flowfuse.ops.voxelize import reference

needs_extension = pytest.mark.skipif(
    not ops.build_info()["extension"], reason="the compiled operators are not built"
)
# Where the CUDA code runs: on the CPU with the emulator of tests/emulator, on a GPU, or nowhere.
REGISTERED = torch._C._dispatch_dump("flowfuse::voxelize")
EMULATED = re.search("^CPU: .*/csrc/cuda/", REGISTERED, re.MULTILINE) is not None
HAS_GPU = "cuda" in ops.build_info()["devices"] and torch.cuda.is_available()
CUDA_CODE = "cpu" if EMULATED else "cuda" if HAS_GPU else None
needs_cuda_code = pytest.mark.skipif(
    CUDA_CODE is None, reason="what CUDA code does: needs a GPU or FLOWFUSE_TEST_EMULATOR"
)
needs_cpu_kernels = pytest.mark.skipif(
    EMULATED or not ops.build_info()["extension"], reason="how CPU kernels share their work"
)
PIXEL_DTYPES = [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64]
RECTIFIED_DTYPES = [torch.float32, torch.float64]


def times(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def random_events(counts, dtype=torch.int32, height=7, width=9, seed=0):
    """Events of several items, some outside the sensor or the window or with NaN coordinates."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(counts)
    low = 0 if dtype in (torch.uint8, torch.uint16) else -2
    if dtype.is_floating_point:
        x = (torch.rand(count, generator=generator) * (width + 4) - 2).to(dtype)
        y = (torch.rand(count, generator=generator) * (height + 4) - 2).to(dtype)
        x[::11], y[::13] = torch.nan, torch.inf
    else:
        x = torch.randint(low, width + 2, (count,), generator=generator).to(dtype)
        y = torch.randint(low, height + 2, (count,), generator=generator).to(dtype)
    t = torch.randint(-50, 1100, (count,), generator=generator)
    p = torch.randint(0, 2, (count,), generator=generator, dtype=torch.uint8)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    items = len(counts)
    return x, y, t, p, offsets, times(*[0] * items), times(*[1000 + i for i in range(items)])


def test_hand_time_weights():
    # 3 bins over [100, 200): t = 125 is at bin 0.5, t = 175 at bin 1.5, t = 100 at bin 0.
    x = torch.tensor([1, 1, 0], dtype=torch.int16)
    y = torch.tensor([0, 0, 1], dtype=torch.int16)
    p = torch.tensor([1, 0, 1], dtype=torch.uint8)
    voxels, ignored = ops.voxelize(
        x, y, times(125, 175, 100), p, times(0, 3), times(100), times(200), 3, 2, 2
    )
    expected = torch.zeros(1, 3, 2, 2)
    expected[0, :, 0, 1] = torch.tensor([0.5, 0.5 - 0.5, -0.5])
    expected[0, 0, 1, 0] = 1.0
    assert torch.equal(voxels, expected)
    assert ignored.tolist() == [0]


def test_hand_rectified_position():
    # (0.25, 0.5) votes with (1 - 0.25, 0.25) x (0.5, 0.5); a position of -0.5 keeps half, by floor.
    x, y = torch.tensor([0.25, -0.5]), torch.tensor([0.5, 1.0])
    p = torch.tensor([True, True])
    voxels, ignored = ops.voxelize(x, y, times(0, 0), p, times(0, 2), times(0), times(10), 1, 2, 2)
    expected = torch.tensor([[0.375, 0.125], [0.375 + 0.5, 0.125]])
    assert torch.equal(voxels[0, 0], expected)
    assert ignored.tolist() == [0]


@needs_extension
@pytest.mark.parametrize("dtype", PIXEL_DTYPES + RECTIFIED_DTYPES)
@pytest.mark.parametrize("bins", [1, 2, 5])
@pytest.mark.parametrize("strided", [False, True])
def test_reference_same_bits(dtype, bins, strided):
    x, y, t, p, offsets, t0, t1 = random_events([300, 0, 211], dtype)
    if strided:
        spread = [torch.stack([v, v], dim=1)[:, 0] for v in (x, y, t, p)]
        assert not spread[0].is_contiguous()
        x, y, t, p = spread
    arguments = (x, y, t, p, offsets, t0, t1, bins, 7, 9)
    voxels, ignored = ops.voxelize(*arguments)
    expected, expected_ignored = reference(*arguments)
    assert torch.equal(voxels, expected)
    assert torch.equal(ignored, expected_ignored)
    assert 0 < int(ignored.sum()) < 511


@needs_extension
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int8, torch.int16, torch.int64])
def test_reference_polarity_dtypes(dtype):
    x, y, t, p, *rest = random_events([100])
    signed = (
        p.to(dtype) if dtype in (torch.uint8, torch.bool) else (2 * p.to(torch.int8) - 1).to(dtype)
    )
    assert torch.equal(
        ops.voxelize(x, y, t, signed, *rest, 5, 7, 9)[0],
        reference(x, y, t, p, *rest, 5, 7, 9)[0],
    )


def with_threads(count, *arguments):
    with using_threads(count):
        return ops.voxelize(*arguments)


@needs_cpu_kernels
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize(("bins", "height", "width"), [(4, 70, 150), (1, 33, 65), (3, 32, 64)])
def test_reference_tiles(dtype, in_order, bins, height, width):
    """CPU kernels sort events into tiles of 32 x 64 cells, 8192 at a time for each thread."""
    counts = [40_000, 0, 9000, 3]
    x, y, t, *rest = random_events(counts, dtype, height, width)
    if in_order:
        t = torch.cat([part.sort().values for part in t.split(counts)])
    arguments = (x, y, t, *rest, bins, height, width)
    expected, expected_ignored = reference(*arguments)
    for threads in (1, 2, 3):
        voxels, ignored = with_threads(threads, *arguments)
        assert torch.equal(voxels, expected) and torch.equal(ignored, expected_ignored)


@needs_cpu_kernels
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
@pytest.mark.parametrize("in_order", [True, False])
def test_reference_groups_of_bins(dtype, in_order):
    """More records than a CPU kernel makes at a time (8 MiB), in several bins of two items."""
    counts = [1_600_000, 1_400_000] if dtype == torch.int16 else [800_000, 700_000]
    x, y, t, *rest = random_events(counts, dtype, 40, 80)
    if in_order:
        t = torch.cat([part.sort().values for part in t.split(counts)])
    arguments = (x, y, t, *rest, 5, 40, 80)
    expected, expected_ignored = reference(*arguments)
    for threads in (1, 2, 3):
        voxels, ignored = with_threads(threads, *arguments)
        assert torch.equal(voxels, expected) and torch.equal(ignored, expected_ignored)


@needs_extension
@pytest.mark.parametrize("bins", [2, 3, 15, 65536])
@pytest.mark.parametrize("duration", [1, 2, 3, 7, 1000, 999_983, 2**31 - 1, 2**40 - 1, 2**40])
def test_reference_time_weights(bins, duration):
    """Kernels divide by other means: times where the quotients change, and next to them."""
    parts = (bins - 1) * 2**15
    steps = torch.randint(0, parts + 1, (3000,), generator=torch.Generator().manual_seed(2))
    steps[:4] = torch.tensor([0, 1, parts - 1, parts])
    t = [step * duration // parts + near for step in steps.tolist() for near in (-1, 0, 1)]
    t = torch.tensor(t).clamp(0, duration - 1).unique()
    if bins > 15:  # each time has a cell of its own
        t = t[torch.randperm(len(t), generator=torch.Generator().manual_seed(3))[:40]]
    zero = torch.zeros_like(t)
    column = torch.arange(len(t))
    arguments = (
        column, zero, t + 2**50, zero, times(0, len(t)), times(2**50), times(2**50 + duration),
        bins, 1, len(t),
    )  # fmt: skip
    voxels, ignored = ops.voxelize(*arguments)
    assert torch.equal(voxels, reference(*arguments)[0]) and int(ignored) == 0


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reference_positions_at_edges(dtype):
    """Edges of the sensor and of the tiles of CPU kernels, and the numbers next to them."""
    edges = torch.tensor([-1, 0, 31, 32, 63, 64, 65, 127, 128, 149], dtype=dtype)
    near = torch.cat(
        [edges, edges + 0.5, edges - 0.5, edges.nextafter(edges + 1), edges.nextafter(edges - 1)]
    )
    far = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, -0.0, -1e-30], dtype=dtype)
    values = torch.cat([near, far])
    x, y = (v.flatten() for v in torch.meshgrid(values, values, indexing="ij"))
    t = torch.arange(len(x)) % 1000
    arguments = (
        x, y, t, (t % 3 > 0), times(0, len(x)), times(0), times(1000), 3, 129, 150,
    )  # fmt: skip
    voxels, ignored = ops.voxelize(*arguments)
    expected, expected_ignored = reference(*arguments)
    assert torch.equal(voxels, expected) and torch.equal(ignored, expected_ignored)


@needs_extension
def test_edge_far_pixels_and_times():
    least, most = -(2**63), 2**63 - 1
    x = times(least, most, -1, 2**32, 2**32 + 1, 1, 1, 1, 2)
    t = times(5, 5, 5, 5, 5, least, most, 5, 5)
    p = times(1, 1, 1, 1, 1, 1, 1, most, least)
    y = torch.ones_like(x)
    for t0 in (0, most - 10, least):
        shifted = torch.where(t == 5, t0 + 5, t)
        voxels, ignored = ops.voxelize(
            x, y, shifted, p, times(0, 9), times(t0), times(t0 + 10), 1, 3, 4
        )
        # In the last two windows one of the far times is the window's end or begin.
        inside = 1 if t0 == least else 0
        assert ignored.tolist() == [7 - inside]
        assert voxels[0, 0, 1].tolist() == [0, 1 + inside, -1, 0]
        voxels[0, 0, 1] = 0
        assert not voxels.any()


@needs_cpu_kernels
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_edge_hot_pixel_beside_others(dtype):
    """A pixel that has nearly all events, in one bin and in all, and a few events elsewhere."""
    count = 300_000
    x, y, t, *rest = random_events([count], dtype, 40, 80)
    hot = torch.arange(count) % 100 > 0
    x[hot], y[hot] = 31, 63
    for late in (False, True):
        t[hot] = torch.arange(int(hot.sum())) % 1000 if late else 3
        arguments = (x, y, t, *rest, 4, 64, 80)
        expected = reference(*arguments)[0]
        for threads in (1, 2, 3):
            assert torch.equal(with_threads(threads, *arguments)[0], expected)


@needs_extension
@pytest.mark.parametrize("count", [2**18 - 1, 2**18])
def test_reference_hot_pixel(count):
    """All events in one cell: fractions of 2^-15 below the limit, coarser ones above."""
    x = torch.full((count,), 0.3)
    t = torch.zeros(count, dtype=torch.int64)
    p = torch.ones(count, dtype=torch.uint8)
    arguments = (x, x, t, p, times(0, count), times(0), times(10), 1, 1, 1)
    voxels, _ = ops.voxelize(*arguments)
    assert torch.equal(voxels, reference(*arguments)[0])
    # 0.3 is rounded to 2^-14 at worst: a relative error of 2^-15 / 0.7 for each axis.
    assert float(voxels) == pytest.approx(count * 0.49, rel=2 * 2**-15 / 0.7)


def test_edge_empty():
    empty = torch.zeros(0, dtype=torch.int64)
    voxels, ignored = ops.voxelize(
        empty, empty, empty, empty, times(0, 0, 0), times(0, 0), times(1, 1), 2, 3, 4
    )
    assert voxels.shape == (2, 2, 3, 4) and not voxels.any()
    assert ignored.tolist() == [0, 0]


def test_edge_ignored():
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, -1.0, 4.0, 1.0, 1.0, 1e30, 3.5])
    t = times(0, 0, 0, 0, 0, 10, -1, 0, 0)
    y, p = torch.ones(9), torch.ones(9, dtype=torch.uint8)
    voxels, ignored = ops.voxelize(x, y, t, p, times(0, 9), times(0), times(10), 2, 3, 4)
    assert ignored.tolist() == [8]  # only 3.5 reaches the sensor, with half its weight
    assert float(voxels.sum()) == 0.5


def test_edge_not_differentiable():
    """Positions that require a gradient do not make voxels that seem to have one."""
    x, y, t, p, *rest = random_events([20], torch.float32)
    voxels, ignored = ops.voxelize(x.requires_grad_(), y.requires_grad_(), t, p, *rest, 3, 7, 9)
    assert not voxels.requires_grad and not ignored.requires_grad


def test_edge_one_pixel_sensor():
    zero = torch.zeros(1)
    voxels, _ = ops.voxelize(
        zero,
        zero,
        times(9),
        torch.ones(1, dtype=torch.uint8),
        times(0, 1),
        times(0),
        times(10),
        1,
        1,
        1,
    )
    assert voxels.tolist() == [[[[1.0]]]]


def test_edge_sum_of_weights_is_exact():
    x, y, t, p, _, t0, t1 = random_events([500], torch.float64, 7, 9)
    inside = (x > 0) & (x < 8) & (y > 0) & (y < 6) & (t >= 0) & (t < 1000)
    x, y, t, p = x[inside], y[inside], t[inside], p[inside]
    voxels, ignored = ops.voxelize(x, y, t, p, times(0, len(t)), t0, t1, 5, 7, 9)
    # Integer weights lose nothing: what is left is the rounding of each cell to float32, 2^-24 of
    # a few events, in 315 cells.
    polarity = int((2 * p.long() - 1).sum())
    assert float(voxels.double().sum()) == pytest.approx(polarity, abs=1e-4)
    assert int(ignored) == 0


def test_edge_long_window_and_late_times():
    start = 2**60
    x = torch.zeros(1, dtype=torch.int64)
    t = times(start + 2**39 + 2**38)
    arguments = (x, x, t, torch.ones(1, dtype=torch.uint8), times(0, 1))
    voxels, _ = ops.voxelize(*arguments, times(start), times(start + 2**40), 65536, 1, 1)
    position = 65535 * 0.75
    assert float(voxels[0, int(position)]) == 1 - position % 1
    assert float(voxels[0, int(position) + 1]) == position % 1


ERRORS = [
    ("x", torch.zeros(3), r"voxelize: x must have shape \[4\], got \[3\]"),
    ("t", torch.zeros(4), r"voxelize: t must be of dtype int64, got float32"),
    ("p", torch.zeros(4), r"voxelize: p must be of dtype uint8, bool, .*, got float32"),
    ("x", torch.zeros(4, dtype=torch.float16), r"voxelize: x must be of dtype .*, got float16"),
    ("y", torch.zeros(4), r"voxelize: y must be of dtype int32, got float32"),
    ("offsets", times(0), r"voxelize: offsets must have shape \[B \+ 1\], B at least 1, got \[1\]"),
    ("t0", times(0, 0), r"voxelize: t0 must have shape \[1\], got \[2\]"),
    ("bins", 0, r"voxelize: bins must be in \[1, 65536\], got 0"),
    ("width", 0, r"voxelize: width must be in \[1, 1048576\], got 0"),
    ("offsets", times(0, 5), r"voxelize: offsets must not decrease and must lie within \[0, 4\]"),
    ("offsets", times(-1, 4), r"voxelize: offsets must not decrease and must lie within \[0, 4\]"),
    ("t1", times(0), r"voxelize: t1 must be later than t0, got t0 = 0, t1 = 0 in item 0"),
    ("t1", times(2**41), r"voxelize: t1 - t0 must be at most 2\^40 microseconds, got t0 = 0"),
]


@pytest.mark.parametrize("direct", [False, pytest.param(True, marks=needs_extension)])
@pytest.mark.parametrize(("name", "value", "message"), ERRORS)
def test_error_messages(name, value, message, direct):
    if EMULATED and ("offsets must not" in message or name == "t1"):
        pytest.skip("CUDA code does not read values on the host: see test_edge_bad_*")
    pixels = torch.zeros(4, dtype=torch.int32)
    arguments = {
        "x": pixels, "y": pixels, "t": times(0, 1, 2, 3), "p": torch.zeros(4, dtype=torch.uint8),
        "offsets": times(0, 4), "t0": times(0), "t1": times(10), "bins": 2, "height": 3, "width": 4,
    }  # fmt: skip
    arguments[name] = value
    function = torch.ops.flowfuse.voxelize if direct else ops.voxelize
    with pytest.raises(ValueError, match=message):
        function(*arguments.values())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", [0] * 4, "x must be a torch.Tensor, got list"),
        ("t0", np.zeros(1, np.int64), "t0 must be a torch.Tensor, got ndarray"),
        ("bins", 2.5, "bins must be an int, got float"),
        ("width", None, "width must be an int, got NoneType"),
    ],
)
def test_error_types(name, value, message):
    pixels = torch.zeros(4, dtype=torch.int32)
    arguments = dict(
        x=pixels, y=pixels, t=times(0, 1, 2, 3), p=pixels, offsets=times(0, 4), t0=times(0),
        t1=times(10), bins=2, height=3, width=4,
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"voxelize: {message}"):
        ops.voxelize(**arguments | {name: value})
    assert ops.voxelize(**arguments | {"bins": np.int64(2)})[0].shape == (1, 2, 3, 4)


@needs_cuda_code
@pytest.mark.parametrize(
    ("offsets", "ignored", "total"),
    [
        ([0, 2, 4], [0, 0], 4),
        ([-5, 2, 100], [0, 0], 4),  # clamped to [0, 4]
        ([3, 1, 4], [0, 0], 1),  # the first item has no event, the second the last one
        ([4, 2, 0], [0, 0], 0),
        ([100, -100, 100], [0, 0], 0),
        ([-(2**62), 2**62, -(2**62)], [0, 0], 0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int32, torch.float32])
def test_edge_bad_offsets(offsets, ignored, total, dtype):
    """CUDA code cannot raise for values: it never leaves the bounds."""
    ones = torch.ones(4, dtype=dtype, device=CUDA_CODE)
    zero = torch.zeros(4, dtype=torch.int64, device=CUDA_CODE)
    voxels, counted = torch.ops.flowfuse.voxelize(
        ones, ones, zero, ones.to(torch.int32), times(*offsets).to(CUDA_CODE),
        zero[:2], zero[:2] + 10, 2, 3, 4,
    )  # fmt: skip
    assert float(voxels.sum()) == total
    assert counted.tolist() == ignored


@needs_cuda_code
@pytest.mark.parametrize("dtype", [torch.int32, torch.float32])
def test_edge_bad_windows(dtype):
    """Empty, backward and overlong windows ignore their events; the last item is as it should."""
    t0 = times(0, 0, 5, 0, -(2**63), 0).to(CUDA_CODE)
    t1 = times(10, 0, 1, 2**40 + 1, 2**63 - 1, 2**40).to(CUDA_CODE)
    ones = torch.ones(12, dtype=dtype, device=CUDA_CODE)
    zero = torch.zeros(12, dtype=torch.int64, device=CUDA_CODE)
    offsets = times(0, 2, 4, 6, 8, 10, 12).to(CUDA_CODE)
    voxels, ignored = torch.ops.flowfuse.voxelize(
        ones, ones, zero, ones.to(torch.int32), offsets, t0, t1, 65536, 2, 2
    )
    assert ignored.tolist() == [0, 2, 2, 2, 2, 0]
    assert voxels.sum((1, 2, 3)).tolist() == [2, 0, 0, 0, 0, 2]


@needs_cuda_code
def test_edge_groups_of_items():
    """CUDA code adds up 2^22 cells at a time: here two items, then the third."""
    events = [value.to(CUDA_CODE) for value in random_events([30, 0, 41])]
    voxels, ignored = ops.voxelize(*events, 10, 375, 400)
    expected = reference(*events, 10, 375, 400)
    assert torch.equal(voxels, expected[0]) and torch.equal(ignored, expected[1])


@needs_extension
def test_opcheck():
    for dtype in (torch.int16, torch.float32):
        torch.library.opcheck(
            torch.ops.flowfuse.voxelize.default, (*random_events([20, 30], dtype), 3, 7, 9)
        )
    x, *rest = random_events([20, 30], torch.float32)
    torch.library.opcheck(torch.ops.flowfuse.voxelize.default, (x.requires_grad_(), *rest, 3, 7, 9))


@needs_extension
@pytest.mark.parametrize("dtype", [torch.int32, torch.float32])
@pytest.mark.parametrize("counts", [[4000, 10], [300, 0, 20, 1, 200, 70, 40]])
def test_same_bits_for_thread_counts(dtype, counts):
    """Few items are split among threads, many are taken in groups."""
    arguments = (*random_events(counts, dtype), 3, 7, 9)
    results = with_thread_counts(lambda: ops.voxelize(*arguments), (1, 2, 3, 5))
    for voxels, ignored in results[1:]:
        assert torch.equal(voxels, results[0][0])
        assert torch.equal(ignored, results[0][1])


def test_same_bits_for_any_order():
    x, y, t, p, *rest = random_events([400], torch.float32)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    first = ops.voxelize(x, y, t, p, *rest, 5, 7, 9)[0]
    assert torch.equal(
        first, ops.voxelize(x[order], y[order], t[order], p[order], *rest, 5, 7, 9)[0]
    )


@needs_extension
def test_compile():
    arguments = (*random_events([50, 60]), 3, 7, 9)
    compiled = torch.compile(ops.voxelize, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments)[0], ops.voxelize(*arguments)[0])
