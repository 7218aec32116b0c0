"""Public names; what a wheel holds and its library binds to; when make compiles CUDA kernels."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import try_wheel

import flowfuse
from flowfuse.ops import build_info

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


@pytest.mark.skipif(build_info()["path"] is None, reason="no compiled operators")
@pytest.mark.skipif(shutil.which("nm") is None, reason="binutils are not installed")
def test_the_library_binds_to_torch_by_its_stable_interface_alone():
    """So one library serves every torch >= torch_target and every Python."""
    done = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", build_info()["path"]],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    names = [line.split()[-1] for line in done.stdout.splitlines()]
    assert any(name.startswith("aoti_torch_") for name in names)
    # Mangled names of torch's C++ (at::, c10::, torch::), and Python's own.
    bound = [n for n in names if re.match(r"_ZNK?(2at|3c10|5torch)|_?Py[A-Z_]", n)]
    assert bound == []
    assert build_info()["torch_target"] == "2.11"


def test_a_wheel_is_tried_by_what_its_readme_shows(tmp_path):
    wheel = tmp_path / "flowfuse-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("flowfuse-1.dist-info/METADATA", (ROOT / "README.md").read_text())
    lines = list(try_wheel.commands(wheel, "/sample"))
    assert lines[0] == "python -m flowfuse.ops"
    assert lines[1].startswith("python -c ") and "flowfuse.open_recording(" in lines[1]
    shown = [line for line in lines if line.startswith(("flowfuse-infer", "flowfuse-train"))]
    assert "flowfuse-infer /sample -o out --times 0.25,0.5 --html --overwrite" in shown
    assert any("--self-supervised /sample" in line and "--steps 2" in line for line in shown)
    # What needs a data set or a camera is left out.
    assert not any(name in line for line in lines for name in ("RECORDING", "DSEC", "dv:"))
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("flowfuse-1.dist-info/METADATA", "nothing")
    with pytest.raises(ValueError, match="its README shows no program"):
        list(try_wheel.commands(wheel, "/sample"))


def test_public_names_and_light_import():
    for name in flowfuse.__all__:
        assert name in dir(flowfuse)
        if name != "sample_recording":
            assert getattr(flowfuse, name) is not None
    with pytest.raises(AttributeError, match="nothing_here"):
        flowfuse.nothing_here  # noqa: B018
    code = "import sys, flowfuse; sys.exit('torch' in sys.modules or 'cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
