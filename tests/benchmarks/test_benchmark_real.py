"""benchmarks/real.py: what it finds, computes and prints; never how accurate anything is."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from flowfuse.data.recording_writer import write_recording
from flowfuse.events import Events
from flowfuse.io.flow import write_flow

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
HEIGHT, WIDTH = 24, 32
RATE = [0.0, 0.5, 0.0]  # about the vertical axis
FACTS = {
    "t0_us": 0,
    "t1_us": 50_000,
    "rate_rad_s": RATE,
    "calib": [200.0, 200.0, (WIDTH - 1) / 2, (HEIGHT - 1) / 2, 0.0, 0.0, 0.0, 0.0, 0.0],
}


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))  # the scripts import each other by name
    return importlib.import_module("real")


def noise_events(count: int = 400) -> Events:
    rng = np.random.default_rng(0)
    return Events(
        x=rng.integers(0, WIDTH, count).astype(np.uint16),
        y=rng.integers(0, HEIGHT, count).astype(np.uint16),
        t=np.sort(rng.integers(0, 50_000, count)),
        p=rng.integers(0, 2, count).astype(np.uint8),
        height=HEIGHT,
        width=WIDTH,
    )


def make_recordings(root: Path) -> None:
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (2, HEIGHT, WIDTH), dtype=np.uint8)
    flow, valid = np.ones((2, HEIGHT, WIDTH), np.float32), np.ones((HEIGHT, WIDTH), bool)
    write_recording(root / "a/pair", noise_events(), list(frames), [10_000, 50_000])
    (root / "a/pair/flow").mkdir()
    write_flow(root / "a/pair/flow/000000.flo", flow, valid)
    write_recording(root / "b", noise_events(), None, None)
    write_flow(root / "b/flow.flo", flow, valid)
    (root / "b/meta.json").write_text(json.dumps(FACTS))


def test_flow_of_a_turning_camera(real):
    flow = real.rotation_flow(FACTS, 0.05, HEIGHT, WIDTH)
    # The middle moves by f tan(angle), against the camera's turn to the right.
    middle = flow[:, HEIGHT // 2 - 1 : HEIGHT // 2 + 1, WIDTH // 2 - 1 : WIDTH // 2 + 1]
    # 1e-3 px: the four pixels around the middle are half a pixel away from it.
    np.testing.assert_allclose(middle.mean((1, 2)), (-200 * np.tan(0.025), 0), atol=1e-3)
    assert np.abs(real.rotation_flow(FACTS, 0.0, HEIGHT, WIDTH)).max() < 1e-5


def test_the_lens_is_undone_and_done(real):
    """Half of the turn, and from there the other half, is the whole turn."""
    facts = {**FACTS, "calib": [*FACTS["calib"][:4], -0.37, 0.15, 0.0, 0.0, 0.0]}
    half, whole = (real.rotation_flow(facts, t, HEIGHT, WIDTH) for t in (0.025, 0.05))
    row, column = 12, 20
    x = column + half[0, row, column]
    left = int(x)
    again = half[0, row, left] * (left + 1 - x) + half[0, row, left + 1] * (x - left)
    # 1e-2 px: the flow between two pixels is not quite linear.
    assert abs(half[0, row, column] + again - whole[0, row, column]) < 1e-2


def test_cases(real, tmp_path):
    make_recordings(tmp_path)
    found = real.find_sets(tmp_path)
    assert found == {"pairs": [tmp_path / "a/pair"], "intervals": [tmp_path / "b"]}
    recording = real.open_recording(tmp_path / "a/pair")
    (case,) = real.frame_pairs(recording, slices=4)
    assert (case.t0, case.t1) == (10_000, 50_000) and case.valid.all()
    assert case.events.t[0] < 10_000  # history
    bare = real.rotation_case(tmp_path / "b", history=False)
    assert (bare.t0, bare.t1) == (0, 50_000) and (bare.flow == 1).all()
    past = real.rotation_case(tmp_path / "b", history=True)
    assert (past.t0, past.t1) == (10_000, 50_000)
    np.testing.assert_allclose(past.flow, real.rotation_flow(FACTS, 0.04, HEIGHT, WIDTH))


def test_table_and_ratios(real):
    errors = {"n fused": 3.0, "n frames": 2.0, "n events": 4.0, "zero": 6.0, "DIS": 1.0}
    found = {"x": [errors, {**errors, "n fused": 1.0}], "y": [{"n events": 1.0, "zero": 2.0}]}
    table = real.as_table(found, ["n"]).splitlines()
    assert table[2] == "| x (2) | 2.00 | 2.00 | 4.00 | 1.00 | 1.00 | 6.00 |"
    assert table[3] == "| y (1) |  |  | 1.00 |  |  | 2.00 |"
    assert real.pair_ratios(found, "n").tolist() == [1.5, 0.5]


def test_command(real, tmp_path, capsys):
    make_recordings(tmp_path)
    arguments = ["--recordings", str(tmp_path), "--iterations", "1"]
    assert real.main(arguments) == 0
    out = capsys.readouterr().out
    assert "| a/pair (1) |" in out and "| b, with history (1) |" in out and "over 1 pairs" in out
    with pytest.raises(FileNotFoundError, match="no recording"):
        real.main(["--recordings", str(tmp_path / "a/pair/images")])
