"""benchmarks/live.py: what it writes and how it counts; never how fast anything is."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from flowfuse.events import Events

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; it and its neighbours import each other by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("live")
    limits = importlib.import_module("measuring").Limits(1e9, 1e9, 1e9, None)
    monkeypatch.setattr(module, "measure_limits", lambda device, quick: limits)
    return module


def test_a_quick_run_writes_rows_and_a_table(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture, one_thread: None
) -> None:
    results, written = tmp_path / "rows.json", tmp_path / "rows.md"
    options = ["--only", "generated", "--seconds", "0.6", "--hours", "0.001"]
    files = ["--json", str(results), "--markdown", str(written)]
    assert script.main(["--quick", *options, *files]) == 0, capsys.readouterr().err
    report = json.loads(results.read_text())
    latency, rate, sliding, single, anew, memory, hour = report["rows"]
    assert all(set(row) == set(script.KEYS) and row["error"] is None for row in report["rows"])
    assert (latency["measure"], latency["size"]) == ("latency", "64 x 48")
    assert 0 < latency["latency_median_ms"] <= latency["latency_99_ms"]
    assert 0 < latency["cpu_share"] <= 1.5 and latency["dropped"] == 0
    assert rate["ratio"] == pytest.approx(rate["results_per_s"] / rate["fresh_per_s"])
    assert rate["skipped"] == rate["dropped"] == 0
    # Frames of an interval are known by then, and of five slices, four.
    assert sliding["encoded"] == single["encoded"] == pytest.approx(0.2)
    assert single["work_ratio"] > sliding["work_ratio"] > 1.1
    assert anew["encoded"] == rate["encoded"] == 1 and 1 < anew["work_ratio"] < 1.2
    assert sliding["skipped"] == anew["dropped"] == 0
    for row in (memory, hour):
        assert min(row["memory_bytes"]) > 2**20 and len(row["memory_bytes"]) == 3
        assert 0 <= row["memory_growth"] < 0.5
    assert written.read_text() == script.as_markdown(report)
    lines = [line for line in written.read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 9 and len({line.count("|") for line in lines}) == 1
    assert lines[-1] in capsys.readouterr().out


def test_rows(script: ModuleType) -> None:
    labels = [case.label for case in script.all_cases(False)]
    assert len(labels) == len(set(labels)) == 3 * 2 * 6 + 1
    assert "generated 640 x 480 1e+07 memory" in labels and "sample 256 x 192 1e+06 rate" in labels
    assert len(script.all_cases(True, ["latency"])) == 2
    assert [case.measure for case in script.all_cases(False, ["hour"])] == ["hour"]


def test_a_recording_without_end(script: ModuleType) -> None:
    """Three events in 10 us, at 10^5 a second: 30 us, again and again."""
    events = Events([0, 1, 2], [0, 0, 0], [100, 105, 109], [1, 0, 1], height=4, width=5)
    endless = script.Endless.stretched("x", events, [np.zeros((4, 5), np.uint8)], 1e5)
    assert endless.duration == 30 and endless.events.t.tolist() == [0, 15, 27]
    assert endless.between(0, 70).t.tolist() == [0, 15, 27, 30, 45, 57, 60]
    assert endless.between(27, 46).x.tolist() == [2, 0, 1]


def test_wrong_options_are_told(script: ModuleType, capsys: pytest.CaptureFixture) -> None:
    for arguments, message in (
        (["--seconds", "0"], "live: --seconds must be positive, got 0"),
        (["--only", "nothing"], "live: --only nothing: no row has this in its name"),
    ):
        with pytest.raises(SystemExit):
            script.main(arguments)
        assert message in capsys.readouterr().err
