"""What the step computes is tested with the steps of the network, in tests/model."""

from __future__ import annotations

import math

import pytest
import torch
from thread_cases import with_thread_counts

from flowfuse import ops
from flowfuse.ops.lucas_kanade_step import example, reference

needs_extension = pytest.mark.skipif(
    not ops.build_info()["extension"], reason="the compiled operators are not built"
)


def random_inputs(batch=2, rows=6, columns=9, dtype=torch.float32):
    names = ("frame0", "frame1", "flow", "prior")
    tensors = example(dtype, (batch, rows, columns)).tensors
    return {name: tensor.clone() for name, tensor in zip(names, tensors, strict=True)}


def test_hand_one_cell():
    """A ramp of 0.1 a px, brighter by 0.02 in half of the image: in one cell only the offset."""
    ramp = (0.1 * torch.arange(8.0)).expand(1, 1, 8, 8)
    flow, prior = torch.zeros(1, 2, 8, 8), torch.full((1, 1, 1, 1), 1e-3)
    change = ops.lucas_kanade_step(ramp, ramp + 0.02, flow, prior)
    torch.testing.assert_close(change, torch.zeros(1, 2, 1, 1), atol=1e-5, rtol=0)


def test_hand_ramp():
    """I = x^2 / 100 moved by 0.3 px: away from the border the step finds it, whatever the cell."""
    x = torch.arange(48.0, dtype=torch.float64)
    for cell in (2, 4, 8):
        frame0, frame1 = ((x - s).square().expand(1, 1, 16, -1) / 5000 for s in (0.0, 0.3))
        flow = torch.zeros(1, 2, 16, 48, dtype=torch.float64)
        prior = torch.full((1, 1, 16 // cell, 48 // cell), 1e-13, dtype=torch.float64)
        change = ops.lucas_kanade_step(frame0, frame1, flow, prior)
        inner = change[0, :, :, 16 // cell : 32 // cell]
        torch.testing.assert_close(inner[0], torch.full_like(inner[0], 0.3), atol=1e-4, rtol=0)
        assert inner[1].abs().max() < 1e-6


@needs_extension
@pytest.mark.parametrize("columns", [1, 5, 33])
def test_reference_agreement(columns):
    given = random_inputs(columns=columns)
    exact = reference(*(value.double() for value in given.values()))
    found = ops.lucas_kanade_step(**given)
    # Variances are small differences of means of squares: their digits are lost on both sides.
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-4)


def test_a_flow_that_is_not_finite_reads_the_border():
    given = random_inputs()
    given["flow"][0, 0, 3, 4], given["flow"][1, 1, 5, 6] = math.inf, -math.inf
    assert torch.isfinite(ops.lucas_kanade_step(**given)).all()


def test_empty():
    assert ops.lucas_kanade_step(**random_inputs(0)).shape == (0, 2, 6, 9)


def test_gradients_go_through_plain_torch():
    given = random_inputs()
    leaves = [given[name].requires_grad_() for name in ("flow", "prior")]
    ops.lucas_kanade_step(**given).square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.any() for leaf in leaves)


@needs_extension
def test_opcheck():
    given = tuple(random_inputs().values())
    torch.library.opcheck(torch.ops.flowfuse.lucas_kanade_step.default, given)


@needs_extension
def test_same_bits_for_thread_counts():
    found = with_thread_counts(lambda: ops.lucas_kanade_step(**random_inputs()))
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame0": torch.zeros(2, 3, 24, 36)}, "frame0 must have shape"),
        ({"frame1": torch.zeros(2, 1, 24, 35)}, r"frame1 must have shape \[2, 1, 24, 36\], got"),
        ({"flow": torch.zeros(2, 1, 24, 36)}, r"flow must have shape \[2, 2, 24, 36\], got"),
        ({"prior": torch.ones(2, 1, 6, 7)}, r"prior must have shape \[B, 1, H / cell, W / cell\]"),
        ({"prior": torch.ones(2, 1, 12, 9)}, r"prior must have shape \[B, 1, H / cell, W / cell\]"),
        ({"flow": torch.zeros(2, 2, 24, 36).double()}, "flow must be of dtype float32, got float6"),
        ({"flow": [1.0]}, "flow must be a torch.Tensor, got list"),
    ],
)
def test_error_messages(change, message):
    with pytest.raises(ValueError, match="lucas_kanade_step: " + message):
        ops.lucas_kanade_step(**random_inputs() | change)


def test_compile():
    compiled = torch.compile(ops.lucas_kanade_step, fullgraph=True, backend="aot_eager")
    given = random_inputs()
    assert torch.equal(compiled(**given), ops.lucas_kanade_step(**given))
