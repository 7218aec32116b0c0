"""python -m flowfuse.ops: the test of an installation."""

from __future__ import annotations

import importlib

import pytest
import torch

from flowfuse.ops import OPERATORS, extension
from flowfuse.ops.examples import Example

selftest = importlib.import_module("flowfuse.ops.__main__")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def test_every_operator_agrees(capsys):
    assert selftest.main() == 0
    told = capsys.readouterr().out
    assert "no GPU: nothing is tested there" in told
    for name in OPERATORS:
        assert any(line.startswith(name) and "ok" in line for line in told.splitlines()), name
    assert told.splitlines()[-1] == "every operator agrees with its reference"


def without_kernels() -> bool:
    return not extension.KERNEL_DEVICES


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_an_operator_that_is_off_is_told(monkeypatch, capsys, wrong):
    def examples():
        yield "right", Example(lambda x: 2 * x, (torch.ones(3),))
        yield "off", Example(lambda x: (1 if without_kernels() else wrong) * x, (torch.ones(3),))

    monkeypatch.setattr(selftest, "examples", examples)
    assert selftest.main() == 1
    *_, right, off, end = capsys.readouterr().out.splitlines()
    assert "ok" in right and "WRONG" in off and end == "1 FAILED"


def test_nothing_is_tested_on_a_device_that_is_lost(monkeypatch, capsys):
    def lost(x):
        if without_kernels():
            return x.clone()
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def examples():
        yield "bad", Example(lost, (torch.ones(3),))
        yield "later", Example(lambda x: x.clone(), (torch.ones(3),))

    monkeypatch.setattr(selftest, "examples", examples)
    assert selftest.main() == 1
    told = capsys.readouterr().out
    assert "later" not in told and told.splitlines()[-1].startswith("1 FAILED; cpu may be lost")
