"""benchmarks/launches.py: an estimate launches few kernels, and the script counts them right."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from flowfuse.model import CONFIGS
from flowfuse.ops import build_info

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("launches")


@pytest.mark.skipif(not build_info()["extension"], reason="the compiled operators are not built")
@pytest.mark.parametrize("strategy", ["volume", "on_demand"])
@pytest.mark.parametrize(
    ("name", "iterations", "most", "megabytes"), [("small", 2, 500, 620), ("base", 4, 580, 1300)]
)
def test_an_estimate_launches_few_kernels(script, name, iterations, most, megabytes, strategy):
    """And its look-ups move little: in base, 3857 MB while each made its windows in memory."""
    config = replace(CONFIGS[name], correlation=strategy, iterations=iterations)
    counted = script.count(config, (64, 64))
    assert sum(counted.calls.values()) < most, counted.calls.most_common(20)
    calls, moved = counted.of_look_ups()
    moved *= 480 * 640 / 64**2 / 1e6
    most_moved = megabytes if strategy == "on_demand" else 0.6 * megabytes
    assert calls > 10 and megabytes / 4 < moved < most_moved


def test_what_counts(script):
    values = torch.rand(4, 6)
    with script.Launches() as counted:
        part = values[1:].transpose(0, 1).unflatten(0, (2, 3)).detach()
        torch.empty(3)
        torch.empty_like(part)
        assert not counted.calls
        sums = part + 1  # 18 numbers in, 18 out
        sums.mul_(2)  # an argument and a result that are the same
    assert counted.calls == {"outside": 2}
    assert counted.bytes == {"outside": 4 * (18 + 18) + 4 * (18 + 18)}


def test_a_look_up_reads_its_taps(script):
    """Of a stored volume 4 x 4 values a pixel and level are read, not all."""
    volumes = [torch.rand(1, 2, 3, 50, 60), torch.rand(1, 2, 3, 25, 30)]
    coords = torch.zeros(1, 2, 2, 3)
    with script.Launches() as counted:
        torch.ops.flowfuse.volume_lookup(volumes, coords, 1)
    assert counted.bytes == {"ops.volume_lookup": 4 * 6 * (2 * 16 + 2 + 2 * 9)}
    assert counted.of_look_ups() == (1, counted.bytes["ops.volume_lookup"])


def test_the_table(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "SIZE", (32, 32))
    monkeypatch.setattr(sys, "argv", ["launches", "--model", "nano", "--by-function"])
    script.main()
    _, _, first, look_ups, *_, last = capsys.readouterr().out.splitlines()[:6]
    assert look_ups.startswith("| nano | volume | look-ups |")
    assert "network" not in first and first.startswith("| nano | volume |")
    assert last.startswith("| nano | volume | model.") or "ops." in last
