"""The update at 1/4: what it matches, how far it follows that, and where it sees boundaries."""

import pytest
import torch
import torch.nn.functional as F

from flowfuse.geometry.bezier import bezier
from flowfuse.model.encoders import Encoded
from flowfuse.model.refinement import Refinement
from flowfuse.model.selection import NeighbourSelection

CHANNELS, SLICES, DEGREE = 16, 2, 2
HEIGHT, WIDTH = 16, 24  # of the features, 4 px


@pytest.fixture
def refinement():
    """One that regresses nothing."""
    torch.manual_seed(0)
    result = Refinement(
        CHANNELS,
        CHANNELS,
        16,
        guided=True,
        localized=True,
        slices=SLICES,
        degree=DEGREE,
        radius=3,
        stride=4,
        gradient_steps=1,
        selects=False,
    )
    with torch.no_grad():
        result.out.weight.zero_()
    return result


def refine(refinement, events, frames):
    points = torch.zeros(1, 2 * DEGREE, HEIGHT // 2, WIDTH // 2)
    state = torch.zeros(1, 16, HEIGHT // 2, WIDTH // 2)
    boundary = torch.zeros(1, 2, 4 * HEIGHT, 4 * WIDTH)
    encoded = (
        Encoded(maps[0], torch.stack(maps, dim=1), torch.empty(0)) for maps in (events, frames)
    )
    with torch.no_grad():
        return refinement(points, state, *encoded, boundary, None, "auto")


@pytest.mark.parametrize(("trust", "share"), [(20.0, 1.0), (-20.0, 0.0)])
@pytest.mark.parametrize("modalities", ["frames", "events", "both"])
def test_what_matches_is_followed_as_far_as_it_is_trusted(refinement, trust, share, modalities):
    """Features that move by one cell a slice: two cells, which are 8 px, in all."""
    features = 8 * F.normalize(torch.randn(1, CHANNELS, HEIGHT, WIDTH), dim=1)
    frames = [features.roll(cells, 3) * (modalities != "events") for cells in (0, 2)]
    events = [features.roll(cells, 3) * (modalities != "frames") for cells in (0, 1, 2)]
    refinement.out.bias.data[2 * DEGREE] = trust
    refined = refine(refinement, events, frames)
    for tau in (0.5, 1.0):
        found = bezier(refined.control_points, tau)[..., 16:-16, 20:-20]
        expected = torch.tensor([8 * tau * share, 0]).view(1, 2, 1, 1).expand_as(found)
        # A cell here and there is like another one: features are random.
        assert (found - expected).abs().quantile(0.98) < 0.5


def test_a_trajectory_that_bends_is_found_by_the_slices(refinement):
    """Two cells on the first half of the way, none on the second."""
    features = 8 * F.normalize(torch.randn(1, CHANNELS, HEIGHT, WIDTH), dim=1)
    frames = [features.roll(cells, 3) for cells in (0, 2)]
    events = [features.roll(cells, 3) for cells in (0, 2, 2)]
    refinement.out.bias.data[2 * DEGREE] = 20.0
    refinement.matching.log_stiffness.data.fill_(-8.0)
    points = refine(refinement, events, frames).control_points
    for tau in (0.5, 1.0):
        assert bezier(points, tau)[0, 0, 16:-16, 20:-20].mean() == pytest.approx(8, abs=0.5)


def test_priors_stay_in_their_range(refinement):
    still = [torch.zeros(1, CHANNELS, HEIGHT, WIDTH)] * 3
    for log_prior in (-1e4, 1e4):
        refinement.out.bias.data[-1] = log_prior
        priors = refine(refinement, still, still[:2]).priors
        assert priors.shape == (1, 1, HEIGHT, WIDTH)
        assert torch.isfinite(priors).all() and (priors > 0).all()


@pytest.mark.parametrize(("kind", "dy", "dx"), [(0, 0, 0), (0, 1, 2), (1, 3, 0), (1, 2, 3)])
def test_every_pixel_of_a_cell_has_a_weight_of_its_own(refinement, kind, dy, dx):
    parts = [torch.zeros(1, refinement.merge.in_channels, HEIGHT, WIDTH)]
    refinement.merge.bias.data.zero_()
    refinement.guide.weight.data.zero_()
    refinement.guide.weight.data[0, 16 * kind + 4 * dy + dx] = 1
    boundary = torch.randn(1, 2, 4 * HEIGHT, 4 * WIDTH)
    with torch.no_grad():
        merged = refinement._merge(parts, boundary)
    expected = torch.sigmoid(boundary[0, kind, dy::4, dx::4])
    torch.testing.assert_close(merged[0, 0], expected)


def test_boundaries_are_corrected_by_what_is_known_at_last(refinement):
    features = 8 * F.normalize(torch.randn(1, CHANNELS, HEIGHT, WIDTH), dim=1)
    pair = [features.roll(cells, 3) for cells in (0, 2)]
    events = [features.roll(cells, 3) for cells in (0, 1, 2)]
    before = refine(refinement, events, pair)
    assert torch.equal(before.boundary, torch.zeros_like(before.boundary)), "at the start: as given"
    torch.nn.init.normal_(refinement.boundary.weight)
    after = refine(refinement, events, pair)
    assert after.boundary.shape == (1, 2, 4 * HEIGHT, 4 * WIDTH)
    assert after.boundary.std() > 0.1
    assert torch.equal(after.control_points, before.control_points)


def test_motion_is_taken_over_from_neighbours_last(refinement):
    empty = [torch.zeros(1, CHANNELS, HEIGHT, WIDTH)] * (SLICES + 1)
    point = torch.zeros(1, 2 * DEGREE, HEIGHT // 2, WIDTH // 2)
    point[..., 4, 6] = 8.0  # one cell at 1/8 moves
    given = (
        Encoded(maps[0], torch.stack(maps, dim=1), torch.empty(0)) for maps in (empty[:2], empty)
    )
    rest = (torch.zeros(1, 16, HEIGHT // 2, WIDTH // 2), *given)
    boundary = torch.zeros(1, 2, 4 * HEIGHT, 4 * WIDTH)
    refinement.selection = NeighbourSelection(16)
    with torch.no_grad():
        refinement.mask.out.weight.zero_()  # every cell is upsampled alike
        # Each cell takes over the motion of the one that is 2 cells (8 px) to its upper left.
        refinement.selection.prior.copy_(torch.tensor([-100.0, 100.0] + [-100.0] * 15))
        moved = refinement(point, *rest, boundary, None, "auto").control_points
        refinement.selection = None
        plain = refinement(point, *rest, boundary, None, "auto").control_points
    assert plain[..., 32:40, 48:56].mean() > 8
    found, expected = moved[..., 28:-8, 28:-8], plain[..., 4:-32, 4:-32]  # in three rounds 24 px
    torch.testing.assert_close(found, expected)


def test_boundaries_are_corrected_by_the_upsampled_flow(refinement):
    torch.manual_seed(0)
    seen = []

    class Recorder(torch.nn.Module):
        def forward(self, boundary, features, flow, uncertainty):
            seen.append((flow, uncertainty))
            return boundary + 1

    refinement.correction = Recorder()
    maps = [torch.randn(1, CHANNELS, HEIGHT, WIDTH) for _ in range(SLICES + 1)]
    found = refine(refinement, maps, maps[:2])
    ((flow, uncertainty),) = seen
    assert DEGREE > 1 and torch.equal(flow, found.control_points[:, -1])
    assert torch.equal(uncertainty, found.uncertainty[:, 1:])
    assert torch.equal(found.boundary, torch.ones_like(found.boundary))
