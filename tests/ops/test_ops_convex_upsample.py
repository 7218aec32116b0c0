from __future__ import annotations

import os

import pytest
import torch
from thread_cases import with_thread_counts

from flowfuse import ops
from flowfuse.ops.convex_upsample import reference

needs_extension = pytest.mark.skipif(
    not ops.build_info()["extension"], reason="the compiled operators are not built"
)
# Sizes that reach every block of the CPU kernels take long where CUDA code is emulated.
of_cpu_blocks = pytest.mark.skipif(
    "FLOWFUSE_TEST_EMULATOR" in os.environ, reason="of the blocks of the CPU kernels"
)


def test_hand_channel_order():
    """A mask that picks neighbour k for the fine pixel (i, j) copies that neighbour there."""
    field = torch.arange(9.0).view(1, 1, 3, 3)
    for k in range(9):
        mask = torch.zeros(1, 9 * 4, 3, 3)
        mask[:, k * 4 + 1 * 2 + 0] = 1e4  # fine row 1, column 0
        fine = ops.convex_upsample(field, mask, 2)
        assert fine[0, 0, 2 * 1 + 1, 2 * 1 + 0] == k  # neighbour k of the centre, row-major
        assert fine[0, 0, 2, 2] == pytest.approx(4.0, abs=1e-6)  # the others see the mean of 0..8


def test_hand_border_uses_inside_neighbours():
    # With equal logits a corner is the mean of its four inside neighbours.
    field = torch.tensor([[1.0, 2.0], [3.0, 6.0]]).view(1, 1, 2, 2)
    fine = ops.convex_upsample(field, torch.zeros(1, 9, 2, 2), 1)
    assert torch.allclose(fine, torch.full((1, 1, 2, 2), 3.0))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_edge_constant_field_stays_constant(size, dtype):
    generator = torch.Generator().manual_seed(0)
    mask = (5 * torch.randn(2, 9 * 9, *size, generator=generator)).to(dtype)
    fine = ops.convex_upsample(torch.full((2, 3, *size), 7.0), mask, 3)
    assert fine.shape == (2, 3, 3 * size[0], 3 * size[1]) and fine.dtype == torch.float32
    assert torch.allclose(
        fine, torch.full_like(fine, 7.0), rtol=1e-6
    )  # weights sum to 1 up to 2^-23


def test_edge_empty():
    assert ops.convex_upsample(torch.zeros(0, 2, 3, 4), torch.zeros(0, 36, 3, 4), 2).shape == (
        0,
        2,
        6,
        8,
    )


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    field = torch.randn(1, 2, 2, 3, generator=generator, dtype=torch.float64).requires_grad_()
    mask = torch.randn(1, 36, 2, 3, generator=generator, dtype=torch.float64).requires_grad_()
    torch.autograd.gradcheck(lambda a, b: ops.convex_upsample(a, b, 2), (field, mask))


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_reference_agreement(shift):
    """Results and gradients; logits that are all large have the weights of small ones."""
    generator = torch.Generator().manual_seed(0)
    field = torch.randn(2, 5, 3, 37, generator=generator)
    # Steps of 1/8: exact in float32 beside 1000, too.
    mask = torch.randint(-24, 24, (2, 36, 3, 37), generator=generator) / 8 + shift
    grad = torch.randn(2, 5, 6, 74, generator=generator)

    def run(operator, dtype):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (field, mask)]
        result = operator(*leaves, 2)
        return result, *torch.autograd.grad(result, leaves, grad.to(dtype))

    found = run(ops.convex_upsample, torch.float32)
    for a, b in zip(found, run(reference, torch.float64), strict=True):
        # Sums of 9 weights and of 36 fine pixels in float32.
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-6 * float(b.detach().abs().max()))


@pytest.mark.parametrize("field_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize(("shape", "factor"), [((1, 1, 1, 1), 1), ((2, 3, 2, 70), 3)])
def test_reference_dtypes_and_layouts(field_dtype, dtype, layout, shape, factor):
    generator = torch.Generator().manual_seed(1)
    batch, _, height, width = shape
    field = torch.randn(shape, generator=generator).to(field_dtype)
    mask = torch.randn(batch, 9 * factor**2, height, width, generator=generator).to(dtype)
    if layout == "channels_last":
        field, mask = (v.to(memory_format=torch.channels_last) for v in (field, mask))
    if layout == "strided":
        field, mask = (torch.stack([v, v], dim=-1)[..., 0] for v in (field, mask))
    results = []
    for operator in (ops.convex_upsample, reference):
        leaves = [v.detach().requires_grad_() for v in (field, mask)]
        result = operator(*leaves, factor)
        grad = torch.cos(torch.arange(result.numel()).to(result)).view(result.shape)
        results.append((result, *torch.autograd.grad(result, leaves, grad)))
    # Sums of some dozen terms in float32 (float64); the mask's gradient is rounded to its dtype.
    exact = 1e-12 if field_dtype == torch.float64 else 2e-6
    rounding = {torch.float16: 2**-10, torch.bfloat16: 2**-7}.get(dtype, exact)
    for a, b, tolerance in zip(*results, (exact, exact, max(exact, rounding)), strict=True):
        assert a.dtype == b.dtype
        bound = max(tolerance, 1e-6 if dtype == torch.float32 else 0.0)
        largest = float(b.detach().abs().max())
        torch.testing.assert_close(a, b, rtol=0, atol=bound * max(largest, 1e-3))


def run_both_ways(operator, field, mask, grad, factor):
    leaves = [tensor.detach().requires_grad_() for tensor in (field, mask)]
    result = operator(*leaves, factor)
    return result.detach(), *torch.autograd.grad(result, leaves, grad)


# Kernels may handle 16 or 64 pixels of a row and 8 fine columns at once: less, as many, and more.
@of_cpu_blocks
@needs_extension
@pytest.mark.parametrize("width", [15, 16, 64, 80, 131])
@pytest.mark.parametrize(("channels", "factor"), [(1, 4), (2, 8), (3, 7), (4, 9), (2, 16)])
def test_reference_blocks(width, channels, factor):
    """Every part of a row and of a fine row, against float64; the same bits for any threads."""
    generator = torch.Generator().manual_seed(width)
    field = torch.randn(1, channels, 4, width, generator=generator)
    mask = 4 * torch.randn(1, 9 * factor**2, 4, width, generator=generator)
    grad = torch.randn(1, channels, 4 * factor, width * factor, generator=generator)
    exact = run_both_ways(reference, field.double(), mask.double(), grad.double(), factor)
    found = with_thread_counts(
        lambda: run_both_ways(ops.convex_upsample, field, mask, grad, factor)
    )
    for first, *others, expected in zip(*found, exact, strict=True):
        assert all(torch.equal(first, other) for other in others)
        # Sums of 9 weights and of up to 256 fine pixels in float32.
        bound = 2e-6 * float(expected.abs().max())
        torch.testing.assert_close(first.double(), expected, rtol=0, atol=bound)


@needs_extension
def test_edge_infinite_logits():
    """Weights of logits far below the largest are 0, not small, and so are their gradients."""
    mask = torch.randn(1, 36, 3, 20)
    mask[:, 4 * 4 : 5 * 4] = 300.0  # the centre
    mask[:, :4] = -torch.inf
    field = torch.randn(1, 2, 3, 20)
    leaves = (field.requires_grad_(), mask.requires_grad_())
    fine = ops.convex_upsample(*leaves, 2)
    expected = field.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.equal(fine, expected)
    grads = torch.autograd.grad(fine.sum(), leaves)
    assert torch.equal(grads[0], torch.full_like(field, 4.0)) and not grads[1].any()


@needs_extension
def test_edge_nan_stays_in_its_pixel():
    mask = torch.zeros(1, 36, 3, 20)
    mask[0, 5, 1, 7] = torch.nan  # neighbour 1, fine row 0, column 1
    fine = ops.convex_upsample(torch.ones(1, 1, 3, 20), mask, 2)
    assert fine.isnan().nonzero().tolist() == [[0, 0, 2, 15]]


@needs_extension
def test_opcheck():
    field, mask = torch.randn(2, 3, 4, 5), torch.randn(2, 36, 4, 5)
    leaves = (field.requires_grad_(), mask.requires_grad_())
    torch.library.opcheck(torch.ops.flowfuse.convex_upsample.default, (*leaves, 2))
    arguments = (torch.randn(2, 3, 8, 10), field.detach(), mask.detach().bfloat16(), 2)
    torch.library.opcheck(torch.ops.flowfuse.convex_upsample_backward.default, arguments)


@needs_extension
def test_same_bits_for_thread_counts():
    field, mask = torch.randn(2, 3, 9, 70), torch.randn(2, 36, 9, 70)

    def run():
        leaves = (field.requires_grad_(), mask.requires_grad_())
        result = ops.convex_upsample(*leaves, 2)
        return result, *torch.autograd.grad(result.square().sum(), leaves)

    results = with_thread_counts(run, (1, 1, 2, 5))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@needs_extension
def test_error_double_backward_and_vmap():
    field, mask = torch.randn(1, 1, 2, 3, requires_grad=True), torch.randn(1, 9, 2, 3)
    result = ops.convex_upsample(field, mask, 1).square().sum()
    (grad,) = torch.autograd.grad(result, field, create_graph=True)
    with pytest.raises(NotImplementedError, match="convex_upsample: double backward is not"):
        grad.sum().backward()
    with pytest.raises(NotImplementedError, match="convex_upsample: vmap is not supported"):
        torch.vmap(lambda m: ops.convex_upsample(field.detach(), m, 1))(mask[None])


@needs_extension
def test_error_gradient():
    field, mask = torch.zeros(1, 2, 3, 4), torch.zeros(1, 36, 3, 4)
    with pytest.raises(ValueError, match=r"grad must have shape \[1, 2, 6, 8\], got"):
        torch.ops.flowfuse.convex_upsample_backward(torch.zeros(1, 2, 6, 9), field, mask, 2)


@pytest.mark.parametrize(
    ("field", "mask", "factor", "message"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(1, 36, 3, 4), 2, "field must have shape"),
        (
            torch.zeros(1, 2, 3, 4), torch.zeros(1, 9, 3, 4), 2,
            r"mask must have shape \[1, 36, 3, 4\], got \[1, 9, 3, 4\]",
        ),
        (torch.zeros(1, 2, 3, 4), torch.zeros(1, 0, 3, 4), 0, "factor must be in .1, 64., got 0"),
        (torch.zeros(1, 2, 3, 4).half(), torch.zeros(1, 36, 3, 4), 2, "field must be of dtype"),
        (torch.zeros(1, 2, 3, 4), torch.zeros(1, 36, 3, 4).int(), 2, "mask must be of dtype"),
        ([[[[0.0]]]], torch.zeros(1, 36, 1, 1), 2, "field must be a torch.Tensor, got list"),
        (torch.zeros(1, 2, 1, 1), [0.0], 2, "mask must be a torch.Tensor, got list"),
        (torch.zeros(1, 2, 1, 1), torch.zeros(1, 36, 1, 1), 2.0, "factor must be an int, got flo"),
    ],
)  # fmt: skip
def test_error_messages(field, mask, factor, message):
    with pytest.raises(ValueError, match="convex_upsample: " + message):
        ops.convex_upsample(field, mask, factor)


def test_compile():
    compiled = torch.compile(ops.convex_upsample, fullgraph=True, backend="aot_eager")
    field, mask = torch.randn(1, 2, 3, 4), torch.randn(1, 36, 3, 4)
    assert torch.equal(compiled(field, mask, 2), ops.convex_upsample(field, mask, 2))
