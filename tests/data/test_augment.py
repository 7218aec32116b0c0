"""data/augment.py: symmetries, sensor variation and dropout of training samples."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from flowfuse.data import augment as tr
from flowfuse.data.samples import IMAGES, Sample
from flowfuse.data.synthetic.simulator import EventSensor, SensorConfig
from flowfuse.events import Events
from flowfuse.geometry.grid import warp
from flowfuse.inputs import slice_events, sum_events

HEIGHT, WIDTH = 20, 28
OFF = tr.AugmentConfig(*[0.0] * 13)  # nothing but the crop
FLOW = (3.0, -2.0)  # px, whole numbers: warping with them is exact


def make_sample() -> Sample:
    """A translating random texture: frame1(x + FLOW) = frame0(x)."""
    g = torch.Generator().manual_seed(0)
    frame0 = torch.rand(1, HEIGHT, WIDTH, generator=g)
    tau = torch.tensor([0.25, 1.0])
    flow = tau[:, None, None, None] * torch.tensor(FLOW)[:, None, None]
    slices = torch.randint(-3, 4, (4, 2, HEIGHT, WIDTH), generator=g).float()
    return Sample(
        slices=slices,
        frame0=frame0,
        frame1=frame0.roll((int(FLOW[1]), int(FLOW[0])), (1, 2)),
        event_sum=slices[1:].sum((0, 1))[None] + 1,
        exposure=torch.tensor([0.5, 0.25]),
        modality_mask=torch.ones(4),
        tau=tau,
        flow=flow.expand(2, 2, HEIGHT, WIDTH).contiguous(),
        valid=torch.rand(2, HEIGHT, WIDTH, generator=g) > 0.2,
        occluded=torch.rand(2, HEIGHT, WIDTH, generator=g) > 0.8,
        boundary=(torch.rand(2, HEIGHT, WIDTH, generator=g) > 0.8).float(),
    )


def assert_same(a: Sample, b: Sample) -> None:
    a, b = a.tensors(), b.tensors()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


def assert_frames_follow_flow(sample: Sample) -> None:
    """Warping frame 1 back by the flow gives frame 0 wherever the motion stays in view."""
    back = warp(sample.frame1[None], sample.flow[-1:])[0]
    inner = (..., slice(4, -4), slice(4, -4))  # beyond the 3 px of motion
    # 1e-4: bilinear weights of whole-number positions after their way through [-1, 1].
    torch.testing.assert_close(back[inner], sample.frame0[inner], atol=1e-4, rtol=0)


@pytest.mark.parametrize("symmetry", [tr.flip_columns, tr.flip_rows, tr.transpose])
def test_symmetries(symmetry):
    sample = make_sample()
    assert_frames_follow_flow(sample)
    assert_frames_follow_flow(symmetry(sample))
    assert_same(symmetry(symmetry(sample)), sample)


@pytest.mark.parametrize(
    ("symmetry", "place", "flow"),
    [
        (tr.flip_columns, (5, WIDTH - 1 - 7), (-3.0, -2.0)),
        (tr.flip_rows, (HEIGHT - 1 - 5, 7), (3.0, 2.0)),
        (tr.transpose, (7, 5), (-2.0, 3.0)),
    ],
)
def test_one_pixel_goes_where_it_should(symmetry, place, flow):
    sample = make_sample()
    moved = symmetry(sample)
    moved, sample = moved.tensors(), sample.tensors()
    for name in IMAGES:
        if name != "flow":
            assert torch.equal(moved[name][..., place[0], place[1]], sample[name][..., 5, 7])
    assert tuple(moved["flow"][-1, :, place[0], place[1]].tolist()) == flow


def test_crop_cuts_and_marks_what_leaves():
    sample = make_sample()
    cut = tr.crop(sample, 2, 3, 10, 12)
    assert torch.equal(cut.slices, sample.slices[..., 2:12, 3:15])
    assert torch.equal(cut.valid, sample.valid[:, 2:12, 3:15])
    seen = ~cut.occluded[-1]
    assert not seen[:, -3:].any() and not seen[:2].any()  # moves 3 px right and 2 px up
    expected = sample.occluded[-1, 2:12, 3:15][2:, :-3]
    assert torch.equal(~seen[2:, :-3], expected)
    with pytest.raises(ValueError, match=r"10 x 12 at \(11, 3\) is not inside .* 20 x 28"):
        tr.crop(sample, 11, 3, 10, 12)


def test_same_seed_same_bits_and_inputs_untouched():
    sample, again = make_sample(), make_sample()
    config = tr.AugmentConfig(event_noise=0.5)
    for seed in range(20):
        first = tr.augment(sample, np.random.default_rng(seed), config, (16, 20))
        assert_same(first, tr.augment(sample, np.random.default_rng(seed), config, (16, 20)))
        assert first.slices.shape == (4, 2, 16, 20) and first.modality_mask.shape == (4,)
        assert all(t.is_contiguous() for t in first.tensors().values())
        assert first.frame0.min() >= 0 and first.frame0.max() <= 1
    assert_same(sample, again)


def test_all_symmetries_are_drawn_and_keep_frames_and_flow_together():
    config = tr.AugmentConfig(0.5, 0.5, *[0.0] * 11)
    sample = make_sample()
    seen = set()
    for seed in range(40):
        varied = tr.augment(sample, np.random.default_rng(seed), config, (16, 20))
        assert_frames_follow_flow(varied)
        seen.add(tuple(varied.flow[-1, :, 0, 0].tolist()))
    signs = {(a, b) for a in (1, -1) for b in (1, -1)}
    assert seen == {(3.0 * a, 2.0 * b) for a, b in signs} | {(2.0 * a, 3.0 * b) for a, b in signs}


def test_transpose_is_left_out_where_it_does_not_fit():
    config = tr.AugmentConfig(0.0, 1.0, *[0.0] * 11)
    varied = tr.augment(make_sample(), np.random.default_rng(0), config, (10, 24))
    assert varied.frame0.shape == (1, 10, 24)
    assert varied.flow[-1, 0, 0, 0] == 3.0
    with pytest.raises(ValueError, match="20 x 28 are smaller than the crop of 16 x 30"):
        tr.augment(make_sample(), np.random.default_rng(0), config, (16, 30))


def test_nothing_drawn_is_the_centre_of_a_full_crop():
    sample = make_sample()
    assert_same(
        tr.augment(sample, np.random.default_rng(0), OFF, (HEIGHT, WIDTH)),
        tr.crop_centre(sample, (HEIGHT, WIDTH)),
    )


def test_event_gain_and_noise_act_alike_on_slices_and_sum():
    sample = make_sample()
    varied = tr.vary_events(
        sample, np.random.default_rng(3), tr.AugmentConfig(event_gain=0.2, event_noise=0.0)
    )
    gain = (varied.event_sum / sample.event_sum)[sample.event_sum != 0]
    assert 0.8 <= gain[0] <= 1.2 and gain[0] != 1
    torch.testing.assert_close(gain, gain[:1].expand_as(gain))
    torch.testing.assert_close(varied.slices, sample.slices * gain[0])

    noisy = tr.vary_events(
        sample, np.random.default_rng(3), tr.AugmentConfig(event_gain=0.0, event_noise=1.0)
    )
    added = noisy.slices - sample.slices
    assert 0 < added.abs().sum() <= 1.3 * HEIGHT * WIDTH  # rate <= 1 a pixel; 1.3: 7 sigma
    assert torch.equal(noisy.event_sum - sample.event_sum, added[1:].sum((0, 1))[None])


def still(slices: int = 4, bins: int = 3, exposure: tuple[float, float] = (0.0, 0.0)) -> Sample:
    """No events yet, between gray frames."""
    return Sample(
        frame0=torch.full((1, HEIGHT, WIDTH), 0.5),
        frame1=torch.full((1, HEIGHT, WIDTH), 0.5),
        slices=torch.zeros(slices + 1, bins, HEIGHT, WIDTH),
        event_sum=torch.zeros(1, HEIGHT, WIDTH),
        exposure=torch.tensor(exposure),
        modality_mask=torch.ones(4),
    )


def with_events(slices: torch.Tensor) -> Sample:
    return still()._replace(slices=slices, event_sum=slices[1:].sum((0, 1))[None])


def one_sensor(monkeypatch, threshold: float, ratio: float = 1.0, limit: float = np.inf) -> None:
    monkeypatch.setattr(tr, "INSENSITIVE_THRESHOLD", (threshold, threshold))
    monkeypatch.setattr(tr, "INSENSITIVE_RATIO", (ratio, ratio))
    monkeypatch.setattr(tr, "INSENSITIVE_LIMITS", (limit,))
    monkeypatch.setattr(tr, "INSENSITIVE_SHARES", (1.0,))


def evenly_spread(rate: float) -> torch.Tensor:
    """ON events at random times, so many in a slice, between the nodes of the bins."""
    rng, slices = np.random.default_rng(0), np.zeros((5, 3, HEIGHT, WIDTH), np.float32)
    count = round(rate * 5 * HEIGHT * WIDTH)
    y, x = rng.integers(0, (HEIGHT, WIDTH), (count, 2)).T
    k, (early, late) = rng.integers(0, 5, count), np.divmod(2 * rng.random(count), 1)
    np.add.at(slices, (k, early.astype(int), y, x), 1 - late)
    np.add.at(slices, (k, early.astype(int) + 1, y, x), late)
    return torch.from_numpy(slices)


def test_a_less_sensitive_sensor_follows_the_same_signal(monkeypatch):
    one_sensor(monkeypatch, 3.0)
    slices = torch.from_numpy(np.random.default_rng(0).integers(-2, 3, (5, 3, HEIGHT, WIDTH)))
    sample = with_events(slices.float())
    changed = tr.lower_sensitivity(sample, np.random.default_rng(1))
    found, given = (x.sum(1).cumsum(0) for x in (changed.slices, sample.slices))
    # At the start and at the end, it is less than a threshold from the last event.
    assert (3 * found - given).abs().max() < 6
    assert changed.slices.abs().sum() < sample.slices.abs().sum() / 3
    assert torch.allclose(changed.event_sum[0], changed.slices[1:].sum((0, 1)), atol=1e-5)
    assert torch.equal(changed.modality_mask, sample.modality_mask)


@pytest.mark.parametrize("threshold", [1.0, 2.0, 4.0])
def test_a_less_sensitive_sensor_is_neither_late_nor_slow_to_start(monkeypatch, threshold):
    one_sensor(monkeypatch, threshold)
    sample = with_events(evenly_spread(4.0))
    found = tr.lower_sensitivity(sample, np.random.default_rng(0)).slices.sum((2, 3))
    of_slices = found.sum(1)
    assert torch.allclose(of_slices / of_slices.mean(), torch.ones(5), atol=0.06)
    assert torch.allclose(
        of_slices.sum() / sample.slices.sum(), torch.tensor(1 / threshold), atol=0.02
    )
    middle = (found * torch.arange(3.0)).sum(1) / of_slices
    assert torch.allclose(middle, torch.ones(5), atol=0.05)  # of bins 0, 1, 2


def test_on_and_off_events_have_thresholds_of_their_own(monkeypatch):
    one_sensor(monkeypatch, 1.0, ratio=4.0)
    swings = torch.tensor([20.0, -20.0, 0.0]).view(3, 1, 1).expand(5, 3, HEIGHT, WIDTH)
    ratios = set()
    for seed in range(12):
        found = tr.lower_sensitivity(with_events(swings), np.random.default_rng(seed)).slices
        # Five swings: each 4 events of one polarity, and 16 of the other to come back as far.
        signed = found.sum((0, 1)).mean()
        ratios.add(round(signed.item() / 5))
    assert ratios == {-12, 12}


def test_a_sensor_that_recovers_from_an_event_misses_others(monkeypatch):
    one_sensor(monkeypatch, 1.0, limit=1.0)
    sample = with_events(torch.full((5, 3, HEIGHT, WIDTH), 9.0))
    found = tr.lower_sensitivity(sample, np.random.default_rng(0)).slices
    assert torch.allclose(found.sum(1), torch.tensor(3.0))  # of a slice


def test_without_history_none_is_made_up(monkeypatch):
    one_sensor(monkeypatch, 2.0)
    slices = evenly_spread(4.0)
    slices[0] = 0
    sample = tr.drop_history(with_events(slices))
    found = tr.lower_sensitivity(sample, np.random.default_rng(0))
    assert not found.slices[0].any() and found.slices[1].any()


def test_what_exposures_add_to_the_sum_shrinks_with_the_events(monkeypatch):
    one_sensor(monkeypatch, 2.0)
    sample = with_events(evenly_spread(4.0))
    sample = sample._replace(event_sum=sample.event_sum + 3, exposure=torch.tensor([0.5, 0.25]))
    found = tr.lower_sensitivity(sample, np.random.default_rng(0))
    between = found.slices[1:].sum((0, 1))[None]
    assert torch.allclose(found.event_sum - between, torch.tensor(1.5), atol=1e-4)
    assert torch.equal(found.exposure, sample.exposure)


def test_insensitive_sensors_are_drawn_as_often_as_asked():
    sample = with_events(torch.ones(5, 3, HEIGHT, WIDTH))
    config = dataclasses.replace(OFF, insensitive_sensor=0.5)
    changed = [
        not torch.equal(
            tr.augment(sample, np.random.default_rng(seed), config, (HEIGHT, WIDTH)).slices,
            sample.slices,
        )
        for seed in range(40)
    ]
    assert 10 <= sum(changed) <= 30  # 3 sigma
    same = tr.augment(sample, np.random.default_rng(0), OFF, (HEIGHT, WIDTH))
    assert torch.equal(same.slices, sample.slices)


@pytest.mark.parametrize("peak", [0.4, 0.9, 1.6, 3.3])
def test_flicker_is_what_a_sensor_sees(monkeypatch, peak):
    # Four periods between the frames, and lamps that are all of the light, everywhere.
    monkeypatch.setattr(tr, "FLICKER_PERIODS", (4.0, 4.0))
    monkeypatch.setattr(tr, "FLICKER_PEAK", (peak, peak))
    monkeypatch.setattr(tr, "FLICKER_EVERYWHERE", 1e-6)
    added = tr.add_flicker(still(), np.random.default_rng(0)).slices
    # A period per slice: where a pixel has been brighter it gets as much darker.
    assert not added.sum(dim=1).round(decimals=4).any()

    # From two periods before slice E_0, so that the sensor has come to rest.
    sensor = EventSensor(HEIGHT, WIDTH, SensorConfig.noiseless(1.0, log_offset=1e-6), seed=0)
    times = np.arange(-3 * 1024, 4 * 1024 + 1, 32)
    light = torch.from_numpy(np.exp(peak * np.sin(2 * np.pi * times / 1024)).astype(np.float32))
    events = sensor.observe(light[:, None, None].expand(-1, HEIGHT, WIDTH), times + 4096)
    seen = slice_events(events, 4096, 8192, slices=4, bins=3, height=HEIGHT, width=WIDTH)
    mean, expected = (x.abs().sum().item() / (5 * HEIGHT * WIDTH) for x in (added, seen))
    if peak < 0.5:  # never a threshold apart: a pixel at rest does not fire again
        assert mean == expected == 0
    else:
        # Polarities of a bin cancel by when in it the events are: that is left to chance here.
        assert mean == pytest.approx(expected, rel=0.2)
        assert mean > 0.5


@pytest.mark.parametrize("exposure", [(0.0, 0.0), (0.1, 0.2), (0.9, 0.6)])
def test_flicker_changes_frames_as_it_changes_their_events(monkeypatch, exposure):
    # Of so many thresholds that the steps between them are small.
    monkeypatch.setattr(tr, "FLICKER_PERIODS", (3.3, 3.3))
    monkeypatch.setattr(tr, "FLICKER_PEAK", (2000.0, 2000.0))
    monkeypatch.setattr(tr, "FLICKER_THRESHOLD", 5e-4)
    sample = tr.add_flicker(still(exposure=exposure), np.random.default_rng(5))
    change = tr.GAMMA * (sample.frame1 / sample.frame0).log() / 5e-4
    assert change.std() > 5  # lamps are not everywhere alike
    torch.testing.assert_close(sample.event_sum, change, atol=2.0, rtol=0.02)
    if not any(exposure):
        torch.testing.assert_close(sample.event_sum, sample.slices[1:].sum((0, 1))[None])


def test_what_frames_see_of_an_event():
    for exposure in ((0, 0), (300, 500), (0, 800), (900, 900)):
        for time in (-450, -100, 1, 100, 249, 500, 700, 999, 1001, 1240):
            event = (np.array([v]) for v in (0, 0, time + 1000, True))
            total = sum_events(
                Events(*event, height=1, width=1), 1000, 2000, *exposure, height=1, width=1
            )
            weight = tr.seen_by_frames(time / 1000, *(e / 1000 for e in exposure))
            assert weight == pytest.approx(total.item(), abs=2e-3)  # whole microseconds


def test_flicker_is_drawn_and_leaves_truth_alone():
    sample = make_sample()
    size = (HEIGHT, WIDTH)
    with_flicker = dataclasses.replace(OFF, event_flicker=1.0)
    varied = tr.augment(sample, np.random.default_rng(0), with_flicker, size)
    bare = tr.augment(sample, np.random.default_rng(0), OFF, size)
    lit = ("slices", "event_sum", "frame0", "frame1")
    assert not any(torch.equal(getattr(varied, n), getattr(bare, n)) for n in lit)
    assert varied.frame0.min() >= 0 and varied.frame0.max() <= 1
    assert_same(varied._replace(**{name: getattr(bare, name) for name in lit}), bare)


def test_frames_share_gain_and_gamma():
    sample = make_sample()
    config = tr.AugmentConfig(frame_gain=0.2, frame_gain_difference=0.0, frame_noise=0.0)
    varied = tr.vary_frames(sample, np.random.default_rng(1), config)
    assert not torch.equal(varied.frame0, sample.frame0)
    assert_frames_follow_flow(varied)


def test_dropout_marks_and_empties():
    sample = make_sample()
    frames, events = tr.drop_frames(sample), tr.drop_events(sample)
    history, exposure = tr.drop_history(sample), tr.drop_exposure(sample)
    assert frames.modality_mask.tolist() == [0, 1, 1, 0] and not frames.frame0.any()
    assert not frames.frame1.any() and not frames.exposure.any()
    assert events.modality_mask.tolist() == [1, 0, 0, 1] and not events.slices.any()
    assert not events.event_sum.any() and torch.equal(events.frame0, sample.frame0)
    second = tr.drop_second_frame(sample)
    assert second.modality_mask.tolist() == [1, 1, 1, 0] and not second.frame1.any()
    assert torch.equal(second.frame0, sample.frame0) and not second.exposure.any()
    assert history.modality_mask.tolist() == [1, 1, 0, 1] and not history.slices[0].any()
    assert torch.equal(history.slices[1:], sample.slices[1:])
    assert not exposure.exposure.any()
    assert torch.equal(exposure.event_sum, sample.slices[1:].sum((0, 1))[None])


def test_never_both_modalities_dropped():
    config = tr.AugmentConfig(drop_frames=0.5, drop_events=0.5, drop_history=0.5)
    samples = (
        tr.augment(make_sample(), np.random.default_rng(s), config, (16, 16)) for s in range(40)
    )
    seen = {tuple(sample.modality_mask.tolist()) for sample in samples}
    assert seen == {(0, 1, 1, 0), (0, 1, 0, 0), (1, 0, 0, 1)}


def test_config_errors():
    with pytest.raises(ValueError, match=r"flip must be in \[0, 1\], got 1.5"):
        tr.AugmentConfig(flip=1.5)
    with pytest.raises(ValueError, match=r"at most 1, got 0.6 \+ 0.6"):
        tr.AugmentConfig(drop_frames=0.6, drop_events=0.6)


@pytest.mark.parametrize("seed", range(4))
def test_samples_without_truth_are_varied_as_those_with_it(seed):
    whole = make_sample()
    ground_truth = ("tau", "flow", "valid", "occluded", "boundary")
    whole = whole._replace(modality_mask=torch.tensor([1.0, 1.0, 0.0, 1.0]))
    bare = whole._replace(**dict.fromkeys(ground_truth))
    expected, found = (
        tr.augment(sample, np.random.default_rng(seed), tr.AugmentConfig(), (12, 16))
        for sample in (whole, bare)
    )
    assert found.tensors().keys() == bare.tensors().keys()
    assert_same(found, expected._replace(**dict.fromkeys(ground_truth)))
    assert found.modality_mask[2] == 0  # no history stays no history
