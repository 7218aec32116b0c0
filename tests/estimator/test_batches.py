"""Several frame pairs at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from estimator_cases import HEIGHT, T0, T1, WIDTH, make_model

from flowfuse.estimator import Estimator
from flowfuse.estimator.batches import argument_rows
from flowfuse.events import Events


def test_a_batch_is_as_its_items(estimator, frames, events):
    early = estimator(*frames, events, t0=T0, t1=T1, exposure0=2_000)
    alone = estimator(None, None, events, t0=T0 + 1_000, t1=T1)
    first, second = frames
    results = estimator.estimate_batch(
        [first, None], [second, None], [events, events], t0=[T0, T0 + 1_000], t1=np.array([T1, T1]),
        exposure0=[2_000, None],
    )  # fmt: skip
    for result, one in zip(results, (early, alone), strict=True):
        # Sums of two items may be made in another order: some ulps of some px.
        assert np.allclose(result.control_points, one.control_points, atol=1e-4)
        assert (result.modalities, result.t0, result.t1) == (one.modalities, one.t0, one.t1)
    stacked = torch.from_numpy(np.stack((first, first)))
    tensors = estimator.estimate_batch(stacked, stacked, None, t0=[T0, T0], t1=[T1, T1])
    assert isinstance(tensors[1].flow, torch.Tensor) and tensors[1].modalities == ("frames",)
    assert torch.allclose(tensors[0].flow, tensors[1].flow, atol=1e-4)
    arrays = estimator.estimate_batch(stacked, stacked, None, t0=[T0] * 2, t1=T1, as_torch=False)
    assert isinstance(arrays[0].flow, np.ndarray)


def test_wrong_batches_are_refused(estimator, frames, events):
    first, second = frames
    colour = np.repeat(first[:, :, None], 3, axis=2)
    times = {"t0": [T0, T0], "t1": [T1, T1]}
    for arguments, message in (
        (([first], [second] * 2, None), "frame0: 1, frame1: 2, events: NoneType, t0: 2"),
        (([first] * 2, [second, second[1:]], None), "item 1: .*one size"),
        (([first, colour], [second, colour], None), "gray and RGB frames"),
        (([first, first[1:]], [second, second[1:]], None), "50 x 36, 50 x 37 px"),
        (([None] * 2, [None] * 2, [events, Events.empty(HEIGHT, WIDTH)]), "item 1: .*no event in"),
    ):
        with pytest.raises(ValueError, match=message):
            estimator.estimate_batch(*arguments, **times)


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_one_number_may_be_an_array(make, estimator, frames, events):
    """It has ``__len__``, and no length."""
    pair = {"t0": make(T0), "t1": make(T1), "exposure0": make(2_000)}
    many = [frames[0]] * 2, [frames[1]] * 2, [events] * 2
    (first, _) = estimator.estimate_batch(*many, **pair)
    assert (first.t0, first.t1) == (T0, T1)


def test_a_frame_that_is_left_out_has_no_colours(frames, events):
    """A guided network cannot use frame 0 alone."""
    guided = Estimator(make_model(fusion="guided").eval())
    colour = np.repeat(frames[0][:, :, None], 3, axis=2)
    results = guided.estimate_batch(
        [colour, colour], [colour, None], [events] * 2, t0=[T0] * 2, t1=[T1] * 2
    )
    assert results[1].modalities == ("events",)


def test_arguments_of_a_batch_are_those_of_its_pairs():
    columns = {"frame0": "ab", "frame1": None, "events": None, "t0": np.array([1, 2]), "t1": (5, 6)}
    rows = argument_rows(columns, {"exposure0": [7, None], "history": True})
    assert rows == [
        {"frame0": "a", "frame1": None, "events": None, "t0": 1, "t1": 5, "exposure0": 7,
         "history": True},
        {"frame0": "b", "frame1": None, "events": None, "t0": 2, "t1": 6, "exposure0": None,
         "history": True},
    ]  # fmt: skip
    with pytest.raises(ValueError, match="exposure0 must be one value, or 2, got 3"):
        argument_rows(columns, {"exposure0": [7, 8, 9]})
