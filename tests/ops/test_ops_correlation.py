from __future__ import annotations

import math
import os

import pytest
import torch
from thread_cases import with_thread_counts

from flowfuse import ops
from flowfuse.ops.correlation import MULTIPLIES_BFLOAT16, automatic_strategy
from flowfuse.ops.correlation_lookup import reference as reference_lookup
from flowfuse.ops.correlation_volume import cuda_volume, cuda_volume_backward, same_dtype
from flowfuse.ops.correlation_volume import reference as reference_volume
from flowfuse.ops.volume_lookup import reference as reference_volume_lookup

needs_extension = pytest.mark.skipif(
    not ops.build_info()["extension"], reason="the compiled operators are not built"
)
# Sizes that reach every block of the CPU kernels take long where CUDA code is emulated.
of_cpu_blocks = pytest.mark.skipif(
    "FLOWFUSE_TEST_EMULATOR" in os.environ, reason="of the blocks of the CPU kernels"
)
STRATEGIES = ["volume", "on_demand"]
# Relative to the largest value: sums of C <= 37 products and 4 weights in float32 round by about
# sqrt(40) 2^-24 = 4e-7; half features are exact in float32, so they add nothing.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 3e-6, torch.bfloat16: 3e-6, torch.float64: 1e-14}
# Gradients in half precision are sums in their dtype over the levels (f1) and the expanded batch,
# each rounded by half a unit in the last place, in the kernel's order and in the reference's.
GRADIENT_TOLERANCE = {**TOLERANCE, torch.float16: 2**-9, torch.bfloat16: 2**-6}


def features(shape, dtype=torch.float32, layout="contiguous", seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if layout == "channels_last":
        return values.to(memory_format=torch.channels_last)
    if layout == "strided":
        return torch.stack([values, values], dim=-1)[..., 0]
    if layout == "expanded":
        return values[:1].expand(shape)
    return values


def grid_coords(batch, height, width, spread=2.0, dtype=torch.float32, seed=3):
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    noise = torch.randn(batch, 2, height, width, generator=generator, dtype=torch.float64)
    return (torch.stack([x, y]) + spread * noise).to(dtype)


def look_up(strategy, f0, f1, coords, levels, radius):
    return ops.Correlation(f0, f1, levels=levels, radius=radius, strategy=strategy)(coords)


def reference_look_up(f0, f1, coords, levels, radius, strategy="volume"):
    pyramid = ops.pool_levels(f1, levels)
    rounds = MULTIPLIES_BFLOAT16 and not (f0.requires_grad or f1.requires_grad)
    if strategy == "on_demand" and f0.dtype == torch.bfloat16 and rounds:
        pyramid = [level.bfloat16() for level in pyramid]  # as Correlation says
    return reference_lookup(f0, pyramid, coords, radius)


def assert_close(actual, expected, tolerance):
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    scale = float(expected.detach().nan_to_num().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale, equal_nan=True)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_hand_bilinear_product(strategy):
    # C = 4: products are halved. At x = 0.25 between 8 / 2 and 16 / 2: 0.75 * 4 + 0.25 * 8 = 5.
    f0 = torch.ones(1, 4, 1, 1)
    f1 = torch.zeros(1, 4, 1, 2)
    f1[0, :, 0, 0], f1[0, :, 0, 1] = 2.0, 4.0
    coords = torch.tensor([0.25, 0.0]).view(1, 2, 1, 1)
    assert look_up(strategy, f0, f1, coords, 1, 0).item() == 5.0
    # Half a pixel left of the map half the weight remains.
    coords = torch.tensor([-0.5, 0.0]).view(1, 2, 1, 1)
    assert look_up(strategy, f0, f1, coords, 1, 0).item() == 2.0


def test_hand_pooled_level():
    # Level 1 of a 2 x 2 map is its mean; an odd last row and column are dropped.
    f1 = torch.arange(9.0).view(1, 1, 3, 3)
    pyramid = ops.pool_levels(f1, 3)
    assert pyramid[1].tolist() == [[[[2.0]]]]
    assert pyramid[2].shape == (1, 1, 0, 0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_hand_window_order(strategy):
    """A match at (x + dx, y + dy) of level l lights channel l (2r+1)^2 + (dx+r)(2r+1) + (dy+r)."""
    radius, side = 2, 5
    for dx in range(-radius, radius + 1):
        for dy in range(-radius, radius + 1):
            f0 = torch.zeros(1, 1, 12, 12)
            f0[0, 0, 5, 6] = 1.0
            f1 = torch.zeros(1, 1, 12, 12)
            f1[0, 0, 5 + dy, 6 + dx] = 1.0
            result = look_up(strategy, f0, f1, grid_coords(1, 12, 12, 0.0), 1, radius)
            lit = result[0, :, 5, 6].nonzero().flatten().tolist()
            assert lit == [(dx + radius) * side + (dy + radius)]
            f1 = torch.zeros(1, 1, 24, 24)
            f1[0, 0, 2 * (5 + dy), 2 * (6 + dx)] = 1.0
            result = look_up(strategy, f0, f1, 2 * grid_coords(1, 12, 12, 0.0), 2, radius)
            lit = result[0, side * side :, 5, 6].nonzero().flatten().tolist()
            assert lit == [(dx + radius) * side + (dy + radius)]


@needs_extension
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "expanded"])
def test_reference_agreement(strategy, dtype, layout):
    shape, levels, radius = (2, 37, 7, 11), 3, 2
    maps = [features(shape, dtype, layout, seed).requires_grad_() for seed in (0, 1)]
    coords = grid_coords(2, 7, 11).requires_grad_()
    if layout == "strided":
        coords = torch.stack([coords, coords], dim=-1)[..., 0].detach().requires_grad_()
    inputs = [*maps, coords]
    actual = look_up(strategy, *inputs, levels, radius)
    expected = reference_look_up(*inputs, levels, radius, strategy)
    assert_close(actual, expected, TOLERANCE[dtype])
    grad = features(actual.shape, actual.dtype, seed=5)
    actual_grads = torch.autograd.grad(actual, inputs, grad)
    expected_grads = torch.autograd.grad(expected, inputs, grad)
    for a, e in zip(actual_grads[:2], expected_grads[:2], strict=True):
        assert_close(a, e, GRADIENT_TOLERANCE[dtype])
    # The gradient in coords is summed over 75 values of a window: ten times the rounding of one.
    assert_close(actual_grads[2], expected_grads[2], max(10 * TOLERANCE[dtype], 1e-6))


@needs_extension
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("shape0", "shape1", "levels", "radius"),
    [
        ((1, 1, 1, 1), (1, 1, 1, 1), 1, 0),
        ((1, 16, 1, 9), (1, 16, 1, 9), 2, 4),
        ((1, 3, 9, 1), (1, 3, 9, 1), 4, 3),
        ((0, 3, 4, 5), (0, 3, 4, 5), 2, 1),
        ((2, 5, 0, 4), (2, 5, 3, 4), 1, 1),
        ((2, 5, 3, 4), (2, 5, 0, 4), 2, 1),
        ((1, 65, 5, 6), (1, 65, 13, 9), 3, 8),
        ((3, 130, 17, 3), (3, 130, 17, 35), 1, 16),
        ((2, 33, 4, 9), (2, 33, 4, 9), 2, 0),
        ((1, 4, 5, 5), (1, 4, 8, 8), 4, 2),  # the last level is one cell
        ((1, 5, 17, 19), (1, 5, 17, 19), 2, 1),  # more pixels than a block of CUDA has threads
    ],
)
def test_reference_odd_sizes(strategy, shape0, shape1, levels, radius):
    f0, f1 = features(shape0).requires_grad_(), features(shape1, seed=1).requires_grad_()
    coords = grid_coords(shape0[0], *shape0[2:]).requires_grad_()
    actual = look_up(strategy, f0, f1, coords, levels, radius)
    expected = reference_look_up(f0, f1, coords, levels, radius)
    # C up to 130 instead of 37 products: twice the rounding.
    assert_close(actual, expected, 2 * TOLERANCE[torch.float32])
    grads = torch.autograd.grad(actual.square().sum(), (f0, f1, coords))
    expected_grads = torch.autograd.grad(
        expected.square().sum(), (f0, f1, coords), allow_unused=True, materialize_grads=True
    )
    for a, e in zip(grads, expected_grads, strict=True):
        assert_close(a, e, 1e-5)  # sums over up to 34^2 taps and 51 pixels of rounded values


def misaligned(values):
    """The same in channels_last, a value behind the beginning of its memory."""
    shape = [values.shape[i] for i in (0, 2, 3, 1)]
    memory = values.new_empty(values.numel() + 1)[1:].view(shape).permute(0, 3, 1, 2)
    return memory.copy_(values)


def scattered_coords(batch, height, width, map_height, map_width):
    """Anywhere on the map and a little beyond it."""
    generator = torch.Generator().manual_seed(7)
    size = torch.tensor([map_width, map_height]).view(1, 2, 1, 1)
    return (torch.rand(batch, 2, height, width, generator=generator) * 1.1 - 0.05) * size


def boundary_coords(batch, height, width, map_height, map_width):
    """Two smooth motions; their boundary crosses blocks of pixels."""
    coords = grid_coords(batch, height, width, 0.1)
    moves = (coords[:, :1] + 0.5 * coords[:, 1:] > 0.7 * width).float()
    return coords + moves * torch.tensor([map_width - width, map_height - height]).view(1, 2, 1, 1)


@needs_extension
@pytest.mark.parametrize("place", [scattered_coords, boundary_coords])
@pytest.mark.parametrize(
    ("channels", "dtype", "radius"),
    [
        (1, torch.float32, 3),
        (3, torch.bfloat16, 7),
        (33, torch.float16, 2),
        (96, torch.bfloat16, 3),
        (264, torch.float32, 1),
        (20, torch.float64, 6),
    ],
)
def test_reference_far_windows(place, channels, dtype, radius):
    """Windows of neighbouring pixels that lie far apart on the first level and close on the last,
    and in several parts on a GPU; numbers of channels that fill no, one and several chunks.
    """
    f0 = features((1, channels, 6, 11), dtype).requires_grad_()
    f1 = features((1, channels, 34, 47), dtype, seed=1).requires_grad_()
    coords = place(1, 6, 11, 34, 47).requires_grad_()
    actual = look_up("on_demand", f0, f1, coords, 3, radius)
    expected = reference_look_up(f0, f1, coords, 3, radius, "on_demand")
    assert_close(actual, expected, 4 * TOLERANCE[dtype])  # up to 264 products instead of 37
    if dtype == torch.bfloat16:  # where no gradient is asked for, products of bfloat16 are made
        maps = f0.detach(), f1.detach(), coords.detach()
        half = look_up("on_demand", *maps, 3, radius)
        assert_close(
            half, reference_look_up(*maps, 3, radius, "on_demand"), 4 * TOLERANCE[torch.bfloat16]
        )
    grad = features(actual.shape, actual.dtype, seed=5)
    actual_grads = torch.autograd.grad(actual, (f0, f1, coords), grad)
    expected_grads = torch.autograd.grad(expected, (f0, f1, coords), grad)
    # Sums over up to 256 taps of 3 levels; the coordinates' and their sums are float32.
    limits = [max(GRADIENT_TOLERANCE[dtype], 1e-13 if dtype == torch.float64 else 1e-5)] * 2
    for a, e, limit in zip(actual_grads, expected_grads, [*limits, 1e-5], strict=True):
        assert_close(a, e, limit)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "height", "width", "place", "radius"),
    [
        (8, 1, 1, scattered_coords, 0),
        (40, 5, 9, grid_coords, 2),  # a chunk of channels that is not full
        (72, 6, 11, boundary_coords, 4),  # several chunks; groups of pixels
        (16, 4, 7, scattered_coords, 7),  # windows in several parts
    ],
)
def test_reference_tensor_cores(dtype, channels, height, width, place, radius):
    """All features in one dtype, float32 in reduced precision: what tensor cores multiply."""
    size = (height, width) if place is grid_coords else (height, width, 19, 23)
    coords = place(1, *size)
    coords[0, 0, 0, width // 2], coords[0, 1, height // 2, 0] = math.nan, math.inf
    coords.requires_grad_()
    maps = [features((1, channels, height, width), dtype, "channels_last")]
    maps += [
        features((1, channels, 19 >> n, 23 >> n), dtype, "channels_last", 1 + n) for n in (0, 1)
    ]
    inputs = [level.requires_grad_() for level in maps] + [coords]
    expected = reference_lookup(inputs[0], inputs[1:-1], coords, radius)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        actual = ops.correlation_lookup(inputs[0], inputs[1:-1], coords, radius)
    finally:
        torch.set_float32_matmul_precision(before)
    # Half features are multiplied exactly; a float32 is off by up to 2^-17 of itself.
    products = 2**-15 if dtype == torch.float32 else 2 * TOLERANCE[dtype]
    assert_close(actual, expected, products)
    grad = features(actual.shape, actual.dtype, seed=5)
    actual_grads = torch.autograd.grad(actual, inputs, grad)
    expected_grads = torch.autograd.grad(expected, inputs, grad)
    limit = max(GRADIENT_TOLERANCE[dtype], 2**-15)
    for a, e in zip(actual_grads[:-1], expected_grads[:-1], strict=True):
        assert_close(a, e, limit)
    assert_close(actual_grads[-1], expected_grads[-1], 2**-14)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_reference_misaligned_memory(dtype):
    """Features that no load of several channels at once may read, though their number allows it."""
    f0, f1 = (misaligned(features((2, 16, 5, 9), dtype, seed=seed)) for seed in (0, 1))
    f0.requires_grad_(), f1.requires_grad_()
    coords = grid_coords(2, 5, 9)
    actual = ops.correlation_lookup(f0, [f1], coords, 2)
    expected = reference_lookup(f0, [f1], coords, 2)
    assert_close(actual, expected, TOLERANCE[dtype])
    grad = features(actual.shape, actual.dtype, seed=5)
    actual_grads = torch.autograd.grad(actual, (f0, f1), grad)
    for a, e in zip(actual_grads, torch.autograd.grad(expected, (f0, f1), grad), strict=True):
        assert_close(a, e, GRADIENT_TOLERANCE[dtype])


@needs_extension
def test_edge_many_levels():
    """As many as are taken, the last ones empty, for pixels that no block divides."""
    f0, f1 = features((1, 4, 5, 9)), features((1, 4, 9, 10), seed=1)
    levels = [level.requires_grad_() for level in ops.pool_levels(f1, 16)]
    f0.requires_grad_()
    coords = grid_coords(1, 5, 9).requires_grad_()
    actual = ops.correlation_lookup(f0, levels, coords, 1)
    expected = reference_lookup(f0, levels, coords, 1)
    assert_close(actual, expected, TOLERANCE[torch.float32])
    inputs = (f0, *levels[:4], coords)  # the others take no part in the reference
    actual_grads = torch.autograd.grad(actual.square().sum(), inputs)
    for a, e in zip(
        actual_grads, torch.autograd.grad(expected.square().sum(), inputs), strict=True
    ):
        assert_close(a, e, 1e-5)


@of_cpu_blocks
@needs_extension
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("reach", [0.7, 6.0, 400.0])
@pytest.mark.parametrize("shape1", [(23, 37), (3, 1100), (1100, 3)])
def test_reference_scattered_windows(strategy, reach, shape1):
    """Windows beside each other, overlapping and far apart, at the map's edges and beyond them."""
    f0, f1 = (
        features((2, 48, 9, 35)).requires_grad_(),
        features((2, 48, *shape1), seed=1).requires_grad_(),
    )
    middle = torch.tensor([shape1[1] / 2 - 17, shape1[0] / 2 - 4]).view(1, 2, 1, 1)
    coords = (grid_coords(2, 9, 35, reach) + middle).requires_grad_()
    actual = look_up(strategy, f0, f1, coords, 3, 4)
    expected = reference_look_up(f0, f1, coords, 3, 4)
    assert_close(actual, expected, 2 * TOLERANCE[torch.float32])
    grad = features(actual.shape, seed=5)
    actual_grads = torch.autograd.grad(actual, (f0, f1, coords), grad)
    for a, e in zip(
        actual_grads, torch.autograd.grad(expected, (f0, f1, coords), grad), strict=True
    ):
        assert_close(a, e, 1e-5)  # sums over up to 100 taps of 3 levels


@needs_extension
@pytest.mark.parametrize(
    ("channels", "shape1", "reach", "jump", "radius"),
    [
        (40, (23, 37), 0.7, 0.0, 4),
        (64, (23, 37), 6.0, 0.0, 4),
        (32, (23, 37), 0.7, 21.0, 4),  # a motion boundary: two groups of windows
        (40, (40, 600), 200.0, 0.0, 2),  # windows that have no cell in common
        (32, (2, 5), 2.0, 0.0, 1),  # fewer cells than are multiplied together
        (96, (16, 16), 0.7, 0.0, 0),
        (32, (9, 70), 2.0, 0.0, 16),  # windows larger than the map
    ],
)
def test_reference_bfloat16_products(channels, shape1, reach, jump, radius):
    """Whole rows of a tile and parts of one, windows beside each other, far apart and outside."""
    layout = "expanded" if jump else "channels_last"
    f0 = features((2, channels, 6, 35), torch.bfloat16, layout)
    sizes = [(shape1[0] >> level, shape1[1] >> level) for level in range(3)]
    pyramid = [
        features((2, channels, *size), torch.bfloat16, "channels_last", level + 1)
        for level, size in enumerate(sizes)
    ]
    coords = grid_coords(2, 6, 35, reach)
    coords += torch.tensor([shape1[1] / 2 - 17, shape1[0] / 2 - 3]).view(1, 2, 1, 1)
    coords[..., 20:] += jump
    coords[0, 0, 2, 3], coords[1, 1, 5, 34] = math.nan, math.inf
    actual = ops.correlation_lookup(f0, pyramid, coords, radius)
    exact = [level.double() for level in pyramid]
    expected = reference_lookup(f0.double(), exact, coords.double(), radius)
    assert_close(actual.double(), expected, 2 * TOLERANCE[torch.bfloat16])  # up to 96 products


@needs_extension
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_reference_bfloat16_gradients_of_many_lookups(strategy):
    """Added up in float32 and rounded to bfloat16 once, by up to 2^-8 of the largest."""
    maps = [features((1, 64, 9, 21), torch.bfloat16, seed=seed).requires_grad_() for seed in (0, 1)]
    exact = [values.detach().double().requires_grad_() for values in maps]
    lookups = [grid_coords(1, 9, 21, seed=seed) for seed in range(12)]
    correlation = ops.Correlation(*maps, levels=1, radius=2, strategy=strategy)
    results = [correlation(coords) for coords in lookups]
    grads = [features(result.shape, seed=seed) for seed, result in enumerate(results)]
    expected = [reference_look_up(*exact, coords, 1, 2) for coords in lookups]
    actual_grads = torch.autograd.grad(results, maps, grads)
    expected_grads = torch.autograd.grad(expected, exact, [grad.double() for grad in grads])
    for a, e in zip(actual_grads, expected_grads, strict=True):
        assert_close(a.double(), e, 2**-8)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_edge_infinite_features(strategy, dtype):
    """A tap outside the map is 0 whatever the features are; one inside is not hidden."""
    f0, f1 = torch.ones(1, 3, 3, 3, dtype=dtype), torch.ones(1, 3, 3, 3, dtype=dtype)
    f0[0, 0] = torch.inf
    coords = grid_coords(1, 3, 3, 0.0) + torch.tensor([2.0, 1.0]).view(1, 2, 1, 1)
    actual = look_up(strategy, f0, f1, coords, 1, 1)
    assert torch.equal(
        actual.nan_to_num(-7.0), reference_look_up(f0, f1, coords, 1, 1).nan_to_num(-7.0)
    )


@of_cpu_blocks
@needs_extension
def test_reference_many_pixels():
    """More pixels than the gradients of taps are kept of at a time."""
    f0, f1 = (
        features((1, 16, 120, 130)).requires_grad_(),
        features((1, 16, 20, 20)).requires_grad_(),
    )
    coords = (grid_coords(1, 120, 130, 8.0) / 6).requires_grad_()
    grads = []
    for strategy in STRATEGIES:
        result = look_up(strategy, f0, f1, coords, 4, 4)
        grad = features(result.shape, seed=5)
        grads.append((result, *torch.autograd.grad(result, (f0, f1, coords), grad)))
    for by_volume, on_demand in zip(*grads, strict=True):
        assert_close(on_demand, by_volume, 1e-5)  # sums over up to 10^4 taps in another order


@needs_extension
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reference_half_precision_bound(strategy, dtype):
    """What a half dtype costs against float64 on the same features: sums of C products in float32,
    2^-16 of sum |f0 f1| / sqrt(C), and for bfloat16 on demand 2^-8 for the rounding of the coarser
    levels.
    """
    f0, f1 = (features((1, 96, 13, 21), dtype, seed=seed) for seed in (0, 1))
    coords = grid_coords(1, 13, 21)
    exact = reference_look_up(f0.double(), f1.double(), coords, 3, 3)
    most = reference_look_up(f0.double().abs(), f1.double().abs(), coords, 3, 3)
    share = 2**-16 + (2**-8 if dtype == torch.bfloat16 and strategy == "on_demand" else 0)
    error = (look_up(strategy, f0, f1, coords, 3, 3) - exact).abs()
    assert bool((error <= share * most + 1e-7).all())
    assert float(error.max()) > 0


@needs_extension
def test_reference_volume():
    f0, f1 = (
        features((2, 300, 5, 7)).requires_grad_(),
        features((2, 300, 6, 9), seed=1).requires_grad_(),
    )
    volumes = ops.correlation_volume(f0, f1, 3)
    expected = reference_volume(f0, ops.pool_levels(f1, 3))
    grads = [features(v.shape, seed=i) for i, v in enumerate(expected)]
    for actual, wanted in zip(volumes, expected, strict=True):
        assert_close(actual, wanted, 5e-6)  # 300 products
    a = torch.autograd.grad(volumes, (f0, f1), grads)
    e = torch.autograd.grad(expected, (f0, f1), grads)
    assert_close(a[0], e[0], 5e-6)
    assert_close(a[1], e[1], 5e-6)


@needs_extension
@pytest.mark.parametrize("wide_coords", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_reference_mixed_dtypes(strategy, wide_coords):
    """Each level in a dtype of its own, none that of f0; coords in float32 or float64."""
    dtypes = [torch.bfloat16, torch.float32, torch.float16]
    f0 = features((2, 19, 4, 5), torch.float16).requires_grad_()
    levels = [
        features((2, 19, 6 - level, 7), dtype, seed=level).requires_grad_()
        for level, dtype in enumerate(dtypes)
    ]
    coords = grid_coords(2, 4, 5, dtype=torch.float64 if wide_coords else torch.float32)
    inputs = [f0, *levels, coords.requires_grad_()]
    expected = reference_lookup(f0, levels, coords, 1)
    if strategy == "volume":
        volumes = torch.ops.flowfuse.correlation_volume(f0, levels)
        actual = ops.volume_lookup(volumes, coords, 1)
    else:
        actual = ops.correlation_lookup(f0, levels, coords, 1)
    assert_close(actual, expected, TOLERANCE[torch.float32])
    grad = features(actual.shape, seed=5)
    actual_grads = torch.autograd.grad(actual, inputs, grad)
    expected_grads = torch.autograd.grad(expected, inputs, grad)
    for a, e in zip(actual_grads[:-1], expected_grads[:-1], strict=True):
        assert_close(a, e, GRADIENT_TOLERANCE[e.dtype])
    assert_close(actual_grads[-1], expected_grads[-1], 10 * TOLERANCE[torch.float32])


@needs_extension
@pytest.mark.parametrize("radius", [0, 16])
def test_reference_strided_volume(radius):
    """Any strides of volumes, coords and gradient; float64 volumes with float32 coords."""
    volumes = [features((2, 3, 13, 4, 5), torch.float64), features((2, 3, 13, 2, 1), torch.float64)]
    volumes = [torch.stack([v, v], dim=1)[:, 0].transpose(3, 4).requires_grad_() for v in volumes]
    coords = grid_coords(2, 3, 13).transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    inputs = [*volumes, coords]
    actual = ops.volume_lookup(volumes, coords, radius)
    expected = reference_volume_lookup(volumes, coords, radius)
    assert_close(actual, expected, TOLERANCE[torch.float64])
    grad = features((1, *actual.shape[1:]), torch.float64, seed=5).expand(actual.shape)
    actual_grads = torch.autograd.grad(actual, inputs, grad)
    expected_grads = torch.autograd.grad(expected, inputs, grad)
    for a, e in zip(actual_grads[:2], expected_grads[:2], strict=True):
        assert_close(a, e, TOLERANCE[torch.float64])
    assert_close(actual_grads[2], expected_grads[2], 1e-6)  # in the dtype of coords


@needs_extension
def test_edge_groups_of_items():
    """The backward on demand keeps the tap gradients of some pixels at a time (16 MiB on a CPU, 64
    on a GPU), here less than those of all items. The last item's gradients are those it has alone,
    to the bit.
    """
    batch, height, width, radius = 3, 41, 60, 16
    f0 = features((1, 1, height, width), torch.float64).expand(batch, -1, -1, -1)
    f1 = features((batch, 1, 2, 3), torch.float64, seed=1)
    coords = grid_coords(batch, height, width)
    grad = features((batch, 1, height, width), torch.float64, seed=2)
    grad = grad.expand(-1, (2 * radius + 1) ** 2, -1, -1)

    def backward(items):
        arguments = (grad[items], f0[items], [f1[items]], coords[items], radius, False, True)
        grad_f0, (grad_f1,), _ = torch.ops.flowfuse.correlation_lookup_backward(*arguments)
        return grad_f0, grad_f1

    for together, alone in zip(backward(slice(3)), backward(slice(2, 3)), strict=True):
        assert together[2].any() and torch.equal(together[2:], alone)
        assert not torch.equal(together[:1], alone)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_reference_autocast(strategy):
    """Features go to bfloat16, coordinates keep float32, where bfloat16 has a spacing of 4 px."""
    f0, f1 = features((1, 8, 3, 5)), features((1, 8, 3, 5), seed=1)
    coords = grid_coords(1, 3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = look_up(strategy, f0, f1, coords, 1, 1)
    assert actual.dtype == torch.float32
    rounded = reference_look_up(f0.bfloat16(), f1.bfloat16(), coords, 1, 1)
    assert_close(actual, rounded, TOLERANCE[torch.float32])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_gradcheck_each_level(strategy, level):
    """Centres in the middle of the level's cells, so that a step of 1e-6 crosses no integer. Maps
    are small: each value is stepped in both directions, which takes long in the emulator.
    """
    f0 = features((1, 2, 3, 4), torch.float64).requires_grad_()
    f1 = features((1, 2, 6, 8), torch.float64, seed=1).requires_grad_()
    generator = torch.Generator().manual_seed(2)
    cell = torch.randint(-1, 3, (1, 2, 3, 4), generator=generator)
    fraction = 0.2 + 0.6 * torch.rand(1, 2, 3, 4, generator=generator, dtype=torch.float64)
    coords = ((cell + fraction) * 2**level).requires_grad_()

    def one_level(f0, f1, coords):
        result = look_up(strategy, f0, f1, coords, level + 1, 1)
        return result[:, 9 * level :]

    torch.autograd.gradcheck(one_level, (f0, f1, coords))


def test_gradcheck_volume():
    f0 = features((1, 2, 2, 3), torch.float64).requires_grad_()
    f1 = features((1, 2, 4, 5), torch.float64, seed=1).requires_grad_()
    torch.autograd.gradcheck(lambda a, b: tuple(ops.correlation_volume(a, b, 2)), (f0, f1))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_edge_coordinates(strategy):
    values = [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e9, -5.0, 9.0]
    f0, f1 = features((1, 4, 1, 8)), features((1, 4, 3, 4), seed=1)
    coords = torch.zeros(1, 2, 1, 8)
    coords[0, 0, 0] = torch.tensor(values)
    f0.requires_grad_(), f1.requires_grad_(), coords.requires_grad_()
    result = look_up(strategy, f0, f1, coords, 2, 1)
    assert result[..., 0].isnan().all()
    assert not result[..., 1:].any()
    grads = torch.autograd.grad(result[..., 1:].sum(), (f0, f1, coords))
    assert not any(grad.any() for grad in grads)
    coords = torch.tensor([math.inf, math.nan]).view(1, 2, 1, 1)
    assert look_up(strategy, f0[..., :1], f1, coords, 1, 1).isnan().all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_edge_negative_coordinates(strategy):
    """x = -0.3 keeps 0.7 of pixel 0 (floor), and nothing of pixel 1 (truncation would give it)."""
    f0, f1 = torch.ones(1, 1, 1, 1), torch.tensor([[[[1.0, 100.0]]]])
    coords = torch.tensor([-0.3, 0.0]).view(1, 2, 1, 1)
    result = look_up(strategy, f0, f1, coords, 1, 0)
    assert result.item() == pytest.approx(0.7, abs=1e-7)  # one rounding of 1 - 0.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_edge_nan_features_stay_local(strategy, dtype):
    f0, f1 = torch.ones(1, 1, 1, 6, dtype=dtype), torch.ones(1, 1, 1, 6, dtype=dtype)
    f1[..., 5] = math.nan
    result = look_up(strategy, f0, f1, grid_coords(1, 1, 6, 0.0), 1, 1)
    assert not result[..., :3].isnan().any()
    assert result[..., 5].isnan().any()


def test_edge_strategies_agree():
    f0, f1 = features((2, 32, 9, 10)), features((2, 32, 9, 10), seed=1)
    coords = grid_coords(2, 9, 10, 6.0)
    results = [look_up(strategy, f0, f1, coords, 4, 3) for strategy in STRATEGIES]
    assert_close(results[0], results[1], TOLERANCE[torch.float32])


def test_edge_auto_by_size():
    small, large = features((1, 1, 4, 4)), torch.zeros(1, 1, 100, 100)
    assert ops.Correlation(small, small, levels=1, radius=1).strategy == "volume"
    assert ops.Correlation(large, large, levels=1, radius=1).strategy == "on_demand"


F = torch.zeros(2, 3, 4, 5)
C = torch.zeros(2, 2, 4, 5)
LOOKUP_ERRORS = [
    ((F[0], [F], C, 1), r"correlation_lookup: f0 must have shape \[B, C, H, W\], got \[3, 4, 5\]"),
    ((F, [], C, 1), r"correlation_lookup: levels must be in \[1, 16\], got 0"),
    ((F, [F] * 17, C, 1), r"correlation_lookup: levels must be in \[1, 16\], got 17"),
    ((F.int(), [F], C, 1), r"correlation_lookup: f0 must be of dtype float32, .*, got int32"),
    ((F[:, :0], [F[:, :0]], C, 1), r"correlation_lookup: f0 must have at least one channel"),
    (
        (F, [F, F[:, :2]], C, 1),
        r"correlation_lookup: level 1 of f1 must have shape \[2, 3, H_l, W_l\], got \[2, 2, 4, 5\]",
    ),
    ((F, [F.double()], C, 1), r"correlation_lookup: f0 and level 0 of f1 must both be float64"),
    (
        (F, [F], torch.zeros(2, 3, 4, 5), 1),
        r"correlation_lookup: coords must have shape \[B, 2, H, W\], got \[2, 3, 4, 5\]",
    ),
    (
        (F, [F], C[..., :4], 1),
        r"correlation_lookup: coords must have shape \[2, 2, 4, 5\], got \[2, 2, 4, 4\]",
    ),
    (
        (F, [F], C.half(), 1),
        r"correlation_lookup: coords must be of dtype float32, float64, got float16",
    ),
    ((F, [F], C, 17), r"correlation_lookup: radius must be in \[0, 16\], got 17"),
    ((F, [F], C, -1), r"correlation_lookup: radius must be in \[0, 16\], got -1"),
]
V = torch.zeros(2, 4, 5, 3, 3)
VOLUME_ERRORS = [
    (([], C, 1), r"volume_lookup: levels must be in \[1, 16\], got 0"),
    (([V] * 17, C, 1), r"volume_lookup: levels must be in \[1, 16\], got 17"),
    (
        ([V, V[:, :3]], C, 1),
        r"volume_lookup: level 1 of volumes must have shape \[2, 4, 5, H_l, W_l\], got \[2, 3, 5,",
    ),
    (
        ([V.half()], C, 1),
        r"volume_lookup: level 0 of volumes must be of dtype float32, float64, got float16",
    ),
    (
        ([V, V.double()], C, 1),
        r"volume_lookup: level 1 of volumes must be of the dtype of level 0, got float64",
    ),
    (([V], C[0], 1), r"volume_lookup: coords must have shape \[B, 2, H, W\], got \[2, 4, 5\]"),
    (([V], C, 20), r"volume_lookup: radius must be in \[0, 16\], got 20"),
]


@pytest.mark.parametrize("direct", [False, pytest.param(True, marks=needs_extension)])
@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [("correlation_lookup", *error) for error in LOOKUP_ERRORS]
    + [("volume_lookup", *error) for error in VOLUME_ERRORS],
)
def test_error_messages(name, arguments, message, direct):
    function = getattr(torch.ops.flowfuse, name) if direct else getattr(ops, name)
    if direct and name == "correlation_lookup":
        arguments = (*arguments, True)  # exact
    with pytest.raises(ValueError, match=message):
        function(*arguments)


def test_error_correlation_arguments():
    with pytest.raises(ValueError, match=r"Correlation: strategy must be one of .*, got 'fast'"):
        ops.Correlation(F, F, levels=1, radius=1, strategy="fast")
    with pytest.raises(ValueError, match=r"Correlation: levels must be in \[1, 16\], got 0"):
        ops.Correlation(F, F, levels=0, radius=1)
    with pytest.raises(ValueError, match=r"Correlation: levels must be in \[1, 16\], got 17"):
        ops.Correlation(F, F, levels=17, radius=1)
    with pytest.raises(ValueError, match=r"Correlation: radius must be in \[0, 16\], got 17"):
        ops.Correlation(F, F, levels=1, radius=17)
    with pytest.raises(ValueError, match=r"pool_levels: levels must be in \[1, 16\], got 0"):
        ops.pool_levels(F, 0)
    with pytest.raises(ValueError, match="correlation_volume: f0 must have shape"):
        ops.correlation_volume(F[0], F, 1)
    with pytest.raises(ValueError, match=r"pool_levels: f1 must be of dtype .*, got int32"):
        ops.pool_levels(F.int(), 2)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("pool_levels", (F.tolist(), 2), "f1 must be a torch.Tensor, got list"),
        ("pool_levels", (F, 2.0), "levels must be an int, got float"),
        ("correlation_volume", (F, F.numpy(), 1), "f1 must be a torch.Tensor, got ndarray"),
        ("correlation_lookup", (F.numpy(), [F], C, 1), "f0 must be a torch.Tensor, got ndarray"),
        ("correlation_lookup", (F, [F, [1]], C, 1), "level 1 of f1 must be a torch.Tensor, got li"),
        ("correlation_lookup", (F, [F], C.tolist(), 1), "coords must be a torch.Tensor, got list"),
        ("correlation_lookup", (F, [F], C, 1.5), "radius must be an int, got float"),
        ("volume_lookup", ([[1]], C, 1), "level 0 of volumes must be a torch.Tensor, got list"),
        ("volume_lookup", ([V], C, "1"), "radius must be an int, got str"),
    ],
)
def test_error_types(name, arguments, message):
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        getattr(ops, name)(*arguments)


@needs_extension
def test_error_out_of_memory():
    """The message names the operator, the bytes and what needs less."""
    f = torch.zeros(1, 1, 3000, 3000)
    message = (
        "^correlation_volume: out of memory: 324000000000000 bytes could not be allocated for a "
        r"tensor of shape .1, 3000, 3000, 3000, 3000.; Correlation.*strategy=\"on_demand\""
    )
    with pytest.raises(torch.OutOfMemoryError, match=message):
        ops.Correlation(f, f, levels=1, radius=1, strategy="volume")


@needs_extension
def test_error_double_backward_and_vmap():
    f = features((1, 2, 3, 3)).requires_grad_()
    coords = grid_coords(1, 3, 3)
    for strategy, name in (("volume", "volume_lookup"), ("on_demand", "correlation_lookup")):
        result = look_up(strategy, f, f, coords, 1, 1)
        (grad,) = torch.autograd.grad(result.square().sum(), f, create_graph=True)
        with pytest.raises(NotImplementedError, match="double backward is not supported"):
            grad.sum().backward()
        levels = [f.detach()] if strategy == "on_demand" else [torch.zeros(1, 3, 3, 3, 3)]
        with pytest.raises(NotImplementedError, match=f"{name}: vmap is not supported"):
            if strategy == "on_demand":
                torch.vmap(
                    lambda c, levels=levels: ops.correlation_lookup(f.detach(), levels, c, 1)
                )(coords[None])
            else:
                torch.vmap(lambda c, levels=levels: ops.volume_lookup(levels, c, 1))(coords[None])


@of_cpu_blocks
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "expanded"])
@pytest.mark.parametrize("shape1", [(8, 13), (1, 1), (0, 4)])
def test_volume_by_calls_of_torch(dtype, layout, shape1):
    """What runs on CUDA, by baddbmm, on the CPU."""
    f0 = features((2, 37, 7, 11), dtype, layout).requires_grad_()
    f1 = features((2, 37, *shape1), dtype, layout, 1)
    levels = [level.requires_grad_() for level in ops.pool_levels(f1, 2)]
    expected = reference_volume(f0, levels)
    detached = [level.detach() for level in levels]
    volumes = cuda_volume(f0.detach(), detached)
    grads = [features(volume.shape, dtype, seed=3) for volume in volumes]
    wanted = torch.autograd.grad(
        expected, (f0, *levels), grads, allow_unused=True, materialize_grads=True
    )
    grad_f0, grad_levels = cuda_volume_backward(grads, f0.detach(), detached)
    found = [*volumes, grad_f0, *grad_levels]
    for a, e in zip(found, [*expected, *wanted], strict=True):
        assert_close(a.detach(), e.detach(), TOLERANCE[dtype])


def test_volume_of_mixed_features():
    """A level in float32 beside bfloat16 is two numbers in bfloat16; else both are float32."""
    f0, f1 = features((2, 30, 40), torch.bfloat16), features((2, 30, 50), seed=1)
    a, b = same_dtype(f0, f1)
    assert a.dtype == b.dtype == torch.bfloat16
    found = a.double().mT @ b.double()
    assert_close(found, f0.double().mT @ f1.double(), 2**-17)
    assert {t.dtype for t in same_dtype(f0.half(), f1)} == {torch.float32}
    assert [t.data_ptr() for t in same_dtype(f0, f0)] == [f0.data_ptr()] * 2


def test_volume_kernel_checks_its_arguments():
    with pytest.raises(
        ValueError, match=r"correlation_volume: level 0 of f1 must have shape \[1, 3,"
    ):
        cuda_volume(torch.zeros(1, 3, 2, 2), [torch.zeros(1, 4, 2, 2)])
    f = torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match=r"one gradient for each of 1 levels is needed, got 0"):
        cuda_volume_backward([], f, [f])
    with pytest.raises(ValueError, match=r"grad must have shape \[1, 2, 2, 2, 2\]"):
        cuda_volume_backward([f], f, [f])


@pytest.mark.parametrize(
    ("height", "width", "learning", "strategy"),
    [
        (90, 160, False, "volume"),
        (90, 160, True, "on_demand"),
        (8, 8, True, "on_demand"),
        (270, 480, False, "on_demand"),
    ],
)
def test_auto_beside_a_gpu(height, width, learning, strategy):
    """Meta tensors stand for those of a GPU: no other device but the CPU has limits of its own."""
    f0 = torch.zeros(1, 8, height, width, device="meta", requires_grad=learning)
    assert automatic_strategy(f0, f0, levels=4) == strategy


@needs_extension
def test_opcheck():
    f0 = features((2, 5, 4, 6)).requires_grad_()
    levels = [
        level.detach().requires_grad_() for level in ops.pool_levels(features((2, 5, 4, 6)), 2)
    ]
    coords = grid_coords(2, 4, 6).requires_grad_()
    flowfuse = torch.ops.flowfuse
    torch.library.opcheck(flowfuse.correlation_volume.default, (f0, levels))
    torch.library.opcheck(flowfuse.correlation_lookup.default, (f0, levels, coords, 2, True))
    torch.library.opcheck(
        flowfuse.correlation_lookup.default, (f0.detach().bfloat16(), levels, coords, 2, False)
    )
    volumes = [v.detach().requires_grad_() for v in ops.correlation_volume(f0, levels[0], 2)]
    torch.library.opcheck(flowfuse.volume_lookup.default, (volumes, coords, 1))


@needs_extension
@pytest.mark.parametrize("needed", [False, True])
def test_opcheck_backward(needed):
    f0, levels = features((2, 5, 4, 6)), ops.pool_levels(features((2, 5, 4, 6)), 2)
    coords = grid_coords(2, 4, 6)
    flowfuse = torch.ops.flowfuse
    volumes = ops.correlation_volume(f0, levels[0], 2)
    grad = features((2, 18, 4, 6))
    torch.library.opcheck(
        flowfuse.correlation_lookup_backward.default, (grad, f0, levels, coords, 1, needed, True)
    )
    torch.library.opcheck(
        flowfuse.volume_lookup_backward.default, (grad, volumes, coords, 1, needed)
    )
    torch.library.opcheck(flowfuse.correlation_volume_backward.default, (volumes, f0, levels))


@needs_extension
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "shape", [(2, 130, 9, 11), pytest.param((1, 33, 41, 53), marks=of_cpu_blocks)]
)
def test_same_bits_for_thread_counts(strategy, shape):
    def run():
        f0, f1 = features(shape).requires_grad_(), features(shape).requires_grad_()
        coords = grid_coords(shape[0], *shape[2:]).requires_grad_()
        result = look_up(strategy, f0, f1, coords, 3, 3)
        half = look_up(strategy, f0.detach().bfloat16(), f1.detach().bfloat16(), coords, 3, 3)
        gradients = torch.autograd.grad(result.square().sum(), (f0, f1, coords))
        return result, half.detach(), *gradients

    results = with_thread_counts(run, (1, 1, 2, 3, 5))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@needs_extension
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(strategy, dynamic):
    def loss(f0, f1, coords):
        correlation = ops.Correlation(f0, f1, levels=2, radius=1, strategy=strategy)
        return correlation(coords).square().sum() + correlation(coords + 0.5).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for height in (4, 6):
        inputs = [features((1, 3, height, 5), seed=i).requires_grad_() for i in range(2)]
        inputs.append(grid_coords(1, height, 5).requires_grad_())
        expected = torch.autograd.grad(loss(*inputs), inputs)
        actual = torch.autograd.grad(compiled(*inputs), inputs)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e)  # the same kernels; only sums of gradients may regroup


@needs_extension
def test_compile_autocast():
    f0, f1, coords = features((1, 3, 4, 5)), features((1, 3, 4, 5), seed=1), grid_coords(1, 4, 5)

    def forward(f0, f1, coords):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return look_up("on_demand", f0, f1, coords, 2, 1)

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(f0, f1, coords), forward(f0, f1, coords))
