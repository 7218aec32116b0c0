"""Result files: what is written is read back to the bit, and damage is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import flowfuse
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
