from __future__ import annotations

import pytest
import torch
from thread_cases import with_thread_counts

from flowfuse import ops

needs_extension = pytest.mark.skipif(
    not ops.build_info()["extension"], reason="the compiled operators are not built"
)


def random_inputs(batch=2, channels=5, steps=3, height=6, width=7, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)
    weights = torch.randn(batch, steps, 9, height, width, generator=generator, dtype=torch.float64)
    return values.to(dtype), weights.to(dtype)


def test_hand_two_steps():
    """Weights that take the right neighbour, then the one two rows below."""
    values = torch.arange(20.0).view(1, 1, 4, 5)
    weights = torch.zeros(1, 2, 9, 4, 5)
    weights[:, 0, 5] = 1  # (0, 1)
    weights[:, 1, 7] = 0.5  # (1, 0), at distance 2
    result = ops.propagate(values, weights)[0, 0]
    assert result[0].tolist() == [5.5, 6.0, 6.5, 7.0, 0.0]  # half of 11 .. 14, and outside
    assert result[1].tolist() == [8.0, 8.5, 9.0, 9.5, 0.0] and not result[2:].any()


def test_hand_one_step_reads_the_values_and_writes_the_result():
    values, weights = random_inputs(steps=1)
    weights = weights.zero_()
    weights[:, 0, 4] = 2
    assert torch.equal(ops.propagate(values, weights), 2 * values)
    assert ops.propagate(values.bfloat16(), weights).dtype == torch.bfloat16


def test_half_precision_is_rounded_at_the_end_only():
    values, weights = random_inputs()
    rounded = values.bfloat16()
    exact = ops.propagate(rounded.float(), weights)
    assert torch.equal(ops.propagate(rounded, weights), exact.bfloat16())


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 1), (20, 33)])
def test_edge_sizes(size):
    values, weights = torch.ones(1, 3, *size), torch.ones(1, 4, 9, *size)
    weights[:, :, :4] = weights[:, :, 5:] = 0
    assert torch.equal(ops.propagate(values, weights), values)


def test_edge_empty():
    for shape in ((0, 3, 4, 5), (1, 0, 4, 5)):
        values = torch.zeros(shape, requires_grad=True)
        result = ops.propagate(values, torch.ones(shape[0], 2, 9, 4, 5, requires_grad=True))
        assert result.shape == shape
        result.sum().backward()


def test_gradcheck():
    leaves = [tensor.requires_grad_() for tensor in random_inputs(1, 2, 3, 3, 4, torch.float64)]
    torch.autograd.gradcheck(ops.propagate, leaves)


@needs_extension
def test_opcheck():
    values, weights = (tensor.requires_grad_() for tensor in random_inputs())
    torch.library.opcheck(torch.ops.flowfuse.propagate.default, (values, weights))
    arguments = (torch.randn(2, 5, 6, 7), values.detach(), weights.detach())
    torch.library.opcheck(torch.ops.flowfuse.propagate_backward.default, arguments)


@needs_extension
def test_same_bits_for_thread_counts():
    def run():
        leaves = [tensor.requires_grad_() for tensor in random_inputs()]
        result = ops.propagate(*leaves)
        return [result, *torch.autograd.grad(result.square().sum(), leaves)]

    found = with_thread_counts(run)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@needs_extension
def test_error_double_backward_and_vmap():
    values, weights = random_inputs()
    values.requires_grad_()
    result = ops.propagate(values, weights).square().sum()
    (grad,) = torch.autograd.grad(result, values, create_graph=True)
    with pytest.raises(NotImplementedError, match="propagate: double backward is not"):
        grad.sum().backward()
    with pytest.raises(NotImplementedError, match="propagate: vmap is not supported"):
        torch.vmap(lambda w: ops.propagate(values.detach(), w))(weights[None])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(2, 6, 7)}, r"values must have shape \[B, C, h, w\], got"),
        ({1: torch.zeros(2, 3, 8, 6, 7)}, "weights must have shape"),
        ({1: torch.zeros(2, 9, 9, 6, 7)}, "weights must have"),
        ({1: torch.zeros(2, 3, 9, 6, 7).double()}, "weights must be of dtype float32, got float64"),
        ({0: [1.0]}, "values must be a torch.Tensor, got list"),
    ],
)
def test_error_messages(change, message):
    arguments = [change.get(i, value) for i, value in enumerate(random_inputs())]
    with pytest.raises(ValueError, match="propagate: " + message):
        ops.propagate(*arguments)


def test_compile():
    compiled = torch.compile(ops.propagate, fullgraph=True, backend="aot_eager")
    given = random_inputs()
    assert torch.equal(compiled(*given), ops.propagate(*given))
