import numpy as np
import pytest
import torch

from flowfuse.events import Events
from flowfuse.inputs import input_interval, slice_events, slice_times, sum_events
from flowfuse.model.normalization import normalize_slices


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
