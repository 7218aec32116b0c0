"""Public names; what a wheel holds beside modules; when make compiles CUDA kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import flowfuse

ROOT = Path(__file__).resolve().parent.parent


def test_a_wheel_holds_the_data_tools_the_page_and_the_sample(tmp_path):
    subprocess.run(
        [
            sys.executable, "setup.py", "--quiet", "egg_info", f"--egg-base={tmp_path}",
            "build_py", f"--build-lib={tmp_path / 'lib'}",
        ],
        cwd=ROOT, env={**os.environ, "FLOWFUSE_EXTENSION": "0"}, check=True, timeout=120,
    )  # fmt: skip
    package = tmp_path / "lib" / "flowfuse"
    tools = {path.name for path in (ROOT / "data_tools").glob("*.py")}
    assert {path.name for path in (package / "data_tools").iterdir()} == tools
    for name in (
        "viewer/page/index.html", "viewer/page/viewer.css", "viewer/page/viewer.js",
        "weights/small.safetensors", "recipes/small.yaml", "sample/events.h5", "py.typed",
    ):  # fmt: skip
        assert (package / name).is_file(), name


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"GPU": ""}, "FLOWFUSE_CUDA=0"),
        ({"GPU": "/dev/nvidia0"}, "FLOWFUSE_CUDA=auto"),
        ({"GPU": "", "FLOWFUSE_CUDA": "1"}, "FLOWFUSE_CUDA=1"),
        ({"GPU": "/dev/nvidia0", "FLOWFUSE_CUDA": "0"}, "FLOWFUSE_CUDA=0"),
    ],
)
def test_make_compiles_cuda_where_there_is_a_gpu_or_it_is_asked_for(given, expected, tmp_path):
    switches = [f"{name}={value}" for name, value in given.items()]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FLOWFUSE_", "MAKE"))}
    done = subprocess.run(
        ["make", "--dry-run", "demo", f"VENV={tmp_path}", *switches],
        cwd=ROOT, env=clean, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    lines = done.stdout.replace("\\\n", "").splitlines()
    (build,) = (line for line in lines if "build_ext" in line)
    assert f" {expected} " in build
    assert "demo_out/index.html" in lines[-1] and ".[dev]" not in done.stdout


def test_public_names_and_light_import():
    for name in flowfuse.__all__:
        assert name in dir(flowfuse)
        if name != "sample_recording":
            assert getattr(flowfuse, name) is not None
    with pytest.raises(AttributeError, match="nothing_here"):
        flowfuse.nothing_here  # noqa: B018
    code = "import sys, flowfuse; sys.exit('torch' in sys.modules or 'cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
