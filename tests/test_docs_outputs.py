"""docs/outputs.md: its Python runs on what flowfuse-infer has written, and its names are right."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from flowfuse.cli.infer import main

REPOSITORY = Path(__file__).resolve().parent.parent
TEXT = (REPOSITORY / "docs" / "outputs.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("one_thread")
def test_every_output_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sample = str(REPOSITORY / "flowfuse" / "sample")
    given = ["-o", "out", "--times", "0.5", "--pairs", "0:1", "--iterations", "1"]
    assert main([sample, *given, "--max-pictures", "1"]) == 0
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1], names)
    assert names["flow"].shape == names["half_way"].shape == (2, 192, 256)
    assert names["valid"].all() and np.isfinite(names["speed"]).all()
    first = re.findall(r"^\| `([\w.]+)", TEXT.split("`flowfuse-train")[0], re.MULTILINE)
    assert {name.split("/")[0] for name in first} == {p.name for p in Path("out").iterdir()}
