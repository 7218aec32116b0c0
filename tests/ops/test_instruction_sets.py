"""Every test of the operators under each instruction set that this machine has beside its best."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowfuse import ops

FOLDER = Path(__file__).resolve().parent
FILES = sorted(path.name for path in FOLDER.glob("test_ops_*.py") if "build" not in path.name)
# What does not depend on the instruction set, and takes long.
LEFT_OUT = "not opcheck and not compile and not gradcheck and not export"


def others() -> tuple[str, ...]:
    info = ops.build_info()
    names = info["cpu_capabilities"] or ()
    return names[: names.index(info["cpu_capability"])] if names else ()


@pytest.mark.slow
@pytest.mark.skipif(
    "FLOWFUSE_TEST_EMULATOR" in os.environ, reason="the emulator replaces the CPU kernels"
)
@pytest.mark.parametrize("name", others() or ["none"])
def test_operators_under(name: str) -> None:
    if name == "none":
        pytest.skip("there is one instruction set here")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-k", LEFT_OUT, *FILES],
        cwd=FOLDER,
        env={**os.environ, "FLOWFUSE_CPU_CAPABILITY": name},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
