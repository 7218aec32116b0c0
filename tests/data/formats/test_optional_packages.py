"""Packages that only some formats need, when they are absent."""

from __future__ import annotations

import sys

import pytest

from flowfuse.cli.infer import main
from flowfuse.data.opening import open_recording


@pytest.mark.parametrize(
    ("name", "package", "project"),
    [("a.aedat4", "dv_processing", "dv-processing"), ("a.bag", "rosbags.highlevel", "rosbags")],
)
def test_an_absent_package_is_named(tmp_path, monkeypatch, capsys, name, package, project):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModuleNotFoundError, match=f"not installed: pip install {project}"):
        open_recording(tmp_path / name)
    assert main([str(tmp_path / name), "-o", str(tmp_path / "out"), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert f"not installed: pip install {project}" in error and error.count("\n") == 1
