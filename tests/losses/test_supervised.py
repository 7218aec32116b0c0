import math

import pytest
import torch

from flowfuse.data.samples import Sample
from flowfuse.losses.supervised import (
    LossConfig,
    boundary_loss,
    likelihood_loss,
    masked_mean,
    matching_loss,
    pixel_weights,
    sequence_loss,
    supervised_loss,
)
from flowfuse.model.flowfuse import ModelOutput


def make_output(batch=1, iterations=2, slices=2, height=32, width=40, channels=8):
    torch.manual_seed(0)
    cells = (-(-height // 8), -(-width // 8))
    return ModelOutput(
        control_points=torch.randn(batch, 2, 2, height, width).requires_grad_(),
        uncertainty=torch.randn(batch, 2, height, width).requires_grad_(),
        coarse_points=torch.randn(iterations, batch, 2, 2, *cells).requires_grad_(),
        boundary=torch.randn(batch, 2, height, width).requires_grad_(),
        event_latent=torch.randn(batch, slices + 1, channels, *cells).requires_grad_(),
        frame_latent=torch.randn(batch, 2, channels, *cells).requires_grad_(),
        evidence=torch.randn(iterations, batch, 2, *cells).requires_grad_(),
    )


def make_batch(batch=1, height=32, width=40):
    image = torch.zeros(batch, 1, height, width)
    return Sample(
        slices=torch.ones(batch, 3, 2, height, width),
        frame0=image,
        frame1=image,
        event_sum=image,
        exposure=torch.zeros(batch, 2),
        modality_mask=torch.ones(batch, 4),
        tau=torch.tensor([[0.25, 0.5, 0.75, 1.0]]).repeat(batch, 1),
        flow=torch.zeros(batch, 4, 2, height, width),
        valid=torch.ones(batch, 4, height, width, dtype=torch.bool),
        occluded=torch.zeros(batch, 4, height, width, dtype=torch.bool),
        boundary=torch.ones(batch, 2, height, width),
    )


def test_masked_mean_divides_by_what_is_valid():
    values = torch.tensor([1.0, 2.0, float("nan")], requires_grad=True)
    mask = torch.tensor([True, True, False])
    mean = masked_mean(values, mask)
    assert mean == 1.5
    mean.backward()
    assert values.grad.tolist() == [0.5, 0.5, 0]
    assert masked_mean(values, torch.zeros(3, dtype=torch.bool)) == 0


def test_likelihood_loss_by_hand():
    output = make_output()._replace(
        control_points=torch.zeros(1, 2, 2, 32, 40),
        uncertainty=torch.full((1, 2, 32, 40), 100.0),  # all weight on the narrow Laplace
    )
    batch = make_batch()
    batch.flow[:, :, 0] = 3.0  # u is off by 3 at all times, v is right
    # log(2 / 4) + 4 mean(3, 0), and a quarter of the absolute error
    assert likelihood_loss(output, batch, pixel_weights(batch, 0), 0.25).item() == pytest.approx(
        math.log(0.5) + 4 * 1.5 + 0.25 * 1.5, rel=1e-5
    )


def test_sequence_loss_by_hand():
    output = make_output()._replace(coarse_points=torch.zeros(2, 1, 2, 2, 4, 5))
    batch = make_batch()
    batch.flow[..., 4::8, 4::8] = 2.0  # at the centres of the cells alone
    # both estimates are off by 2; they count 0.8 and 1
    assert sequence_loss(output, batch, pixel_weights(batch, 0), 0.8).item() == pytest.approx(
        1.8 * 2
    )


def test_pixels_near_motion_discontinuities_count_more():
    batch = make_batch()
    batch.boundary[:] = 0
    batch.boundary[:, 1, 10, 20] = 1
    batch.boundary[:, 1, 30, :5] = float("nan")  # unknown: no reason to count more
    batch.valid[..., 0] = False
    weight = pixel_weights(batch, 2.0)
    assert weight.shape == batch.valid.shape
    near = torch.zeros(32, 40, dtype=torch.bool)
    near[5:16, 15:26] = True  # within 5 px
    assert (weight[0, 0][near] == 3).all()
    assert (weight[0, 0, :, 1:][~near[:, 1:]] == 1).all()
    assert (weight[..., 0] == 0).all()

    output = make_output()._replace(coarse_points=torch.zeros(1, 1, 2, 2, 4, 5))
    batch.flow[:] = 0
    batch.flow[:, :, :, 12, 20] = 1.0  # the centre of a cell
    batch.valid[:] = True
    plain, more = (
        sequence_loss(output, batch, pixel_weights(batch, border), 0.8).item() for border in (0, 2)
    )
    assert plain == pytest.approx(1 / 20)  # of 20 cells
    assert more == pytest.approx(3 / 22)


def test_invalid_truth_has_no_say():
    output, batch = make_output(), make_batch()

    def loss():
        weight = pixel_weights(batch, 1.0)
        fine = likelihood_loss(output, batch, weight, 0.25)
        return fine + sequence_loss(output, batch, weight, 0.8)

    reference = loss()
    batch.valid[..., :16] = False
    batch.flow[..., :16] = float("nan")
    assert torch.isfinite(loss()) and loss() != reference
    loss().backward()
    for points, known in ((output.control_points, 16), (output.coarse_points, 2)):
        assert points.grad[..., :known].abs().max() == 0
        assert torch.isfinite(points.grad).all()
    batch.valid[:] = False
    assert loss() == 0


def test_boundary_loss_weighs_rare_pixels():
    logits = torch.zeros(1, 2, 2, 2)
    ground_truth = torch.zeros(1, 2, 2, 2)
    ground_truth[0, 1, 0, 0] = 1
    event, motion = boundary_loss(logits, ground_truth, (2.0, 5.0))
    assert event.item() == pytest.approx(math.log(2))
    assert motion.item() == pytest.approx(math.log(2) * (5 + 3) / 4)


def test_unknown_boundaries_have_no_say():
    logits = torch.zeros(1, 2, 2, 2, requires_grad=True)
    ground_truth = torch.zeros(1, 2, 2, 2)
    ground_truth[0, 0] = float("nan")
    ground_truth[0, 1, 0] = float("nan")
    event, motion = boundary_loss(logits, ground_truth, (2.0, 5.0))
    assert event == 0 and motion.item() == pytest.approx(math.log(2))
    (event + motion).backward()
    assert not logits.grad[0, 0].any() and not logits.grad[0, 1, 0].any()
    assert logits.grad[0, 1, 1].all()


def test_matching_is_lowest_at_the_true_displacement():
    torch.manual_seed(0)
    scene = 6 * torch.nn.functional.normalize(torch.randn(1, 16, 4, 5), dim=1)
    # everything moves one cell (8 px) right over the whole interval: half a cell at tau = 1/2
    moved = scene.roll(1, dims=3)
    output = make_output(channels=16)._replace(
        event_latent=torch.stack((scene, (scene + moved) / 2, moved), dim=1),
        frame_latent=torch.stack((scene, moved), dim=1),
    )
    batch = make_batch()
    losses = {}
    for cells in (-1, 0, 1):
        batch.flow[:, :, 0] = 8.0 * cells * batch.tau[0].view(1, -1, 1, 1)
        losses[cells] = matching_loss(output, batch).item()
    assert losses[1] < losses[0] and losses[1] < losses[-1]


def test_matching_is_the_mean_over_pairs_of_the_mean_over_places():
    """By the formula, one place after another, where motion is linear in time."""
    torch.manual_seed(1)
    output, batch = make_output(channels=5), make_batch()
    batch.flow[:] = 0
    batch.flow[:, :, 0] = (6.0 * batch.tau[0]).view(1, -1, 1, 1)
    batch.occluded[:, -1, 8:16, 16:24] = True  # at the end only: cell (1, 2)
    batch.boundary[:, 0, :8] = 0  # no edge in the first row of cells
    events, frames = output.event_latent[0].detach(), output.frame_latent[0].detach()
    pairs = [(events[0], events[1], 0.5), (events[0], events[2], 1.0)]
    pairs += [(frames[0], frames[1], 1.0), (frames[0], events[2], 1.0)]
    batch.boundary[:, 0, 8:] = 1
    means = []
    for index, (source, target, time) in enumerate(pairs):
        costs = []
        for row in range(4):
            for column in range(5):
                x = column + 6.0 * time / 8
                hidden = (row, column) == (1, 2) and time == 1.0
                if x > 4 or hidden or (index < 2 and row == 0):
                    continue
                scores = torch.einsum("c,chw->hw", source[:, row, column], target) / 5**0.5
                left, share = int(x), x - int(x)
                truth = (1 - share) * scores[row, left] + share * scores[row, left + 1]
                costs.append(scores.logsumexp(dim=(0, 1)) - truth)
        means.append(torch.stack(costs).mean())
    expected = torch.stack(means).mean().item()
    assert matching_loss(output, batch).item() == pytest.approx(expected, rel=1e-5)


def test_matching_skips_what_is_covered():
    output, batch = make_output(), make_batch()
    everywhere = matching_loss(output, batch)
    batch.occluded[..., :16] = True
    assert matching_loss(output, batch) != everywhere
    batch.occluded[:] = True
    assert matching_loss(output, batch) == 0


def test_matching_skips_what_is_absent():
    output, batch = make_output(), make_batch()
    batch = batch._replace(modality_mask=torch.zeros(1, 4))
    loss = matching_loss(output, batch)
    assert loss == 0
    batch = batch._replace(modality_mask=torch.tensor([[1.0, 0.0, 1.0, 1.0]]))
    matching_loss(output, batch).backward()
    assert output.event_latent.grad.abs().max() == 0
    assert output.frame_latent.grad.abs().max() > 0


def test_noise_is_not_matched():
    # Something fires everywhere, but there is one moving edge: in the cell of row 1 and column 2.
    output, batch = make_output(), make_batch()
    batch.boundary[:, 0] = 0
    batch.boundary[:, 0, 9, 20] = 1
    matching_loss(output, batch).backward()
    matched = output.event_latent.grad[0, 0].abs().sum(dim=0)  # E_0 is asked in the first pairs
    assert matched.nonzero().tolist() == [[1, 2]]
    # Where no edge is known, as in a recording, all that fires is.
    output, batch = make_output(), make_batch()
    batch.boundary[:] = torch.nan
    batch.slices[:, 0, :, :8] = 0
    matching_loss(output, batch).backward()
    matched = output.event_latent.grad[0, 0].abs().sum(dim=0)
    assert not matched[0].any() and (matched[1:] > 0).all()


def test_flat_latents_do_not_minimize_matching():
    output, batch = make_output(channels=16), make_batch()
    flat = output._replace(
        event_latent=torch.zeros(1, 3, 16, 4, 5), frame_latent=torch.zeros(1, 2, 16, 4, 5)
    )
    assert matching_loss(flat, batch).item() == pytest.approx(math.log(20), rel=1e-5)


@pytest.mark.parametrize("size", [(30, 30), (33, 47), (31, 48), (32, 44), (17, 23)])
def test_matching_takes_any_size(size):
    height, width = size
    output = make_output(height=height, width=width)
    loss = matching_loss(output, make_batch(height=height, width=width))
    assert torch.isfinite(loss) and loss > 0
    loss.backward()
    whole = output.event_latent.grad[..., : height // 8, : width // 8]
    assert (whole.abs().amax(dim=(0, 1, 2)) > 0).all()


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_weights_that_cannot_be_are_refused(value):
    with pytest.raises(ValueError, match="absolute must be a number >= 0"):
        LossConfig(absolute=value)


def test_total_is_the_weighted_sum():
    output, batch = make_output(), make_batch()
    config = LossConfig(flow=2.0, coarse=5.0, boundary=3.0, matching=0.5)
    loss, parts = supervised_loss(output, batch, config)
    expected = (
        2 * parts["flow"]
        + 5 * parts["coarse"]
        + 3 * (parts["boundary_event"] + parts["boundary_motion"])
        + 0.5 * parts["matching"]
    )
    torch.testing.assert_close(loss, expected)
    error = output.control_points[:, -1].norm(dim=1).mean()
    torch.testing.assert_close(parts["epe"], error)
