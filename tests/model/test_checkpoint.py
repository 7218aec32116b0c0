"""checkpoint.py: safetensors in and out, and every way in which a file can be wrong."""

from __future__ import annotations

import json
import pickle
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from flowfuse.config import config_to_json
from flowfuse.model import FlowFuse, ModelConfig
from flowfuse.model import checkpoint as cp

TINY = ModelConfig(
    name="tiny", slices=2, bins=2, stem_channels=8, channels=8, hidden=8, token_channels=8,
    boundary_channels=8, iterations=1, radius=1, levels=1, dilations=(1,),
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> FlowFuse:
    torch.manual_seed(0)
    return FlowFuse(TINY).eval()


@pytest.fixture
def path(tmp_path, model):
    path = tmp_path / "model.safetensors"
    cp.save_checkpoint(path, model, training={"steps": 7, "data": "scenes:fast"})
    return path


def rewrite(path, *, metadata=None, tensors=None, without=()):
    """Write the checkpoint at `path` again with some of it changed."""
    with safe_open(str(path), "pt") as file:
        kept = {k: file.get_tensor(k) for k in file.keys() if k not in without}
        found = file.metadata()
    save_file({**kept, **(tensors or {})}, str(path), metadata={**found, **(metadata or {})})


def test_round_trip_same_bits(path, model):
    loaded, info = cp.load_checkpoint(path)
    assert loaded.config == TINY and not loaded.training
    assert info == {
        "path": str(path), "version": 1, "training": {"steps": 7, "data": "scenes:fast"},
    }  # fmt: skip
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(t, expected[name]) for name, t in loaded.state_dict().items())


def test_file_is_as_readable_as_any_other(path):
    other = path.with_name("other")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_loading_spends_no_random_draw(path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    cp.load_checkpoint(path)
    assert torch.equal(torch.rand(3), expected)


def test_channels_last_and_more_tensors(tmp_path, model):
    path = tmp_path / "x.safetensors"
    copy = FlowFuse(TINY).to(memory_format=torch.channels_last)
    copy.load_state_dict(model.state_dict())
    cp.save_checkpoint(path, copy, tensors={"raw.a": torch.arange(6).view(2, 3).T})
    loaded, _ = cp.load_checkpoint(path)
    expected = model.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in loaded.state_dict().items())
    assert torch.equal(cp.read_tensors(path, "raw.")["a"], torch.arange(6).view(2, 3).T)
    with pytest.raises(ValueError, match=r"tensor name model\.a is kept"):
        cp.save_checkpoint(path, copy, tensors={"model.a": torch.zeros(1)})


def test_failed_write_leaves_the_former_file(path, model, monkeypatch):
    before = path.read_bytes()

    def disk_full(self, data):
        with open(self, "wb") as file:
            file.write(data[:100])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(OSError, match="No space left"):
        cp.save_checkpoint(path, model)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_truncated(path, size):
    data = path.read_bytes()
    path.write_bytes(data[:size])
    with pytest.raises(cp.CheckpointError, match="not a safetensors file, or truncated"):
        cp.load_checkpoint(path)


def test_a_pickle_is_refused_unopened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "model.pth"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(cp.CheckpointError, match="not a safetensors file"):
        cp.load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_absurd_header_length(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(cp.CheckpointError, match="not a safetensors file"):
        cp.load_checkpoint(path)


def test_another_programs_file(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, str(path))
    with pytest.raises(cp.CheckpointError, match=r"no flowfuse checkpoint: .*format = None"):
        cp.load_checkpoint(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"version": "2"}, "newer flowfuse .*version 2; this one reads up to 1.*upgrade"),
        ({"version": "one"}, "version must be a positive whole number, got 'one'"),
        ({"version": "0"}, "version must be a positive whole number, got '0'"),
        (
            {"config": json.dumps({**json.loads(config_to_json(TINY)), "levels": 500})},
            r"model.safetensors: .*levels must be at most 16, got 500",
        ),
        (
            {"config": json.dumps({**json.loads(config_to_json(TINY)), "channels": 10**8})},
            r"model.safetensors: does not fit the model",
        ),
        (
            {"config": json.dumps({**json.loads(config_to_json(TINY)), "hidden": 10**30})},
            r"model.safetensors: no model has this configuration",
        ),
        ({"config": "{"}, "model configuration: not JSON"),
        (
            {"config": json.dumps({**json.loads(config_to_json(TINY)), "chanels": 3})},
            "unknown key chanels; did you mean channels",
        ),
        (
            {"config": config_to_json(TINY).replace("evidence", "summed")},
            "fusion must be evidence or guided",
        ),
        ({"training": "{"}, "training metadata is no JSON"),
    ],
)
def test_wrong_metadata(path, metadata, message):
    rewrite(path, metadata=metadata)
    with pytest.raises(cp.CheckpointError, match=message):
        cp.load_checkpoint(path)


def test_tensors_of_another_architecture(path, model):
    name = next(n for n, t in model.state_dict().items() if t.ndim == 4)
    shape = list(model.state_dict()[name].shape)
    rewrite(path, tensors={f"model.{name}": torch.zeros(1, 2), "model.odd": torch.zeros(1)})
    with pytest.raises(cp.CheckpointError) as caught:
        cp.load_checkpoint(path)
    assert f"{name} (file [1, 2], model {shape})" in str(caught.value)
    assert "1 tensors that the model does not have: odd" in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_tensors_that_are_not_finite(path, model, value):
    name, tensor = next(iter(model.state_dict().items()))
    rewrite(path, tensors={f"model.{name}": torch.full_like(tensor, value)})
    with pytest.raises(cp.CheckpointError, match=f"model.safetensors: tensor {name} must be fin"):
        cp.load_checkpoint(path)


def test_tensors_of_another_dtype(path, model):
    name, tensor = next(iter(model.state_dict().items()))
    rewrite(path, tensors={f"model.{name}": tensor.half()})
    cp.load_checkpoint(path)
    rewrite(path, tensors={f"model.{name}": tensor.to(torch.int32)})
    message = rf"another dtype: {name} \(file torch.int32, model torch.float32\)"
    with pytest.raises(cp.CheckpointError, match=message):
        cp.load_checkpoint(path)


def test_missing_tensors_name_the_first_few(path, model):
    names = list(model.state_dict())
    rewrite(path, without={f"model.{name}" for name in names[:6]})
    with pytest.raises(cp.CheckpointError, match=r"6 tensors missing: .* and 2 more") as caught:
        cp.load_checkpoint(path)
    assert names[0] in str(caught.value) and names[5] not in str(caught.value)


def test_a_file_without_later_parts_loads(path, model):
    later = ("refinement.boundary.", "refinement.correction.")
    weights = model.state_dict()
    names = [name for name in weights if name.startswith(later)]
    assert len(names) == 8
    rewrite(path, without={f"model.{name}" for name in names})
    loaded = cp.load_checkpoint(path)[0].state_dict()
    for last in ("refinement.boundary", "refinement.correction.change"):  # change nothing
        assert not loaded[f"{last}.weight"].any() and not loaded[f"{last}.bias"].any()
    assert loaded["refinement.correction.mix.weight"].any(), "or it could not be trained"
    assert all(torch.equal(loaded[name], weights[name]) for name in weights.keys() - names)


def test_later_parts_are_always_the_same_and_spend_no_draw(path):
    names = (
        f"{layer}.{kind}" for layer in ("merge", "mix", "change") for kind in ("weight", "bias")
    )
    rewrite(path, without={f"model.refinement.correction.{name}" for name in names})
    torch.manual_seed(3)
    first, draw = cp.load_checkpoint(path)[0].state_dict(), torch.rand(1)
    torch.manual_seed(4)
    again = cp.load_checkpoint(path)[0].state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), draw)


def test_half_of_a_later_part_is_missing(path):
    rewrite(path, without={"model.refinement.correction.mix.weight"})
    with pytest.raises(cp.CheckpointError, match=r"missing: refinement.correction.mix.weight"):
        cp.load_checkpoint(path)


def test_a_configuration_of_an_earlier_version_has_no_selection(tmp_path):
    path = tmp_path / "earlier.safetensors"
    model = FlowFuse(replace(TINY, selection=False))
    cp.save_checkpoint(path, model)
    values = json.loads(config_to_json(model.config))
    del values["selection"]
    rewrite(path, metadata={"config": json.dumps(values)})
    loaded, _ = cp.load_checkpoint(path)
    assert loaded.config == model.config


def test_config_that_does_not_match_the_tensors(path):
    rewrite(path, metadata={"config": config_to_json(replace(TINY, channels=16))})
    with pytest.raises(cp.CheckpointError, match="tensors of another shape"):
        cp.load_checkpoint(path)


def test_resolve(path, tmp_path, monkeypatch):
    assert cp.resolve_checkpoint(path) == path
    assert cp.resolve_checkpoint(tmp_path) == path  # a run directory
    with pytest.raises(FileNotFoundError, match=r"absent: no such file, .*shipped"):
        cp.resolve_checkpoint("absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="directory without model"):
        cp.resolve_checkpoint(tmp_path / "empty")
    monkeypatch.setattr(cp, "WEIGHTS", tmp_path)
    assert cp.available() == ("model",)
    assert cp.resolve_checkpoint("model") == path


def test_shipped_checkpoints_load():
    for name in cp.available():
        model, info = cp.load_checkpoint(cp.resolve_checkpoint(name))
        assert info["training"] and all(t.isfinite().all() for t in model.state_dict().values())
