from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowfuse import ops

ROOT = Path(ops.__file__).parent.parent.parent
needs_extension = pytest.mark.skipif(
    not ops.build_info()["extension"], reason="the compiled operators are not built"
)

EVERY_OPERATOR = """
import warnings
import torch
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as caught:
    from flowfuse import ops
    assert not [w for w in caught if "flowfuse" in str(w.message)], "a warning at import"
    zero, one = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    events = (zero, zero, zero, one, torch.tensor([0, 1]))
    voxels, ignored = ops.voxelize(*events, zero, one, 1, 1, 1)
    assert voxels.item() == 1.0 and ignored.item() == 0
    f = torch.ones(1, 4, 3, 3, requires_grad=True)
    for strategy in ("volume", "on_demand"):
        correlation = ops.Correlation(f, f, levels=2, radius=1, strategy=strategy)
        correlation(torch.zeros(1, 2, 3, 3)).sum().backward()
    frame = torch.rand(1, 1, 3, 3)
    assert ops.common_gradient(frame, frame, frame).shape == (1, 6, 3, 3)
    assert ops.convex_upsample(torch.ones(1, 1, 1, 1), torch.zeros(1, 9, 1, 1), 1).item() == 1.0
    flow = torch.zeros(1, 2, 1, 1)
    assert ops.warp_events(*events, flow, zero, one, zero, "signed", 1, 1).item() == 1.0
    info = ops.build_info()
    assert info["extension"] is False and info["path"] is None
    try:
        torch.compile(ops.common_gradient, fullgraph=True, backend="eager")(frame, frame, frame)
        raise SystemExit("torch.compile should have asked for the extension")
    except Exception as error:
        assert "need the flowfuse extension" in str(error), error
print(sum("flowfuse extension is switched off" in str(w.message) for w in caught))
"""


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


def test_reference_path_warns_once():
    """Without the extension every operator works, and one warning says so at first use."""
    result = run_python(EVERY_OPERATOR, FLOWFUSE_DISABLE_EXTENSION="1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["1"]


def test_build_info():
    info = ops.build_info()
    assert info["torch"] == torch.__version__
    if info["extension"]:
        assert Path(info["path"]).is_file()
        assert info["torch_target"] == "2.11"
        assert "cpu" in info["devices"]
        assert info["cpu_capability"] in info["cpu_capabilities"]
        assert ("cuda" in info["devices"]) == (info["cuda"] is not None)
        assert ("cuda" in info["devices"]) == (info["cuda_architectures"] is not None)
        assert all(value is not None for key, value in info.items() if not key.startswith("cuda"))
    else:
        assert info["path"] is None and info["devices"] == ()


@needs_extension
def test_error_unknown_capability():
    """At import: raised inside an operator's threads, the message would not come out."""
    result = run_python("from flowfuse import ops", FLOWFUSE_CPU_CAPABILITY="avx1024")
    assert result.returncode != 0
    assert (
        "FLOWFUSE_CPU_CAPABILITY must be default, avx2, avx512 or avx512_bf16, got avx1024"
        in result.stderr
    )


SUMS = """
import zlib
import torch
from flowfuse import ops
generator = torch.Generator().manual_seed(0)
f0, f1 = torch.randn(2, 1, 37, 6, 9, generator=generator).requires_grad_().unbind(0)
coords = 9 * torch.rand(1, 2, 6, 9, generator=generator)
values = [ops.build_info()["cpu_capability"]]
for strategy in ("volume", "on_demand"):
    result = ops.Correlation(f0, f1, levels=2, radius=2, strategy=strategy)(coords).square().sum()
    values += [result.item(), torch.autograd.grad(result, f0)[0].square().sum().item()]
maps = [torch.randn(1, 37, 6, 9, generator=generator).bfloat16() for _ in range(2)]
values.append(ops.correlation_lookup(maps[0], maps[1:], coords, 2).square().sum().item())
frame = torch.rand(2, 1, 1, 12, 40, generator=generator)
values.append(ops.common_gradient(frame[0], frame[1], frame[0]).square().sum().item())
x, y = 40 * torch.rand(2, 999, generator=generator)
t = torch.randint(0, 777, (999,), generator=generator)
p = torch.rand(999, generator=generator) > 0.5
window = torch.tensor([0, 999]), torch.tensor([0]), torch.tensor([777])
grid = ops.voxelize(x, y, t, p, *window, 5, 40, 41)[0]
values.append(zlib.crc32(grid.numpy().tobytes()))
print(*values)
"""


@needs_extension
def test_edge_every_instruction_set_agrees():
    best = ops.build_info()["cpu_capability"]
    names = ops.build_info()["cpu_capabilities"]
    values = {}
    for name in names[: names.index(best) + 1]:
        result = run_python(SUMS, FLOWFUSE_CPU_CAPABILITY=name)
        assert result.returncode == 0, result.stderr
        chosen, *numbers = result.stdout.split()
        assert chosen == name
        values[name] = [float(number) for number in numbers]
    for numbers in values.values():
        # Fused multiply-adds round less; the sums of voxels are integers.
        assert numbers[:-1] == pytest.approx(values["default"][:-1], rel=1e-5)
        assert numbers[-1] == values["default"][-1]


VERSION = '__version__ = "0"\n'  # which pyproject.toml takes from there


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("mode", "compiler", "succeeds", "built"),
    [
        ("auto", "c++", True, True),
        ("auto", "false", True, False),
        ("1", "false", False, False),
        ("0", "c++", True, False),
    ],
)
def test_setup_modes(tmp_path, mode, compiler, succeeds, built):
    """In-place, as an editable install builds; a small source stands for the kernels."""
    pytest.importorskip("setuptools")
    checkout = Path(__file__).resolve().parents[2]
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(checkout / name, tmp_path)
    for path, text in {
        "flowfuse/__init__.py": VERSION,
        "csrc/cpu/one.cpp": "int one() { return 1; }",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    env = os.environ | {"FLOWFUSE_EXTENSION": mode, "FLOWFUSE_CUDA": "0", "CXX": compiler}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (result.returncode == 0) == succeeds, result.stderr
    assert [p.name for p in tmp_path.glob("flowfuse/*.so")] == ["_C.abi3.so"] * built
    assert ("could not be built" in result.stderr) == (mode == "auto" and not built)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"FLOWFUSE_CUDA": "2"}, "FLOWFUSE_CUDA must be auto, 0 or 1, got '2'"),
        ({"FLOWFUSE_CUDA": "1", "NVCC": "/nonexistent"}, "NVCC=/nonexistent is not a program"),
        ({"FLOWFUSE_CUDA": "1", "NVCC": "true"}, "does not answer as nvcc does"),
    ],
)
def test_error_setup_switches(tmp_path, switches, message):
    """What was asked for and is not there is an error, also with FLOWFUSE_EXTENSION=auto."""
    pytest.importorskip("setuptools")
    checkout = Path(__file__).resolve().parents[2]
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(checkout / name, tmp_path)
    (tmp_path / "flowfuse").mkdir()
    (tmp_path / "flowfuse" / "__init__.py").write_text(VERSION)
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    env = os.environ | {"FLOWFUSE_EXTENSION": "auto"} | switches
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode != 0
    assert message in result.stderr
