"""docs/outputs.md tells of every kind of file, and its lines of Python run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from flowfuse.cli.infer_extras import EXTRAS
from flowfuse.result import Result

TEXT = (Path(__file__).parent.parent / "docs" / "outputs.md").read_text(encoding="utf-8")


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
    (block,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    exec(block, {})
    with np.load(tmp_path / "copy.npz") as file:
        for name in file.files:
            assert f"`{name}`" in TEXT, name
