"""data/corruption.py: one modality that is wrong in one way, and the settings that ask for it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from flowfuse.cli.train_options import read_command_line
from flowfuse.config import ConfigError
from flowfuse.data import augment as tr
from flowfuse.data import corruption as co
from flowfuse.data.samples import Sample
from flowfuse.losses.supervised import matching_loss
from flowfuse.model import FlowFuse, ModelConfig
from flowfuse.training.sampling import iterations_of

HEIGHT, WIDTH = 40, 48
KINDS = {**co.EVENT_KINDS, **co.FRAME_KINDS}
EVENTS, FRAMES = {"slices", "event_sum"}, {"frame0", "frame1"}


def make_sample() -> Sample:
    g = torch.Generator().manual_seed(0)
    slices = torch.randint(-3, 4, (5, 3, HEIGHT, WIDTH), generator=g).float()
    frame0 = torch.rand(1, HEIGHT, WIDTH, generator=g)
    tau = torch.tensor([0.5, 1.0])
    flow = tau[:, None, None, None] * torch.tensor((6.0, -4.0))[:, None, None]
    return Sample(
        slices=slices,
        frame0=frame0,
        frame1=frame0.roll((-4, 6), (1, 2)),
        event_sum=slices[1:].sum((0, 1))[None],
        exposure=torch.tensor([0.2, 0.2]),
        modality_mask=torch.ones(4),
        tau=tau,
        flow=flow.expand(2, 2, HEIGHT, WIDTH).contiguous(),
        valid=torch.ones(2, HEIGHT, WIDTH, dtype=torch.bool),
        occluded=torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool),
        boundary=torch.zeros(2, HEIGHT, WIDTH),
    )


def apply(kind: str, seed: int = 0, sample: Sample | None = None) -> Sample:
    return KINDS[kind].apply(sample or make_sample(), np.random.default_rng(seed))


def changed(before: Sample, after: Sample) -> set[str]:
    before, after = before.tensors(), after.tensors()
    return {name for name in before if not torch.equal(before[name], after[name])}


def bits(sample: Sample) -> dict[str, bytes]:
    return {name: value.contiguous().numpy().tobytes() for name, value in sample.tensors().items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_a_kind_changes_its_modality_and_nothing_else(kind, seed):
    sample = make_sample()
    before = bits(sample)
    found = apply(kind, seed, sample)
    assert bits(sample) == before  # what is given stays as it is
    assert changed(sample, found) <= (EVENTS if kind in co.EVENT_KINDS else FRAMES)
    assert changed(sample, found)
    for name, value in sample.tensors().items():
        other = getattr(found, name)
        assert other.shape == value.shape and other.dtype == value.dtype, name
        assert torch.isfinite(other).all(), name
    for frame in (found.frame0, found.frame1):
        assert 0 <= frame.min() and frame.max() <= 1 + 1e-6  # sums of float weights
    assert bits(apply(kind, seed)) == bits(found)


@pytest.mark.parametrize(
    "kind", ["shift", "gain", "balance", "invert", "burst", "lines", "noise", "displace", "turn"]
)
def test_the_event_sum_stays_that_of_the_slices(kind):
    # Without exposures it is the plain sum, of values up to 200: 1e-3 is their rounding.
    found = apply(kind, 3)
    total = found.slices[1:].sum((0, 1))[None]
    torch.testing.assert_close(found.event_sum, total, atol=1e-3, rtol=0)


@pytest.mark.parametrize("bins", [1, 2, 3, 4])
def test_shift_by_whole_slices(bins):
    """An event in the middle of slice 1 is a slice later in slice 2."""
    slices = torch.zeros(5, bins, 1, 1)
    middle = slice((bins - 1) // 2, bins // 2 + 1)  # one bin or two
    slices[1, middle] = 1.0
    steps = max(bins - 1, 1)
    moved, back = co._shift(slices, steps), co._shift(slices, -steps)
    assert moved.sum() == slices.sum() == back.sum()
    assert moved[2].sum() == slices.sum() and back[0].sum() == slices.sum()


def test_shift_of_a_constant_rate_changes_nothing():
    slices = torch.tensor([0.25, 0.5, 0.25]).view(1, 3, 1, 1).repeat(5, 1, 2, 2)
    for steps in (0.0, 0.3, -1.7, 5.0):
        torch.testing.assert_close(co._shift(slices, steps), slices)


def test_shift_by_a_part_of_a_step():
    slices = torch.zeros(3, 2, 1, 1)  # one step a slice
    slices[1] = 2.0
    found = co._shift(slices, 0.25).sum((1, 2, 3))
    assert found.tolist() == [0.0, 3.0, 1.0]


def test_gain_and_polarity():
    sample = make_sample()
    ratio = apply("gain").slices / sample.slices
    known = ratio[sample.slices != 0]
    torch.testing.assert_close(known, known[:1].expand_as(known))
    assert torch.equal(apply("invert").slices, -sample.slices)
    on, off = sample.slices > 0, sample.slices < 0
    found = apply("balance").slices / sample.slices
    assert found[on].std() < 1e-5 and found[off].std() < 1e-5
    torch.testing.assert_close(found[on].mean() * found[off].mean(), torch.tensor(1.0))
    assert not 1 / 1.4 < found[on].mean() / found[off].mean() < 1.4


def test_burst_touches_one_slice():
    sample = make_sample()
    factors = set()
    for seed in range(20):
        found = apply("burst", seed).slices
        different = (found != sample.slices).flatten(1).any(1)
        assert different.sum() == 1
        where = found != sample.slices
        factors |= set((found[where] / sample.slices[where]).tolist())
    assert factors == {0.0, 2.0}


def test_hot_lines_are_whole_rows_or_columns():
    sample = make_sample()
    where = (apply("lines", 1).slices != sample.slices).any(0).any(0)
    assert 1 <= (where.float().mean(0) > 0.9).sum() + (where.float().mean(1) > 0.9).sum() <= 4


def test_displaced_events_are_the_same_elsewhere():
    sample = make_sample()
    rows, columns = np.random.default_rng(5).integers(-6, 7, 2)
    found = apply("displace", 5).slices
    expected = sample.slices.roll((int(rows), int(columns)), (-2, -1))
    inner = (..., slice(6, -6), slice(6, -6))
    assert torch.equal(found[inner], expected[inner])


def test_turned_events_keep_the_middle():
    sample = make_sample()
    ramp = torch.arange(WIDTH).float().expand(5, 3, HEIGHT, WIDTH).contiguous()
    sample = sample._replace(slices=ramp)
    found = apply("turn", 0, sample).slices[0, 0]
    middle = (WIDTH - 1) / 2
    rows = slice(HEIGHT // 2 - 1, HEIGHT // 2 + 1)
    columns = slice(WIDTH // 2 - 1, WIDTH // 2 + 1)
    assert abs(float(found[rows, columns].mean()) - middle) < 1e-3


def test_blurred_frames_keep_their_mean_and_lose_detail():
    sample = make_sample()
    for kind in ("defocus", "smear"):
        found = apply(kind, 2)
        names = changed(sample, found)
        for name in names:
            blurred, sharp = getattr(found, name), getattr(sample, name)
            assert blurred.std() < 0.8 * sharp.std()
            assert abs(blurred.mean() - sharp.mean()) < 0.02
    flat = sample._replace(frame0=torch.full_like(sample.frame0, 0.5))
    # 1e-6: the weights' sum is 1 but for rounding.
    for kind in ("defocus", "smear"):
        found = apply(kind, 2, flat).frame0
        torch.testing.assert_close(found, flat.frame0, atol=1e-6, rtol=0)


def test_shade_stands_still_and_takes_light():
    sample = make_sample()._replace(frame0=torch.full((1, HEIGHT, WIDTH), 0.5))
    sample = sample._replace(frame1=sample.frame0.clone())
    for seed in range(8):
        found = apply("shade", seed, sample)
        assert torch.equal(found.frame0, found.frame1)
        assert found.frame0.mean() < 0.5
        assert found.frame0.std() > 0.002


def test_exposure_clips_or_darkens():
    means = [getattr(apply("exposure", s), n).mean() for s in range(12) for n in sorted(FRAMES)]
    assert min(means) < 0.4 and max(means) > 0.65  # of 0.5


def test_repeated_and_jumping_frames():
    sample = make_sample()
    found = apply("repeat")
    assert torch.equal(found.frame1, found.frame0)
    found = apply("jump")
    assert torch.equal(found.frame0, sample.frame0)


def test_rolling_shutter_delays_rows_along_the_flow():
    sample = make_sample()
    ramp = torch.arange(WIDTH).float().expand(1, HEIGHT, WIDTH) / 100
    sample = sample._replace(frame0=ramp, frame1=ramp.clone())
    found = apply("shutter", 0, sample).frame0[0]
    moved = 100 * (ramp[0] - found)[:, WIDTH // 2]  # px to the right, a row
    # The flow is 6 px to the right in all rows; the middle is read at t0, the first row before.
    assert abs(float(moved[HEIGHT // 2 - 1] + moved[HEIGHT // 2])) < 1e-3
    share = abs(float(moved[0] - moved[-1])) / 6
    assert co.READOUT[0] <= share <= co.READOUT[1]
    torch.testing.assert_close(moved, -moved.flip(0), atol=1e-3, rtol=0)
    bare = make_sample()._replace(flow=None)
    assert not changed(bare, apply("shutter", 0, bare))


def test_corrupt_draws_at_most_one_modality():
    sample, counts = make_sample(), {"events": 0, "frames": 0, "none": 0}
    for seed in range(300):
        found = co.corrupt(sample, np.random.default_rng(seed), events=0.4, frames=0.2)
        names = changed(sample, found)
        assert names <= EVENTS or names <= FRAMES
        assert found.matching.shape == (3,)
        # Resampled in time, right events differ a little too, but keep the sum of every slice.
        same = torch.allclose(found.slices.sum(1), sample.slices.sum(1), atol=1e-4)
        counts["frames" if names & FRAMES else "none" if same else "events"] += 1
    # Three standard deviations of 300 draws.
    assert abs(counts["events"] / 300 - 0.4) < 0.09 and abs(counts["frames"] / 300 - 0.2) < 0.07


def test_what_no_longer_matches_has_no_matching_loss():
    found = [
        co.corrupt(make_sample(), np.random.default_rng(s), events=0, frames=1) for s in range(40)
    ]
    repeated = [f for f in found if torch.equal(f.frame0, f.frame1)]
    assert repeated and all(f.matching.tolist() == [0, 1, 1] for f in repeated)
    torch.manual_seed(0)
    model = FlowFuse(ModelConfig(stem_channels=8, channels=8, hidden=8, token_channels=8))
    batch = Sample.collate([make_sample()])
    batch = batch._replace(boundary=torch.ones_like(batch.boundary))
    output = model(batch.inputs)
    plain = matching_loss(output, batch)
    assert torch.equal(matching_loss(output, batch._replace(matching=torch.ones(1, 3))), plain)
    assert matching_loss(output, batch._replace(matching=torch.zeros(1, 3))) == 0
    without = matching_loss(output, batch._replace(matching=torch.tensor([[0.0, 1, 1]])))
    assert 0 < without < plain


def test_no_corruption_draws_nothing_and_adds_nothing():
    """A training without it sees the samples that it saw before there was any."""
    old = dataclasses.replace(tr.AugmentConfig(), drop_frames=0.2)
    assert old.corrupt_events == old.corrupt_frames == 0
    a, b = np.random.default_rng(7), np.random.default_rng(7)
    found = tr.augment(make_sample(), a, old, (16, 24))
    assert found.matching is None
    corrupted = dataclasses.replace(old, corrupt_events=0.5, corrupt_frames=0.5)
    other = tr.augment(make_sample(), b, corrupted, (16, 24))
    assert other.matching.shape == (3,)
    # Whatever is drawn before the corruption is the same.
    for name in ("flow", "valid", "boundary", "modality_mask"):
        assert torch.equal(getattr(found, name), getattr(other, name))
    assert a.bit_generator.state != b.bit_generator.state


def test_a_modality_alone_is_not_corrupted():
    settings = dict(corrupt_events=1.0, event_noise=0.0, event_flicker=0.0, event_gain=0.0)
    config = tr.AugmentConfig(**settings, drop_frames=1.0, drop_events=0.0)
    still = dataclasses.replace(config, corrupt_events=0.0)
    for seed in range(5):
        found, expected = (
            tr.augment(make_sample(), np.random.default_rng(seed), c, (16, 24))
            for c in (config, still)
        )
        assert found.matching.tolist() == [1, 1, 1]
        assert bits(found._replace(matching=None)) == bits(expected)


def test_settings_are_checked(tmp_path):
    with pytest.raises(ValueError, match="corrupt_events must be in"):
        tr.AugmentConfig(corrupt_events=1.5)
    with pytest.raises(ValueError, match="corrupt_events \\+ corrupt_frames must be at most 1"):
        tr.AugmentConfig(corrupt_events=0.6, corrupt_frames=0.5)
    out = ["-o", str(tmp_path / "run")]
    with pytest.raises(ConfigError, match="max_iterations must be at least 1"):
        read_command_line([*out, "--max-iterations", "0"])
    config, _ = read_command_line([*out, "--config", "small"])
    assert config.max_iterations == 8 and config.augment.corrupt_events > 0


def test_iterations_are_a_function_of_seed_and_step():
    drawn = [iterations_of(0, step, 2, 8) for step in range(1, 2001)]
    assert drawn == [iterations_of(0, step, 2, 8) for step in range(1, 2001)]
    assert drawn != [iterations_of(1, step, 2, 8) for step in range(1, 2001)]
    assert set(drawn) == set(range(1, 9))
    share = drawn.count(2) / len(drawn)
    assert abs(share - (0.5 + 0.5 / 8)) < 0.035  # three standard deviations
