"""benchmarks/finetuning.py: what it makes, learns from, compares and prints."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from flowfuse.data.datasets.dsec.dataset import DsecDataset

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; it and its neighbours import each other by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("finetuning")


def test_no_scene_is_both_learned_from_and_measured(script: ModuleType) -> None:
    found = script.list_sequences(script.Plan())
    assert len(set(found)) == len(found)  # a scene each: the place in the list is its seed
    learned = [kind for root, _, kind in found if root == "learn"]
    measured = [kind for root, _, kind in found if root == "measure"]
    assert set(measured) - set(learned) == {"dark"} and len(measured) == 32


def test_changes(script: ModuleType) -> None:
    """One sequence of a large error that a tenth is taken from, nine of small ones that rise."""
    errors = {"driving_0": (10.0, 9.0)} | {f"driving_{i}": (0.1, 0.11) for i in range(1, 10)}
    row = script.changes(errors)
    assert (row["sequences"], row["best"], row["worst"]) == (10, 0.9, pytest.approx(1.1))
    assert row["mean"]["value"] == pytest.approx(9.99 / 10.9)
    assert row["single"]["value"] == pytest.approx((0.9 * 1.1**9) ** 0.1)
    assert row["mean"]["low"] < 0.92 and row["mean"]["high"] == pytest.approx(1.1)
    few = script.changes(dict(list(errors.items())[:9]))
    assert np.isnan(few["mean"]["low"]) and script.between(few["mean"]) == "-8.5 %"


def test_all_of_it(script: ModuleType, tmp_path: Path, one_thread: None) -> None:
    results, written = tmp_path / "rows.json", tmp_path / "rows.md"
    arguments = ["--quick", "--roots", str(tmp_path), "--json", str(results)]
    arguments += ["--markdown", str(written)]
    assert script.main([*arguments, "--seeds", "3"]) == 0
    rows = json.loads(results.read_text())["rows"]
    assert [row["kind"] for row in rows] == ["all three", "driving", "fast", "slow", "dark"]
    assert all(set(row) == set(script.KEYS) and row["error"] is None for row in rows)
    assert [row["sequences"] for row in rows] == [3, 1, 1, 1, 1]
    assert all(row["before"] > 0 and row["before"] != row["after"] for row in rows)
    assert "| 3 |  | all three | 3 |" in written.read_text()
    root = tmp_path / "quick_3"
    data = DsecDataset(root / "measure", "all", 4, 3)
    assert {s.path.name for s in data.sequences} == {
        f"{k}_0" for k in ("driving", "fast", "slow", "dark")
    }
    learned, validated = (
        {s.path.name for s in DsecDataset(root / "learn", split, 4, 3).sequences}
        for split in ("train", "validation")
    )
    assert learned == {"driving_0", "fast_0", "slow_0"} and len(validated) == 4


def test_rows_of_several_seeds_and_options(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the seeds cannot be trained."""
    results, written = tmp_path / "rows.json", tmp_path / "rows.md"

    def known(seed, options, plan):
        if seed == 4:
            raise ValueError("no such thing")
        for more, after in zip(options.options, (1.0, 3.0), strict=True):
            yield more, {f"{kind}_0": (2.0, after) for kind in ("driving", "fast", "slow", "dark")}

    monkeypatch.setattr(script, "measure_seed", known)
    arguments = ["--seeds", "3", "4", "5", "--options", "", "--ema 0.5"]
    assert script.main([*arguments, "--json", str(results), "--markdown", str(written)]) == 1
    rows = json.loads(results.read_text())["rows"]
    assert [row["seed"] for row in rows] == ["3"] * 10 + ["4"] + ["5"] * 10 + ["all"] * 10
    assert rows[10]["error"] == "ValueError: no such thing"
    whole = [row for row in rows if (row["seed"], row["kind"]) == ("all", "all three")]
    assert [(row["options"], row["mean"]["value"]) for row in whole] == [
        ("", 0.5),
        ("--ema 0.5", 1.5),
    ]
    assert all(row["sequences"] == 6 for row in whole)
    text = written.read_text()
    assert "| 4 |  |  |  |  |  |  |  |  | failed: ValueError: no such thing |" in text
    assert "| all | `--ema 0.5` | all three | 6 | 2.000 | 3.000 | +50.0 % | +50.0 % |" in text
