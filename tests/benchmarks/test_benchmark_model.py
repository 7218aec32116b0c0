"""benchmarks/model.py: what it writes and how it counts; never how fast anything is."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flowfuse import Events, ops
from flowfuse.model import CONFIGS

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
KEYS = {
    "network", "weights", "size", "scope", "dtype", "mode", "events", "iterations", "parameters",
    "multiplications", "time_ms", "spread", "extra_bytes", "peer", "peer_iterations",
    "peer_time_ms", "peer_spread", "peer_extra_bytes", "ratio_to_peer", "ratio_at_own_iterations",
    "ratio_at_peer_iterations", "memory_ratio", "ratio_to_calls", "note", "error",
}  # fmt: skip
RAFT_LARGE_PARAMETERS = 5_257_536  # torchvision's count, with 3 input channels


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; it and its neighbours import each other by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("model")
    limits = load("measuring").Limits(1e9, 1e9, 1e9, None)
    monkeypatch.setattr(module, "measure_limits", lambda device, quick: limits)
    return module


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_quick_run_writes_rows_and_table(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    results, written = tmp_path / "rows.json", tmp_path / "rows.md"
    files = ["--json", str(results), "--markdown", str(written)]
    only = "small 160 x 128 estimate float32"
    assert script.main(["--quick", "--only", only, *files]) == 0
    report = json.loads(results.read_text())
    assert report["quick"] and report["versions"]["torch"] == torch.__version__
    assert {"date", "commit", "machine", "limits", "build_info"} <= set(report)
    (row,) = report["rows"]
    assert set(row) == KEYS
    assert row["error"] is None and row["time_ms"] > 0 and row["extra_bytes"] > 0
    assert row["events"] == round(1e6 * 128 * 160 / (640 * 480))
    assert (row["iterations"], row["peer_iterations"]) == (CONFIGS["small"].iterations, 12)
    assert row["ratio_to_peer"] == pytest.approx(row["peer_time_ms"] / row["time_ms"])
    assert row["memory_ratio"] == pytest.approx(row["peer_extra_bytes"] / row["extra_bytes"])
    assert row["ratio_at_own_iterations"] > 0 and row["ratio_at_peer_iterations"] > 0
    assert written.read_text() == script.as_markdown(report)
    lines = [line for line in written.read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 3 and len({line.count("|") for line in lines}) == 1
    assert lines[-1] in capsys.readouterr().out


def test_a_batch_is_held_against_calls(script: ModuleType, tmp_path: Path) -> None:
    results = tmp_path / "rows.json"
    only = "small 160 x 128 batch float32"
    assert script.main(["--quick", "--only", only, "--json", str(results)]) == 0
    (row,) = json.loads(results.read_text())["rows"]
    assert (row["scope"], row["peer"], row["error"]) == ("batch", None, None)
    assert row["time_ms"] > 0 and row["ratio_to_calls"] > 0 and row["ratio_to_peer"] is None


def test_training_times_steps(script: ModuleType, capsys: pytest.CaptureFixture) -> None:
    assert script.main(["--quick", "--training", "--only", "nano"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^nano: [0-9.]+ ± [0-9.]+ ms$", printed, re.MULTILINE)


def test_profile_names_operations(script: ModuleType, capsys: pytest.CaptureFixture) -> None:
    assert script.main(["--quick", "--profile", "--only", "small 160 x 128 estimate float32"]) == 0
    out = capsys.readouterr().out
    assert "small 160 x 128 estimate float32 eager" in out and "Self CPU" in out
    with pytest.raises(SystemExit):
        script.main(["--profile", "--only", "E-RAFT"])
    assert "E-RAFT: no row has this in its name" in capsys.readouterr().err


def test_groups(script: ModuleType) -> None:
    groups = script.all_groups("cuda", quick=False)
    labels = [group.label(name) for group in groups for name in group.names]
    for name in ("small", "base", "E-RAFT"):
        for dtype in ("float32", "bfloat16"):
            assert f"{name} 640 x 480 estimate {dtype} eager" in labels
            graph = f"{name} 640 x 480 estimate {dtype} graph"
            assert (graph in labels) == (name != "E-RAFT")
            for mode in ("eager", "graph", "compiled"):
                assert f"{name} 640 x 480 network {dtype} {mode}" in labels
                larger = f"{name} 1280 x 720 network {dtype} {mode}"
                assert (larger in labels) == (name != "E-RAFT")
    modes = [group.mode for group in groups]
    assert modes == sorted(modes, key="compiled".__eq__)  # what compiles slowly comes last
    assert {group.mode for group in script.all_groups("cuda", False, compiled=False)} == {
        "eager", "graph",
    }  # fmt: skip
    assert {group.mode for group in script.all_groups("cpu", False)} == {"eager"}
    (group,) = script.all_groups("cpu", False, only=["base 1280 x 720 network bfloat16"])
    assert group.names == ("base",) and not group.with_peer
    few = script.all_groups("cpu", False, dtypes=["float32"])
    assert {group.dtype for group in few} == {"float32"}


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_measured_where_it_is_native(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr("flowfuse.precision.cpu_has_bfloat16", lambda: native)
    asked: list = []
    monkeypatch.setattr(script, "measured_rows", lambda groups, *_: asked.extend(groups) or [])
    assert script.main(["--quick"]) == 0
    dtypes = {"float32", "bfloat16"} if native else {"float32"}
    assert {group.dtype for group in asked} == dtypes


def no_motion(iterations: int) -> np.ndarray:
    return np.zeros((2, 480, 640), np.float32)


def make_network(name: str, iterations: int, estimate=no_motion):
    """A network that takes no time and is called like the real ones."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(2, 2))

        def forward(self, x: torch.Tensor, iterations: int) -> torch.Tensor:
            return self.factor @ x

    inputs = (torch.ones(2, 2),)
    return load("networks").Network(
        name, "random", iterations, "cpu", torch.float32, Scale(), inputs, estimate
    )


def make_measurement(script: ModuleType, networks: list, names: tuple[str, ...]):
    group = script.Group(480, 640, True, "float32", "estimate", "eager", names)
    measurement = script.GroupMeasurement(group, "cpu", quick=True)
    measurement.networks = {network.name: network for network in networks}
    return measurement


@pytest.fixture
def no_events(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    small = load("networks").moving_sequence(16, 16)
    monkeypatch.setattr(script, "moving_sequence", lambda height, width: small)


@pytest.mark.usefixtures("no_events")
def test_ratios_of_a_row(script: ModuleType) -> None:
    networks = [make_network("E-RAFT", 12), make_network("small", 3)]
    measurement = make_measurement(script, networks, ("E-RAFT", "small"))
    timing = load("measuring").Timing
    times = {("E-RAFT", 12): 60, ("E-RAFT", 3): 30, ("small", 3): 10, ("small", 12): 20}
    measurement.timings = {script.key(*key): timing(float(ms), 1.0) for key, ms in times.items()}
    measurement.memory = {"E-RAFT": 800, "small": 200}
    measurement.multiplications = {"E-RAFT": 200 * 10**9, "small": 12 * 10**9}
    row = measurement.row("small")
    assert row["ratio_to_peer"] == 6  # 60 / 10
    assert row["ratio_at_own_iterations"] == 3  # 30 / 10
    assert row["ratio_at_peer_iterations"] == 3  # 60 / 20
    assert row["memory_ratio"] == 4 and row["parameters"] == 4
    peer = measurement.row("E-RAFT")
    assert peer["time_ms"] == 60 and peer["peer"] is None and peer["ratio_to_peer"] is None
    assert "6.00" in script.cells(row) and "12.00" in script.cells(row)


@pytest.mark.usefixtures("no_events")
def test_failure_is_one_row_and_exit_code_1(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(iterations: int) -> np.ndarray:
        return np.full((2, 480, 640), np.nan, np.float32)

    networks = [
        make_network("E-RAFT", 12), make_network("small", 3, broken), make_network("base", 5)
    ]  # fmt: skip
    monkeypatch.setattr(script, "make_networks", lambda group, device: networks)
    group = script.Group(
        480, 640, True, "float32", "estimate", "eager", ("E-RAFT", "small", "base")
    )
    monkeypatch.setattr(script, "all_groups", lambda *arguments: [group])
    results = tmp_path / "rows.json"
    assert script.main(["--quick", "--json", str(results)]) == 1
    peer, small, base = json.loads(results.read_text())["rows"]
    assert "finite" in small["error"] and small["time_ms"] is None
    assert small["ratio_to_peer"] is None and "failed: ValueError" in script.cells(small)[-1]
    for row in (peer, base):
        assert row["error"] is None and row["time_ms"] is not None
    assert peer["multiplications"] == 8  # a product of 2 x 2 matrices


def test_eraft_has_the_parameters_of_raft(script: ModuleType) -> None:
    eraft = load("peers")
    count = sum(values.numel() for values in eraft.ERaft().parameters())
    # Both encoders begin with 64 kernels of 7 x 7, here over 15 channels instead of 3.
    assert count == RAFT_LARGE_PARAMETERS + 2 * 64 * 7 * 7 * (15 - 3) == 5_332_800


def test_eraft_shapes(script: ModuleType) -> None:
    network = load("peers").ERaft().eval()
    old, new = torch.randn(2, 1, 15, 130, 150)
    seen = {}
    for name in ("features", "context", "motion", "mask"):
        getattr(network, name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: (inputs, output)})
        )
    with torch.no_grad():
        flow = network(old, new, iterations=2)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(old, new, iterations=1)
    assert flow.shape == (1, 2, 130, 150) and flow.isfinite().all()
    assert mixed.shape == flow.shape and mixed.dtype == torch.float32
    # Padded to multiples of 32: 160 x 160.
    assert seen["features"][0][0].shape == (2, 15, 160, 160)
    assert seen["features"][1].shape == (2, 256, 20, 20)
    assert seen["context"][1].shape == (1, 128 + 128, 20, 20)
    assert torch.equal(seen["context"][0][0][..., :130, :150], new)
    correlation, coarse = seen["motion"][0]
    assert correlation.shape == (1, 4 * 81, 20, 20) and coarse.shape == (1, 2, 20, 20)
    assert seen["motion"][1].shape == (1, 128, 20, 20)
    assert seen["mask"][1].shape == (1, 9 * 64, 20, 20)


def test_voxel_grid_of_eraft(script: ModuleType) -> None:
    x, y, t, p = [2.0, 5.0, 1.0], [1.0, 3.0, 1.0], [100, 100, 200], [1, 0, 1]
    events = Events(np.float32(x), np.float32(y), t, p, height=8, width=8)
    grid = load("peers").voxel_grid(events, 100, 200, "cpu")
    assert grid.shape == (1, 15, 8, 8)
    # Cells +1 and -1: mean 0, standard deviation sqrt(2). The third event is after the window.
    assert grid[0, 0, 1, 2] == pytest.approx(0.5**0.5)
    assert grid[0, 0, 3, 5] == pytest.approx(-(0.5**0.5))
    assert grid.count_nonzero() == 2
    assert not load("peers").voxel_grid(events, 300, 400, "cpu").any()


def test_sequence_of_moving_edges(script: ModuleType) -> None:
    sequence = load("networks").moving_sequence(96, 128)
    count = round(1e6 * 96 * 128 / (640 * 480))
    assert sequence.count == count and len(sequence.events) == 2 * count
    assert sequence.events.x.dtype == np.float32
    assert sequence.events.t[0] >= 2 * sequence.t0 - sequence.t1
    assert sequence.events.t[-1] < sequence.t1
    assert set(sequence.events.p.tolist()) == {0, 1}
    for frame in (sequence.frame0, sequence.frame1):
        assert frame.shape == (96, 128) and frame.dtype == np.uint8
    assert np.array_equal(np.roll(sequence.frame0, (2, 5), axis=(0, 1)), sequence.frame1)


def test_operations_of_our_operators(script: ModuleType) -> None:
    if not ops.build_info()["extension"]:
        pytest.skip("the compiled operators are not built")
    features = torch.randn(2, 8, 4, 6)
    coords, frame = torch.zeros(2, 2, 4, 6), torch.rand(2, 1, 16, 24)

    def count(work) -> int:
        mapping = load("networks").operator_operations()
        with FlopCounterMode(display=False, custom_mapping=mapping) as counter, torch.no_grad():
            work()
        return counter.get_total_flops()

    levels = ops.pool_levels(features, 2)  # 4 x 6 and 2 x 3 cells
    # Radius 1: 4 x 4 products of 8 channels, or all 6 of the smaller level.
    look_up = count(lambda: ops.correlation_lookup(features, levels, coords, 1))
    assert look_up == 2 * 8 * (2 * 24) * (16 + 6)
    volumes = ops.correlation_volume(features, features, 2)
    volume = count(lambda: ops.correlation_volume(features, features, 2))
    assert volume == 2 * 8 * (2 * 24) * (24 + 6)
    assert count(lambda: ops.volume_lookup(volumes, coords, 1)) == 8 * (2 * 24) * (2 * 9)
    upsampled = count(lambda: ops.convex_upsample(coords, torch.zeros(2, 36, 4, 6), 2))
    assert upsampled == (2 * 24 * 4) * (18 + 17 * 2)
    assert count(lambda: ops.common_gradient(frame, frame, frame)) == 2 * 16 * 24 * 46


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_quick_run_on_a_gpu(script: ModuleType, tmp_path: Path) -> None:
    results = tmp_path / "rows.json"
    arguments = ["--device", "cuda", "--quick", "--no-compiled", "--only", "160 x 128"]
    assert script.main([*arguments, "--json", str(results)]) == 0
    rows = json.loads(results.read_text())["rows"]
    assert {(row["scope"], row["mode"]) for row in rows} == {
        (scope, mode) for scope in ("estimate", "network") for mode in ("eager", "graph")
    }
    assert all(row["time_ms"] for row in rows)
