"""Nothing is made on the CPU that should be on the device of the inputs, and no fake kernel lies.

Fake tensors know shapes, dtypes, strides and devices but hold no numbers, so a computation on
another device can be followed without having one. A build of torch without CUDA cannot do it for
"cuda" (it has no guard for the device), and "meta" stands for the other device there.
"""

from __future__ import annotations

import pytest
import torch
from device_cases import OTHER, leave_meta_alone, recorded
from test_model import TINY, make_batch, make_inputs
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_map_only

from flowfuse.inputs import ModelInputs
from flowfuse.losses.self_supervised import SelfSupervisionConfig, self_supervised_loss
from flowfuse.losses.supervised import LossConfig, supervised_loss
from flowfuse.model import FlowFuse, ModelOutput
from flowfuse.ops import EXAMPLES
from flowfuse.ops.examples import DTYPES, LAYOUTS
from flowfuse.ops.extension import LIBRARY, kernels_on

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the compiled operators are not built")


@pytest.fixture(autouse=True)
def no_autocast_of_meta(monkeypatch):
    leave_meta_alone(monkeypatch)


def fake(mode: FakeTensorMode, tensor: torch.Tensor, device: str = OTHER) -> torch.Tensor:
    """A fake tensor of the same shape, dtype and strides."""
    with mode:
        made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        return made.requires_grad_(tensor.requires_grad)


def fakes(mode, tensors):
    return {name: fake(mode, tensor) for name, tensor in tensors.items()}


class FakeModel:
    """The model of a configuration with fake weights on the other device."""

    def __init__(self, config) -> None:
        self.mode = FakeTensorMode()
        with torch.device("meta"):
            self.model = FlowFuse(config)
        self.weights = fakes(self.mode, dict(self.model.named_parameters()))
        self.buffers = fakes(self.mode, dict(self.model.named_buffers()))

    def __call__(self, inputs: ModelInputs) -> ModelOutput:
        named = self.weights | self.buffers
        with kernels_on("cpu", OTHER):
            return torch.func.functional_call(self.model, named, (inputs,))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("supervision", ["ground_truth", "self"])
def test_training_stays_on_its_device(supervision, bf16):
    if bf16 and OTHER == "meta":
        pytest.skip("autocast of another device needs a GPU")
    inputs = make_inputs(TINY, batch=2, channels=3)
    names = ("frame0", "frame1", "event_sum", "exposure")
    batch = make_batch(inputs)._replace(**{name: getattr(inputs, name) for name in names})
    model = FakeModel(TINY)
    inputs = ModelInputs(*(fake(model.mode, tensor) for tensor in inputs))
    batch = batch.map(lambda tensor: fake(model.mode, tensor))
    with model.mode, kernels_on("cpu", OTHER):
        with torch.autocast(OTHER, torch.bfloat16, enabled=bf16):
            output = model(inputs)
        if supervision == "ground_truth":
            loss, parts = supervised_loss(output, batch, LossConfig())
        else:
            loss, parts = self_supervised_loss(output, batch, SelfSupervisionConfig())
        trained = list(model.weights.values())
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    made = [*output, loss, *parts.values(), *(g for g in gradients if g is not None)]
    assert {tensor.device.type for tensor in made} == {OTHER}
    assert output.control_points.dtype == output.boundary.dtype == loss.dtype == torch.float32
    assert output.control_points.shape == (2, 2, 2, 40, 48)


def test_a_tensor_on_the_wrong_device_is_noticed():
    model = FakeModel(TINY)
    inputs = [fake(model.mode, tensor) for tensor in make_inputs(TINY)]
    for index in range(len(inputs)):
        mixed = list(inputs)
        mixed[index] = fake(model.mode, inputs[index], "cpu")
        with model.mode, pytest.raises((RuntimeError, ValueError), match="device"):
            model(ModelInputs(*mixed))


@pytest.mark.slow
def test_export_on_another_device():
    with torch.device(OTHER):
        network = FlowFuse(TINY).eval()
    inputs = ModelInputs(*(torch.empty_like(v, device=OTHER) for v in make_inputs(TINY)))
    with kernels_on("cpu", OTHER):
        program = torch.export.export(network, (inputs,), strict=False)
    found = {
        node.meta["val"].device.type
        for node in program.graph.nodes
        if isinstance(node.meta.get("val"), torch.Tensor)
    }
    assert found == {OTHER}
    called = {str(n.target) for n in program.graph.nodes if "flowfuse" in str(n.target)}
    assert {"flowfuse.common_gradient.default", "flowfuse.convex_upsample.default"} <= called


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_fake_kernels_tell_the_truth(name, layout):
    """Shape, dtype and strides of every result, forward and backward, with each dtype."""
    for dtype in DTYPES:
        for size in ((2, 7, 9), (1, 1, 1)):
            example = EXAMPLES[name](dtype, size).laid_out(layout)
            for operator, arguments in recorded(example):
                results = tree_flatten(operator(*arguments))[0]
                mode = FakeTensorMode()
                as_fakes = tree_map_only(
                    torch.Tensor, lambda tensor, mode=mode: fake(mode, tensor), arguments
                )
                with mode:
                    promised = tree_flatten(operator(*as_fakes))[0]
                for real, said in zip(results, promised, strict=True):
                    assert said.device.type == OTHER, operator
                    assert (said.shape, said.dtype) == (real.shape, real.dtype), operator
                    assert said.stride() == real.stride() or real.numel() < 2, operator
