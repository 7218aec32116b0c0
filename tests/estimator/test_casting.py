"""Weights in low precision are cast once, and the results stay what autocast makes of them."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace

import pytest
import torch
from estimator_cases import make_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flowfuse.estimator.casting import CastNetwork, cast_by_autocast
from flowfuse.estimator.running import NetworkRunner
from flowfuse.inputs import ModelInputs
from flowfuse.model import FlowFuse

CPU = torch.device("cpu")


class WeightCasts(TorchDispatchMode):
    """Counts casts to another dtype of the weights of a network."""

    def __init__(self, model: FlowFuse) -> None:
        super().__init__()
        self.names = {p.untyped_storage().data_ptr(): name for name, p in model.named_parameters()}
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        results = operator(*args, **(kwargs or {}))
        if operator._schema.name in ("aten::to", "aten::_to_copy", "aten::copy_"):
            source = args[1] if operator._schema.name == "aten::copy_" else args[0]
            name = self.names.get(source.untyped_storage().data_ptr())
            if name and isinstance(results, Tensor) and results.dtype != source.dtype:
                self.found[name] += 1
        return results


@pytest.fixture
def model() -> FlowFuse:
    return make_model()


def make_inputs(model: FlowFuse) -> ModelInputs:
    generator = torch.Generator().manual_seed(1)
    config, size = model.config, (32, 48)
    slices = torch.rand(1, config.slices + 1, config.bins, *size, generator=generator)
    frames = torch.rand(3, 1, 1, *size, generator=generator)
    return ModelInputs(slices, *frames, torch.zeros(1, 2), torch.ones(1, 4))


def plain(model: FlowFuse, inputs: ModelInputs) -> tuple[Tensor, Tensor, Tensor]:
    """What autocast makes of the network as it is."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        output = model(inputs)
    return output.control_points, output.uncertainty, output.boundary


def assert_same(found, wanted) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


def test_each_weight_is_cast_once(model):
    inputs, run = make_inputs(model), NetworkRunner(model, CPU, torch.bfloat16)
    with WeightCasts(model) as counted:
        first = run(inputs)
    expected = {
        name
        for name, weight in model.named_parameters()
        if name.endswith("weight") and weight.dim() > 1 and "tokens.read" not in name
    }
    assert set(counted.found.values()) == {1} and expected <= set(counted.found)
    with WeightCasts(model) as counted:
        second = run(inputs)
        run.encode_frame(inputs.frame0)
    assert not counted.found
    assert_same(first, second)
    with WeightCasts(model) as counted:
        wanted = plain(model, inputs)
    assert sum(counted.found.values()) > len(expected)  # what would be cast at every call
    assert_same(first, wanted)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_float32_has_no_copy(model):
    assert NetworkRunner(model, CPU, torch.float32)._network() is model


def test_weights_that_change_are_cast_anew(model):
    inputs, run = make_inputs(model), NetworkRunner(model, CPU, torch.bfloat16)
    before = run(inputs)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    assert_same(run(inputs), plain(model, inputs))
    assert not torch.equal(run(inputs)[0], before[0])
    other = {name: 0.9 * value for name, value in model.state_dict().items()}
    model.load_state_dict(other)
    assert_same(run(inputs), plain(model, inputs))
    model.load_state_dict(other, assign=True)  # other tensors
    assert_same(run(inputs), plain(model, inputs))
    model.config = replace(model.config, correlation="volume")
    assert run._network().config is model.config


def test_hooks_and_training_get_the_network_itself(model):
    network = CastNetwork(model.eval(), torch.bfloat16)
    assert network.current() is not model
    called = []
    hook = model.head.register_forward_hook(lambda *_: called.append(1))
    NetworkRunner(model, CPU, torch.bfloat16)(make_inputs(model))
    assert network.current() is model and called
    hook.remove()
    assert network.current() is not model
    model.train()
    assert network.current() is model


def test_what_is_cast(model):
    """All convolutions but those of the tokens, whose operator reads float32."""
    cast = {id(weight) for weight in cast_by_autocast(model)}
    kept = {name for name, weight in model.named_parameters() if id(weight) not in cast}
    assert "refinement.tokens.read.0.weight" in kept and "tokens.read.2.bias" in kept
    assert not any(
        name.startswith(("trunk.blocks.0.conv", "update.", "evidence.")) for name in kept
    )


def test_a_copy_is_pickled_as_the_network(model):
    network = CastNetwork(model.eval(), torch.bfloat16)
    network.current()
    copied = pickle.loads(pickle.dumps(network))
    assert copied._cast is None and copied.dtype == torch.bfloat16
    assert copied.current().head.out.weight.dtype == torch.bfloat16
