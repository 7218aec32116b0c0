"""From a checkpoint to an estimator."""

from __future__ import annotations

import numpy as np
import pytest
from estimator_cases import T0, T1, make_model

from flowfuse.estimator import Estimator, load
from flowfuse.model.checkpoint import save_checkpoint


def test_load(tmp_path, frames, events):
    model = make_model()
    save_checkpoint(tmp_path / "tiny.safetensors", model, training={"steps": 3})
    loaded = load(tmp_path / "tiny.safetensors")
    assert loaded.info["training"] == {"steps": 3}
    expected = Estimator(model)(*frames, events, t0=T0, t1=T1).flow
    assert np.array_equal(loaded(*frames, events, t0=T0, t1=T1).flow, expected)
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        load(tmp_path / "none.safetensors")
    whole = (tmp_path / "tiny.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated"):
        load(tmp_path / "cut.safetensors")


def test_what_cannot_be_loaded_is_named():
    for arguments, message in (
        ((None,), "load: checkpoint must be a name or a path, got None"),
        (("small", None), "device must be auto, cpu, cuda or cuda:N, got 'None'"),
    ):
        with pytest.raises(ValueError, match=message):
            load(*arguments)
