"""The CUDA device code, run on the CPU by the emulator: every test of the operators, in several
orders of the threads, and faults planted in the sources, which must be found. And the CPU kernels,
under the sanitizers.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from build import ROOT, build, cuda_sources
from flowfuse import ops

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler"),
    pytest.mark.skipif(not ops.build_info()["extension"], reason="the extension is not built"),
]
OPERATOR_TESTS = sorted(
    str(path)
    for path in ROOT.glob("tests/ops/test_ops_*.py")
    if path.stem not in ("test_ops_build_info", "test_ops_selftest")  # of the installed library
)
# Of what torch is told of the operators, which is the same for every kernel, and takes long.
LEFT_OUT = "not opcheck and not compile and not export"
WORK = ROOT / "build" / "emulator"  # kept between runs: only what changed is compiled again


def sanitizer_environment() -> dict[str, str]:
    """The sanitizers' runtimes must be loaded before Python's own libraries."""
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    paths = [
        subprocess.check_output(["c++", f"-print-file-name={name}"], text=True).strip()
        for name in names
    ]
    return {
        "LD_PRELOAD": " ".join(paths),
        "ASAN_OPTIONS": ":".join(
            ["detect_leaks=0", "detect_stack_use_after_return=0", "allocator_may_return_null=1"]
        ),
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def run_python(
    arguments: list[str], library: Path, variant: str, order: str
) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "FLOWFUSE_TEST_EMULATOR": str(library),
        "FLOWFUSE_EMULATOR_ORDER": order,
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "0",
    }
    if "sanitizers" in variant:
        environment |= sanitizer_environment()
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


# Kernels to run and the order of their threads, the longest first.
RUNS = [
    ("sanitizers", "shuffle:2"),
    ("conflicts", "forward"),
    ("few_blocks", "shuffle:1"),
    ("cpu_sanitizers", "-"),
]
# Parts of about the same length, so that processes beside each other end together.
PARTS = {
    "correlation": [path for path in OPERATOR_TESTS if "correlation" in path],
    "others": [path for path in OPERATOR_TESTS if "correlation" not in path],
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("variant", "order"), RUNS)
def test_operator_tests_pass(variant, order, part):
    """All tests of the operators, with the instrumented kernels in place of the library's."""
    arguments = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", LEFT_OUT]
    arguments += PARTS[part]
    result = run_python(arguments, build(variant, WORK / variant), variant, order)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-6000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 150


def test_every_operator_is_emulated():
    """What the CPU library registers, the emulated one replaces: nothing is tested by accident. But
    what runs on CUDA by calls of torch."""
    library = build("conflicts", WORK / "conflicts")
    code = (
        "import torch; from flowfuse import ops\n"
        f"torch.ops.load_library({str(library)!r})\n"
        "for name in torch._C._dispatch_get_registrations_for_dispatch_key('CPU'):\n"
        "    if name.startswith('flowfuse::'):\n"
        "        print(name, '/csrc/cuda/' in torch._C._dispatch_dump(name).split('CPU')[1])\n"
    )
    result = run_python(["-c", code], library, "conflicts", "forward")
    assert result.returncode == 0, result.stderr
    by_torch = [name for name, operator in ops.OPERATORS.items() if operator.cuda]
    lines = [
        line
        for line in result.stdout.splitlines()
        if not re.search(rf"::({'|'.join(by_torch)})(_backward)? ", line)
    ]
    assert len(lines) == sum(
        path.read_text().count("m.impl(") for path in cuda_sources(ROOT / "csrc")
    )
    assert not [line for line in lines if not line.endswith("True")], result.stdout


# What is compiled for faults that are planted in a header.
COMPILED = {
    "correlation_products.cuh": "correlation_lookup",
    "correlation_gradients.cuh": "correlation_lookup_backward",
    "correlation_matrix.cuh": "correlation_lookup",
    "correlation_matrix_gradients.cuh": "correlation_lookup_backward",
    "read_windows.cuh": "read_volume",
    "volume_patches.cuh": "read_volume",
}
# The example that is run, forward and backward, and its size, for each source with planted faults.
EXAMPLES = {
    "convex_upsample": ("convex_upsample", (1, 3, 37)),
    "common_gradient": ("common_gradient", (1, 40, 70)),
    "correlation_lookup": ("correlation, scattered", (1, 9, 14)),
    "correlation_lookup_backward": ("correlation, scattered", (1, 9, 14)),
    "read_volume": ("read_volume, large", (1, 4, 13)),
    "warp_events": ("warp_events, flow", (1, 3, 4)),
}


def compiled(file: str) -> str:
    return COMPILED.get(file, file.removesuffix(".cu"))


def precision(file: str) -> str:
    """That of float32 products: tensor cores make them below "highest"."""
    return "high" if "matrix" in file else "highest"


def run_program(
    source: str, library: Path, variant: str, products: str
) -> subprocess.CompletedProcess:
    name, size = EXAMPLES[source]
    code = (
        "import torch\nfrom flowfuse import ops\nfrom flowfuse.ops.extension import kernels_on\n"
        f"torch.ops.load_library({str(library)!r})\n"
        f"torch.set_float32_matmul_precision({products!r})\n"
        f"example = ops.EXAMPLES[{name!r}](torch.float32, {size})\n"
        "found = example.run()\n"
        "with kernels_on():\n    wanted = example.run()\n"
        "for a, b in zip(found, wanted, strict=True):\n"
        "    scale = float(b.nan_to_num(0, 0, 0).abs().max())\n"
        "    if not torch.allclose(a, b, rtol=0, atol=1e-4 * scale, equal_nan=True):\n"
        "        raise SystemExit('wrong values')\n"
        "print('not found')\n"
    )
    return run_python(["-c", code], library, variant, "forward")


# Of the forward pass; the backward one has the same lines but the last.
FORWARD_TILE = (
    "    __syncthreads();  // the tile before has been read\n"
    "    load_signals(in, tile, signals);\n"
    "    __syncthreads();\n"
    "    for_windows(signals, tile, in.height, in.width, "
    "[&](int64_t y, int64_t x, const Moments<T>& moments) {\n"
    "      const Slopes<T> slopes"
)

# Name: variant, file, what is replaced (once), by what, and what must be said of it.
MUTANTS = {
    "removed barrier": (
        "conflicts",
        "convex_upsample.cu",
        "    __syncthreads();\n    for (int n = warp; n < 9 * kD;",
        "    for (int n = warp; n < 9 * kD;",
        r"conflict: this thread reads shared memory|reads shared memory that no thread has written",
    ),
    "shared-memory race": (
        "conflicts",
        "convex_upsample.cu",
        "parts[warp][k][d][lane] = sums[k][d];",
        "parts[warp / 2][k][d][lane] = sums[k][d];",
        "conflict: this thread writes shared memory",
    ),
    "global-memory race": (
        "conflicts",
        "convex_upsample.cu",
        "{ fine[place] = value; }",
        "{ fine[place / 2] = value; }",
        "conflict: this thread writes global memory",
    ),
    "divergent barrier": (
        "conflicts",
        "convex_upsample.cu",
        "    __syncthreads();  // by all warps",
        "    if (at.x() >= sizes.width) return;\n    __syncthreads();",
        "divergent barrier: another thread of the block has returned",
    ),
    "barriers at two places": (
        "conflicts",
        "convex_upsample.cu",
        "    __syncthreads();  // the parts have been read",
        "    if (warp == 0) {\n      __syncthreads();\n    } else {\n      __syncthreads();\n    }",
        "divergent barrier: another thread of the block waits somewhere else",
    ),
    "grid too large": (
        "conflicts",
        "convex_upsample.cu",
        "blocks_for(blocks, 1), kBlock, bytes",
        "dim3(1, static_cast<unsigned>(blocks) << 16), kBlock, bytes",
        "the limit is \\(2147483647, 65535, 65535\\)",
    ),
    "too little shared memory": (
        "conflicts",
        "convex_upsample.cu",
        "std::max(kWarps * sizeof(Lines<kD, T>), sizeof(Parts<kD, T>))",
        "sizeof(Parts<kD, T>) / 2",
        "beyond the [0-9]+ bytes of this launch",
    ),
    "read out of bounds": (
        "sanitizers",
        "convex_upsample.cu",
        "static_cast<T>(logits[k * step])",
        "static_cast<T>(logits[(k + 1) * step])",
        "AddressSanitizer: heap-buffer-overflow",
    ),
    "write out of bounds": (
        "sanitizers",
        "convex_upsample.cu",
        "smaller<int64_t>(kWarp, sizes.width - at.first_x)",
        "smaller<int64_t>(kWarp, sizes.width)",
        "AddressSanitizer: heap-buffer-overflow",
    ),
    "index beyond an array": (
        "sanitizers",
        "convex_upsample.cu",
        "for (int k = 0; k < 9; ++k) weights[k] *= share;",
        "for (int k = 0; k < 10; ++k) weights[k] *= share;",
        "index 9 out of bounds|insufficient space for an object",
    ),
    "removed barrier between tiles": (
        "few_blocks",
        "common_gradient.cu",
        FORWARD_TILE,
        FORWARD_TILE.replace("    __syncthreads();  // the tile before has been read\n", ""),
        "conflict: this thread writes shared memory",
    ),
    "removed barrier after a copy": (
        "conflicts",
        "correlation_products.cuh",
        "      copies_done();\n      __syncthreads();",
        "      copies_done();",
        r"conflict: this thread reads shared memory|reads shared memory that no thread has written",
    ),
    "copies that are not waited for": (
        "conflicts",
        "correlation_products.cuh",
        "      copies_done();\n",
        "",
        "this thread ends while copies that it started are under way",
    ),
    "copies to what is read": (
        "conflicts",
        "correlation_products.cuh",
        "multiply_up_to<kMost>(groups, memory, buffer,",
        "multiply_up_to<kMost>(groups, memory, 1 - buffer,",
        r"conflict: this thread reads shared memory|reads shared memory that no thread has written",
    ),
    "lanes that leave a shuffle": (
        "conflicts",
        "correlation_products.cuh",
        "    const int k = smaller(first + turn, count - 1);",
        "    if (first + turn >= count) break;\n    const int k = first + turn;",
        "divergent barrier",
    ),
    "removed barrier of a warp": (
        "conflicts",
        "correlation_gradients.cuh",
        "  __syncwarp();  // the list is there\n",
        "",
        r"conflict: this thread reads shared memory|reads shared memory that no thread has written",
    ),
    "taps read before all warps have made them": (
        "conflicts",
        "correlation_matrix.cuh",
        "box, origins, taps);\n  }\n  __syncthreads();",
        "box, origins, taps);\n  }",
        r"conflict: this thread reads shared memory|reads shared memory that no thread has written",
    ),
    "lanes that leave a product of matrices": (
        "conflicts",
        "correlation_matrix.cuh",
        "    const bool inside[2] = {first + g < count,",
        "    if (first + g >= count) break;\n    const bool inside[2] = {first + g < count,",
        "divergent barrier",
    ),
    "rows of a product in the wrong order": (
        "conflicts",
        "correlation_matrix.cuh",
        "multiply_matrices<M>(sums, {r[0], l[0], r[1], l[1]}, {c[0], c[1]});\n  } else {",
        "multiply_matrices<M>(sums, {r[0], r[1], l[0], l[1]}, {c[0], c[1]});\n  } else {",
        "wrong values",
    ),
    "half of the digits": (
        "conflicts",
        "correlation_matrix.cuh",
        "{c[0], c[1]});  // the small ones first",
        "{c[2], c[3]});",
        "wrong values",
    ),
    "list of pixels read too early": (
        "conflicts",
        "correlation_matrix_gradients.cuh",
        "  __syncwarp();  // the list is there\n",
        "",
        r"conflict: this thread reads shared memory|reads shared memory that no thread has written",
    ),
    "cells that are passed over": (
        "conflicts",
        "correlation_matrix_gradients.cuh",
        "cell.advance(3 * kSources);",
        "cell.advance(2 * kSources);",
        "wrong values",
    ),
    "windows read before they are found": (
        "conflicts",
        "read_volume.cu",
        "    __syncthreads();\n    read_taps(levels, patch);",
        "    read_taps(levels, patch);",
        r"conflict: this thread reads shared memory|reads shared memory that no thread has written",
    ),
    "windows overwritten while they are read": (
        "conflicts",
        "read_windows.cuh",
        "        __syncthreads();  // the chunk before has been read, and this one is there\n",
        "",
        r"conflict: this thread (reads|writes)|reads shared memory that no thread has written",
    ),
    "columns of a window passed over": (
        "conflicts",
        "read_volume.cu",
        "columns(begin) + 1, memory);",
        "columns(begin), memory);",
        r"wrong values|conflict|that no thread has written",
    ),
    "matches of one warp": (
        "conflicts",
        "read_windows.cuh",
        "          for (int r = 0; r < kRows; ++r) {\n            if (shared.parts[1]",
        "          for (int r = 0; r < 1; ++r) {\n            if (shared.parts[1]",
        "wrong values",
    ),
    "votes for one place that are lost": (
        "conflicts",
        "warp_events.cu",
        "      if (first && others != 0) value += other;",
        "      if (first && others == 0) value += other;",
        "wrong values",
    ),
    "lanes that do not vote": (
        "conflicts",
        "warp_events.cu",
        "    int64_t key = -1, votes[kCorners] = {};",
        "    if (item < 0) continue;\n    int64_t key = -1, votes[kCorners] = {};",
        "divergent barrier|waits",
    ),
    "small parts of features left out": (
        "conflicts",
        "correlation_matrix_gradients.cuh",
        "      multiply_matrices<BFloat16>(sums[w], small, factors);\n",
        "",
        "wrong values",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_fault_is_found(name, tmp_path):
    variant, file, old, new, message = MUTANTS[name]
    source = compiled(file)
    csrc = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    path = csrc / "cuda" / file
    text = path.read_text()
    assert text.count(old) == 1, f"{name}: the source has changed; plant the fault anew"
    path.write_text(text.replace(old, new))
    build(variant, WORK / variant)  # the emulator is the same for all faults
    emulator = WORK / variant / "emulator.o"
    library = build(variant, tmp_path / "build", csrc, only=(source,), emulator=emulator)
    result = run_program(source, library, variant, precision(file))
    assert result.returncode != 0, result.stdout
    assert re.search(message, result.stderr), result.stderr[-3000:]
    assert "not found" not in result.stdout


@pytest.mark.parametrize(
    ("variant", "source", "products"),
    sorted({(v, compiled(f), precision(f)) for v, f, *_ in MUTANTS.values()}),
)
def test_sources_without_faults_pass(variant, source, products):
    """The planted faults are found in code that otherwise passes."""
    result = run_program(source, build(variant, WORK / variant), variant, products)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["not", "found"]
