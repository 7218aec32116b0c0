"""benchmarks/live_accuracy.py: a stream's flow of a frame pair, held against the ground truth."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import flowfuse
from flowfuse.data.opening import open_recording

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; it and its neighbours import each other by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("live_accuracy")


def test_the_flow_of_a_pair_is_that_of_the_estimator(script: ModuleType, one_thread: None) -> None:
    """Of the shipped recording, whose interval between frames has whole slices."""
    recording = open_recording(flowfuse.sample_recording())
    estimator = flowfuse.load("small")
    flow, encoded = script.sliding_flow(estimator, recording, (1, 2), script.ANEW, True)
    t0, t1 = map(int, recording.frame_times[1:3])
    exposures = np.diff(recording.exposures)[1:3, 0]
    expected = estimator(
        recording.frame(1), recording.frame(2), recording.events(2 * t0 - t1, t1 + 10_000),
        t0=t0, t1=t1, exposure0=int(exposures[0]), exposure1=int(exposures[1]),
    )  # fmt: skip
    assert np.array_equal(flow, expected.flow) and encoded == 1
    events, encoded = script.sliding_flow(estimator, recording, (1, 2), script.KEPT, False)
    assert events.shape == flow.shape and encoded < 0.6


def test_rows(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimate that is off by 3 and 4 px, once in each way; a recording without ground truth."""
    recording = open_recording(flowfuse.sample_recording())

    def off(estimator, found, pair, settings, with_frames):
        flow, _ = recording.ground_truth(pair[0])
        return flow + np.array([3.0, 4.0])[:, None, None], 0.25

    monkeypatch.setattr(script, "sliding_flow", off)
    monkeypatch.setattr(flowfuse, "load", lambda name: None)
    results, written = tmp_path / "rows.json", tmp_path / "rows.md"
    assert script.main(["--json", str(results), "--markdown", str(written)]) == 0
    rows = json.loads(results.read_text())["rows"]
    assert [row["inputs"] for row in rows] == ["frames and events", "events"]
    assert all(set(row) == set(script.KEYS) and row["pairs"] == 3 for row in rows)
    assert all(row[way] == pytest.approx(5.0, abs=1e-5) for row in rows for way in script.WAYS)
    text = written.read_text()
    assert "| sample | events | 3 | 5.000 |" in text and "Limits measured" not in text
    assert script.main([str(tmp_path / "none")]) == 1
