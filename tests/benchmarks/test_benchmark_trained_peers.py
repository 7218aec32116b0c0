"""benchmarks/trained_peers.py: what it trains, measures and writes; never how accurate it is."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from evaluation_cases import make_recordings

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
RECIPE = """
data: scenes:slow
scenes: 1
scene_size: [128, 128]
crop: [128, 128]
batch: 1
log_every: 1
"""


@pytest.fixture(autouse=True)
def neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import each other by name."""
    monkeypatch.syspath_prepend(str(FOLDER))


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_event_grids() -> None:
    """The slice before t0 comes last in the old grid; each item is standardized by itself."""
    slices = torch.zeros(2, 3, 2, 1, 4)  # K = 2 slices of two bins after the one before
    slices[0, 0, 1, 0, 2] = 5.0
    slices[0, 1, 0, 0, 0], slices[0, 2, 1, 0, 3] = 1.0, 3.0
    slices[1, 1, 1, 0, 1], slices[1, 2, 0, 0, 1] = -1.0, 1.0
    given = slices.clone()
    old, new = load("peer_training").event_grids(slices)
    assert torch.equal(slices, given)
    assert old.shape == new.shape == (2, 4, 1, 4)
    assert not old.any()  # one cell is its own mean
    half = 0.5**0.5  # mean 2 and 0; deviation sqrt(2) with the divisor n - 1 = 1
    expected = torch.zeros(2, 4, 1, 4)
    expected[0, 0, 0, 0], expected[0, 3, 0, 3] = -half, half
    expected[1, 1, 0, 1], expected[1, 2, 0, 1] = -half, half
    torch.testing.assert_close(new, expected)
    slices[0, 0, 0, 0, 0] = 1.0
    old, _ = load("peer_training").event_grids(slices)
    assert old[0, 2, 0, 0] < 0 < old[0, 3, 0, 2] and not old[0, :2].any()


def test_sequence_loss() -> None:
    truth, valid = torch.zeros(1, 2, 1, 2), torch.tensor([[[True, False]]])
    truth[..., 1] = torch.nan  # not valid: neither the loss nor its gradient may see it
    early = torch.ones(1, 2, 1, 2, requires_grad=True)
    late = torch.full((1, 2, 1, 2), 0.25)
    loss = load("peer_training").sequence_loss([early, late], truth, valid)
    loss.backward()
    assert loss.item() == pytest.approx(0.8 * 2 + 0.5)
    assert early.grad.tolist() == [[[[pytest.approx(0.8), 0.0]], [[pytest.approx(0.8), 0.0]]]]


def test_every_iteration_of_eraft() -> None:
    torch.manual_seed(0)
    network = load("peers").ERaft(bins=2).eval()
    old, new = torch.randn(2, 1, 2, 128, 130)
    flows = network.flows(old, new, 2)
    assert [flow.shape for flow in flows] == [(1, 2, 128, 130)] * 2
    with torch.no_grad():
        for count, flow in enumerate(flows, 1):
            assert torch.equal(network(old, new, iterations=count), flow)
    sum(flow.sum() for flow in flows).backward()
    assert all(values.grad is not None for values in network.parameters())


def test_small_images_are_padded() -> None:
    pad = load("peer_training").pad_for_pyramid
    image = torch.arange(6.0).view(1, 1, 2, 3)
    assert pad(image, "replicate").shape == (1, 1, 128, 128)
    assert pad(image, "replicate")[..., -1, -1] == 5 and pad(image, "constant").sum() == 15
    assert pad(torch.zeros(1, 1, 130, 136), "constant").shape == (1, 1, 136, 136)


def test_axis_ticks() -> None:
    ticks = load("curves").ticks
    assert ticks(3.0, 60.0) == pytest.approx([2, 5, 10, 20, 50, 100])
    assert ticks(1.0, 2.0) == pytest.approx([1, 2])


def test_curves_are_drawn_where_they_belong() -> None:
    lines = {"ours": [(100.0, 1.0, 2), (10.0, 2.0, 1)], "DIS": [(100.0, 2.0, 0)]}
    image = load("curves").draw_curves(lines, width=500, height=300)
    assert image.shape == (300, 500, 3)
    left, right, top, bottom = 60, 300, 20, 250  # the corners are the ends of the axes
    for point in ((bottom, right), (top, left), (top, right)):
        assert np.ptp(image[point].astype(int)) > 50  # a colour, where all else is grey
    assert np.ptp(image[bottom, left].astype(int)) == 0


def test_mean_over_sets() -> None:
    mean = load("trained_peers").mean_epe
    row = {"epe": {"a": 1.0, "b": 4.0}}
    assert mean(row, ["a", "b"]) == pytest.approx(2.0)
    assert mean(row, ["a", "c"]) is None and mean(row, []) is None


def test_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    script, measuring = load("trained_peers"), load("measuring")
    training = load("peer_training")
    monkeypatch.setattr(script, "FULL", measuring.Budget(least=1, most=1, seconds=0.0))
    monkeypatch.setattr(script, "TIMED_SIZE", (128, 128))
    monkeypatch.setattr(script, "OUR_ITERATIONS", (1,))
    monkeypatch.setattr(script.Peer, "iterations", (1, 2))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE)
    runs, out, cache = tmp_path / "runs", tmp_path / "out", str(tmp_path / "cache")
    always = ["--runs", str(runs), "--networks", "eraft", "nano", "--cache", cache]
    learn = [*always, "--train", "--recipe", str(recipe), "--train-iterations", "1"]

    assert script.main([*learn, "--samples", "2"]) == 0
    saved = torch.load(runs / "eraft" / training.CHECKPOINT, weights_only=True)
    assert saved["step"] == 2
    assert script.main([*learn, "--samples", "2"]) == 0  # done already
    same = torch.load(runs / "eraft" / training.CHECKPOINT, weights_only=True)
    assert all(torch.equal(same["module"][k], v) for k, v in saved["module"].items())

    make_recordings(tmp_path / "real")
    sets = ["--sets", "slow", "--scenes", "1", "--size", "64", "80"]
    words = [*always, *sets, "--recordings", str(tmp_path / "real"), "-o", str(out)]
    assert script.main([*words, "--measure"]) == 0
    report = json.loads(Path(f"{out}.json").read_text())
    assert report["sets"]["generated"] == ["slow"] and report["sets"]["real"] == ["a/pair"]
    assert [report["trainings"][name]["samples"] for name in ("eraft", "nano")] == [2, 2]
    assert report["trainings"]["eraft"]["iterations"] == "1"
    rows = {(row["method"], row["iterations"]): row for row in report["rows"]}
    assert {("eraft", 1), ("eraft", 2), ("nano", 1), ("DIS", 0), ("zero", 0)} <= set(rows)
    rotation = report["sets"]["rotation"][0]
    assert rotation in rows["eraft", 1]["epe"] and rotation not in rows["DIS", 0]["epe"]
    assert rows["zero", 0]["epe"]["a/pair"] == pytest.approx(2**0.5)
    assert not Path(f"{out}.png").exists()

    assert script.main([*words, "--time"]) == 0  # beside what was measured before
    timed = json.loads(Path(f"{out}.json").read_text())["rows"]
    assert all(row["ms"] > 0 for row in timed if row["method"] != "zero")
    assert [row["epe"] for row in timed] == [row["epe"] for row in report["rows"]]
    assert "| eraft | 2 |" in Path(f"{out}.md").read_text()
    assert cv2.imread(f"{out}.png").shape[1] > 1000


def test_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    script = load("trained_peers")
    always = ["--runs", str(tmp_path / "runs")]
    for words, told in (([], "nothing to do"), (["--time"], "-o OUT")):
        with pytest.raises(SystemExit):
            script.main([*always, *words])
        assert told in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert script.main([*always, "--train", "--networks", "raft_small", "--samples", "4"]) == 1
    error = capsys.readouterr().err
    assert "raft_small needs torchvision: pip install torchvision" in error
    assert error.count("\n") == 1
