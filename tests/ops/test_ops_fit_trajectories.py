from __future__ import annotations

import math

import pytest
import torch
from thread_cases import with_thread_counts

from flowfuse import ops
from flowfuse.geometry.bezier import bernstein_rows
from flowfuse.ops.extension import kernels_on
from flowfuse.ops.fit_trajectories import reference

needs_extension = pytest.mark.skipif(
    not ops.build_info()["extension"], reason="the compiled operators are not built"
)


def random_inputs(batch=2, pairs=6, degree=3, height=5, width=30, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    matches = torch.randn(batch, pairs, 3, height, width, generator=generator)
    scores = torch.randn(batch, pairs, 1, height, width, generator=generator)
    times = [(p + 1) / pairs for p in range(pairs)]
    bend = torch.eye(degree + 1).diff(n=2, dim=0)[:, 1:] if degree > 1 else torch.zeros(0, 1)
    given = {
        "matches": 5 * matches,
        "scores": scores,
        "basis": torch.tensor(bernstein_rows(degree, times)),
        "stiffness": bend.T @ bend,
        "log_trust": torch.tensor(0.3),
        "log_stiffness": torch.tensor(-2.0),
    }
    return {name: value.to(dtype) for name, value in given.items()}


def test_hand_one_point():
    """One control point at time 1: the mean of what the pairs say, by their shares 1/4 and 3/4."""
    matches = torch.tensor([[2.0, 0.0, 0.0], [6.0, 4.0, math.log(3)]]).view(1, 2, 3, 1, 1)
    none, zero = torch.zeros(1, 1), torch.tensor(0.0)
    change = ops.fit_trajectories(matches, None, torch.ones(2, 1), none, zero, zero)
    torch.testing.assert_close(change.flatten(), torch.tensor([5.0, 3.0]))
    scores = torch.tensor([math.log(3), 0.0]).view(1, 2, 1, 1, 1)  # now they count the same
    change = ops.fit_trajectories(matches, scores, torch.ones(2, 1), none, zero, zero)
    torch.testing.assert_close(change.flatten(), torch.tensor([4.0, 2.0]))


def test_a_trajectory_is_found_again():
    given = random_inputs(dtype=torch.float64)
    points = torch.randn(2, 3, 2, 5, 30, dtype=torch.float64)
    places = torch.einsum("pn,bnchw->bpchw", given["basis"], points)
    given["matches"] = torch.cat((places, given["matches"][:, :, 2:]), dim=2)
    given["log_trust"].fill_(-3.0)  # all pairs count
    given["log_stiffness"].fill_(-30.0)
    torch.testing.assert_close(ops.fit_trajectories(**given), points, atol=1e-3, rtol=1e-3)


def test_stiff_trajectories_are_uniform():
    change = ops.fit_trajectories(**random_inputs() | {"log_stiffness": torch.tensor(8.0)})
    steps = torch.cat((change[:, :1], change.diff(dim=1)), dim=1)
    assert (steps - steps.mean(1, keepdim=True)).abs().max() < 0.02 * steps.abs().max()


@needs_extension
@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("width", [1, 13, 77])
def test_reference_agreement(degree, width):
    given = random_inputs(degree=degree, width=width)
    exact = reference(*(value.double() for value in given.values()))
    found = ops.fit_trajectories(**given)
    bound = 2e-4 * float(exact.abs().max())  # the systems' condition numbers reach a thousand
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=bound)


def test_empty():
    assert ops.fit_trajectories(**random_inputs(0)).shape == (0, 3, 2, 5, 30)


def test_nan_stays_in_its_pixel():
    given = random_inputs()
    given["matches"][1, 2, 0, 3, 4] = math.nan
    change = ops.fit_trajectories(**given)
    assert change.isnan().nonzero()[:, [0, 3, 4]].unique(dim=0).tolist() == [[1, 3, 4]]


def test_gradients_go_through_plain_torch():
    given = random_inputs()
    leaves = {name: given[name].requires_grad_() for name in ("matches", "scores", "log_trust")}
    change = ops.fit_trajectories(**given)
    change.square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.any() for leaf in leaves.values())


@needs_extension
def test_opcheck():
    given = tuple(random_inputs().values())
    torch.library.opcheck(torch.ops.flowfuse.fit_trajectories.default, given)
    bare = (given[0], None, *given[2:])
    torch.library.opcheck(torch.ops.flowfuse.fit_trajectories.default, bare)


@needs_extension
def test_same_bits_for_thread_counts():
    found = with_thread_counts(lambda: ops.fit_trajectories(**random_inputs(width=777)))
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matches": torch.zeros(2, 6, 2, 5, 30)}, "matches must have shape"),
        ({"scores": torch.zeros(2, 5, 1, 5, 30)}, r"scores must have shape \[2, 6, 1, 5, 30\]"),
        ({"basis": torch.zeros(5, 3)}, "basis must have shape"),
        ({"basis": torch.zeros(6, 17)}, "basis must have shape"),
        ({"stiffness": torch.zeros(2, 3)}, r"stiffness must have shape \[3, 3\], got \[2, 3\]"),
        ({"log_trust": torch.zeros(1)}, r"log_trust must have shape \[\], got \[1\]"),
        ({"basis": torch.zeros(6, 3).double()}, "basis must be of dtype float32, got float64"),
        ({"matches": [1.0]}, "matches must be a torch.Tensor, got list"),
    ],
)
def test_error_messages(change, message):
    with pytest.raises(ValueError, match="fit_trajectories: " + message):
        ops.fit_trajectories(**random_inputs() | change)


@pytest.mark.parametrize("devices", [("cpu",), ()])
def test_no_pairs_are_refused(devices):
    given = random_inputs()
    given |= {name: given[name][:, :0] for name in ("matches", "scores")}
    given["basis"] = torch.zeros(0, 3)
    devices = devices if ops.build_info()["extension"] else ()
    with kernels_on(*devices), pytest.raises(ValueError, match=r"must have .* P >= 1, got"):
        ops.fit_trajectories(**given)


def test_compile():
    compiled = torch.compile(ops.fit_trajectories, fullgraph=True, backend="aot_eager")
    given = random_inputs()
    assert torch.equal(compiled(**given), ops.fit_trajectories(**given))
