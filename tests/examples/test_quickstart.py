"""examples/quickstart.ipynb runs from its first cell to its last, and holds no outputs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
NotebookClient = pytest.importorskip("nbclient").NotebookClient

PATH = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def test_outputs_are_stripped():
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None, cell.source


def test_it_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(PATH.parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(PATH, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    told = "".join(output.text for output in outputs if output.output_type == "stream")
    epe, zero = map(float, re.search(r"EPE ([\d.]+) px; of zero flow ([\d.]+) px", told).groups())
    assert epe < zero / 3
    assert outputs[-1].data["text/plain"].endswith("True")  # what was kept is what was loaded
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
