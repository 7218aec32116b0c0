"""The network of an estimator never waits for the device, and makes nothing on the host.

Fake tensors follow it on another device without having one ("meta" where torch has no CUDA, see
tests/ops/test_fake_cuda.py): an operation that asks for a value fails, and a mode counts those that
would make a GPU wait.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from device_cases import OTHER, leave_meta_alone
from estimator_cases import T0, T1
from test_model import TINY, make_inputs
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flowfuse import inputs as inputs_module
from flowfuse.estimator.running import NetworkRunner
from flowfuse.events import Events
from flowfuse.inputs import (
    InputSpec,
    ModelInputs,
    input_interval,
    prepare_inputs,
    upload_together,
)
from flowfuse.model import CONFIGS, FlowFuse
from flowfuse.model.normalization import SliceScale
from flowfuse.ops.extension import LIBRARY, kernels_on

needs_kernels = pytest.mark.skipif(LIBRARY is None, reason="the compiled operators are not built")
# What has a shape that depends on values, or hands a value to Python.
WAITING = {
    "_local_scalar_dense", "_unique", "_unique2", "argwhere", "bincount", "equal", "is_nonzero",
    "item", "masked_select", "nonzero", "nonzero_numpy", "unique_consecutive", "unique_dim",
    "_linalg_check_errors", "_assert_async", "histc",
}  # fmt: skip


class Waits(TorchDispatchMode):
    """Counts, by name, the operations that make a GPU and its host wait for each other."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.seen = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self.seen += 1
        masks = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            tensor.dtype in (torch.bool, torch.uint8) for tensor in tree_leaves(args[1])
            if isinstance(tensor, torch.Tensor)
        )  # fmt: skip
        by_values = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in WAITING or masks or by_values:
            self.found[name] += 1
        results = function(*args, **kwargs)
        # torch.tensor([...]) and copies from one device to another.
        devices = {tensor.device.type for tensor in given}
        made = {leaf.device.type for leaf in tree_leaves(results) if isinstance(leaf, torch.Tensor)}
        if name == "lift_fresh" or len(devices | made) > 1:
            self.found[f"{name} from {sorted(devices)} to {sorted(made)}"] += 1
        return results


def waits(work) -> Counter[str]:
    with Waits() as mode:
        work()
    assert mode.seen
    return mode.found


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda x: x + x.sum(), {}),
        (lambda x: x[:, 0].cumsum(0), {}),
        (lambda x: x[torch.zeros(2, dtype=torch.int64)], {}),
        (lambda x: x.sum().item(), {"_local_scalar_dense"}),
        (lambda x: bool((x > 0).all()), {"_local_scalar_dense"}),
        (lambda x: x.sum() and x, {"_local_scalar_dense"}),
        (lambda x: x[x > 0], {"index"}),
        (lambda x: x.masked_select(x > 0), {"masked_select"}),
        (lambda x: x.nonzero(), {"nonzero"}),
        (lambda x: torch.unique(x), {"_unique2"}),
        (lambda x: torch.equal(x, x), {"equal"}),
        (lambda x: torch.tensor([1.0, 2.0]) + x[0, 0], {"lift_fresh from ['cpu'] to ['cpu']"}),
        (lambda x: x.to("meta"), {"_to_copy from ['cpu'] to ['meta']"}),
        (lambda x: torch.empty_like(x, device="meta").copy_(x), None),
        (lambda x: torch.linalg.solve(torch.eye(3), x), {"_linalg_check_errors"}),
    ],
)  # fmt: skip
def test_what_waits_is_counted(work, expected):
    found = waits(lambda: work(torch.rand(3, 3)))
    if expected is None:
        assert found
    else:
        assert set(found) == set(expected)


@pytest.fixture
def on_meta(monkeypatch):
    leave_meta_alone(monkeypatch)


def fake(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=OTHER)


def fake_runner(config) -> NetworkRunner:
    """A network with fake weights on the other device; to be made and run under a fake mode."""
    with unset_fake_temporarily(), torch.device("meta"):
        model = FlowFuse(config)
    for module in model.modules():
        for values in (module._parameters, module._buffers):
            for key, value in values.items():
                values[key] = None if value is None else fake(value)
    model.to = lambda device: model  # it is there, and fake tensors cannot be swapped
    return NetworkRunner(model, torch.device(OTHER), torch.float32, graph=False)


CHOICES = {
    "tiny": (TINY, {}),
    "small": (CONFIGS["small"], {}),
    "base": (CONFIGS["base"], {"channels": 3}),
    "two pairs": (TINY, {"batch": 2}),
    "no multiple of 8": (TINY, {"height": 43, "width": 50}),
    "guided": (replace(TINY, fusion="guided"), {}),
    "concatenation": (replace(TINY, fusion="concatenation"), {}),
    "frames": (replace(TINY, events=False), {}),
    "events": (replace(TINY, frames=False), {}),
    "volume": (replace(TINY, correlation="volume"), {}),
    "on demand": (replace(TINY, correlation="on_demand"), {}),
    "many steps": (replace(TINY, gradient_steps=3), {}),
}


@needs_kernels
@pytest.mark.parametrize("name", CHOICES)
def test_an_estimate_never_waits(on_meta, name):
    config, options = CHOICES[name]
    real = make_inputs(config, **options)
    height, width = real.slices.shape[-2:]
    with FakeTensorMode(), kernels_on("cpu", OTHER):
        runner = fake_runner(config)
        inputs = ModelInputs(*map(fake, real))
        start = torch.empty(len(real.slices), 2, height, width, device=OTHER)
        made = []
        found = waits(lambda: made.extend(runner(inputs, 2)))
        found += waits(lambda: made.extend(runner(inputs, 2, start)))
        if config.frames:
            frames = []
            for frame in (inputs.frame0, inputs.frame1):
                found += waits(lambda frame=frame: frames.append(runner.encode_frame(frame)))
            found += waits(lambda: made.extend(runner(inputs, 2, None, tuple(frames))))
            made += [part for frame in frames for part in frame]
            found += waits(lambda: made.extend(runner(inputs, 2, None, (frames[0], None))))
        if config.events:
            scale = SliceScale(torch.empty(len(real.slices), 1, device=OTHER), inputs.event_sum)
            slices = []
            for voxels in inputs.slices.unbind(1):
                found += waits(
                    lambda voxels=voxels: slices.append(runner.encode_slice(voxels, scale))
                )
            found += waits(lambda: made.extend(runner(inputs, 2, encoded_slices=slices)))
    assert not found
    assert {tensor.device.type for tensor in made} == {OTHER}
    assert made[0].shape == (len(real.slices), config.degree, 2, height, width)


def test_an_estimate_with_real_numbers_never_waits():
    """Branches on values, which fake tensors do not take."""
    config = replace(TINY, gradient_steps=2)
    runner = NetworkRunner(FlowFuse(config), torch.device("cpu"), torch.float32)
    runner.graphs = lambda kind, work, tensors: work(tensors)  # what a graph would record
    inputs = make_inputs(config)
    absent = inputs._replace(modality_mask=torch.tensor([[0.0, 1.0, 1.0, 0.0]]))
    start = torch.full((1, 2, 40, 48), float("nan"))
    for given in (inputs, absent):
        assert not waits(lambda given=given: runner(given))
        assert not waits(lambda given=given: runner(given, 1, start))


class PageLocked:
    """Stands for page-locked memory, which torch has only beside a GPU."""

    def __init__(self, monkeypatch) -> None:
        self.kept: list[torch.Tensor] = []  # so that no other tensor gets their place
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: self.keep(tensor.clone()))
        monkeypatch.setattr(
            inputs_module,
            "page_locked",
            lambda size: self.keep(torch.empty(size, dtype=torch.uint8)),
        )
        monkeypatch.setattr(inputs_module, "GPU_TYPES", ("meta",))

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        self.kept.append(tensor)
        return tensor

    def holds(self, tensor: torch.Tensor) -> bool:
        return any(tensor is kept for kept in self.kept)


class Uploads(TorchDispatchMode):
    """Keeps what is copied from the host to the device, and refuses the other way."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[torch.Tensor] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        assert name not in WAITING
        result = function(*args, **kwargs)
        if name == "_to_copy" and args[0].device != result.device:
            assert result.device.type == "meta", "a copy to the host"
            assert kwargs.get("non_blocking"), "a copy that is waited for"
            self.sources.append(args[0])
        elif name == "copy_":
            assert args[0].device == args[1].device
        return result


@needs_kernels
@pytest.mark.parametrize("shown", ["frames and events", "frames", "events"])
def test_inputs_are_uploaded_once_from_page_locked_memory(monkeypatch, frames, events, shown):
    locked = PageLocked(monkeypatch)
    pair = [torch.from_numpy(frame) for frame in frames] if "frames" in shown else [None] * 2
    given = events if "events" in shown else Events.empty(*frames.shape[1:])
    spec = InputSpec(slices=2, bins=3)
    with kernels_on("cpu", "meta"), Uploads() as uploads:
        made = prepare_inputs(
            *pair, given, t0=T0, t1=T1, spec=spec, exposures=(4000, 2000), device="meta"
        )
    assert {tensor.device.type for tensor in made} == {"meta"}
    assert all(map(locked.holds, uploads.sources))
    # Events; times of the slices and of the sum; frames; exposures and mask: small, but for two.
    assert len(uploads.sources) == (7 if "frames" in shown else 5)
    used = given.slice_time(*input_interval(T0, T1, 2, 4000, 2000))
    largest = max(source.numel() * source.element_size() for source in uploads.sources)
    if "frames" not in shown:
        assert largest <= 17 * len(used) + 64


def test_arrays_side_by_side_keep_their_values(monkeypatch):
    arrays = [
        np.arange(5, dtype=np.uint16), np.arange(3) - 2, np.array([], np.float32),
        np.arange(6, dtype=np.float32)[::2], np.ones(1, np.uint8),
    ]  # fmt: skip
    monkeypatch.setattr(inputs_module, "GPU_TYPES", ("cpu",))
    monkeypatch.setattr(
        inputs_module, "page_locked", lambda size: torch.empty(size, dtype=torch.uint8)
    )
    for array, found in zip(arrays, upload_together(arrays, "cpu"), strict=True):
        assert found.dtype == torch.from_numpy(array).dtype
        assert found.data_ptr() % 16 == 0 or not len(array)
        np.testing.assert_array_equal(found.numpy(), array)
