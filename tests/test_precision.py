"""Where bfloat16 is native, and what the estimator says where it is not."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch

from flowfuse import precision
from flowfuse.estimator import Estimator
from flowfuse.model import CONFIGS, FlowFuse
from flowfuse.ops import extension

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "flags, supported, native",
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True, True),
        ({"bf16": True}, True, True),  # ARM
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, True, False),  # emulated
        ({"avx2": True}, False, False),
        ({"avx512_bf16": True}, False, False),  # ONEDNN_MAX_CPU_ISA
        ({}, True, False),
    ],
)
def test_native_needs_the_instructions_and_their_use(monkeypatch, flags, supported, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    assert precision.has_native_bfloat16(CPU) is native
    assert precision.has_native_bfloat16(torch.device("cuda"))


def test_the_switch_of_the_convolutions_takes_bfloat16_away():
    done = subprocess.run(
        [sys.executable, "-c", "from flowfuse import precision as p; print(p.cpu_has_bfloat16())"],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("native", [True, False])
def test_the_estimator_warns_once_and_obeys(monkeypatch, native):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: native)
    monkeypatch.setattr(extension, "_announced", set())
    model = FlowFuse(CONFIGS["nano"])
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for dtype in (torch.bfloat16, torch.bfloat16, torch.float32, None):
            assert Estimator(model, dtype=dtype).dtype == (dtype or torch.float32)
    told = [str(warning.message) for warning in found]
    expected = "dtype torch.bfloat16: this CPU has no bfloat16 instructions: float32 is faster"
    assert told == ([] if native else [expected])
