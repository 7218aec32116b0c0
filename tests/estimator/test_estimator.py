"""Arrays in, results out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from estimator_cases import CONFIG, HEIGHT, T0, T1, WIDTH, make_model

from flowfuse.estimator import Estimator, load
from flowfuse.events import Events
from flowfuse.inputs import ModelInputs
from flowfuse.model import FlowFuse


def test_shapes_and_dtypes(estimator, frames, events):
    result = estimator(*frames, events, t0=T0, t1=T1)
    image = (HEIGHT, WIDTH)
    assert result.modalities == ("frames", "events")
    for value, shape in (
        (result.flow, (2, *image)),
        (result.at(0.5), (2, *image)),
        (result.at([0.2, 0.4, 1.0]), (3, 2, *image)),
        (result.velocity(0.5), (2, *image)),
        (result.boundary, (2, *image)),
        (result.uncertainty, image),
        (result.control_points, (3, 2, *image)),
        (result.track(np.ones((5, 2)), 0.5), (5, 2)),
        (result.track(np.ones((5, 2)), [0.1, 0.5]), (2, 5, 2)),
        (result.at_events(events.slice_time(T0, T1)), (len(events.slice_time(T0, T1)), 2)),
    ):
        assert isinstance(value, np.ndarray) and value.dtype == np.float32 and value.shape == shape
        assert np.isfinite(value).all()
    assert np.array_equal(result.flow, result.control_points[-1])
    assert (result.boundary > 0).all() and (result.boundary < 1).all()
    assert (result.uncertainty >= 0.25).all()  # a mixture of scales of 1/4 px and more


def test_torch_in_torch_out_and_no_aliasing(estimator, frames, events):
    as_numpy = estimator(*frames, events, t0=T0, t1=T1)
    tensors = [torch.from_numpy(frame) for frame in frames]
    as_torch = estimator(*tensors, events, t0=T0, t1=T1)
    assert isinstance(as_torch.flow, torch.Tensor) and not as_torch.flow.is_inference()
    assert np.array_equal(as_torch.flow.numpy(), as_numpy.flow)
    for result in (as_numpy, as_torch):
        before = result.flow
        result.flow[:] = 0
        result.control_points[:] = 0
        assert (result.flow == before).all()
    arrays = tuple(torch.from_numpy(getattr(events, name).astype(int)) for name in "xytp")
    sized = Events(*arrays, height=HEIGHT, width=WIDTH)
    assert isinstance(estimator(None, None, sized, t0=T0, t1=T1).flow, np.ndarray)


def test_float_color_and_event_containers_are_equal(estimator, frames, events):
    reference = estimator(*frames, events, t0=T0, t1=T1).flow
    floats = [frame.astype(np.float64) / 255 for frame in frames]
    arrays = {name: getattr(events, name) for name in "xytp"}
    for given in (events, arrays, tuple(arrays.values())):
        assert np.array_equal(estimator(*floats, given, t0=T0, t1=T1).flow, reference)
    color = [np.repeat(frame[..., None], 3, axis=2) for frame in frames]
    # The luma weights sum to 1 only up to rounding.
    assert np.allclose(estimator(*color, events, t0=T0, t1=T1).flow, reference, atol=1e-3)


def test_inputs_are_not_modified(estimator, frames, events):
    floats = frames.astype(np.float32) / 255
    before = floats.copy(), events.x.copy(), events.t.copy()
    estimator(*floats, events, t0=T0, t1=T1)
    assert np.array_equal(floats, before[0])
    assert np.array_equal(events.x, before[1]) and np.array_equal(events.t, before[2])


def test_exposures_iterations_and_precision_matter(estimator, frames, events):
    reference = estimator(*frames, events, t0=T0, t1=T1).flow
    exposed = estimator(*frames, events, t0=T0, t1=T1, exposure0=20_000, exposure1=10_000).flow
    assert np.abs(exposed - reference).max() > 1e-4
    assert np.abs(estimator(*frames, events, t0=T0, t1=T1, iterations=1).flow - reference).max() > 0
    half = Estimator(estimator.model, dtype=torch.bfloat16)(*frames, events, t0=T0, t1=T1).flow
    # bfloat16 has 8 bits: about 1 % of the flow, over two iterations
    assert half.dtype == np.float32
    assert np.abs(half - reference).max() < 0.1 * np.abs(reference).max()


def test_smallest_size_and_same_bits_twice(estimator):
    frames = np.random.default_rng(2).integers(0, 256, (2, 16, 16), np.uint8)
    first, second = (estimator(*frames, None, t0=0, t1=10).flow for _ in range(2))
    assert first.shape == (2, 16, 16) and np.array_equal(first, second)


def test_repr(estimator):
    assert repr(estimator) == "Estimator(tiny, cpu, torch.float32)"


def test_the_former_name_of_flow_init_still_works():
    estimator = load("small")
    frame = np.random.default_rng(0).random((16, 24))
    start = np.full((2, 16, 24), 3.0)
    expected = estimator(frame, frame, None, t0=0, t1=9, flow_init=start)
    with pytest.warns(FutureWarning, match="flow_init"):
        found = estimator(frame, frame, None, t0=0, t1=9, initial=start)
    np.testing.assert_array_equal(found.flow, expected.flow)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_frames_are_not_copied_to_the_host(monkeypatch, dtype):
    def refuse(*_):
        raise AssertionError("copied to the host")

    estimator = Estimator(FlowFuse(CONFIG))
    frame = torch.rand(32, 40, 3)
    frame = frame if dtype == torch.float32 else (255 * frame).to(dtype)
    for name in ("cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    result = estimator(frame, frame, None, t0=0, t1=1000)
    assert isinstance(result.flow, torch.Tensor)


def test_prepare_and_run_are_a_call(estimator, frames, events):
    """The same bits, from an item, from a batch of one, and through a DataLoader."""
    called = estimator(*frames, events, t0=T0, t1=T1, exposure0=4_000, iterations=1)
    item = estimator.prepare(*frames, events, t0=T0, t1=T1, exposure0=4_000)
    assert item.slices.shape == (3, 3, HEIGHT, WIDTH) and item.exposure.tolist()[1] == 0
    (batch,) = torch.utils.data.DataLoader([item], batch_size=1)
    assert isinstance(batch, ModelInputs)
    for inputs in (item, batch):
        (result,) = estimator.run(inputs, t0=T0, t1=[T1], iterations=1)
        assert np.array_equal(result.control_points, called.control_points)
        assert np.array_equal(result.uncertainty, called.uncertainty)
        assert (result.t0, result.t1, result.modalities) == (T0, T1, ("frames", "events"))
    (result,) = estimator.run(item, t0=T0, t1=T1, iterations=1, as_torch=True)
    assert isinstance(result.flow, torch.Tensor) and not result.flow.is_inference()
    for wrong, message in (
        ({"t0": [T0, T0]}, r"t0 must be one number, or \[1\], got 2 numbers"),
        ({"t1": T0}, "t1 must be later than t0"),
        ({"iterations": 1.5}, "iterations must be an integer"),
        ({"flow_init": np.zeros((2, HEIGHT, WIDTH))}, r"shape \[1, 2, 37, 50\], got \[2, 37, 50\]"),
    ):
        with pytest.raises(ValueError, match=message):
            estimator.run(item, **{"t0": T0, "t1": T1, **wrong})
    with pytest.raises(ValueError, match="run: inputs must be ModelInputs"):
        estimator.run(tuple(item), t0=T0, t1=T1)


def test_encoded_frames_are_used_again(estimator, frames, events):
    """The same bits; and a network without frames has none to encode."""
    called = estimator(*frames, events, t0=T0, t1=T1)
    item = estimator.prepare(*frames, events, t0=T0, t1=T1)
    encoded = estimator.encode_frame(item.frame0), estimator.encode_frame(item.frame1[None])
    (result,) = estimator.run(item, t0=T0, t1=T1, encoded_frames=encoded)
    assert np.array_equal(result.control_points, called.control_points)
    assert np.array_equal(result.boundary, called.boundary)
    swapped = estimator.run(item, t0=T0, t1=T1, encoded_frames=encoded[::-1])[0]
    assert not np.array_equal(swapped.flow, called.flow), "they are what counts"
    with pytest.raises(ValueError, match="uses no frames, so none can be encoded"):
        Estimator(make_model(frames=False)).encode_frame(item.frame0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu(estimator, frames, events):
    expected = estimator(*frames, events, t0=T0, t1=T1).flow
    found = Estimator(make_model(), device="cuda")(*frames, events, t0=T0, t1=T1).flow
    # TF32 convolutions have 10 bits of mantissa.
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max() + 0.01
