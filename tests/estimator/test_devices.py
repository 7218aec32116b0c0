"""Where a network can run, and how precisely."""

from __future__ import annotations

import pytest
import torch

from flowfuse.estimator import Estimator, select_device


def test_device_and_dtype_are_checked(estimator):
    for device, message in (("toaster", "'toaster'"), ("mps", "got 'mps'"), ("cuda:99", "sees")):
        with pytest.raises(ValueError, match=message):
            Estimator(estimator.model, device=device)
    with pytest.raises(ValueError, match="dtype on cpu must be one of"):
        Estimator(estimator.model, dtype=torch.float16)


def test_the_device_that_is_there_is_found():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert select_device("auto") == torch.device(expected)
    assert select_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ValueError, match=r"device must be auto, cpu, cuda or cuda:N, got '3\.5'"):
        select_device(3.5)
