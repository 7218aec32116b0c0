"""data/warm_start.py: flow to start from, made of the ground truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowfuse.data import warm_start
from flowfuse.data.augment import AugmentConfig, augment
from flowfuse.data.samples import Sample
from flowfuse.data.warm_start import add_warm_start, perturb_flow

HEIGHT, WIDTH = 70, 100


def make_sample(**fields) -> Sample:
    flow = torch.tensor([6.0, -2.0])[None, :, None, None].expand(1, 2, HEIGHT, WIDTH).contiguous()
    image = torch.rand(1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    empty = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    sample = Sample(
        slices=image.expand(3, 2, HEIGHT, WIDTH).contiguous(), frame0=image, frame1=image,
        event_sum=image, exposure=torch.zeros(2), modality_mask=torch.ones(4), tau=torch.ones(1),
        flow=flow, valid=~empty, occluded=empty, boundary=torch.zeros(2, HEIGHT, WIDTH),
    )  # fmt: skip
    return sample._replace(**fields)


def test_perturbed_flow_is_like_the_flow_before():
    """Over many draws: near the ground truth, wrong by less than the errors allow, with holes."""
    sample = make_sample()
    rng = np.random.default_rng(0)
    found = torch.stack([perturb_flow(sample.flow[0], sample.valid[0], rng) for _ in range(60)])
    assert found.dtype == torch.float32 and found.shape[1:] == (2, HEIGHT, WIDTH)
    known = torch.isfinite(found)
    assert torch.equal(known[:, 0], known[:, 1])
    assert 1 - warm_start.UNKNOWN < known.float().mean() < 1
    error = torch.where(known, found - sample.flow[0], 0.0).square().sum(1).sqrt()
    size = 40**0.5
    # Speed and error are normal with at most these deviations: hardly ever four of them.
    most = 4 * (warm_start.SPEED * size + warm_start.ERROR * size + warm_start.SMALLEST_ERROR)
    assert 0.1 < error[known[:, 0]].mean() < size / 4 and error.max() < most
    assert len({round(float(e.mean()), 4) for e in error}) == 60, "each draw is another"


def test_what_is_not_known_is_not_given():
    sample = make_sample()
    valid = sample.valid[0].clone()
    valid[:, : WIDTH // 2] = False
    found = perturb_flow(sample.flow[0], valid, np.random.default_rng(1))
    # The field is displaced by a few pixels, around the border of the image.
    assert torch.isnan(found[:, :, 5 : WIDTH // 2 - 5]).all()
    nothing = perturb_flow(sample.flow[0], torch.zeros_like(valid), np.random.default_rng(1))
    assert torch.isnan(nothing).all()


def test_a_share_of_the_samples_has_one():
    sample, rng = make_sample(), np.random.default_rng(2)
    made = [add_warm_start(sample, rng, 0.5).flow_init for _ in range(40)]
    given = sum(bool(torch.isfinite(flow).any()) for flow in made)
    assert 10 < given < 30
    with pytest.raises(ValueError, match=r"augment\.warm_start needs samples with ground truth"):
        add_warm_start(sample._replace(flow=None), rng, 0.5)


def test_augmentation_gives_it_in_the_shape_of_the_crop():
    sample = make_sample()
    off = AugmentConfig(warm_start=0.0)
    on = AugmentConfig(warm_start=1.0, flip=0.0, transpose=0.0)
    assert augment(sample, np.random.default_rng(3), off, (48, 64)).flow_init is None
    varied = [augment(sample, np.random.default_rng(seed), on, (48, 64)) for seed in (3, 3, 4)]
    first, again, other = (item.flow_init for item in varied)
    assert first.shape == (2, 48, 64)
    assert torch.equal(first.nan_to_num(9e9), again.nan_to_num(9e9)), "a function of the draws"
    assert not torch.equal(first.nan_to_num(9e9), other.nan_to_num(9e9))
    batch = Sample.collate(varied)
    assert batch.flow_init.shape == (3, 2, 48, 64)


def test_what_comes_in_over_a_border_is_not_known():
    flow = torch.full((2, 40, 48), 20.0)
    flow[0, :, :24] = -20.0
    for seed in range(8):
        found = perturb_flow(
            flow, torch.ones(40, 48, dtype=torch.bool), np.random.default_rng(seed)
        )
        left, right = found[0, :, :12], found[0, :, 36:]
        assert not (left > 5).any() and not (right < -5).any()
