"""docs/guides/outputs.md: its Python runs on what flowfuse-infer wrote, and its names are right."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from flowfuse.cli.infer import main
from flowfuse.cli.infer_extras import EXTRAS
from flowfuse.result import Result

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = (REPOSITORY / "docs" / "guides" / "outputs.md").read_text(encoding="utf-8")


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


def test_every_kind_is_told_of():
    for name, kind in EXTRAS.items():
        suffix = kind.suffix or "flo"
        assert f"| `{kind.folder}/N.{suffix}` | `--write {name}` |" in TEXT, name


def test_the_lines_of_python_run_and_the_arrays_are_those(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "OUT" / "control_points" / "000000.npz"
    path.parent.mkdir(parents=True)
    tensors = torch.ones(1, 3, 2, 4, 6), torch.zeros(1, 2, 4, 6), torch.zeros(1, 2, 4, 6)
    Result(*tensors, t0=0, t1=9, modalities=("frames",), as_torch=False).save(path)
    _, block = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    exec(block, {})
    with np.load(tmp_path / "copy.npz") as file:
        for name in file.files:
            assert f"`{name}`" in TEXT, name
