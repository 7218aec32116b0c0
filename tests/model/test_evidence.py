"""The estimate of what each modality alone would be worth, and what it does to the network."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flowfuse.data.augment import AugmentConfig, augment, drop_second_frame
from flowfuse.data.samples import Sample
from flowfuse.data.synthetic.dataset import scene_sample
from flowfuse.data.synthetic.scenes import generate_scene
from flowfuse.inputs import Modality, ModelInputs, PairKind
from flowfuse.losses.supervised import (
    SingleErrors,
    cell_errors,
    evidence_loss,
    regret_loss,
    single_errors,
)
from flowfuse.model import CONFIGS, FlowFuse, ModelOutput
from flowfuse.model import evidence as evidence_module
from flowfuse.model.evidence import Evidence, EvidenceHead, fades, present_kinds, shrink_to_mean

NANO = CONFIGS["nano"]
ALL = torch.ones(1, 4)


def make_matches(frames=(1.0, 0.0), rate=(1.0, 0.0), cross=(1.0, 0.0), slices=4, size=(6, 8)):
    """Matches of all pairs, everywhere the same: events move uniformly at a rate."""
    times = torch.arange(1, slices + 1) / slices
    moved = [torch.tensor(rate) * time for time in times] + [torch.tensor(frames)]
    residual = torch.stack([*moved, torch.tensor(cross)])[None, :, :, None, None]
    residual = residual.expand(-1, -1, -1, *size).clone()
    certainty = torch.full((1, slices + 2, 1, *size), -1.0)
    return torch.cat((residual, certainty), dim=2), torch.cat((times, torch.ones(2)))


def make_inputs(batch=1, height=40, width=48):
    generator = torch.Generator().manual_seed(0)
    slices = torch.randn(batch, 5, 3, height, width, generator=generator).round()
    frame0 = torch.rand(batch, 1, height, width, generator=generator)
    return ModelInputs(
        slices=slices,
        frame0=frame0,
        frame1=frame0.roll(1, -1),
        event_sum=slices[:, 1:].sum((1, 2)).unsqueeze(1),
        exposure=torch.zeros(batch, 2),
        modality_mask=torch.ones(batch, 4),
    )


def make_model(**changes):
    torch.manual_seed(0)
    return FlowFuse(replace(NANO, **changes)).eval()


def run(model, inputs, **mask):
    flags = inputs.modality_mask.clone()
    for name, value in mask.items():
        flags[:, Modality[name]] = value
    with torch.no_grad():
        return model(inputs._replace(modality_mask=flags))


@pytest.mark.parametrize(
    ("mask", "kinds"),
    [
        ((1, 1, 1, 1), (1, 1, 1)),
        ((1, 0, 0, 1), (1, 0, 0)),
        ((0, 1, 1, 0), (0, 1, 0)),
        ((1, 1, 0, 1), (1, 0, 1)),  # no history: nothing to match the slices with
        ((1, 1, 1, 0), (0, 1, 1)),
    ],
)
def test_kinds_that_are_there(mask, kinds):
    found = present_kinds(torch.tensor([mask], dtype=torch.float32))
    assert found.tolist() == [list(map(float, kinds))]


def test_an_untrained_head_fades_nothing():
    torch.manual_seed(0)
    evidence = EvidenceHead()(*make_matches(), ALL)
    assert evidence.log_scale.shape == evidence.fade.shape == (1, 2, 6, 8)
    assert evidence.fade.min() > 0.95


def test_a_modality_counts_by_its_error():
    head = EvidenceHead()
    with torch.no_grad():
        head.out.weight.zero_()
        head.out.bias.copy_(torch.tensor([math.log(0.1), math.log(0.2)]))
    evidence = head(*make_matches(), ALL)
    # Twice as wrong: 2 / 1.35 of the margin, to the power of 8, against 1.
    fade = 2 / (1 + (2 / 1.35) ** 8)
    assert torch.allclose(evidence.fade[0, :, 0, 0], torch.tensor([1.0, fade]))
    pairs = [evidence.of_pair(kind)[0, 0, 0, 0].item() for kind in PairKind]
    assert np.allclose(pairs, [1.0, fade**2, fade])


def test_errors_that_are_about_equal_count_alike():
    ratio = torch.tensor([-0.29, 0.0, 0.29, 0.31, -0.31, 8.0, -8.0]).view(1, 1, 1, 7)
    found = fades(ratio, torch.ones(1, 1, 1, 1, dtype=torch.bool))
    assert torch.equal(found[..., :3], torch.ones(1, 2, 1, 3))
    frames, events = found[0, :, 0].tolist()
    assert frames[3] == frames[5] == events[4] == events[6] == 1
    assert 0.9 < events[3] < 1 and frames[4] == events[3]
    assert (found.square() > 0).all() and events[5] == frames[6] < 1e-10


@pytest.mark.parametrize(
    ("alone", "expected"),
    [
        ((1.0, 3.0), (1.8, 2.2)),  # mean 2, mean square 5: four fifths of the way to 2
        ((-1.0, 1.0), (-1.0, 1.0)),  # each its places: none of the way
        ((0.5, 0.5), (0.5, 0.5)),
        ((0.0, 0.0), (0.0, 0.0)),
    ],
)
def test_cells_are_drawn_to_the_image_by_how_much_they_agree(alone, expected):
    ratio = torch.tensor(alone).view(1, 1, 1, 2)
    # Each image has its own mean.
    found = shrink_to_mean(torch.cat((ratio, torch.ones_like(ratio))))
    assert torch.allclose(found[0, 0, 0], torch.tensor(expected), atol=1e-5)
    assert torch.equal(found[1], torch.ones(1, 1, 2))


def test_fades_follow_the_image_where_one_modality_leads():
    head = EvidenceHead()
    errors = torch.tensor([[1.0, 1.0], [math.exp(1.0), math.exp(3.0)]]).log()  # of frames, events
    found = errors.view(1, 2, 1, 2)
    head.out.register_forward_hook(lambda layer, x, y: found)
    evidence = head(*make_matches(size=(1, 2)), ALL)
    assert torch.equal(evidence.log_scale, found)
    expected = 2 / (1 + (np.exp([1.8, 2.2]) / 1.35) ** 8)  # shrunk as above
    assert np.allclose(evidence.events[0, 0, 0], expected, rtol=1e-4)
    assert torch.equal(evidence.frames, torch.ones(1, 1, 1, 2))


@pytest.mark.parametrize("mask", [(1, 0, 0, 1), (0, 1, 1, 0), (1, 1, 1, 0)])
def test_nothing_fades_where_one_modality_cannot_be_judged(mask):
    head = EvidenceHead()
    torch.nn.init.constant_(head.out.bias, 1.0)
    with torch.no_grad():
        head.out.bias[0] = -1
    evidence = head(*make_matches(), torch.tensor([mask], dtype=torch.float32))
    assert torch.equal(evidence.fade, torch.ones_like(evidence.fade))


def test_the_head_sees_disagreement_and_not_its_direction(monkeypatch):
    """Apart from where a motion leaves the image."""
    monkeypatch.setattr(
        evidence_module, "distance_to_border", lambda m: torch.zeros_like(m[:, :, 0])
    )
    torch.manual_seed(0)
    head = EvidenceHead()
    torch.nn.init.normal_(head.out.weight)
    agree = head(*make_matches(), ALL).log_scale
    turned = make_matches(frames=(0.0, 1.0), rate=(0.0, 1.0), cross=(0.0, 1.0))
    assert torch.allclose(head(*turned, ALL).log_scale, agree, atol=1e-5)
    apart = head(*make_matches(frames=(-1.0, 0.0)), ALL).log_scale
    assert (apart - agree).abs().max() > 1e-3


def test_motion_unlike_that_of_the_neighbours():
    motion = torch.zeros(1, 1, 2, 9, 9)
    motion[0, 0, :, 4, 4] = torch.tensor((15.0, 20.0))
    found = evidence_module.unlike_neighbours(motion).norm(dim=2)[0, 0]
    assert found[4, 4].item() == pytest.approx(25 * 24 / 25)
    assert found[2, 6].item() == pytest.approx(1.0) and found[1, 4] == 0
    assert evidence_module.unlike_neighbours(torch.full((1, 2, 2, 3, 4), 7.0)).abs().max() == 0


def test_distance_to_the_border():
    motion = torch.zeros(1, 1, 2, 6, 8)
    motion[..., 0, 3, 4] = 9.0  # to x = 13 of 0 .. 7
    motion[..., 1, 3, 2] = -3.0  # to the first row
    found = evidence_module.distance_to_border(motion)[0, 0]
    assert found[3, 4] == -2.0 and found[3, 2] == 0.5 and found[3, 3] == 2.0 and found[0, 3] == 0.5


@pytest.mark.parametrize("gone", ["frames", "events"])
def test_a_modality_that_has_faded_altogether_is_as_good_as_absent(gone, monkeypatch):
    model, inputs = make_model(), make_inputs()
    # Trained weights: those of a fresh network are zero where much of this has its effect.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    # The matches of an absent modality are flat. Sharp ones keep them out of the first estimate.
    torch.nn.init.constant_(model.matching.log_sharpness, 3.0)
    torch.nn.init.constant_(model.matching.log_trust, 3.0)
    mask = {"FRAMES": 0, "SECOND_FRAME": 0} if gone == "frames" else {"EVENTS": 0, "HISTORY": 0}
    wanted, both = run(model, inputs, **mask), run(model, inputs)

    def fade_out(matches, tau, mask):
        fade = torch.ones(1, 2, *matches.shape[-2:])
        fade[:, int(gone == "events")] = 1e-6
        return Evidence(torch.zeros_like(fade), fade)

    monkeypatch.setattr(model.evidence, "forward", fade_out)
    found = run(model, inputs)
    scale = (both.control_points - wanted.control_points).abs().mean()
    assert (found.control_points - wanted.control_points).abs().mean() < 0.02 * scale
    difference = (both.boundary - wanted.boundary).abs().mean()
    # 0.03 with these random weights
    assert (found.boundary - wanted.boundary).abs().mean() < 0.05 * difference


def test_what_is_absent_has_no_say():
    torch.manual_seed(0)
    head = EvidenceHead()
    torch.nn.init.normal_(head.out.weight)
    one = torch.tensor([[1.0, 1.0, 1.0, 0.0]])  # no frame pair
    first, second = (head(*make_matches(frames=f), one).log_scale for f in ((1.0, 0.0), (9.0, 3.0)))
    assert torch.equal(first, second)


def test_no_gradient_to_the_matches_and_none_through_the_fade():
    matches, tau = make_matches()
    matches.requires_grad_()
    head = EvidenceHead()
    evidence = head(matches, tau, ALL)
    assert not evidence.fade.requires_grad
    evidence.log_scale.sum().backward()
    assert head.out.weight.grad is not None and matches.grad is None


def test_evidence_begins_as_guided_fusion_of_one_modality():
    """Weights of a guided fusion mean the same until the head is trained."""
    model, guided = make_model(), make_model(fusion="guided")
    guided.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith("evidence.")}
    )
    inputs = make_inputs()
    for mask in ({"EVENTS": 0, "HISTORY": 0}, {"FRAMES": 0, "SECOND_FRAME": 0}):
        first, second = (run(m, inputs, **mask).control_points for m in (model, guided))
        assert torch.equal(first, second)


def test_a_faded_modality_has_little_influence():
    model = make_model()
    inputs = make_inputs()
    other = inputs._replace(frame0=inputs.frame1, frame1=inputs.frame0)

    def influence(bias):
        with torch.no_grad():
            model.evidence.out.bias.copy_(torch.tensor(bias))
        first, second = (run(model, x).coarse_points[-1] for x in (inputs, other))
        return (first - second).abs().mean()

    # The cues of the boundaries still see the frames.
    assert influence((3.0, -3.0)) < 0.5 * influence((-3.0, 3.0))


def test_frame_1_is_not_read_where_it_is_absent():
    model = make_model()
    inputs = make_inputs()
    other = inputs._replace(frame1=torch.rand_like(inputs.frame1))
    first, second = (run(model, x, SECOND_FRAME=0).control_points for x in (inputs, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, run(model, inputs, FRAMES=0, SECOND_FRAME=0).control_points)


def test_one_frame_takes_no_gradient_steps():
    model = make_model()
    inputs = make_inputs()
    before = run(model, inputs, SECOND_FRAME=0).control_points
    torch.nn.init.constant_(model.refinement.out.bias[-NANO.gradient_steps :], -10.0)
    after = run(model, inputs, SECOND_FRAME=0).control_points
    assert torch.allclose(before, after, atol=1e-4)
    assert not torch.allclose(before, run(model, inputs).control_points, atol=1e-4)


def make_batch():
    scene = generate_scene(3, "fast", 40, 48)
    return Sample.collate([scene_sample(scene, spec=NANO.input_spec, seed=0)])


def test_single_errors_are_those_of_each_modality_alone():
    model, batch = make_model(), make_batch()
    single = single_errors(model, batch)
    assert single.error.shape == (1, 2, 5, 6) and single.valid.shape == (1, 5, 6)
    frames = run(model, batch.inputs, EVENTS=0, HISTORY=0).control_points[:, -1]
    error = (frames - batch.flow[:, -1]).abs().mean(dim=1)[:, :8, :8]
    valid = batch.valid[:, -1, :8, :8]
    assert torch.allclose(single.error[:, 0, 0, 0], error[valid].mean(), rtol=1e-5)
    one = Sample.collate([drop_second_frame(scene) for scene in [batch.map(lambda t: t[0])]])
    assert not single_errors(model, one).valid.any()


@pytest.mark.parametrize(
    "changes", [{}, {"fusion": "guided"}, {"events": False}, {"frames": False}]
)
def test_what_is_absent_need_not_be_encoded(changes):
    """The same bits with fewer operations, where the network has another modality to leave out."""
    model, inputs = make_model(**changes), make_inputs(batch=2)
    for alone, others in (
        (Modality.FRAMES, (Modality.EVENTS, Modality.HISTORY)),
        (Modality.EVENTS, (Modality.FRAMES, Modality.SECOND_FRAME)),
    ):
        if not (model.config.frames if alone == Modality.FRAMES else model.config.events):
            continue
        mask = inputs.modality_mask.clone()
        mask[:, others] = 0
        outputs, operations = [], []
        for options in ({}, {"alone": alone}):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                outputs.append(model(inputs._replace(modality_mask=mask), **options))
            operations.append(counter.get_total_flops())
        for name, expected, found in zip(ModelOutput._fields, *outputs, strict=True):
            assert torch.equal(found, expected), name
        both = model.config.frames and model.config.events
        assert operations[1] < 0.95 * operations[0] if both else operations[1] == operations[0]


def test_evidence_loss_by_hand_and_its_minimum():
    output = run(make_model(), make_batch().inputs)
    single = SingleErrors(torch.full((1, 2, 5, 6), 4.0), torch.ones(1, 5, 6, dtype=torch.bool))

    def loss(scale):
        log_scale = torch.full_like(output.evidence, math.log(scale))
        return evidence_loss(output._replace(evidence=log_scale), single).item()

    assert loss(2.0) == pytest.approx(math.log(2) + 0.5 / 2)  # 4 px are half a cell
    assert loss(0.5) < min(loss(0.4), loss(0.6))
    nothing = single._replace(valid=torch.zeros(1, 5, 6, dtype=torch.bool))
    assert evidence_loss(output, nothing) == 0


def test_regret_by_hand():
    """The error beyond that of the better modality, where it is known."""
    model, batch = make_model(), make_batch()
    output = model(batch.inputs)
    error, known = cell_errors(output, batch)
    assert known.any() and error.shape == known.shape
    best = torch.stack((error - 0.5, error + 3), dim=1).detach()
    assert regret_loss(output, batch, SingleErrors(best, known)).item() == pytest.approx(0.5)
    worse = torch.stack((error + 1, error + 3), dim=1).detach()
    assert regret_loss(output, batch, SingleErrors(worse, known)) == 0
    assert regret_loss(output, batch, SingleErrors(best, torch.zeros_like(known))) == 0
    regret_loss(output, batch, SingleErrors(best, known)).backward()
    assert model.refinement.out.weight.grad.abs().sum() > 0


def test_frame_1_is_dropped_as_often_as_asked():
    sample = make_batch().map(lambda tensor: tensor[0])
    config = AugmentConfig(drop_frames=0.2, drop_events=0.2, drop_second_frame=0.5)
    masks = [
        augment(sample, np.random.default_rng(seed), config, (32, 32)).modality_mask
        for seed in range(60)
    ]
    one = [mask for mask in masks if mask[Modality.FRAMES] > mask[Modality.SECOND_FRAME]]
    assert 10 <= len(one) <= 28 and all(mask[Modality.EVENTS] for mask in one)


def test_pairs_fade_by_both_their_images():
    evidence = Evidence(torch.zeros(1, 2, 1, 1), torch.tensor([0.5, 0.8]).view(1, 2, 1, 1))
    found = [evidence.of_pair(kind).item() for kind in PairKind]
    assert found == pytest.approx([0.25, 0.64, 0.4])
