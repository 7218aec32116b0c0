"""Results: trajectories and what follows from them; files are read back to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import flowfuse
from flowfuse.events import Events
from flowfuse.result import Result

HEIGHT, WIDTH, POINTS = 3, 5, 2


@pytest.fixture
def result() -> Result:
    torch.manual_seed(0)
    return Result(
        torch.randn(1, POINTS, 2, HEIGHT, WIDTH), torch.randn(1, 2, HEIGHT, WIDTH),
        torch.randn(1, 2, HEIGHT, WIDTH), t0=10, t1=2**40, modalities=("events",), as_torch=False,
    )  # fmt: skip


def test_a_result_is_read_back(result, tmp_path):
    path = tmp_path / "result.npz"
    result.save(path)
    found = flowfuse.load_result(path)
    assert (found.t0, found.t1, found.modalities) == (10, 2**40, ("events",))
    for name in ("flow", "control_points", "boundary", "uncertainty"):
        assert np.array_equal(getattr(found, name), getattr(result, name)), name
    assert np.array_equal(found.at([0.0, 0.3]), result.at([0.0, 0.3]))
    assert np.array_equal(found.velocity(0.5), result.velocity(0.5))
    assert [p.name for p in tmp_path.iterdir()] == ["result.npz"]


def test_only_npz_is_written(result, tmp_path):
    with pytest.raises(ValueError, match=r"result\.npy: a result is written as \.npz"):
        result.save(tmp_path / "result.npy")


def test_damage_is_named(result, tmp_path):
    path = tmp_path / "result.npz"
    with pytest.raises(FileNotFoundError, match=r"result\.npz: no such result file"):
        flowfuse.load_result(path)
    path.write_bytes(b"PK half a file")
    with pytest.raises(ValueError, match=r"not a readable \.npz file"):
        flowfuse.load_result(path)
    result.save(path)
    content = dict(np.load(path))
    np.savez(path, flow=content["control_points"][-1])
    with pytest.raises(ValueError, match="not a result of flowfuse: expected the arrays boundary"):
        flowfuse.load_result(path)
    for name, wrong, message in (
        ("boundary_logits", content["boundary_logits"][:, :2], r"shape \[2, 3, 5\], got .* \[2, 2"),
        ("control_points", content["control_points"].astype(np.float64), "got float64"),
        ("control_points", content["control_points"][:, :1], r"\[2, 2, 3, 5\], got"),
        ("uncertainty_parameters", np.zeros((2, 3, 0), np.float32), "got float32 of"),
    ):
        np.savez(path, **{**content, name: wrong})
        with pytest.raises(ValueError, match=f"{name} must be float32 of .*{message}"):
            flowfuse.load_result(path)


def known_result(as_torch: bool = False) -> Result:
    """Quadratic motion (4, 2) tau + (0, 6) tau^2 px everywhere, on 20 x 30 px in 0.1 s."""
    velocity, acceleration = torch.tensor([4.0, 2.0]), torch.tensor([0.0, 6.0])
    # tau = (P_1: 1/2, P_2: 1) and tau^2 = (0, 1) in the quadratic Bernstein basis.
    points = torch.stack((velocity / 2, velocity + acceleration))[None, :, :, None, None]
    uncertainty = torch.zeros(1, 2, 20, 30)
    return Result(
        points.expand(1, 2, 2, 20, 30).clone(), uncertainty, torch.zeros(1, 2, 20, 30),
        t0=1_000_000, t1=1_100_000, modalities=("frames",), as_torch=as_torch,
    )  # fmt: skip


def test_trajectory_by_hand():
    result = known_result()
    assert np.allclose(result.flow[:, 3, 4], [4, 8])
    assert np.allclose(result.at(0.5)[:, 3, 4], [2, 2.5])
    assert not result.at(0).any()
    # px per second: derivative (4, 2 + 12 tau) per unit tau of 0.1 s
    assert np.allclose(result.velocity(0.5)[:, 3, 4], [40, 80])
    points = np.array([[3.5, 7.0], [29.5, 1.0], [np.nan, 1.0]])
    assert np.allclose(
        result.track(points, 0.5), [[5.5, 9.5], [np.nan, np.nan], [np.nan, np.nan]], equal_nan=True
    )
    assert np.allclose(result.boundary, 0.5)


def test_events_follow_the_trajectory_through_them():
    """u grows by 0.2 px per px of x: an event's origin is not its own pixel."""
    grid = torch.arange(40.0).expand(16, 40)
    points = torch.stack((0.2 * grid, torch.zeros(16, 40)))[None, None]  # [1, n = 1, 2, H, W]
    blank = torch.zeros(1, 2, 16, 40)
    result = Result(points, blank, blank, t0=0, t1=100, modalities=("events",), as_torch=False)
    # x = x0 (1 + 0.2 tau); the flow of x0 is 0.2 x0
    events = Events([10, 20, 22], [3, 3, 3], [0, 50, 99], [1, 0, 1])
    tau = events.t / 100
    expected = 0.2 * events.x / (1 + 0.2 * tau)
    # Six fixed-point steps with a gradient of 0.2 leave 0.2^6 of 4 px, times 0.2.
    assert np.allclose(result.at_events(events)[:, 0], expected, atol=1e-4)
    assert result.at_events(Events.empty()).shape == (0, 2)
    outside = result.at_events(([0, 0, 40], [0, 16, 0], [5, 5, 5], [1, 1, 1]))
    assert np.isnan(outside).all(axis=1).tolist() == [False, True, True]


def test_wrong_questions_are_named():
    result = known_result()
    for call, message in (
        (lambda: result.at(1.5), r"tau must lie in \[0, 1\], got 1.5"),
        (lambda: result.at("a"), r"tau must be a number or \[T\], got 'a'"),
        (lambda: result.at(None), r"tau must be a number or \[T\], got None"),
        (lambda: result.track("a", 0.5), "track: points must be numbers"),
        (lambda: result.at_events(None), "at_events: events must be .*got None"),
        (lambda: result.at(np.nan), "tau must lie in"),
        (lambda: result.velocity(np.zeros((2, 2))), r"got shape \[2, 2\]"),
        (lambda: result.track(np.zeros(2), 0.5), r"points must have shape \[N, 2\], got \[2\]"),
        (lambda: result.at_events(([1], [1], [5], [1])), "events must lie in"),
        (lambda: result.at_events(Events.empty(7, 9)), "got those of a sensor of 9 x 7 px"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_velocity_at_events_by_hand():
    """x(tau) = x0 + 4 tau in x, 2 tau + 6 tau^2 in y, in 0.1 s: 40 px/s, and (20 + 120 tau)."""
    result = known_result()
    t = [1_000_000, 1_050_000, 1_100_000]
    events = Events([10, 12, 14], [3, 6, 11], t, [1, 1, 0])
    velocity = result.velocity_at_events(events)
    assert np.allclose(velocity, [[40, 20], [40, 80], [40, 140]], atol=1e-3)
    outside = result.velocity_at_events(Events([31], [3], [1_000_000], [1]))
    assert np.isnan(outside).all() and result.velocity_at_events(Events.empty()).shape == (0, 2)
    with pytest.raises(ValueError, match="velocity_at_events: events must lie in"):
        result.velocity_at_events(Events([1], [1], [5], [1]))


def test_origins_are_the_inverse_of_tracks():
    result = known_result()
    points = np.array([[3.5, 7.0], [12.0, 2.0]], np.float32)
    back = result.origins(result.track(points, 0.5), 0.5)
    assert np.allclose(back, points, atol=1e-4)
    assert np.isnan(result.origins([[-5.0, 1.0]], 0.5)).all()
    with pytest.raises(ValueError, match=r"origins: tau must be one number, got shape \[2\]"):
        result.origins(points, [0.1, 0.2])
    with pytest.raises(ValueError, match=r"origins: points must have shape \[N, 2\], got \[3\]"):
        result.origins([1.0, 2.0, 3.0], 0.5)


def test_repr():
    assert repr(known_result()) == "Result(30 x 20 px, 1000000 to 1100000 us, from frames)"
