import numpy as np
import pytest
import torch

from flowfuse.events import Events
from flowfuse.inputs import (
    InputSpec,
    input_interval,
    prepare_inputs,
    slice_events,
    slice_times,
    sum_events,
    unit_image,
)
from flowfuse.model.normalization import normalize_slices
from flowfuse.ops import voxelize


def events(*rows):
    """(x, y, t, p) rows on a 4 x 3 sensor."""
    x, y, t, p = (np.array(column) for column in zip(*rows, strict=True))
    return Events(x, y, t, p, height=3, width=4)


def test_slices_are_causal_and_cover_the_window_once():
    # K = 2 over [100, 200): d = 50, limits 50, 100, 150, 200
    assert slice_times(100, 200, 2) == [50, 100, 150, 200]
    stream = events(
        (0, 0, 49, 1), (1, 0, 50, 1), (2, 0, 99, 0), (3, 1, 100, 1), (0, 2, 199, 1), (0, 0, 200, 1)
    )
    slices = slice_events(stream, 100, 200, slices=2, bins=1, height=3, width=4)
    assert slices.shape == (3, 1, 3, 4)
    assert slices[0, 0].nonzero().tolist() == [[0, 1], [0, 2]]
    assert slices[0, 0, 0, 2] == -1
    assert slices[1, 0].nonzero().tolist() == [[1, 3]]
    assert slices[2, 0].nonzero().tolist() == [[2, 0]]


def test_limits_that_do_not_divide_evenly_lose_no_event():
    rng = np.random.default_rng(0)
    t = np.sort(rng.integers(0, 1000, 500))
    stream = Events(
        rng.integers(0, 4, 500), rng.integers(0, 3, 500), t, np.ones(500, int), height=3, width=4
    )
    slices = slice_events(stream, 300, 997, slices=4, bins=3, height=3, width=4)
    start = slice_times(300, 997, 4)[0]
    # 1e-3: time weights are multiples of 2^-15
    assert slices.sum().item() == pytest.approx(((t >= start) & (t < 997)).sum(), abs=1e-3)


def test_too_short_window_is_named():
    with pytest.raises(ValueError, match="too short for 4 slices"):
        slice_events(events((0, 0, 1, 1)), 0, 3, slices=4, bins=1, height=3, width=4)


def test_sum_without_exposures_is_the_polarity_sum():
    stream = events((0, 0, 99, 1), (0, 0, 100, 1), (0, 0, 150, 1), (0, 0, 199, 0), (0, 0, 200, 1))
    assert sum_events(stream, 100, 200, None, None, 3, 4)[0, 0, 0] == 1


def test_sum_ramps_over_the_exposures():
    # exposures of 40 us around 100 and of 20 us around 200
    rows = {0: 79, 1: 80, 2: 100, 3: 110}
    early = events(*((x, 0, t, 1) for x, t in rows.items()))
    weights = sum_events(early, 100, 200, 40, 20, 3, 4)[0, 0]
    # before the exposure, at its start, its middle, and three quarters through; 2^-15 time weights
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.0, 0.5, 0.75]), atol=1e-4, rtol=0)
    late = events((0, 0, 189, 1), (1, 0, 190, 1), (2, 0, 205, 1), (3, 0, 210, 1))
    weights = sum_events(late, 100, 200, 40, 20, 3, 4)[0, 0]
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, 0.25, 0.0]), atol=1e-4, rtol=0)


def test_all_events_that_matter_are_in_the_window():
    assert input_interval(100, 200, 2, None, None) == (50, 200)
    assert input_interval(100, 200, 4, 40, 20) == (75, 210)
    # an exposure reaches further back than the slice E_0
    assert input_interval(100, 200, 4, 80, 20) == (60, 210)
    rows = [(x, 0, t, 1) for x, t in enumerate((61, 74, 100, 209))]
    stream = events((0, 1, 59, 1), *rows, (0, 1, 210, 1))
    window = stream.slice_time(*input_interval(100, 200, 4, 80, 20))
    whole, part = (sum_events(e, 100, 200, 80, 20, 3, 4) for e in (stream, window))
    assert len(window) == 4 and torch.equal(whole, part) and (part[0, 0] > 0).all()


def test_no_events_are_zeros():
    empty = Events.empty(3, 4)
    assert slice_events(empty, 0, 100, slices=2, bins=3, height=3, width=4).abs().max() == 0
    assert sum_events(empty, 0, 100, 10, 10, 3, 4).abs().max() == 0
    assert normalize_slices(torch.zeros(1, 3, 2, 8, 8), torch.ones(1, 3)).abs().max() == 0


def test_normalization_masks_hot_pixels_and_keeps_edges():
    slices = torch.zeros(1, 2, 1, 16, 16)
    slices[..., 4, :] = 2.0  # an edge
    slices[0, :, 0, 12, 12] = 300.0  # a hot pixel
    normal = normalize_slices(slices, torch.ones(1, 2))
    assert normal[..., 12, 12].abs().max() == 0
    # the percentile of a constant edge is its value
    assert (normal[..., 4, :] == 1).all()
    assert normal.max() == 1


def test_normalization_has_one_scale_for_all_slices():
    slices = torch.zeros(1, 2, 1, 16, 16)
    slices[0, 0, 0, ::2] = 1.0
    slices[0, 1, 0, ::2] = -2.0
    normal = normalize_slices(slices, torch.ones(1, 2))
    assert normal[0, 1].min() == -1 and normal[0, 0].max() == 0.5


def test_an_absent_slice_becomes_zero_and_has_no_say_in_the_scale():
    slices = torch.zeros(1, 2, 1, 16, 16)
    slices[0, 0] = 50.0
    slices[0, 1, 0, ::2] = 2.0
    normal = normalize_slices(slices, torch.tensor([[0.0, 1.0]]))
    assert normal[0, 0].abs().max() == 0 and normal[0, 1].max() == 1


@pytest.mark.parametrize("width", [26, 143, 30])
def test_no_column_is_left_out_of_the_scale(width):
    slices = torch.zeros(1, 1, 1, 64, width)
    slices[..., 5] = 4.0  # a single edge, along a column
    assert normalize_slices(slices, torch.ones(1, 1)).max() == 1


@pytest.mark.parametrize("exposures", [(None, None), (40, 20), (200, 200), (0, 30)])
@pytest.mark.parametrize("rectified", [False, True])
def test_one_call_gives_the_bits_of_one_call_a_part(exposures, rectified):
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 3, 3000), rng.uniform(0, 2, 3000)
    if not rectified:
        x, y = x.astype(int), y.astype(int)
    t = np.sort(rng.integers(0, 400, 3000))
    stream = Events(x, y, t, rng.random(3000) < 0.9, height=3, width=4)
    half0, half1 = ((exposure or 0) // 2 for exposure in exposures)
    start, end = 100 + half0, 200 - half1
    if start > end:
        start = end = (start + end) // 2

    def part(begin, end, bins):
        if begin >= end:
            return torch.zeros(bins, 3, 4)
        used = stream.slice_time(begin, end)
        arrays = (torch.from_numpy(getattr(used, name)) for name in "xytp")
        limits = (torch.tensor(v) for v in ([0, len(used)], [begin], [end]))
        return voxelize(*arrays, *limits, bins, 3, 4)[0][0]

    expected = part(start, end, 1) + part(100 - half0, start, 2)[1:]
    expected += part(end, 200 + half1, 2)[:1]
    assert torch.equal(sum_events(stream, 100, 200, *exposures, 3, 4), expected)


def test_inputs_are_made_by_two_calls_of_voxelize(monkeypatch):
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return voxelize(*arguments)

    monkeypatch.setattr("flowfuse.inputs.voxelize", counted)
    stream = events((0, 0, 60, 1), (1, 0, 120, 1), (2, 0, 180, 0))
    frame = np.zeros((3, 4), np.uint8)
    settings = {"t0": 100, "t1": 200, "spec": InputSpec(slices=2, bins=3)}
    found = prepare_inputs(frame, frame, stream, **settings, exposures=(40, 20))
    assert len(calls) == 2
    for name in range(4):  # x, y, t and p are uploaded once
        assert calls[0][name] is calls[1][name]
    assert found.slices.shape == (3, 3, 3, 4) and found.event_sum.shape == (1, 3, 4)
    assert found.modality_mask.tolist() == [1, 1, 1, 1]
    assert found.exposure.tolist() == pytest.approx([0.4, 0.2])


def test_what_is_missing_is_told_and_zero():
    settings = {"t0": 100, "t1": 200, "spec": InputSpec(slices=2, bins=1)}
    found = prepare_inputs(None, None, events((0, 0, 120, 1)), **settings)
    assert found.modality_mask.tolist() == [0, 1, 0, 0] and not found.frame0.any()
    frame = np.full((3, 4, 3), 255, np.uint8)
    found = prepare_inputs(frame, frame, Events.empty(3, 4), **settings)
    assert found.modality_mask.tolist() == [1, 0, 0, 1] and not found.slices.any()
    assert found.frame0.shape == (3, 3, 4) and (found.frame0 == 1).all()
    assert all(value.shape[0] == 1 for value in found.as_batch())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_frames_on_the_device_stay_there(dtype):
    """A tensor without values stands for one on another device: reading it would raise."""
    frame = torch.empty(3, 4, 3, dtype=dtype, device="meta")
    image = unit_image(frame, "meta")
    assert image.device.type == "meta" and image.shape == (3, 3, 4)
    assert image.dtype == torch.float32
