"""benchmarks/export.py: what it writes; never how fast anything is."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from flowfuse.export import ExportedFlow
from flowfuse.model import CONFIGS, FlowFuse
from flowfuse.model.checkpoint import save_checkpoint

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("export")
    limits = importlib.import_module("measuring").Limits(1e9, 1e9, 1e9, None)
    monkeypatch.setattr(module, "measure_limits", lambda device, quick: limits)
    return module


def test_rows_hold_size_and_time_beside_torch(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    model = FlowFuse(CONFIGS["nano"]).eval()
    weights = tmp_path / "nano.safetensors"
    save_checkpoint(weights, model)

    def write(path, model, spec, about):
        path.write_bytes(bytes(1_500_000))
        return 2e-5

    def fail(path, model, spec, about):
        raise ValueError("differs")

    formats = (
        ("made", "a.pt2", write, lambda path: ExportedFlow(model, 1)),
        ("broken", "b.onnx", fail, None),
    )
    monkeypatch.setattr(script, "FORMATS", formats)
    files = ["--json", str(tmp_path / "rows.json"), "--markdown", str(tmp_path / "rows.md")]
    assert script.main(["--quick", "--checkpoint", str(weights), *files]) == 1
    report = json.loads((tmp_path / "rows.json").read_text())
    plain, made, broken = report["rows"]
    assert (plain["format"], made["bytes"], made["difference"]) == ("torch", 1_500_000, 2e-5)
    assert made["ratio_to_torch"] == pytest.approx(plain["time_ms"] / made["time_ms"])
    assert broken["time_ms"] is None and broken["error"] == "ValueError: differs"
    text = (tmp_path / "rows.md").read_text()
    assert "| made | 48 x 32 | 1.5 | " in text and "| 2e-05 |" in text
    assert "broken, 48 x 32: ValueError: differs" in capsys.readouterr().err


def test_a_checkpoint_that_is_none_is_told(script, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--checkpoint", "/no/such"])
    assert stop.value.code == 2 and "/no/such" in capsys.readouterr().err
