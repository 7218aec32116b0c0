"""docs/extending/operator.md: its files are compiled, for the CPU and the emulator, and used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from build import build
from flowfuse import ops

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "extending" / "operator.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```\w+\n(?://|#) (\S+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
NAME = "divergence"
# The schemas stand in a fragment here, and the module beside the package.
SCHEMAS = """#include <torch/csrc/stable/library.h>
STABLE_TORCH_LIBRARY_FRAGMENT(flowfuse, m) {
%s}
"""
USE = """
import importlib.util, sys
import torch
import flowfuse.ops
torch.ops.load_library(sys.argv[1])
if len(sys.argv) > 4:
    torch.ops.load_library(sys.argv[4])  # takes the place of the CPU kernel
spec = importlib.util.spec_from_file_location("flowfuse.ops.divergence", sys.argv[2])
module = importlib.util.module_from_spec(spec)
sys.modules["flowfuse.ops.divergence"] = module
spec.loader.exec_module(module)
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", sys.argv[3]]))
"""


def test_every_place_of_the_table_has_its_file():
    rows = re.findall(r"^\| `(\S+)` \|", TEXT, re.MULTILINE)
    places = {row.replace("<name>", NAME) for row in rows} - {"flowfuse/ops/__init__.py"}
    assert set(FILES) == places and "add its name to `__all__`" in TEXT


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.skipif(not ops.build_info()["extension"], reason="the extension is not built")
def test_the_operator_agrees_with_its_reference_on_both_devices(tmp_path):
    csrc = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SCHEMAS % text if name == "csrc/library.cpp" else text)
    package = Path(torch.__file__).parent
    library = tmp_path / "lib.so"
    sources = [csrc / "library.cpp", csrc / "cpu" / f"{NAME}.cpp"]
    command = [
        "c++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden",
        "-shared",
        "-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{csrc}",
        "-isystem", str(package / "include"), *map(str, sources), "-o", str(library),
        f"-L{package / 'lib'}", f"-Wl,-rpath,{package / 'lib'}", "-ltorch_cpu",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    emulated = build("conflicts", tmp_path / "emulated", csrc, only=(NAME,))
    test = tmp_path / "tests" / "ops" / f"test_ops_{NAME}.py"
    module = tmp_path / "flowfuse" / "ops" / f"{NAME}.py"
    for extra in ([], [str(emulated)]):
        arguments = ["-c", USE, str(library), str(module), str(test), *extra]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        assert re.search(r"1[0-9] passed", done.stdout), done.stdout
