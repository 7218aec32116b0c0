import pytest
import torch

from flowfuse.geometry.grid import pixel_grid
from flowfuse.model import selection as module
from flowfuse.model.selection import OFFSETS, ROUNDS, NeighbourSelection, repeat
from flowfuse.ops import Correlation
from flowfuse.ops.extension import LIBRARY

HEIGHT, WIDTH, HIDDEN = 14, 18, 8


def make_case(batch=1):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(batch, *shape, HEIGHT, WIDTH, generator=generator)

    pairs = [(draw(6), draw(6)) for _ in range(2)]
    border = torch.sigmoid(draw(1))
    given = {"features": draw(HIDDEN), "pairs": pairs, "fades": None, "border": border}
    return given, draw(6)


def make_selection(settle=True):
    torch.manual_seed(1)
    selection = NeighbourSelection(HIDDEN)
    if settle:  # as training would
        torch.nn.init.normal_(selection.score.weight)
        torch.nn.init.normal_(selection.place)
    return selection


def test_a_uniform_motion_stays():
    given, points = make_case()
    uniform = points[..., :1, :1].expand_as(points)
    torch.testing.assert_close(make_selection()(uniform, **given), uniform)


def test_at_the_start_nearly_nothing_is_taken_over():
    given, points = make_case()
    with torch.no_grad():
        change = make_selection(settle=False)(points, **given) - points
    # 16 others of weight e^-6 each, in three rounds
    assert 0 < change.abs().mean() < 0.2 * points.abs().mean()


@pytest.mark.parametrize("chosen", [0, 3, len(OFFSETS) - 1])
def test_one_neighbour_alone_is_taken_over_in_every_round(chosen):
    given, points = make_case()
    selection = make_selection(settle=False)
    with torch.no_grad():
        selection.prior.fill_(-100)
        selection.prior[chosen] = 100
        found = selection(points, **given)
    y, x = (ROUNDS * step for step in OFFSETS[chosen])
    rows = (torch.arange(HEIGHT) + y).clamp(0, HEIGHT - 1)
    columns = (torch.arange(WIDTH) + x).clamp(0, WIDTH - 1)
    # In the interior; at the borders, each round repeats the outermost cells.
    known = (rows == torch.arange(HEIGHT) + y)[:, None] & (columns == torch.arange(WIDTH) + x)
    expected = points[..., rows, :][..., columns]
    assert known.any()
    torch.testing.assert_close(found[..., known], expected[..., known])


def test_the_motion_that_fits_matches_best():
    place = torch.arange(HEIGHT * WIDTH, dtype=torch.float32).view(1, 1, HEIGHT, WIDTH)
    at_t0 = torch.cat((place.cos(), place.sin()), dim=1) * 5
    at_t1 = at_t0.roll((1, 3), dims=(2, 3))  # moved by x = 3, y = 1
    motions = torch.tensor([[0, 0], [3, 1], [3, 0], [2, 2]], dtype=torch.float32)
    flows = motions.view(4, 1, 2, 1, 1).expand(-1, -1, -1, HEIGHT, WIDTH).contiguous()
    grid = pixel_grid(HEIGHT, WIDTH)
    correlation = Correlation(repeat(at_t0, 4), repeat(at_t1, 4), levels=1, radius=0)
    matches = make_selection()._match([correlation, correlation], grid + flows, None)
    assert matches.shape == (4, 1, 4, HEIGHT, WIDTH)
    inside = matches[..., 2:-3, 2:-5]
    assert (inside.argmax(dim=0) == 1).all()
    # a product of two equal vectors of length 5, over the root of their two channels
    torch.testing.assert_close(inside[1, :, :2], torch.full_like(inside[1, :, :2], 25 / 2**0.5))
    fades = torch.tensor([1.0, 0.5]).view(1, 2, 1, 1)
    faded = make_selection()._match([correlation, correlation], grid + flows, fades)
    torch.testing.assert_close(faded[:, :, 1], 0.5 * matches[:, :, 1])


@pytest.mark.parametrize("batch", [1, 2])
def test_candidates_in_turn_and_all_at_once_agree(batch):
    given, points = make_case(batch)
    given["fades"] = torch.rand(batch, 2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2))
    selection = make_selection()
    at_once = selection(points, **given)  # gradients are taken
    with torch.no_grad():
        in_turn = selection(points, **given)
    torch.testing.assert_close(in_turn, at_once.detach(), atol=1e-4, rtol=1e-4)


def test_gradients():
    given, points = make_case()
    selection = make_selection()
    points.requires_grad_()
    selection(points, **given).sum().backward()
    # Weights sum to one: each cell's gradient goes to those that its motion is taken from.
    assert points.grad.sum().item() == pytest.approx(points.numel(), rel=1e-4)
    assert points.grad.std() > 0.1
    for name, parameter in selection.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("in_turn", [True, False])
def test_half_precision_stays_half(in_turn, monkeypatch):
    given, points = make_case()
    selection, seen = make_selection(), []
    activate = module.activate
    monkeypatch.setattr(module, "activate", lambda x: seen.append(x.dtype) or activate(x))
    monkeypatch.setattr(module, "little_memory", lambda values: in_turn)
    with torch.no_grad():
        wanted = selection(points, **given)
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16):
            found = selection(points, **given)
    assert set(seen) == {torch.bfloat16} and found.dtype == torch.float32
    assert (found - wanted).abs().mean() < 0.05 * points.abs().mean()


@pytest.mark.slow
@pytest.mark.skipif(LIBRARY is None, reason="torch.compile needs the compiled operators")
def test_gradients_of_a_compiled_one():
    """Its strides are those that the compiler chose, which F.pad's gradient does not bear."""
    given, points = make_case(batch=2)
    selection = make_selection()
    layer = torch.nn.Conv2d(HIDDEN, points.shape[1], 1)
    given["features"] = given["features"].to(memory_format=torch.channels_last)

    def run():
        return selection(layer(given["features"]), **given)

    torch._dynamo.reset()
    gradients = []
    for function in (run, torch.compile(run)):
        selection.zero_grad()
        function().square().sum().backward()
        gradients.append(selection.query_key.weight.grad.clone())
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-4)
