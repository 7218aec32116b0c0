from __future__ import annotations

import math
import os

import pytest
import torch
from thread_cases import with_thread_counts

from flowfuse import ops
from flowfuse.ops.common_gradient import reference

needs_extension = pytest.mark.skipif(
    not ops.build_info()["extension"], reason="the compiled operators are not built"
)
# Sizes that reach every block of the CPU kernels take long where CUDA code is emulated.
of_cpu_blocks = pytest.mark.skipif(
    "FLOWFUSE_TEST_EMULATOR" in os.environ, reason="of the blocks of the CPU kernels"
)
# log, pow and sums of 49 values in float32: a few units of 2^-24, on values up to log(1e-3) = -7.
TOLERANCE = {torch.float32: 5e-6, torch.float16: 5e-6, torch.bfloat16: 5e-6, torch.float64: 1e-13}


def random_inputs(batch, channels, height, width, dtype=torch.float32, with_flow=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    exact = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(planes):
        return torch.rand(batch, planes, height, width, generator=generator, dtype=torch.float64)

    frame0, frame1 = (
        (draw(channels) * 0.9 + 0.05).to(dtype),
        (draw(channels) * 0.9 + 0.05).to(dtype),
    )
    event_sum = (draw(1) * 8 - 4).to(exact)
    flow = (draw(2) * 4 - 2).to(exact) if with_flow else None
    return frame0, frame1, event_sum, flow


def test_hand_gradients():
    # Log intensities -3, -2, 0 along x, of linear frames: central differences 0.5, 1.5, 1.
    logs = torch.tensor([-3.0, -2.0, 0.0]).view(1, 1, 1, 3)
    frame0 = logs.double().exp() - 1e-3
    frame1 = (logs.double() + 0.25).exp() - 1e-3
    flow = torch.tensor([2.0, 5.0]).double().view(1, 2, 1, 1).expand(1, 2, 1, 3)
    events = torch.zeros(1, 1, 1, 3, dtype=torch.float64)
    result = ops.common_gradient(frame0, frame1, events, flow, linear=True)[0, :, 0]
    expected = torch.tensor(
        [[0.5, 1.5, 1.0], [0, 0, 0], [0.25] * 3, [0] * 3, [0] * 3, [-1.0, -3.0, -2.0]]
    ).double()
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-14)  # float64 rounding


def test_hand_similarity():
    # a = (-1, 1), b = (-2, 2): var_a = 1, var_b = 4, cov = 2.
    logs = torch.tensor([-1.0, 1.0]).double().view(1, 1, 1, 2)
    frame0 = torch.full((1, 1, 1, 2), math.exp(-1) - 1e-3).double()
    frame1 = (logs - 1).exp() - 1e-3
    events = 2 * logs
    result = ops.common_gradient(frame0, frame1, events, linear=True)[0, 4, 0]
    expected = 2 / math.sqrt((1 + 1e-4) * (4 + 1e-2))
    assert result.tolist() == pytest.approx([expected, expected], abs=1e-14)  # float64 rounding


def test_hand_srgb_and_luma():
    # sRGB 0.5 is 0.21404 linear; green weighs 0.587, and 0.587 is 0.30355 linear (IEC 61966-2-1).
    zero = torch.zeros(1, 1, 1, 1)
    half = torch.full((1, 1, 1, 1), 0.5)
    change = ops.common_gradient(zero, half, zero)[0, 2].item()
    assert change == pytest.approx(math.log(0.214041 + 1e-3) - math.log(1e-3), abs=1e-4)  # 5 digits
    green = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)
    change = ops.common_gradient(torch.zeros(1, 3, 1, 1), green, zero)[0, 2].item()
    linear = ((0.587 + 0.055) / 1.055) ** 2.4
    assert change == pytest.approx(math.log(linear + 1e-3) - math.log(1e-3), abs=1e-5)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize(("with_flow", "linear"), [(True, False), (False, True)])
def test_reference_agreement(dtype, channels, layout, with_flow, linear):
    inputs = random_inputs(2, channels, 13, 17, dtype, with_flow)
    if layout == "channels_last":
        inputs = [
            None if v is None else v.contiguous(memory_format=torch.channels_last) for v in inputs
        ]
    elif layout == "strided":
        inputs = [None if v is None else torch.stack([v, v], dim=-1)[..., 0] for v in inputs]
    inputs = [None if v is None else v.detach().requires_grad_() for v in inputs]
    actual = ops.common_gradient(*inputs, linear)
    expected = reference(*inputs, linear)
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    grad = torch.randn(actual.shape, generator=torch.Generator().manual_seed(1), dtype=actual.dtype)
    leaves = [v for v in inputs if v is not None]
    actual_grads = torch.autograd.grad(actual, leaves, grad)
    expected_grads = torch.autograd.grad(expected, leaves, grad)
    for a, e in zip(actual_grads, expected_grads, strict=True):
        # Half frames' gradients are rounded to their dtype at the end.
        tolerance = {torch.float16: 2**-10, torch.bfloat16: 2**-7}.get(
            a.dtype, 4 * TOLERANCE[dtype]
        )
        scale = float(e.abs().max())
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance * scale)


SMALL = [(0, 4, 5), (1, 1, 1), (1, 1, 8), (2, 9, 1), (1, 2, 3), (1, 7, 7)]
# Kernels may work in tiles, of 32 x 16 pixels on a GPU: a pixel less, one more, and several.
TILES = [(1, 15, 31), (2, 16, 32), (1, 17, 33), (1, 1, 40), (1, 40, 1), (2, 35, 67)]


@needs_extension
@pytest.mark.parametrize(("batch", "height", "width"), SMALL + TILES)
def test_reference_odd_sizes(batch, height, width):
    inputs = [v.requires_grad_() for v in random_inputs(batch, 1, height, width)]
    actual = ops.common_gradient(*inputs)
    expected = reference(*inputs)
    torch.testing.assert_close(actual, expected, rtol=5e-6, atol=5e-6)  # as TOLERANCE
    actual_grads = torch.autograd.grad(actual.sum(), inputs)
    for a, e in zip(actual_grads, torch.autograd.grad(expected.sum(), inputs), strict=True):
        torch.testing.assert_close(
            a, e, rtol=2e-5, atol=2e-5
        )  # sums of gradients of up to 49 windows


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reference_expanded_batch(dtype):
    """One pair of frames against several event sums, and a gradient without memory of its own."""
    frame0, frame1, events, flow = random_inputs(3, 3, 18, 35, dtype)
    frames = [frame[:1].requires_grad_() for frame in (frame0, frame1)]
    inputs = [frames[0].expand(3, -1, -1, -1), frames[1].expand(3, -1, -1, -1), events, flow]
    actual = ops.common_gradient(*inputs)
    expected = reference(*inputs)
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    grads = [
        torch.autograd.grad(result, frames, torch.ones(1).expand_as(result))
        for result in (actual, expected)
    ]
    # Sums over the batch are made in the frames' dtype, whose rounding counts from then on.
    tolerance = 2e-5 if dtype == torch.float32 else 2**-6
    for a, e in zip(*grads, strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance * float(e.abs().max()))


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_gradcheck(linear, channels):
    inputs = [v.requires_grad_() for v in random_inputs(1, channels, 4, 5, torch.float64)]
    torch.autograd.gradcheck(lambda *a: ops.common_gradient(*a, linear), inputs)


@needs_extension
def test_opcheck():
    for with_flow in (True, False):
        inputs = [
            v if v is None else v.requires_grad_()
            for v in random_inputs(2, 3, 4, 5, with_flow=with_flow)
        ]
        torch.library.opcheck(torch.ops.flowfuse.common_gradient.default, (*inputs, False))
        grad = torch.randn(2, 6, 4, 5)
        inputs = random_inputs(2, 1, 4, 5, torch.bfloat16, with_flow)
        torch.library.opcheck(
            torch.ops.flowfuse.common_gradient_backward.default, (grad, *inputs, True)
        )


def test_edge_flat_input_has_no_similarity():
    flat = torch.full((1, 1, 9, 9), 0.5).requires_grad_()
    events = torch.zeros(1, 1, 9, 9).requires_grad_()
    result = ops.common_gradient(flat, flat.detach(), events)
    assert not result[:, [0, 1, 2, 3, 4, 5]].any()
    grads = torch.autograd.grad(result.sum(), (flat, events))
    assert all(grad.isfinite().all() for grad in grads)


def test_edge_values_outside_the_unit_range():
    """Below 0 counts as 0, with no gradient; above 1 goes on along the curve; NaN stays local."""
    frame = torch.tensor([-0.5, 0.0, 2.0]).view(1, 1, 1, 3).requires_grad_()
    zero = torch.zeros(1, 1, 1, 3)
    result = ops.common_gradient(zero, frame, zero)
    assert result[0, 2, 0, 0] == result[0, 2, 0, 1] == 0.0
    assert result.isfinite().all()
    (grad,) = torch.autograd.grad(result[:, 2].sum(), frame)
    assert grad[0, 0, 0, 0] == 0.0 and grad[0, 0, 0, 1] > 0.0
    spoiled = torch.full((1, 1, 1, 12), 0.5)
    spoiled[..., 0] = torch.nan
    result = ops.common_gradient(spoiled, spoiled, torch.zeros(1, 1, 1, 12))
    assert result[..., 0].isnan().any() and not result[..., 4:].isnan().any()


def hard_cases():
    """Frames and event sums whose moments are lost where sums of squares are not centred."""
    generator = torch.Generator().manual_seed(3)
    shape = (1, 1, 70, 83)

    def noise(scale):
        return scale * torch.randn(shape, generator=generator)

    def uniform():
        return torch.rand(shape, generator=generator)

    rows, columns = torch.arange(70)[:, None], torch.arange(83)
    step = ((columns > 40) ^ (rows > 30)).float()[None, None]
    gray = torch.full(shape, 0.5)
    rare = (uniform() > 0.99).float()
    return {
        "noise": (uniform(), uniform(), noise(2.0)),
        "tiny texture on a large change": (gray / 50, 0.9 + 1e-4 * uniform(), 300 + noise(0.01)),
        "steps": (gray, 0.02 + 0.9 * step + 1e-4 * uniform(), 100 * step + noise(0.01)),
        "large offset": (uniform(), uniform(), 1e6 + noise(3.0).round()),
        "large counts": (uniform(), uniform(), noise(1000.0).round()),
        "hot pixels": (gray, gray + 1e-3 * uniform(), 1e4 * rare + noise(1.0).round()),
        "flat but for pixels": (gray, gray + 0.5 * rare, 1e3 * rare),
    }


# Errors of gradients over their largest value. Where texture is 1e-4, the rounding of the float32
# logarithms spoils them, however the windows are summed.
HARD = {"tiny texture on a large change": 5e-3, "steps": 2e-3}


@of_cpu_blocks
@needs_extension
@pytest.mark.parametrize("name", list(hard_cases()))
def test_reference_hard_cases(name):
    inputs = [value.requires_grad_() for value in hard_cases()[name]]
    exact = [value.detach().double().requires_grad_() for value in inputs]
    actual, expected = ops.common_gradient(*inputs), reference(*exact)
    torch.testing.assert_close(actual[:, 4].double(), expected[:, 4], rtol=0, atol=2e-5)
    grad = torch.randn(actual.shape, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad(actual, inputs, grad)
    for a, e in zip(grads, torch.autograd.grad(expected, exact, grad.double()), strict=True):
        bound = HARD.get(name, 2e-5) * float(e.abs().max())
        torch.testing.assert_close(a.double(), e, rtol=0, atol=bound)


@of_cpu_blocks
@needs_extension
@pytest.mark.parametrize("linear", [False, True])
def test_reference_log_curve(linear):
    """Logarithm, decoding and their slope over all values: a few units of 2^-24."""
    values = torch.cat([torch.linspace(0, 1, 2**15), torch.logspace(-12, 6, 2**14)])
    frame = values.view(1, 1, 1, -1).requires_grad_()
    exact = frame.detach().double().requires_grad_()
    zero = torch.zeros_like(frame)
    actual = ops.common_gradient(zero, frame, zero, None, linear)[:, 2]
    expected = reference(zero.double(), exact, zero.double(), None, linear)[:, 2]
    # Beside log(1e-3) = -7, the differences are rounded once more.
    torch.testing.assert_close(actual.double(), expected, rtol=2e-7, atol=1.2e-6)
    (grad,) = torch.autograd.grad(actual.sum(), frame)
    (expected_grad,) = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=6e-7, atol=0)


@needs_extension
def test_edge_infinite_values():
    frame = torch.tensor([torch.inf, 3e38, -torch.inf, torch.nan]).view(1, 1, 1, 4)
    change = ops.common_gradient(torch.zeros_like(frame), frame, torch.zeros_like(frame))[0, 2, 0]
    assert change[:2].isinf().all() and change[2] == 0.0 and change[3].isnan()


def test_edge_tiles_agree_with_one_pass():
    """Nothing global inside: 3 px from a cut, a tile has the values of the whole, bit for bit."""
    inputs = random_inputs(1, 1, 20, 40)
    whole = ops.common_gradient(*inputs)
    tile = ops.common_gradient(*(v[:, :, :12] for v in inputs))
    assert torch.equal(tile[:, :, :9], whole[:, :, :9])
    tile = ops.common_gradient(*(v[..., 5:] for v in inputs))  # another cut into a kernel's tiles
    assert torch.equal(tile[..., 3:], whole[..., 8:])


FRAME = torch.zeros(2, 1, 3, 4)
ERRORS = [
    ({"frame0": FRAME[0]}, r"frame0 must have shape \[B, 1 or 3, H, W\], got \[1, 3, 4\]"),
    (
        {"frame0": FRAME.expand(2, 2, 3, 4)},
        r"frame0 must have shape \[B, 1 or 3, H, W\], got \[2, 2, 3, 4\]",
    ),
    ({"frame1": FRAME[:1]}, r"frame1 must have shape \[2, 1, 3, 4\], got \[1, 1, 3, 4\]"),
    (
        {"event_sum": FRAME[..., :3]},
        r"event_sum must have shape \[2, 1, 3, 4\], got \[2, 1, 3, 3\]",
    ),
    ({"flow": FRAME}, r"flow must have shape \[2, 2, 3, 4\], got \[2, 1, 3, 4\]"),
    (
        {"frame0": FRAME.byte(), "frame1": FRAME.byte()},
        r"frame0 must be floating point in \[0, 1\], got uint8: divide it by 255 first",
    ),
    ({"frame1": FRAME.int()}, r"frame1 must be of dtype float32, .*, got int32"),
    ({"frame1": FRAME.half()}, r"frame0 and frame1 must have the same dtype"),
    ({"event_sum": FRAME.half()}, r"event_sum must be of dtype float32, got float16"),
    ({"flow": FRAME.expand(2, 2, 3, 4).bfloat16()}, r"flow must be of dtype float32, got bfloat16"),
]


@pytest.mark.parametrize("direct", [False, pytest.param(True, marks=needs_extension)])
@pytest.mark.parametrize(("changed", "message"), ERRORS)
def test_error_messages(changed, message, direct):
    arguments = {
        "frame0": FRAME,
        "frame1": FRAME,
        "event_sum": FRAME,
        "flow": None,
        "linear": False,
    }
    function = torch.ops.flowfuse.common_gradient if direct else ops.common_gradient
    with pytest.raises(ValueError, match="common_gradient: " + message):
        function(*(arguments | changed).values())


@pytest.mark.parametrize("name", ["frame0", "frame1", "event_sum", "flow"])
def test_error_types(name):
    arguments = {"frame0": FRAME, "frame1": FRAME, "event_sum": FRAME}
    message = f"common_gradient: {name} must be a torch.Tensor, got ndarray"
    with pytest.raises(ValueError, match=message):
        ops.common_gradient(**arguments | {name: FRAME.numpy()})


@needs_extension
def test_error_double_backward_and_vmap():
    frame0, frame1, events, _ = random_inputs(1, 1, 4, 5)
    frame0.requires_grad_()
    result = ops.common_gradient(frame0, frame1, events)
    (grad,) = torch.autograd.grad(result.square().sum(), frame0, create_graph=True)
    with pytest.raises(
        NotImplementedError, match="common_gradient: double backward is not supported"
    ):
        grad.sum().backward()
    with pytest.raises(NotImplementedError, match="common_gradient: vmap is not supported"):
        torch.vmap(lambda e: ops.common_gradient(frame0.detach(), frame1, e))(events[None])


@needs_extension
def test_same_bits_for_thread_counts():
    def run():
        inputs = [v.requires_grad_() for v in random_inputs(2, 3, 21, 23)]
        result = ops.common_gradient(*inputs)
        return result, *torch.autograd.grad(result.square().sum(), inputs)

    results = with_thread_counts(run, (1, 1, 2, 5))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@of_cpu_blocks
@needs_extension
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("with_flow", [False, True])
def test_reference_and_same_bits_for_parts(batch, with_flow):
    """So many rows that every thread has its own, which begin anywhere in an image."""
    inputs = [v for v in random_inputs(batch, 1, 101, 37, with_flow=with_flow) if v is not None]
    grad = torch.randn(batch, 6, 101, 37, generator=torch.Generator().manual_seed(1))

    def run(operator, dtype):
        leaves = [v.to(dtype).requires_grad_() for v in inputs]
        result = operator(*leaves)
        return result.detach(), *torch.autograd.grad(result, leaves, grad.to(dtype))

    found = with_thread_counts(lambda: run(ops.common_gradient, torch.float32))
    exact = run(reference, torch.float64)
    for first, *others, expected in zip(*found, exact, strict=True):
        assert all(torch.equal(first, other) for other in others)
        bound = 5e-6 * max(1.0, float(expected.abs().max()))  # as TOLERANCE
        torch.testing.assert_close(first.double(), expected, rtol=0, atol=bound)


@needs_extension
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("with_flow", [False, True])
def test_compile(dynamic, with_flow):
    compiled = torch.compile(
        ops.common_gradient, fullgraph=True, backend="aot_eager", dynamic=dynamic
    )
    for height in (5, 8):
        frame0, frame1, events, flow = random_inputs(1, 1, height, 6, with_flow=with_flow)
        frame0.requires_grad_()
        (actual,) = torch.autograd.grad(compiled(frame0, frame1, events, flow).sum(), frame0)
        (expected,) = torch.autograd.grad(
            ops.common_gradient(frame0, frame1, events, flow).sum(), frame0
        )
        assert torch.equal(actual, expected)
