import pytest
import torch
import torch.nn.functional as F

from flowfuse.model.boundary import BoundaryCorrection, flow_jumps

HEIGHT, WIDTH, HIDDEN, STRIDE = 24, 32, 8, 4


@pytest.fixture
def correction():
    torch.manual_seed(0)
    return BoundaryCorrection(HIDDEN, STRIDE)


@pytest.fixture
def given():
    """Boundary logits, features, flow and uncertainty of two images."""
    generator = torch.Generator().manual_seed(1)

    def draw(channels, scale=1):
        size = (HEIGHT // scale, WIDTH // scale)
        return torch.randn(2, channels, *size, generator=generator)

    return draw(2), draw(HIDDEN, STRIDE), draw(2), draw(1)


def test_jumps_of_a_step():
    flow = torch.zeros(1, 2, 6, 8)
    flow[..., 4:] = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)  # 5 px
    expected = torch.zeros(1, 1, 6, 8)
    expected[..., 3:5] = 5.0  # the pixels on both sides
    assert torch.equal(flow_jumps(flow), expected)
    turned = flow_jumps(flow.transpose(2, 3))
    assert torch.equal(turned, expected.transpose(2, 3))


def test_jumps_are_those_of_the_larger_axis():
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    jumps = flow_jumps(torch.stack((x + 3 * y, 0 * x))[None])
    assert torch.equal(jumps[..., 1:-1, 1:-1], torch.full((1, 1, 3, 5), 6.0))
    assert torch.equal(jumps[..., 0, 1:-1], torch.full((1, 1, 5), 3.0)), "one side is outside"


def test_it_begins_as_no_correction(correction, given):
    assert torch.equal(correction(*given), given[0])


def test_it_corrects_motion_boundaries_alone(correction, given):
    torch.nn.init.normal_(correction.change.weight)
    boundary = given[0]
    corrected = correction(*given)
    assert torch.equal(corrected[:, :1], boundary[:, :1])
    assert (corrected[:, 1:] - boundary[:, 1:]).std() > 0.1
    with torch.no_grad():  # where little memory counts
        torch.testing.assert_close(correction(*given), corrected)


@pytest.mark.parametrize("shown", ["event", "motion", "uncertainty", "jump"])
def test_it_is_the_formula(correction, given, shown):
    """With layers that pass one map of one pixel of a cell on to the whole cell."""
    boundary, features, flow, uncertainty = given
    boundary, uncertainty = 10 * boundary, 10 * uncertainty  # beyond what is shown
    maps = {
        "event": boundary[:, 0].clamp(-8, 8),
        "motion": boundary[:, 1].clamp(-8, 8),
        "uncertainty": uncertainty[:, 0].clamp(-8, 8),
        "jump": torch.log(1 + 4 * flow_jumps(flow))[:, 0],
    }
    last_pixel = HIDDEN + (list(maps).index(shown) + 1) * STRIDE**2 - 1
    with torch.no_grad():
        for layer in (correction.merge, correction.mix, correction.change):
            layer.weight.zero_()
            layer.bias.zero_()
        correction.merge.weight[0, last_pixel] = 2.0
        correction.merge.bias[0] = 100.0  # where activations are linear
        correction.mix.weight[0, 0, 1, 1] = 1.0
        correction.change.weight[:, 0] = 1.0
        correction.change.bias.fill_(-100.0)
        found = (correction(boundary, features, flow, uncertainty) - boundary)[:, 1]
    expected = 2 * maps[shown][:, STRIDE - 1 :: STRIDE, STRIDE - 1 :: STRIDE]
    expected = expected.repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_gradients_pass_by_what_the_correction_is_shown(correction, given):
    torch.nn.init.normal_(correction.change.weight)
    boundary, features, flow, uncertainty = (x.requires_grad_() for x in given)
    target = torch.ones(2, HEIGHT, WIDTH)
    found = correction(boundary, features, flow, uncertainty)[:, 1]
    F.binary_cross_entropy_with_logits(found, target).backward()
    expected = (torch.sigmoid(found) - 1) / found.numel()
    torch.testing.assert_close(boundary.grad[:, 1], expected)
    assert not boundary.grad[:, 0].any() and features.grad.any()
    assert flow.grad is None and uncertainty.grad is None
    assert all(parameter.grad.any() for parameter in correction.parameters())
