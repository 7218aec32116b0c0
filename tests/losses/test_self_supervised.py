"""The losses without truth are lower for the true motion, and each knows where it does not hold."""

import pytest
import torch

from flowfuse.data.samples import Sample
from flowfuse.data.synthetic.dataset import scene_sample
from flowfuse.data.synthetic.presets import SceneConfig
from flowfuse.data.synthetic.scenes import generate_scene
from flowfuse.geometry.bezier import fit_bezier
from flowfuse.inputs import InputSpec
from flowfuse.losses.self_supervised import (
    SelfSupervisionConfig,
    gradient_constancy_loss,
    photometric_loss,
    self_supervised_loss,
    sharpness_loss,
    smoothness_loss,
)
from flowfuse.model.flowfuse import ModelOutput

SHARP = SceneConfig((4.0, 6.0), exposure=(0.02, 0.03), world_share=0.0)


@pytest.fixture(scope="module")
def batch():
    scene = generate_scene(1, SHARP, 96, 128)
    return Sample.collate([scene_sample(scene, spec=InputSpec(4, 3), seed=0)])


@pytest.fixture(scope="module")
def ground_truth(batch):
    return fit_bezier(batch.flow, batch.tau[0], 3)


def without(batch, modality):
    present = batch.modality_mask.clone()
    present[:, modality] = 0
    return batch._replace(modality_mask=present)


@pytest.mark.parametrize("loss", [photometric_loss, gradient_constancy_loss, sharpness_loss])
@pytest.mark.parametrize("factor", [0.0, -1.0])
def test_true_motion_is_better_than_none_and_than_its_opposite(batch, ground_truth, loss, factor):
    assert loss(ground_truth, batch) < loss(factor * ground_truth, batch)


@pytest.mark.parametrize(
    ("loss", "modality"),
    [(photometric_loss, 0), (gradient_constancy_loss, 0), (gradient_constancy_loss, 1),
     (sharpness_loss, 1)],
)  # fmt: skip
def test_an_absent_modality_has_no_say(batch, ground_truth, loss, modality):
    assert loss(ground_truth, batch) != 0
    assert loss(ground_truth, without(batch, modality)) == 0


def test_blurred_frames_have_no_photometric_say(batch, ground_truth):
    # 0.9 of the interval at 4 px and more is a blur of more than 2 px
    blurred = batch._replace(exposure=torch.full((1, 2), 0.9))
    moving = ground_truth.clone()
    moving[:, -1] = 4.0
    assert photometric_loss(moving, blurred) == 0


def test_long_motion_is_no_case_for_the_gradient_equation(batch):
    fast = torch.full((1, 3, 2, 96, 128), 60.0)
    assert gradient_constancy_loss(fast, batch) == 0


def test_smoothness_is_free_across_motion_boundaries_only():
    points = torch.zeros(1, 1, 2, 8, 8)
    points[..., 4:] = 5.0
    flat = Sample(None, torch.full((1, 1, 8, 8), 0.5), None, None, None, None)
    nowhere = torch.full((1, 2, 8, 8), -100.0)
    there = nowhere.clone()
    there[:, 1, :, 3:5] = 100.0
    assert smoothness_loss(points, flat, nowhere) > 0.1
    assert smoothness_loss(points, flat, there) == 0
    assert smoothness_loss(torch.ones_like(points), flat, nowhere) == 0


def test_gradients_reach_the_trajectories_and_not_the_boundary(batch, ground_truth):
    points = (0.5 * ground_truth).clone().requires_grad_()
    coarse = points.detach()[None, ..., 4::8, 4::8].repeat(2, 1, 1, 1, 1, 1).requires_grad_()
    boundary = torch.zeros(1, 2, 96, 128, requires_grad=True)
    latent = torch.zeros(1, 1, 1, 1, 1)
    output = ModelOutput(points, points, coarse, boundary, latent, latent, latent)
    loss, parts = self_supervised_loss(output, batch, SelfSupervisionConfig())
    assert set(parts) == {"photometric", "gradient_constancy", "sharpness", "smoothness", "epe"}
    loss.backward()
    for gradient in (points.grad, coarse.grad):
        assert torch.isfinite(gradient).all()
    assert points.grad.abs().max() > 0
    assert (coarse.grad.abs().amax(dim=(1, 2, 3, 4, 5)) > 0).all()
    assert boundary.grad is None


def test_descending_the_losses_finds_the_motion(batch, ground_truth):
    """From no motion, gradient descent on one global translation ends near the dominant one."""
    shift = torch.zeros(1, 3, 2, 1, 1, requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=0.3)
    boundary = torch.zeros(1, 2, 96, 128)
    latent = torch.zeros(1, 1, 1, 1, 1)
    for _ in range(40):
        points = shift.expand(-1, -1, -1, 96, 128)
        coarse = shift.new_zeros(0, 1, 3, 2, 12, 16)
        output = ModelOutput(points, points, coarse, boundary, latent, latent, latent)
        loss, _ = self_supervised_loss(output, batch, SelfSupervisionConfig())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = shift.detach()[0, -1].flatten()
    median = batch.flow[0, -1].flatten(1).median(dim=1).values
    assert (found - median).norm() < 0.5 * median.norm()


def test_weights_must_be_numbers():
    with pytest.raises(ValueError, match="photometric must be a number >= 0, got -1"):
        SelfSupervisionConfig(photometric=-1)
