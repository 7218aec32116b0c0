"""benchmarks/operators.py: what it writes, how it measures memory; never how fast anything is."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest
import torch

from flowfuse import ops

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
KEYS = {
    "operator", "size", "direction", "dtype", "time_ms", "spread", "extra_bytes", "peer",
    "peer_time_ms", "peer_extra_bytes", "ratio_to_peer", "ratio_to_floor",
}  # fmt: skip


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; it and its neighbours import each other by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("operators")


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(FOLDER / "operators.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_quick_run_writes_rows_and_table(script: ModuleType, tmp_path: Path) -> None:
    results, table = tmp_path / "rows.json", tmp_path / "rows.md"
    done = run(
        "--quick", "--threads", "1", "--only", "convex_upsample",
        "--json", str(results), "--markdown", str(table),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(results.read_text())
    assert report["machine"]["threads"] == 1
    assert report["versions"]["torch"] == torch.__version__
    assert report["quick"] and report["limits"]["copy_bytes"] > 0
    assert {"date", "commit", "instruction_set", "build_info"} <= set(report)
    assert [row["direction"] for row in report["rows"]] == ["forward", "both"]
    for row in report["rows"]:
        assert set(row) >= KEYS
        assert row["operator"] == "convex_upsample" and row["error"] is None
        assert row["ratio_to_peer"] == pytest.approx(row["peer_time_ms"] / row["time_ms"])
        assert row["ratio_to_floor"] == pytest.approx(row["floor_ms"] / row["time_ms"])
        rate = report["limits"]["copy_bytes"], report["limits"]["float32_operations"]
        needed = row["bytes_needed"], row["operations_needed"]
        assert row["floor_ms"] == pytest.approx(1e3 * max(needed[0] / rate[0], needed[1] / rate[1]))
    assert table.read_text() == script.as_markdown(report)
    lines = table.read_text().splitlines()
    assert sum(line.startswith("| convex_upsample |") for line in lines) == 2
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    for line in lines:
        assert not line.startswith("| convex_upsample") or line in done.stdout


def test_extra_memory_is_the_temporary(script: ModuleType) -> None:
    extra_memory = load("measuring").extra_memory
    count = 1 << 18
    value = torch.ones(count)

    def call() -> list[torch.Tensor]:
        temporary = value.expand(3, count).contiguous()  # 3 x 4 bytes x count, gone at the end
        return [temporary[0] + temporary[1]]  # the result: 4 bytes x count

    assert extra_memory(call, "cpu") == pytest.approx(12 * count, rel=1e-3)
    assert extra_memory(lambda: [value + 1], "cpu") < 1000


def test_extra_memory_sees_the_compiled_operators(script: ModuleType) -> None:
    if not ops.build_info()["extension"]:
        pytest.skip("the compiled operators are not built")
    f0, f1 = torch.randn(2, 1, 8, 16, 16)

    def call() -> list[torch.Tensor]:
        look_up = ops.Correlation(f0, f1, levels=1, radius=1, strategy="volume")
        return [look_up(torch.zeros(1, 2, 16, 16))]

    assert load("measuring").extra_memory(call, "cpu") >= 4 * 16**4


def test_peak_of_allocations_and_releases(script: ModuleType) -> None:
    assert load("measuring").peak_of([10, 20, -10, 5, -25]) == 30
    assert load("measuring").peak_of([]) == 0


def test_timing_gives_median_and_quartiles(script: ModuleType) -> None:
    timing = load("measuring").timing([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (timing.median, timing.spread) == (3.0, 2.0)


def make_case(ours, peer):
    cases = load("operator_cases")
    value = torch.ones(1000)
    work = cases.Work(
        inputs=[value],
        ours={"twice": ours},
        needed=cases.Needed(8000, 1000, "float32"),
        peers={"plain": peer},
    )
    return cases.Case("1000", "forward", "float32", ("twice",), lambda: work)


def measure(script: ModuleType, case):
    limits = load("measuring").Limits(1e9, 1e9, 1e9, None)
    return script.Measurement(case, load("operator_cases").Setting("cpu", True, limits, None)).run()


def test_row_that_agrees(script: ModuleType) -> None:
    (row,) = measure(script, make_case(lambda x: [x + x], lambda x: [2 * x]))
    assert row["error"] is None
    assert row["floor_ms"] == pytest.approx(8e-3)
    assert row["extra_bytes"] == 0


def test_wrong_results_are_not_timed(script: ModuleType) -> None:
    for wrong in (2.01, float("nan")):
        (row,) = measure(script, make_case(lambda x, f=wrong: [f * x], lambda x: [2 * x]))
        assert "MismatchError" in row["error"]
        assert row["time_ms"] is None and row["ratio_to_peer"] is None
        assert row["peer_time_ms"] is not None
        assert "failed: MismatchError" in script.cells(row)[-1]


def test_peer_that_does_not_fit_is_no_failure(script: ModuleType) -> None:
    def too_large(x: torch.Tensor) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("no room")

    (row,) = measure(script, make_case(lambda x: [x + x], too_large))
    assert row["error"] is None and row["time_ms"] is not None
    assert row["ratio_to_peer"] is None and "does not fit" in row["note"]


def test_failure_gives_exit_code_1_and_leaves_the_others(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(x: torch.Tensor) -> list[torch.Tensor]:
        raise MemoryError("no room")

    both = [
        make_case(broken, lambda x: [2 * x]),
        make_case(lambda x: [x + x], lambda x: [2 * x]),
    ]
    monkeypatch.setattr(script, "operator_cases", lambda setting: iter(both))
    results = tmp_path / "rows.json"
    assert script.main(["--quick", "--json", str(results)]) == 1
    first, second = json.loads(results.read_text())["rows"]
    assert "no room" in first["error"] and first["time_ms"] is None
    assert second["error"] is None and second["time_ms"] is not None


def test_correlation_floor_takes_the_cheaper_way(script: ModuleType) -> None:
    correlation = load("operator_cases").correlation_needs
    common = {"both": False, "itemsize": 4, "kind": "float32"}
    once = correlation((1, 256, 60, 80), 1, 4, 4, 1, **common)
    assert once.operations == 2 * 256 * 4800 * (3 * 100 + 70)  # level 3 has 7 x 10 cells
    often = correlation((1, 256, 60, 80), 1, 4, 4, 1000, **common)
    assert often.operations == 2 * 256 * 4800**2


def test_the_rows_are_all_there(script: ModuleType) -> None:
    limits = load("measuring").Limits(4e12, 1e12, 1e12, 1e9)
    setting = load("operator_cases").Setting
    labels = [
        label
        for device in ("cpu", "cuda")
        for case in script.operator_cases(setting(device, False, limits, "avx512"))
        for label in case.labels().values()
    ]
    for part in (
        "correlation auto 256 x 60 x 80, smooth forward float32",
        "correlation volume 256 x 90 x 160, noisy both float32",
        "correlation on_demand 256 x 270 x 480, smooth forward float32",
        "correlation auto 256 x 90 x 160, smooth forward bfloat16",
        "correlation of the model auto 6 x 96 x 60 x 80",
        "voxelize float x, y 1e7 events, 640 x 480 x 15",
        "voxelize integer x, y 1e7 events, 640 x 480 x 15",
        "convex_upsample 60 x 80 -> 480 x 640",
        "common_gradient 3 x 480 x 640 both",
        "warp_events 1e6 events",
    ):
        assert any(part in label for label in labels), part
    assert not any("correlation volume 256 x 270 x 480" in label for label in labels)


def test_without_bfloat16_instructions_no_row_and_no_limit_is_of_it(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring = load("measuring")
    monkeypatch.setattr("flowfuse.precision.cpu_has_bfloat16", lambda: False)
    measured: list[torch.dtype] = []
    monkeypatch.setattr(measuring, "copy_rate", lambda *_: 1e9)
    monkeypatch.setattr(
        measuring, "product_rate", lambda device, dtype, side: measured.append(dtype) or 2e9
    )
    limits = measuring.measure_limits("cpu", quick=True)
    assert measured == [torch.float32] and limits.bfloat16_operations is None
    text = load("measuring").limits_text(asdict(limits))
    assert "2 GFLOP/s in float32, none in bfloat16" in text
    cases = script.operator_cases(load("operator_cases").Setting("cpu", True, limits, "avx2"))
    assert {case.dtype for case in cases} == {"float32", "int16"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_quick_run_on_a_gpu(script: ModuleType, tmp_path: Path) -> None:
    results = tmp_path / "rows.json"
    arguments = ["--device", "cuda", "--quick", "--only", "common_gradient"]
    assert script.main([*arguments, "--json", str(results)]) == 0
    report = json.loads(results.read_text())
    assert report["machine"]["gpu"] and all(row["time_ms"] for row in report["rows"])


def test_crossover_writes_its_table(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "crossover.md"
    monkeypatch.setattr(script, "CROSSOVER_SIZES", ((8, 10),))
    report = tmp_path / "crossover.json"
    written = ["--markdown", str(table), "--json", str(report)]
    assert script.main(["--crossover", "--quick", *written]) == 0
    rows = [line.split("|")[1:-1] for line in table.read_text().splitlines() if " x " in line]
    assert len(rows) == 3 * 2  # channels, directions
    assert all(float(row[1]) > 0 for row in rows)
    ratios = [row["ratios"] for row in json.loads(report.read_text())["rows"]]
    assert len(ratios) == len(rows) and all(r > 0 for found in ratios for r in found)
