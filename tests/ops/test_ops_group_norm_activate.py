from __future__ import annotations

import pytest
import torch
from thread_cases import with_thread_counts
from torch.nn import functional as F

from flowfuse import ops

needs_extension = pytest.mark.skipif(
    not ops.build_info()["extension"], reason="the compiled operators are not built"
)


def random_inputs(count=2, channels=12, height=5, width=30, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    values, residual = (
        torch.randn(count, channels, height, width, generator=generator) for _ in range(2)
    )
    weight, bias = torch.randn(2, channels, generator=generator)
    return {
        "values": (3 * values + 2).to(dtype),
        "residual": residual.to(dtype),
        "weight": weight,
        "bias": bias,
        "groups": 3,
    }


def test_hand():
    """1, 3 | 5, 5: the mean 2 and the deviation 1; a group without any stays at its bias."""
    values = torch.tensor([1.0, 3.0, 5.0, 5.0]).view(1, 2, 1, 2)
    weight, bias = torch.tensor([2.0, 1.0]), torch.tensor([0.0, 4.0])
    found = ops.group_norm_activate(values, None, weight, bias, 2)
    assert found.flatten().tolist() == pytest.approx([-0.2, 2.0, 4.0, 4.0], abs=1e-4)
    residual = torch.tensor([3.0, -4.0, 0.0, -14.0]).view(1, 2, 1, 2)
    found = ops.group_norm_activate(values, residual, weight, bias, 2)
    assert found.flatten().tolist() == pytest.approx([1.0, -0.2, 4.0, -1.0], abs=1e-4)


@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("size", [(1, 1), (3, 7), (64, 65)])
def test_torch_agrees(size, offset):
    """Also where the mean is a hundred times the deviation."""
    given = random_inputs(2, 12, *size)
    values = given["values"] = given["values"] + offset
    exact = F.group_norm(values.double(), 3, given["weight"].double(), given["bias"].double())
    exact = F.leaky_relu(exact + given["residual"].double(), 0.1)
    found = ops.group_norm_activate(**given)
    # Values beside 300 have steps of 3e-5, a hundred thousandth of their deviation.
    bound = 2e-4 if offset else 1e-5
    torch.testing.assert_close(found.double(), exact, rtol=bound, atol=bound)


def test_empty():
    assert ops.group_norm_activate(**random_inputs(0)).shape == (0, 12, 5, 30)


def test_a_residual_of_another_dtype_is_rounded():
    given = random_inputs(dtype=torch.bfloat16)
    found = ops.group_norm_activate(**given | {"residual": given["residual"].float()})
    assert found.dtype == torch.bfloat16 and torch.equal(found, ops.group_norm_activate(**given))


def test_gradients_go_through_plain_torch():
    given = random_inputs()
    leaves = [given[name].requires_grad_() for name in ("values", "residual", "weight", "bias")]
    ops.group_norm_activate(**given).square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.any() for leaf in leaves)


@needs_extension
def test_opcheck():
    given = tuple(random_inputs().values())
    torch.library.opcheck(torch.ops.flowfuse.group_norm_activate.default, given)
    bare = (given[0], None, *given[2:])
    torch.library.opcheck(torch.ops.flowfuse.group_norm_activate.default, bare)


@needs_extension
def test_same_bits_for_thread_counts():
    found = with_thread_counts(lambda: ops.group_norm_activate(**random_inputs()))
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 5}, r"values must have shape \[N, C, h, w\] with C a multiple of groups"),
        ({"groups": 0}, r"groups must be in \[1, 65536\], got 0"),
        ({"values": torch.zeros(2, 12, 5)}, "values must have shape"),
        ({"residual": torch.zeros(2, 12, 5, 1)}, r"residual must have shape \[2, 12, 5, 30\], got"),
        ({"weight": torch.ones(11)}, r"weight must have shape \[12\], got \[11\]"),
        ({"bias": torch.ones(12).half()}, "bias must be of dtype float32, got float16"),
        ({"values": [1.0]}, "values must be a torch.Tensor, got list"),
    ],
)
def test_error_messages(change, message):
    with pytest.raises(ValueError, match="group_norm_activate: " + message):
        ops.group_norm_activate(**random_inputs() | change)


def test_compile():
    compiled = torch.compile(ops.group_norm_activate, fullgraph=True, backend="aot_eager")
    given = random_inputs()
    assert torch.equal(compiled(**given), ops.group_norm_activate(**given))
