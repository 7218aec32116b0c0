from __future__ import annotations

import pytest
import torch
from thread_cases import with_thread_counts

from flowfuse import ops
from flowfuse.ops.propagation_weights import reference, shift

needs_extension = pytest.mark.skipif(
    not ops.build_info()["extension"], reason="the compiled operators are not built"
)


def random_inputs(batch=2, steps=3, channels=4, height=6, width=7, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    query_key = draw(batch, 2 * steps * channels, height, width)
    return query_key, draw(batch, 2, height, width), draw(steps, 2)


def test_hand_shift():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    assert shift(image, 1, 1).flatten().tolist() == [4, 5, 0, 0, 0, 0]
    assert shift(image, 0, -1).flatten().tolist() == [0, 0, 1, 0, 3, 4]


def test_hand_equal_scores():
    """Without features and boundaries the inside neighbours share equally."""
    weights = ops.propagation_weights(
        torch.zeros(1, 4, 3, 3), torch.zeros(1, 2, 3, 3), torch.ones(1, 2)
    )
    corner, middle = weights[0, 0, :, 0, 0], weights[0, 0, :, 1, 1]
    torch.testing.assert_close(corner, torch.tensor([0, 0, 0, 0, 1, 1, 0, 1, 1]) / 4)
    torch.testing.assert_close(middle, torch.full((9,), 1 / 9))


def test_hand_row():
    """One row of 5: the query of pixel 2 meets keys, an edge at 4 and a stop at 3."""
    query_key, boundary = torch.zeros(1, 4 * 1, 1, 5), torch.zeros(1, 2, 1, 5)
    query_key[0, 1, 0, 2] = 3.0  # of the second step
    query_key[0, 3, 0] = torch.tensor([0.5, 9.0, -0.25, 9.0, 1.0])
    boundary[0, 0, 0, 4], boundary[0, 1, 0, 3] = 0.5, 0.25
    strength = torch.tensor([[1.0, 1.0], [2.0, 4.0]])
    weights = ops.propagation_weights(query_key, boundary, strength)[0, 1, :, 0, 2]
    # Neighbours at distance 2 with D = 1: key 0.5; key -0.25; key 1, edge 0.5, stop on the way.
    scores = torch.tensor([1.5, -0.75, 3.0 + 2 * 0.5 - 4 * 0.25])
    torch.testing.assert_close(weights[3:6], scores.softmax(0))
    assert not weights[:3].any() and not weights[6:].any()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 1), (20, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_edge_sizes(size, dtype):
    query_key, boundary, strength = random_inputs(1, 4, 3, *size)
    weights = ops.propagation_weights(query_key.to(dtype), boundary, strength)
    assert weights.shape == (1, 4, 9, *size) and weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(2), torch.ones(1, 4, *size))
    assert torch.equal(weights[:, 3, 0] > 0, torch.zeros(1, *size).bool()) or min(size) > 8


def test_edge_empty():
    empty = ops.propagation_weights(
        torch.zeros(0, 4, 2, 3), torch.zeros(0, 2, 2, 3), torch.ones(2, 2)
    )
    assert empty.shape == (0, 2, 9, 2, 3)


def test_gradcheck():
    leaves = [
        tensor.requires_grad_() for tensor in random_inputs(1, 2, 2, 4, 3, dtype=torch.float64)
    ]
    torch.autograd.gradcheck(ops.propagation_weights, leaves)


@needs_extension
def test_opcheck():
    leaves = [tensor.requires_grad_() for tensor in random_inputs()]
    torch.library.opcheck(torch.ops.flowfuse.propagation_weights.default, leaves)
    given = [tensor.detach() for tensor in leaves]
    weights = reference(*given)
    arguments = (torch.randn_like(weights), *given, weights)
    torch.library.opcheck(torch.ops.flowfuse.propagation_weights_backward.default, arguments)


@needs_extension
def test_same_bits_for_thread_counts():
    def run():
        leaves = [tensor.requires_grad_() for tensor in random_inputs()]
        weights = ops.propagation_weights(*leaves)
        return [weights, *torch.autograd.grad(weights.square().sum(), leaves)]

    found = with_thread_counts(run)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_first_of_equal_stops_has_the_gradient():
    query_key = torch.zeros(1, 2, 1, 3)
    boundary = torch.zeros(1, 2, 1, 3)
    boundary[:, 1] = 1
    boundary.requires_grad_()
    weights = ops.propagation_weights(query_key, boundary, torch.ones(1, 2))
    (grad,) = torch.autograd.grad(weights[0, 0, 5, 0, 0], boundary)  # from 0 to its right
    share = 0.5 * 0.5
    # Its own score falls by pixel 0, the way's first; that of staying at 0 by pixel 0 as well.
    torch.testing.assert_close(grad[0, 1, 0], torch.tensor([-share + share, 0.0, 0.0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(2, 5, 6, 7)}, r"query_key must have shape \[B, 2 S D, h, w\]"),
        ({1: torch.zeros(2, 1, 6, 7)}, r"boundary must have shape \[2, 2, 6, 7\], got"),
        ({1: torch.zeros(2, 2, 6, 7).half()}, "boundary must be of dtype float32, got float16"),
        ({2: torch.zeros(3, 3)}, r"strength must have shape \[S, 2\]"),
        ({2: torch.zeros(9, 2)}, r"strength must have shape \[S, 2\] with S in \[1, 8\]"),
        ({0: [1.0]}, "query_key must be a torch.Tensor, got list"),
    ],
)
def test_error_messages(change, message):
    arguments = [change.get(i, value) for i, value in enumerate(random_inputs())]
    with pytest.raises(ValueError, match="propagation_weights: " + message):
        ops.propagation_weights(*arguments)


def test_compile():
    compiled = torch.compile(ops.propagation_weights, fullgraph=True, backend="aot_eager")
    given = random_inputs()
    assert torch.equal(compiled(*given), ops.propagation_weights(*given))
