"""benchmarks/same_bits.py: what it hashes, and how it compares two checkouts."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("same_bits")


def test_operators_have_the_same_bits_twice(script: ModuleType) -> None:
    first, second = script.operator_digests(), script.operator_digests()
    assert first == second and len(set(first.values())) == len(first) > 10


def test_what_differs_is_named(
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    python = tmp_path / "python"  # in place of a run: says what lies in the checkout
    python.write_text("#!/bin/sh\necho 'on the way'\ncat digests.json\n")
    python.chmod(0o755)
    found = {"before": '{"a": "1", "b": "2"}', "after": '{"a": "1", "b": "3", "c": "4"}'}
    for name, text in found.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "digests.json").write_text(text + os.linesep)
    before, after = (str(tmp_path / name) for name in found)
    for second, code in ((after, 1), (before, 0)):
        monkeypatch.setattr(sys, "argv", ["same_bits", before, second, "--python", str(python)])
        assert script.main() == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "same     a", "DIFFERS  b", "DIFFERS  c", "2 results before, 3 after, 2 differ",
    ]  # fmt: skip
    assert lines[-1] == "2 results before, 2 after, 0 differ"
