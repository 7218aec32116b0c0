"""The options that benchmarks share: what is wrong is told at once."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(params=["operators", "model", "export"])
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(request.param)


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--threads", "0"], "--threads"),
        (["--threads", "two"], "--threads"),
        (["--device", "tpu"], "--device"),
        (["--only", "no such row"], "no such row"),
        (["--json", "/no/such/folder/x.json"], "/no/such/folder"),
        (["--markdown", "."], "is a directory"),
        (["--slow"], "--slow"),
    ],
)
def test_bad_arguments_are_told_in_one_line(
    script: ModuleType, arguments: list[str], word: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stop:
        script.main(arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"{script.__name__}: ") and message.count("\n") == 1
    assert word in message


def test_cuda_without_a_gpu_is_told(
    script: ModuleType, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        script.main(["--device", "cuda"])
    assert "no GPU" in capsys.readouterr().err
