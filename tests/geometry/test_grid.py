import pytest
import torch

from flowfuse.geometry.grid import inside, pad_to_multiple, pixel_grid, sample, warp


def test_pixel_grid_is_x_then_y():
    grid = pixel_grid(2, 3)
    assert grid[0].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert grid[1].tolist() == [[0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("size", [(4, 5), (1, 6), (6, 1), (1, 1)])
def test_sample_at_pixel_centres_is_the_image(size):
    image = torch.rand(2, 3, *size)
    grid = pixel_grid(*size).expand(2, -1, -1, -1)
    # 1e-6: one rounding of the coordinate transform
    torch.testing.assert_close(sample(image, grid), image, atol=1e-6, rtol=1e-5)


def test_sample_by_hand():
    image = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    coords = torch.tensor([[0.5, 0.5], [-0.5, 0.0]]).view(1, 2, 1, 2)
    # (0.5, -0.5): half above the image; (0.5, 0): between 0 and 1
    assert sample(image, coords).flatten().tolist() == pytest.approx([0.25, 0.5])
    assert sample(image, coords, padding="border").flatten().tolist() == pytest.approx([0.5, 0.5])


def test_sample_of_half_precision_keeps_far_coordinates_exact():
    image = torch.arange(1024.0).remainder(2).view(1, 1, 1, -1).bfloat16()
    coords = torch.tensor([601.0, 0.0]).view(1, 2, 1, 1)
    assert sample(image, coords).item() == 1


def test_warp_undoes_a_shift():
    image = torch.rand(1, 1, 6, 8)
    moved = image.roll(2, dims=3)
    flow = torch.zeros(1, 2, 6, 8)
    flow[:, 0] = 2
    torch.testing.assert_close(warp(moved, flow)[..., :6], image[..., :6], atol=1e-6, rtol=1e-5)


def test_inside_counts_centres_and_not_nan():
    coords = torch.tensor([[0.0, 3.0, 3.01, -0.01, float("nan")], [0.0, 1.0, 0.0, 0.0, 0.0]])
    found = inside(coords.view(1, 2, 1, 5), 2, 4)
    assert found.flatten().tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("shape", [(1, 2, 9, 15), (2, 3, 2, 9, 15)])
def test_pad_to_multiple_keeps_the_image(shape):
    image = torch.rand(shape)
    padded = pad_to_multiple(image, 8)
    assert padded.shape[-2:] == (16, 16)
    assert torch.equal(padded[..., :9, :15], image)
    assert torch.equal(padded[..., 15, 14], image[..., 8, 14])
    assert pad_to_multiple(image, 8, mode="constant")[..., 9:, :].abs().max() == 0
    assert pad_to_multiple(image[..., :8, :8], 8).shape[-2:] == (8, 8)
