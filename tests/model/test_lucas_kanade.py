"""Steps along the brightness constancy equation, against shifts that are known."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from flowfuse.geometry.grid import pixel_grid
from flowfuse.inputs import ModelInputs
from flowfuse.model import FlowFuse, ModelConfig
from flowfuse.model import lucas_kanade as module
from flowfuse.model.lucas_kanade import lucas_kanade_refine
from flowfuse.ops import lucas_kanade_step
from flowfuse.ops.lucas_kanade_step import MAX_CHANGE, image_gradient, windows

HEIGHT, WIDTH, CELL = 32, 48, 4


def pattern(shift=(0.0, 0.0), gain=1.0, offset=0.0):
    """A smooth texture, seen after all of it has moved by ``shift`` px: [1, 1, H, W]."""
    x, y = pixel_grid(HEIGHT, WIDTH, dtype=torch.float64)
    x, y = x - shift[0], y - shift[1]
    waves = torch.sin(0.5 * x + 0.2 * y) + torch.cos(0.3 * x - 0.6 * y) + torch.sin(0.4 * y)
    return (gain * (0.5 + 0.15 * waves) + offset)[None, None].float()


def prior(value=1e-6):
    return torch.full((1, 1, HEIGHT // CELL, WIDTH // CELL), value)


def inner(values):
    """Without the cells whose windows reach the image's border, where the warp has to guess."""
    return values[..., 2:-2, 2:-2]


def test_gradients_of_a_cubic_are_exact():
    x, y = pixel_grid(8, 9, dtype=torch.float64)
    along_x, along_y = image_gradient((x**3 + 2 * y)[None, None])
    torch.testing.assert_close(along_x[0, 0, :, 2:-2], 3 * x[:, 2:-2] ** 2)
    torch.testing.assert_close(along_y[0, 0, 2:-2], torch.full((4, 9), 2.0).double())


def test_windows_by_hand():
    cells = torch.zeros(1, 1, 3, 4)
    cells[0, 0, 1, 1] = 16
    expected = torch.tensor([[1.0, 2, 1, 0], [2, 4, 2, 0], [1, 2, 1, 0]])
    torch.testing.assert_close(windows(cells)[0, 0], expected)
    constant = torch.full((1, 1, 3, 4), 3.0)  # a border cell stands in for those beyond it
    torch.testing.assert_close(windows(constant), constant)


def test_one_window_by_hand():
    """I0 = x / 10 + y^2 / 200, I1 brighter by 0.02: what moves along x explains none of it."""
    x, y = pixel_grid(12, 12, dtype=torch.float64)
    image = (x / 10 + y**2 / 200).float()[None, None]
    change = lucas_kanade_step(image, image + 0.02, torch.zeros(1, 2, 12, 12), prior()[..., :3, :3])
    torch.testing.assert_close(change, torch.zeros_like(change), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shift", [(0.4, 0.0), (0.0, -0.6), (0.7, 0.5)])
def test_finds_a_shift(shift):
    flow = torch.zeros(1, 2, HEIGHT, WIDTH)
    change = inner(lucas_kanade_step(pattern(), pattern(shift), flow, prior()))
    expected = torch.tensor(shift).view(1, 2, 1, 1).expand_as(change)
    torch.testing.assert_close(change, expected, atol=0.05, rtol=0)


def test_starts_from_the_flow_that_is_given():
    shift = torch.tensor([7.3, -5.2]).view(1, 2, 1, 1)
    flow = (shift - 0.3).expand(1, 2, HEIGHT, WIDTH)
    change = lucas_kanade_step(pattern(), pattern((7.3, -5.2)), flow, prior())
    # Cells that come from outside the second image have nothing to compare with.
    found = change[..., 4:-1, 1:-4]
    torch.testing.assert_close(found, torch.full_like(found, 0.3), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [({"offset": 0.1}, 1e-3), ({"gain": 1.05}, 0.05), ({"gain": 0.95}, 0.05)],
)
def test_a_brighter_second_frame_matters_little(change, tolerance):
    flow = torch.zeros(1, 2, HEIGHT, WIDTH)
    same = lucas_kanade_step(pattern(), pattern((0.4, 0.3)), flow, prior())
    brighter = lucas_kanade_step(pattern(), pattern((0.4, 0.3), **change), flow, prior())
    torch.testing.assert_close(inner(brighter), inner(same), atol=tolerance, rtol=0)


def test_the_prior_shortens_the_step():
    arguments = pattern(), pattern((0.6, 0.0)), torch.zeros(1, 2, HEIGHT, WIDTH)
    lengths = [
        lucas_kanade_step(*arguments, prior(p)).norm(dim=1).mean() for p in (1e-6, 1e-2, 1e2)
    ]
    assert lengths[0] > 2 * lengths[1] > 20 * lengths[2]


def test_a_step_is_bounded():
    # Gradients that cancel leave next to none to explain a large difference by.
    negative = pattern(gain=-0.9, offset=0.95)
    change = lucas_kanade_step(pattern(), negative, torch.zeros(1, 2, HEIGHT, WIDTH), prior(1e-9))
    torch.testing.assert_close(change.norm(dim=1).max(), torch.tensor(MAX_CHANGE))


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_nothing_to_see_is_no_change(value):
    """Absent frames are zero, clipped ones are one: no step, and no NaN in the gradient."""
    flat = torch.full((1, 1, HEIGHT, WIDTH), value)
    weak = prior(1e-12).requires_grad_()
    change = lucas_kanade_step(flat, flat, torch.zeros(1, 2, HEIGHT, WIDTH), weak)
    assert change.abs().max() == 0
    change.sum().backward()
    assert torch.isfinite(weak.grad).all()


def test_gradient_of_the_prior():
    frames = [image.double()[..., :12, :12] for image in (pattern(), pattern((0.4, 0.3)))]
    flow = torch.zeros(1, 2, 12, 12, dtype=torch.float64)
    weights = torch.full((1, 1, 3, 3), 3e-3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda p: lucas_kanade_step(*frames, flow, p), (weights,))


def test_trajectories_follow_as_uniform_motions():
    shift = torch.tensor([0.6, -0.4])
    points = torch.randn(1, 3, 2, 1, 1).expand(1, 3, 2, HEIGHT, WIDTH).clone()
    points[:, -1] = 0
    frames = pattern(), pattern(tuple(shift.tolist()))
    followed = lucas_kanade_refine(points, *frames, torch.cat((prior(), prior()), dim=1))
    change = (followed - points)[..., 8:-8, 8:-8]
    for i in range(3):
        expected = ((i + 1) / 3 * shift).view(1, 2, 1, 1).expand_as(change[:, i])
        torch.testing.assert_close(change[:, i], expected, atol=0.02, rtol=0)


def test_the_second_step_ends_nearer():
    shift = (1.1, 0.8)
    points, ground_truth = torch.zeros(1, 1, 2, HEIGHT, WIDTH), torch.tensor(shift).view(2, 1, 1)
    errors = []
    for steps in range(3):
        priors = prior().expand(1, steps, -1, -1)
        end = lucas_kanade_refine(points, pattern(), pattern(shift), priors)[0, -1]
        errors.append((end - ground_truth)[..., 8:-8, 8:-8].norm(dim=0).mean())
    assert math.isclose(errors[0], math.hypot(*shift), rel_tol=1e-5)
    assert errors[2] < 0.3 * errors[1] < 0.3 * 0.3 * errors[0]


@pytest.mark.parametrize(("value", "left"), [(1e-7, 0.0), (3e-3, 0.45), (1e3, 1.0)])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_gradient_of_the_flow_is_what_the_step_leaves_of_it(value, left, axis):
    """Against the difference that a shift of the whole flow makes."""
    frames = [image.double() for image in (pattern(), pattern((0.4, 0.1)))]

    def end(shift, grad_through_steps=True):
        points = torch.zeros(1, 1, 2, HEIGHT, WIDTH, dtype=torch.float64)
        points[:, :, axis] += shift
        found = lucas_kanade_refine(
            points, *frames, prior(value).double(), grad_through_steps=grad_through_steps
        )
        return found[0, -1, axis, 8:-8, 8:-8].mean()

    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    end(shift).backward()
    with torch.no_grad():
        difference = (end(0.05) - end(-0.05)) / 0.1
    assert shift.grad == pytest.approx(float(difference), abs=0.05)
    assert shift.grad == pytest.approx(left, abs=0.15)
    unchanged = torch.zeros((), dtype=torch.float64, requires_grad=True)
    end(unchanged, grad_through_steps=False).backward()
    assert unchanged.grad == pytest.approx(1)


def test_where_nothing_is_seen_the_flow_keeps_its_gradient():
    points = torch.zeros(1, 2, 2, HEIGHT, WIDTH, requires_grad=True)
    flat = torch.zeros(1, 1, HEIGHT, WIDTH)
    lucas_kanade_refine(points, flat, flat, prior(1e-3), grad_through_steps=True)[
        :, -1
    ].sum().backward()
    torch.testing.assert_close(points.grad[:, -1], torch.ones_like(points.grad[:, -1]))


def test_changes_belong_to_the_centres_of_their_cells(monkeypatch):
    x = CELL * torch.arange(WIDTH // CELL) + (CELL - 1) / 2
    y = CELL * torch.arange(HEIGHT // CELL) + (CELL - 1) / 2
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"))[None]
    monkeypatch.setattr(module, "lucas_kanade_step", lambda *_: centres)
    still = torch.zeros(1, 1, 2, HEIGHT, WIDTH)
    end = lucas_kanade_refine(still, pattern(), pattern(), prior())[0, -1]
    expected = pixel_grid(HEIGHT, WIDTH)
    torch.testing.assert_close(end[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2])


def test_every_step_of_every_item_has_its_own_prior():
    frames = [torch.cat((image, image)) for image in (pattern(), pattern((1.1, 0.8)))]
    still = torch.zeros(2, 1, 2, HEIGHT, WIDTH)
    weak, strong = prior(), prior(1e2)
    priors = torch.cat([torch.cat(pair, dim=1) for pair in ((weak, strong), (strong, strong))])
    both = lucas_kanade_refine(still, *frames, priors)
    one = lucas_kanade_refine(still[:1], pattern(), pattern((1.1, 0.8)), weak)
    torch.testing.assert_close(both[:1], one, atol=1e-3, rtol=0)
    assert both[1].abs().max() < 1e-3


def test_the_network_ends_with_steps_along_the_gradients_of_its_frames():
    config = ModelConfig(
        slices=2, bins=2, stem_channels=8, channels=16, hidden=16, token_channels=8,
        boundary_channels=8, degree=2, radius=1, levels=2, dilations=(1, 2), events=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = FlowFuse(config).eval()
    shift = (0.6, -0.4)
    inputs = ModelInputs(
        slices=torch.zeros(1, 3, 2, HEIGHT, WIDTH), frame0=pattern(), frame1=pattern(shift),
        event_sum=torch.zeros(1, 1, HEIGHT, WIDTH), exposure=torch.zeros(1, 2),
        modality_mask=torch.ones(1, 4),
    )  # fmt: skip
    errors = []
    for log_prior in (6.0, -12.0):
        with torch.no_grad():
            model.refinement.out.weight.zero_()
            model.refinement.out.bias[-config.gradient_steps :] = log_prior
            end = model(inputs).control_points[0, -1]
        error = end - torch.tensor(shift).view(2, 1, 1)
        errors.append(error[:, 8:-8, 8:-8].norm(dim=0).mean())
    assert errors[1] < 0.5 * errors[0]
