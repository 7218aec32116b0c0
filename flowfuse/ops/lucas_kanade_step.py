"""One step along the brightness constancy equation (Lucas and Kanade, IJCAI 1981), with a prior."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from flowfuse.geometry.grid import warp

from .examples import Example, draw, sum_dtype
from .operator import COORDINATE_DTYPES, Operator, Shapes, full_precision, require

MAX_CHANGE = 2.0  # px; beyond it no linear model of an image holds


def lucas_kanade_step(frame0: Tensor, frame1: Tensor, flow: Tensor, prior: Tensor) -> Tensor:
    """Find the change d of the flow that explains what is left of the brightness difference.

    In a window around every cell, with I1 warped by the flow, d is the minimum of

        mean (g . d + I1 - I0 - offset)^2 + prior |d|^2,    g = grad (I0 + I1) / 2

    over d and the offset: brightness that is added evenly does not matter, and a gain does so
    little. d is at most 2 px long. It depends differentiably on the prior, and on the flow as the
    linear model has it: right for a shift of a whole window, in which pixels count by how steep the
    image is. Where the flow leaves the image the border's pixels are compared: that is for the
    prior to know.

    Args:
        frame0, frame1: [B, 1, H, W] float32 in [0, 1]; float64 for float64.
        flow: [B, 2, H, W] of the same dtype, px.
        prior: [B, 1, h, w] likewise, > 0, (intensity / px)^2, where H / h = W / w is the size of a
            cell; a window is three cells wide.

    Returns:
        [B, 2, h, w] of the same dtype, px; zero where nothing is seen. The kernels are for
        inference: where a gradient is asked for, plain torch computes it.

    Raises:
        ValueError: a shape or dtype is wrong.
    """
    return OPERATOR(frame0, frame1, flow, prior)


def check(frame0, frame1, flow, prior) -> None:
    op = "lucas_kanade_step"
    shapes = Shapes(op)
    shapes.check("frame0", frame0, ["B", 1, "H", "W"], COORDINATE_DTYPES)
    exact = [frame0.dtype]
    shapes.check("frame1", frame1, ["B", 1, "H", "W"], exact)
    shapes.check("flow", flow, ["B", 2, "H", "W"], exact)
    shapes.check("prior", prior, ["B", 1, "h", "w"], exact)
    (height, width), (rows, columns) = frame0.shape[2:], prior.shape[2:]
    fits = rows > 0 and columns > 0 and height % rows == width % columns == 0
    fits = fits and height // rows == width // columns
    form = "[B, 1, H / cell, W / cell]"
    require(fits, f"{op}: prior must have shape {form}, got {list(prior.shape)}")


@full_precision
def reference(frame0: Tensor, frame1: Tensor, flow: Tensor, prior: Tensor) -> Tensor:
    cell = frame0.shape[-1] // prior.shape[-1]
    warped = warp(frame1, flow.detach())
    x, y = image_gradient((frame0 + warped) / 2)
    t = warped - frame0
    if flow.requires_grad:
        u, v = (flow - flow.detach()).split(1, dim=1)  # zero, but for its gradient
        t = t + x * u + y * v
    pairs = ((x, x), (x, y), (y, y), (x, t), (y, t))
    means = [F.avg_pool2d(image, cell) for image in (x, y, t)]
    means += [F.avg_pool2d(first * second, cell) for first, second in pairs]  # one at a time
    x, y, t, xx, xy, yy, xt, yt = windows(torch.cat(means, dim=1)).split(1, dim=1)
    xx, xy, yy = (xx - x * x).clamp(min=0), xy - x * y, (yy - y * y).clamp(min=0)
    xt, yt = xt - x * t, yt - y * t
    # Of the determinant, what rounding could make negative apart from what the prior adds.
    determinant = (xx * yy - xy * xy).clamp(min=0) + prior * (xx + yy + prior)
    change = (
        torch.cat((xy * yt - (yy + prior) * xt, xy * xt - (xx + prior) * yt), dim=1) / determinant
    )
    length = change.norm(dim=1, keepdim=True)
    return change * (MAX_CHANGE / length.clamp(min=MAX_CHANGE))


def image_gradient(image: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives in x and y by central differences of fourth order: [B, 1, H, W] -> 2 x same."""
    padded = F.pad(image, (2, 2, 2, 2), mode="replicate")

    def derive(row: Tensor, dim: int) -> Tensor:
        size = row.shape[dim] - 4
        far, near, next_near, next_far = (row.narrow(dim, i, size) for i in (0, 1, 3, 4))
        return torch.sub(next_near - near, next_far - far, alpha=1 / 8).mul_(2 / 3)

    return derive(padded[:, :, 2:-2], 3), derive(padded[..., 2:-2], 2)


def windows(cells: Tensor) -> Tensor:
    """Weighted means over 3 x 3 cells, 1 2 1 in both directions: [B, C, h, w] -> same."""
    padded = F.pad(cells, (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(F.avg_pool2d(padded, 2, stride=1), 2, stride=1)


def fake(frame0, frame1, flow, prior):
    batch, _, rows, columns = prior.shape
    return frame0.new_empty((batch, 2, rows, columns))


def example(dtype: torch.dtype, size: tuple) -> Example:
    batch, rows, columns = size
    dtype, cell = sum_dtype(dtype), 4
    x = torch.arange(columns * cell, dtype=torch.float64)
    y = torch.arange(rows * cell, dtype=torch.float64)[:, None]
    waves = torch.sin(0.5 * x + 0.2 * y) + torch.cos(0.3 * x - 0.6 * y)
    frame0 = (0.5 + 0.15 * waves).expand(batch, 1, -1, -1)
    frame1 = frame0 + 0.05 * torch.cos(0.7 * x + 0.1 * y)
    flow = 3 * draw(batch, 2, rows * cell, columns * cell, dtype=torch.float64)
    flow[..., ::5, ::3] = 1e4
    prior = draw(batch, 1, rows, columns, dtype=torch.float64, seed=1).exp() * 1e-3
    tensors = tuple(tensor.to(dtype) for tensor in (frame0, frame1, flow, prior))
    # Variances are small differences of means of squares; positions pass through [-1, 1] there.
    return Example(lucas_kanade_step, tensors, rounding=30.0)


OPERATOR = Operator(
    "lucas_kanade_step",
    check=check,
    reference=reference,
    fake=fake,
    gradient=None,
    examples={"lucas_kanade_step": example},
    trained_by_reference=True,
)
