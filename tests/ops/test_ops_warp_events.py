from __future__ import annotations

import re

import pytest
import torch
from thread_cases import using_threads, with_thread_counts

from flowfuse import ops
from flowfuse.ops.warp_events import reference

needs_extension = pytest.mark.skipif(
    not ops.build_info()["extension"], reason="the compiled operators are not built"
)
# Where the CUDA code runs: on the CPU with the emulator of tests/emulator, on a GPU, or nowhere.
REGISTERED = torch._C._dispatch_dump("flowfuse::warp_events")
EMULATED = re.search("^CPU: .*/csrc/cuda/", REGISTERED, re.MULTILINE) is not None
HAS_GPU = "cuda" in ops.build_info()["devices"] and torch.cuda.is_available()
CUDA_CODE = "cpu" if EMULATED else "cuda" if HAS_GPU else None
needs_cuda_code = pytest.mark.skipif(
    CUDA_CODE is None, reason="what CUDA code does: needs a GPU or FLOWFUSE_TEST_EMULATOR"
)
PIXEL_DTYPES = [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64]
MODES = ["signed", "unsigned", "split"]


def times(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def random_events(count=60, height=6, width=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, generator=generator, dtype=dtype) * (width - 1)
    y = torch.rand(count, generator=generator, dtype=dtype) * (height - 1)
    t = torch.randint(0, 1000, (count,), generator=generator)
    p = torch.randint(0, 2, (count,), generator=generator, dtype=torch.uint8)
    return x, y, t, p, times(0, count // 2, count)


def rough_arguments(counts, dtype=torch.float32, points=0, sum_dtype=torch.float64,
                    height=6, width=7, mode="signed", seed=0):  # fmt: skip
    """Arguments with events off the sensor, out of the window and at NaN; 0 points: a flow."""
    generator = torch.Generator().manual_seed(seed)
    count, items = sum(counts), len(counts)
    if dtype.is_floating_point:
        x = (torch.rand(count, generator=generator) * (width + 3) - 2).to(dtype)
        y = (torch.rand(count, generator=generator) * (height + 3) - 2).to(dtype)
        x[::11], y[::13] = torch.nan, torch.inf
    else:
        low = 0 if dtype in (torch.uint8, torch.uint16) else -2
        x = torch.randint(low, width + 2, (count,), generator=generator).to(dtype)
        y = torch.randint(low, height + 2, (count,), generator=generator).to(dtype)
    t = torch.randint(-50, 1100, (count,), generator=generator)
    p = torch.randint(0, 2, (count,), generator=generator, dtype=torch.uint8)
    shape = (items, points, 2, height, width) if points else (items, 2, height, width)
    trajectory = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    return (
        x, y, t, p, offsets, trajectory.to(sum_dtype),
        times(*[0] * items), times(*[1000 + i for i in range(items)]),
        times(*[250 * i - 100 for i in range(items)]), mode, height, width,
    )  # fmt: skip


def gradient(function, arguments, weights):
    trajectory = arguments[5].detach().requires_grad_()
    image = function(*arguments[:5], trajectory, *arguments[6:])
    return torch.autograd.grad(image, trajectory, weights)[0]


def image_weights(arguments, seed=3):
    """A gradient of the image of a call."""
    channels = 2 if arguments[9] == "split" else 1
    shape = (arguments[5].shape[0], channels, *arguments[10:])
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(arguments[5].dtype)


def warp(events, trajectory, mode="signed", t_ref=1000, height=6, width=7):
    items = trajectory.shape[0]
    return ops.warp_events(
        *events, trajectory, times(*[0] * items), times(*[1000] * items), times(*[t_ref] * items),
        mode, height, width,
    )  # fmt: skip


def test_hand_moved_event():
    # u = (2, 0) over [0, 1000): from t = 500 to t = 1000 the event moves 1 px; to t = 625, 0.25 px.
    events = (times(1), times(0), times(500), torch.ones(1, dtype=torch.uint8), times(0, 1))
    flow = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    assert warp(events, flow, height=1, width=4).tolist() == [[[[0, 0, 1, 0]]]]
    assert warp(events, flow, t_ref=625, height=1, width=4).tolist() == [[[[0, 0.75, 0.25, 0]]]]


def test_hand_gradient():
    # The event moves from 1 to 1 + 0.25 and sees 0.75 g_1 + 0.25 g_2: slope g_2 - g_1 in the place,
    # and a time share of 0.125 of the flow at pixel 1. Across, it sits on row 0: g below is 0.
    events = (times(1), times(0), times(500), torch.zeros(1, dtype=torch.uint8), times(0, 1))
    flow = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).repeat(1, 1, 1, 4).requires_grad_()
    image = warp(events, flow, t_ref=625, height=1, width=4)
    image.backward(torch.tensor([5.0, 1.0, 4.0, 7.0]).view(1, 1, 1, 4))
    assert flow.grad[0, 0].tolist() == [[0, -0.125 * (4 - 1), 0, 0]]
    assert flow.grad[0, 1].tolist() == [[0, -0.125 * -(0.75 * 1 + 0.25 * 4), 0, 0]]


def test_hand_modes():
    events = (times(1, 1, 2), times(0, 0, 0), times(0, 0, 0), torch.tensor([1, 0, 0]), times(0, 3))
    flow = torch.zeros(1, 2, 1, 4)
    assert warp(events, flow, "signed", height=1, width=4).tolist() == [[[[0, 0, -1, 0]]]]
    assert warp(events, flow, "unsigned", height=1, width=4).tolist() == [[[[0, 2, 1, 0]]]]
    split = warp(events, flow, "split", height=1, width=4)
    assert split.tolist() == [[[[0, 1, 1, 0]], [[0, 1, 0, 0]]]]


def test_hand_quadratic_trajectory():
    # P_1 = 0, P_2 = 4: x(tau) = 4 tau^2; from tau = 0.5 (1 px) to tau = 1 (4 px): 3 px further.
    events = (times(1), times(0), times(500), torch.ones(1, dtype=torch.uint8), times(0, 1))
    points = torch.zeros(1, 2, 2, 1, 6)
    points[0, 1, 0] = 4.0
    assert warp(events, points, height=1, width=6).tolist() == [[[[0, 0, 0, 0, 1, 0]]]]


def test_reference_flow_is_a_trajectory_of_degree_one():
    flow = torch.randn(2, 2, 6, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    linear = torch.stack(
        [flow / 2, flow], dim=1
    )  # P_1 = P_2 / 2 is the straight line as a quadratic
    # Two ways to the same displacement, in float64.
    torch.testing.assert_close(
        warp(random_events(), flow), warp(random_events(), linear), rtol=0, atol=1e-13
    )


def assert_agrees(arguments):
    """With the reference, forward and backward."""
    # Places are a few px, so that a weight is off by some 2^-22 in float32; a cell has tens of
    # votes and a cell's gradient tens of slopes of up to 10.
    atol = 1e-11 if arguments[5].dtype == torch.float64 else 2e-5
    image, expected = ops.warp_events(*arguments), reference(*arguments)
    assert expected.any()
    torch.testing.assert_close(image, expected, rtol=0, atol=atol)
    weights = image_weights(arguments)
    torch.testing.assert_close(
        gradient(ops.warp_events, arguments, weights),
        gradient(reference, arguments, weights),
        rtol=0,
        atol=10 * atol,
    )


@needs_extension
@pytest.mark.parametrize("dtype", [*PIXEL_DTYPES, torch.float32, torch.float64])
@pytest.mark.parametrize("sum_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("points", [0, 3])
def test_reference_dtypes(dtype, sum_dtype, points):
    assert_agrees(rough_arguments([150, 0, 111], dtype, points, sum_dtype))


@needs_extension
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("points", [0, 1, 2, 5, 16])
@pytest.mark.parametrize("sum_dtype", [torch.float32, torch.float64])
def test_reference_modes_and_degrees(mode, points, sum_dtype):
    assert_agrees(rough_arguments([300], torch.float32, points, sum_dtype, mode=mode))


@needs_extension
@pytest.mark.parametrize("size", [(1, 1), (1, 8), (9, 1), (3, 5), (31, 33)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.float64])
def test_reference_sizes(size, dtype):
    height, width = size
    counts = [150, 211]
    assert_agrees(rough_arguments(counts, dtype, 2, height=height, width=width, mode="split"))


@needs_extension
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_reference_strips(dtype, threads):
    """CPU kernels list the events near a strip of rows, 1024 at a time; a strip may be one row."""
    with using_threads(threads):
        for size in ((2, 9), (33, 40)):
            height, width = size
            assert_agrees(
                rough_arguments([3000, 1], dtype, 2, height=height, width=width, mode="split")
            )
            assert_agrees(rough_arguments([5000], dtype, 0, height=height, width=width))


@needs_extension
@pytest.mark.parametrize("polarity", [torch.bool, torch.int8, torch.int16, torch.int64])
def test_reference_strides(polarity):
    """Every argument strided, and a gradient expanded from one number."""
    arguments = list(rough_arguments([150, 211], torch.int16, 2))
    arguments[3] = arguments[3].to(polarity)
    expected = ops.warp_events(*arguments)
    for i in (0, 1, 2, 3, 6, 7, 8):
        arguments[i] = torch.stack([arguments[i], arguments[i]], dim=1)[:, 0]
    arguments[4] = torch.stack([arguments[4], arguments[4]], dim=1)[:, 0]
    arguments[5] = arguments[5].transpose(-1, -2).contiguous().transpose(-1, -2)
    assert not any(arguments[i].is_contiguous() for i in range(9))
    assert torch.equal(ops.warp_events(*arguments), expected)
    assert_agrees(arguments)
    weights = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64).expand_as(expected)
    torch.testing.assert_close(
        gradient(ops.warp_events, arguments, weights),
        gradient(reference, arguments, weights),
        rtol=0,
        atol=1e-11,
    )


@pytest.mark.parametrize("points", [0, 2])
@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode, points):
    """Events and motion away from integers, where the splat has its kinks."""
    x = torch.tensor([1.3, 2.4, 3.6], dtype=torch.float64)
    y = torch.tensor([1.6, 2.3, 1.4], dtype=torch.float64)
    events = (x, y, times(0, 300, 700), torch.tensor([1, 0, 1]), times(0, 2, 3))
    shape = (2, points, 2, 5, 6) if points else (2, 2, 5, 6)
    trajectory = 0.1 * torch.randn(
        shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    torch.autograd.gradcheck(
        lambda c: warp(events, c, mode, height=5, width=6), trajectory.requires_grad_()
    )


@needs_extension
def test_opcheck():
    operator = torch.ops.flowfuse.warp_events.default
    for mode, points, dtype in (("signed", 0, torch.int16), ("split", 2, torch.float32)):
        arguments = list(rough_arguments([20, 30], dtype, points, mode=mode))
        torch.library.opcheck(operator, arguments)
        arguments[5].requires_grad_()
        torch.library.opcheck(operator, arguments)
        arguments[5] = arguments[5].detach()
        torch.library.opcheck(
            torch.ops.flowfuse.warp_events_backward.default,
            (image_weights(arguments), *arguments),
        )


@needs_extension
def test_edge_events_have_no_gradient():
    """Positions that require a gradient get none, and make no image that seems to have one."""
    x, y, *rest = rough_arguments([20], torch.float32)
    x, y = (value.nan_to_num(0, 0).requires_grad_() for value in (x, y))
    assert not ops.warp_events(x, y, *rest).requires_grad
    rest[3].requires_grad_()
    (grad, *none) = torch.autograd.grad(
        ops.warp_events(x, y, *rest).square().sum(), (rest[3], x, y), allow_unused=True
    )
    assert grad.any() and none == [None, None]


def test_edge_left_out():
    x = torch.tensor([torch.nan, torch.inf, -1.0, 4.0, 1.0, 1.0, 1.0])
    events = (x, torch.zeros(7), times(0, 0, 0, 0, -1, 1000, 0), torch.ones(7).bool(), times(0, 7))
    image = warp(events, torch.zeros(1, 2, 1, 4), "unsigned", height=1, width=4)
    assert image.tolist() == [[[[0, 1, 0, 0]]]]


def test_edge_outside_the_offsets():
    """Events before the first offset and after the last belong to no item."""
    x, y, t, p, *rest = rough_arguments([10], torch.int32)
    rest[0] = times(2, 7)
    expected = ops.warp_events(x[2:7], y[2:7], t[2:7], p[2:7], times(0, 5), *rest[1:])
    assert torch.equal(ops.warp_events(x, y, t, p, *rest), expected)


def test_edge_just_outside_the_sensor():
    """A position within a pixel of the sensor reads the border's motion, and votes there alone."""
    x = torch.tensor([-0.25, 3.75, -1e-10])  # the last is -1 + 1 in float32
    events = (x, torch.zeros(3), times(0, 0, 0), torch.ones(3).bool(), times(0, 3))
    image = warp(events, torch.zeros(1, 2, 1, 4), "unsigned", height=1, width=4)
    assert image.tolist() == [[[[1.75, 0, 0, 0.25]]]]
    # From the motion (1, 0) at the right border: 3.75 moves out, to 4.75.
    flow = torch.tensor([0.0, 0, 0, 1, 0, 0, 0, 0]).view(1, 2, 1, 4)
    assert warp(events, flow, "unsigned", height=1, width=4).tolist() == [[[[1.75, 0, 0, 0]]]]


@pytest.mark.parametrize("u", [1e30, torch.inf, -torch.inf, torch.nan, 4.0, -2.0])
def test_edge_motion_out_of_the_image(u):
    """No votes, and no gradient: not even a NaN of a motion that is one."""
    events = (times(1, 2), times(0, 0), times(0, 0), torch.ones(2).bool(), times(0, 2))
    flow = torch.full((1, 2, 1, 4), u, requires_grad=True)
    image = warp(events, flow, height=1, width=4)
    assert not image.any()
    image.backward(torch.full_like(image, 7.0))
    assert not flow.grad.any()


@pytest.mark.parametrize("motion", [torch.nan, torch.inf])
def test_edge_missing_motion_is_local(motion):
    """A motion that is missing at one pixel takes away the events that read it, nothing else."""
    arguments = list(rough_arguments([200], torch.float32, 2))
    x, y, *_ = arguments
    near = (x - 3).abs().lt(1) & (y - 2).abs().lt(1) & torch.isfinite(x + y)
    whole = arguments[5].clone()
    arguments[5][0, 1, 1, 2, 3] = motion
    kept = arguments.copy()
    kept[0], kept[5] = torch.where(near, torch.nan, x), whole
    assert near.any()
    assert torch.equal(ops.warp_events(*arguments), ops.warp_events(*kept))
    weights = image_weights(arguments)
    torch.testing.assert_close(
        gradient(ops.warp_events, arguments, weights),
        gradient(ops.warp_events, kept, weights),
        rtol=0,
        atol=1e-13,  # CUDA: the largest slope may have been one that is left out
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("points", [0, 3])
def test_edge_gradient_not_finite(value, points):
    """It comes out at the cells whose events it reaches and nowhere else: gradient scalers look."""
    arguments = rough_arguments([80, 90], torch.float32, points, torch.float32)
    weights = image_weights(arguments)
    weights[1, 0, 2, 3] = value
    grad = gradient(ops.warp_events, arguments, weights)
    expected = gradient(reference, arguments, weights)
    finite = torch.isfinite(grad)
    assert torch.equal(finite, torch.isfinite(expected))
    assert finite[0].all() and not finite[1].all() and finite[1].any()
    # Slopes of up to 10, tens in a cell, in float32.
    torch.testing.assert_close(grad[finite], expected[finite], rtol=0, atol=2e-4)


def test_edge_gradient_of_zero():
    arguments = rough_arguments([80, 90], torch.float32, 2)
    weights = torch.zeros_like(image_weights(arguments))
    assert not gradient(ops.warp_events, arguments, weights).any()


@pytest.mark.parametrize("scale", [1e-280, 1e-30, 1e30, 1e300])
def test_edge_gradient_of_any_size(scale):
    """The gradient is linear: the unit of its fixed-point sums follows its size."""
    arguments = rough_arguments([80, 90], torch.float32, 2)
    weights = image_weights(arguments)
    torch.testing.assert_close(
        gradient(ops.warp_events, arguments, weights * scale) / scale,
        gradient(ops.warp_events, arguments, weights),
        rtol=1e-9,
        atol=1e-9,
    )


def test_edge_empty():
    empty = times()
    events = (empty, empty, empty, empty, times(0, 0))
    flow = torch.zeros(1, 2, 2, 3, requires_grad=True)
    image = warp(events, flow, height=2, width=3)
    assert image.shape == (1, 1, 2, 3) and not image.any()
    image.sum().backward()
    assert flow.grad.shape == flow.shape and not flow.grad.any()


def test_edge_times_far_away():
    """Times are subtracted as integers, and a reference time may lie outside the window."""
    start = 2**60
    events = (times(1), times(0), times(start + 500), torch.ones(1).bool(), times(0, 1))
    flow = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 6)
    image = ops.warp_events(
        *events, flow, times(start), times(start + 1000), times(start + 2000), "signed", 1, 6
    )
    assert image.tolist() == [[[[0, 0, 0, 0, 1, 0]]]]


@needs_extension
@pytest.mark.parametrize("count", [2**14 - 1, 2**14, 2**18])
def test_edge_many_votes_for_one_cell(count):
    """The stated bound of the rounding: n votes are off by at most n 2^-(k + 1)."""
    x = torch.full((count,), 1 / 3, dtype=torch.float64)
    y = torch.full((count,), 0.7, dtype=torch.float64)
    zero = torch.zeros(count, dtype=torch.int64)
    events = (x, y, zero, torch.zeros(count, dtype=torch.uint8), times(0, count))
    image = warp(events, torch.zeros(1, 2, 2, 2, dtype=torch.float64), height=2, width=2)
    right, lower = 1 / 3, 0.7
    expected = torch.tensor(
        [[(1 - right) * (1 - lower), right * (1 - lower)], [(1 - right) * lower, right * lower]],
        dtype=torch.float64,
    )
    bits = min(48, 62 - count.bit_length())
    bound = count * (2.0 ** -(bits + 1) + 2.0**-52)  # and the float64 of the weight itself
    assert (image[0, 0] + count * expected).abs().max() <= bound
    # In float32 nothing is lost on the way either, where a float32 sum would stop counting.
    image = warp(events, torch.zeros(1, 2, 2, 2), height=2, width=2)
    torch.testing.assert_close(image[0, 0].double(), -count * expected, rtol=5e-7, atol=0)


@needs_extension
def test_edge_many_shares_of_one_cell():
    """2^18 equal shares of a gradient: their sum is as good as one of them."""
    count = 2**18
    zero = torch.zeros(count, dtype=torch.int64)
    events = (zero, zero, zero, torch.ones(count, dtype=torch.uint8), times(0, count))
    flow = torch.tensor([0.3, 0.0]).view(1, 2, 1, 1).repeat(1, 1, 1, 2).requires_grad_()
    image = warp(events, flow, height=1, width=2)
    image.backward(torch.tensor([0.1, 0.8]).view(1, 1, 1, 2))
    assert float(flow.grad[0, 0, 0, 0]) == pytest.approx(count * (0.8 - 0.1), rel=3e-7)


def test_same_bits():
    flow = torch.randn(2, 2, 6, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = with_thread_counts(lambda: warp(random_events(), flow), (1, 1, 2))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@needs_extension
@pytest.mark.parametrize("mode", ["signed", "split"])
@pytest.mark.parametrize("counts", [[20000], [3000, 0, 20, 1, 200]])
def test_same_bits_for_thread_counts(counts, mode):
    arguments = rough_arguments(counts, torch.float32, 2, torch.float32, mode=mode)
    weights = image_weights(arguments)

    def run():
        image = ops.warp_events(*arguments)
        return image, gradient(ops.warp_events, arguments, weights)

    results = with_thread_counts(run, (1, 1, 2, 3, 5))
    for image, grad in results[1:]:
        assert torch.equal(image, results[0][0]) and torch.equal(grad, results[0][1])


@needs_extension
def test_same_bits_for_any_order():
    x, y, t, p, *rest = rough_arguments([400], torch.float32, 2, torch.float32)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    expected = ops.warp_events(x, y, t, p, *rest)
    assert torch.equal(ops.warp_events(x[order], y[order], t[order], p[order], *rest), expected)


@needs_extension
def test_same_bits_alone_and_in_a_batch():
    arguments = rough_arguments([200, 31, 90], torch.float32, 2, torch.float32, mode="split")
    weights = image_weights(arguments)
    image, grad = ops.warp_events(*arguments), gradient(ops.warp_events, arguments, weights)
    for item, (begin, end) in enumerate([(0, 200), (200, 231), (231, 321)]):
        alone = (
            *(value[begin:end] for value in arguments[:4]), times(0, end - begin),
            *(value[item : item + 1] for value in arguments[5:9]), *arguments[9:],
        )  # fmt: skip
        assert torch.equal(ops.warp_events(*alone)[0], image[item])
        assert torch.equal(
            gradient(ops.warp_events, alone, weights[item : item + 1])[0], grad[item]
        )


ERRORS = [
    ("x", torch.zeros(3), r"x must have shape \[4\], got \[3\]"),
    ("t", torch.zeros(4), "t must be of dtype int64, got float32"),
    ("p", torch.zeros(4), "p must be of dtype uint8, bool, .*, got float32"),
    ("x", torch.zeros(4, dtype=torch.float16), "x must be of dtype .*, got float16"),
    ("y", torch.zeros(4), "y must be of dtype int32, got float32"),
    ("offsets", times(0), r"offsets must have shape \[B \+ 1\], B at least 1, got \[1\]"),
    ("t_ref", torch.zeros(1), "t_ref must be of dtype int64, got float32"),
    ("t_ref", times(0, 0), r"t_ref must have shape \[1\], got \[2\]"),
    ("mode", "count", "mode must be 'signed', 'unsigned' or 'split', got 'count'"),
    ("height", 0, r"height must be in \[1, 1048576\], got 0"),
    ("width", 2**20 + 1, r"width must be in \[1, 1048576\], got 1048577"),
    (
        "trajectory", torch.zeros(1, 2, 5, 4),
        r"trajectory must have shape \[1, 2, 3, 4\] or \[1, n, 2, 3, 4\], got \[1, 2, 5, 4\]",
    ),
    ("trajectory", torch.zeros(1, 0, 2, 3, 4), r"trajectory must have .*, got \[1, 0, 2, 3, 4\]"),
    (
        "trajectory", torch.zeros(1, 17, 2, 3, 4),
        "trajectory must have at most 16 control points, got 17",
    ),
    ("trajectory", torch.zeros(1, 2, 3, 4).half(), "trajectory must be of dtype float32, float64"),
    ("offsets", times(0, 5), r"offsets must not decrease and must lie within \[0, 4\]"),
    ("offsets", times(-1, 4), r"offsets must not decrease and must lie within \[0, 4\]"),
    ("t1", times(0), "t1 must be later than t0, got t0 = 0, t1 = 0 in item 0"),
    ("t1", times(2**41), r"t1 - t0 must be at most 2\^40 microseconds, got t0 = 0"),
]  # fmt: skip


def plain_arguments():
    pixels = torch.zeros(4, dtype=torch.int32)
    return {
        "x": pixels, "y": pixels, "t": times(0, 1, 2, 3), "p": torch.zeros(4, dtype=torch.uint8),
        "offsets": times(0, 4), "trajectory": torch.zeros(1, 2, 3, 4), "t0": times(0),
        "t1": times(10), "t_ref": times(5), "mode": "signed", "height": 3, "width": 4,
    }  # fmt: skip


@pytest.mark.parametrize("direct", [False, pytest.param(True, marks=needs_extension)])
@pytest.mark.parametrize(("name", "value", "message"), ERRORS)
def test_error_messages(name, value, message, direct):
    if EMULATED and ("offsets must not" in message or name == "t1"):
        pytest.skip("CUDA code does not read values on the host: see test_edge_bad_values")
    arguments = plain_arguments() | {name: value}
    function = torch.ops.flowfuse.warp_events if direct else ops.warp_events
    with pytest.raises(ValueError, match="warp_events: " + message):
        function(*arguments.values())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("p", [0] * 4, "p must be a torch.Tensor, got list"),
        ("t_ref", 5, "t_ref must be a torch.Tensor, got int"),
        ("trajectory", None, "trajectory must be a torch.Tensor, got NoneType"),
        ("height", 3.0, "height must be an int, got float"),
    ],
)
def test_error_types(name, value, message):
    with pytest.raises(ValueError, match=f"warp_events: {message}"):
        ops.warp_events(**plain_arguments() | {name: value})


@needs_extension
@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (torch.zeros(1, 2, 3, 4), r"grad must have shape \[1, 1, 3, 4\], got \[1, 2, 3, 4\]"),
        (torch.zeros(1, 1, 3, 4).double(), "grad must be of dtype float32, got float64"),
    ],
)
def test_error_gradient(grad, message):
    with pytest.raises(ValueError, match="warp_events_backward: " + message):
        torch.ops.flowfuse.warp_events_backward(grad, *plain_arguments().values())


@needs_extension
def test_error_double_backward_and_vmap():
    arguments = rough_arguments([20], torch.float32)
    trajectory = arguments[5].requires_grad_()
    image = ops.warp_events(*arguments)
    (grad,) = torch.autograd.grad(image.square().sum(), trajectory, create_graph=True)
    with pytest.raises(NotImplementedError, match="warp_events: double backward"):
        grad.sum().backward()
    with pytest.raises(NotImplementedError, match="warp_events: vmap is not supported"):
        torch.vmap(lambda c: ops.warp_events(*arguments[:5], c, *arguments[6:]))(
            trajectory.detach()[None]
        )


@needs_cuda_code
@pytest.mark.parametrize(
    ("offsets", "total"),
    [
        ([0, 2, 4], 4),
        ([-5, 2, 100], 4),  # clamped to [0, 4]
        ([3, 1, 4], 1),  # the first item has no event, the second the last one
        ([4, 2, 0], 0),
        ([-(2**62), 2**62, -(2**62)], 0),
    ],
)
@pytest.mark.parametrize(
    ("t0", "t1"), [(0, 10), (0, 0), (5, 1), (0, 2**40 + 1), (-(2**63), 2**63 - 1)]
)
def test_edge_bad_values(offsets, total, t0, t1):
    """CUDA code cannot raise for values: it never leaves the bounds, and bad windows are empty."""
    ones = torch.ones(4, dtype=torch.int32, device=CUDA_CODE)
    items = torch.zeros(2, dtype=torch.int64, device=CUDA_CODE)
    flow = torch.full((2, 2, 3, 4), 0.25, device=CUDA_CODE, requires_grad=True)
    image = torch.ops.flowfuse.warp_events(
        ones, ones, ones.long(), ones, times(*offsets).to(CUDA_CODE), flow,
        items + t0, items + t1, items + 5, "signed", 3, 4,
    )  # fmt: skip
    # Weights are rounded to 2^-48, their sum and the image to float32.
    assert float(image.detach().sum()) == pytest.approx(total if t1 == 10 else 0, rel=1e-6)
    image.square().sum().backward()
    assert bool(flow.grad.any()) == (total > 0 and t1 == 10)
    assert torch.isfinite(flow.grad).all()


@needs_extension
@pytest.mark.parametrize("points", [0, 2])
def test_compile(points):
    arguments = rough_arguments([50, 60], torch.float32, points, torch.float32, mode="split")
    compiled = torch.compile(ops.warp_events, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), ops.warp_events(*arguments))
    weights = image_weights(arguments)
    assert torch.equal(
        gradient(compiled, arguments, weights), gradient(ops.warp_events, arguments, weights)
    )
