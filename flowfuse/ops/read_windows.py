"""What correlation windows say of the motion, and the tokens that a network makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .examples import Example, draw, sum_dtype
from .operator import COORDINATE_DTYPES, FEATURE_DTYPES, Operator, Shapes, full_precision, require

TOKEN_SLOPE = 0.1  # of the leaky ReLU below 0


class WindowReading(NamedTuple):
    """How windows are read: the arguments of :func:`read_windows` that follow them."""

    fade: Tensor | None
    gate: Tensor | None
    offsets: Tensor
    log_sharpness: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None


def read_windows(
    windows: Tensor,
    fade: Tensor | None,
    gate: Tensor | None,
    offsets: Tensor,
    log_sharpness: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The expected match of every correlation window, how sure it is, and a token.

    The windows, multiplied by ``fade``, and by e^log_sharpness, are scores. The softmax of a
    window's scores gives the expected displacement, and the log of its largest weight says how sure
    the match is (0 = no doubt). A token is a 1 x 1 convolution of the window and these three
    numbers, a leaky ReLU with slope 0.1, and the gate.

    Args:
        windows: [N, V, h, w] float32 or float64, as of :func:`correlation_lookup`.
        fade: [M, 1, h, w], N a multiple of M: item n of the windows uses n % M; or None: 1.
        gate: [N, 1, h, w], which multiplies the tokens; or None.
        offsets: [2, V], displacement (x, y) that each channel of a window stands for.
        log_sharpness: [].
        weight, bias: [C, V + 3, 1, 1] and [C], any float dtype, of the tokens; None: no tokens. All
            other arguments have the dtype of the windows.

    Returns:
        tokens [N, C, h, w] of the weight's dtype (C = 0 without one), and matches [N, 3, h, w] of
        the windows' dtype: x, y and certainty. The kernels are for inference: where a gradient is
        asked for, plain torch computes both, the tokens under autocast if it is on.

    Raises:
        ValueError: a shape or dtype is wrong.
    """
    return OPERATOR(windows, fade, gate, offsets, log_sharpness, weight, bias)


def check(windows, *reading) -> None:
    op = "read_windows"
    shapes = Shapes(op)
    shapes.check("windows", windows, ["N", "V", "h", "w"], COORDINATE_DTYPES)
    count, channels = windows.shape[:2]
    form, found = "[N, V, h, w] with V >= 1", list(windows.shape)
    require(channels >= 1, f"{op}: windows must have shape {form}, got {found}")
    check_reading(shapes, "windows", windows.dtype, count, channels, WindowReading(*reading))


def check_reading(
    shapes: Shapes,
    source: str,
    exact: torch.dtype,
    count: int,
    channels: int,
    given: WindowReading,
) -> None:
    """Of windows [count, channels, h, w] taken from `source`; h and w are known to `shapes`."""
    op = shapes.op
    shapes.check("offsets", given.offsets, [2, channels], [exact])
    shapes.check("log_sharpness", given.log_sharpness, [], [exact])
    if (fade := given.fade) is not None:
        shapes.check("fade", fade, ["M", 1, "h", "w"], [exact])
        shared = fade.shape[0] > 0 and count % fade.shape[0] == 0
        require(shared or count == 0, f"{op}: fade must have M items, N a multiple of M")
    if given.gate is not None:
        shapes.check("gate", given.gate, [count, 1, "h", "w"], [exact])
    weight, bias = given.weight, given.bias
    require((weight is None) == (bias is None), f"{op}: weight and bias must be given together")
    if weight is not None and bias is not None:
        shapes.check("weight", weight, ["C_t", channels + 3, 1, 1], FEATURE_DTYPES)
        shapes.check("bias", bias, [weight.shape[0]], [weight.dtype])
        same = sum_dtype(weight.dtype) == exact
        require(same, f"{op}: {source} and weight must both be float64 or neither")


def reference(
    windows: Tensor,
    fade: Tensor | None,
    gate: Tensor | None,
    offsets: Tensor,
    log_sharpness: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if fade is not None:
        times = windows.shape[0] // max(1, fade.shape[0])
        windows = (windows.unflatten(0, (times, fade.shape[0])) * fade).flatten(0, 1)
    matches = match(windows, offsets, log_sharpness)
    if weight is None:
        return windows.new_empty((windows.shape[0], 0, *windows.shape[2:])), matches
    # Windows in the dtype of half-precision weights, as autocast would have them.
    values = torch.cat((windows, matches), dim=1).to(weight.dtype)
    tokens = F.leaky_relu(F.conv2d(values, weight, bias), TOKEN_SLOPE)
    return tokens if gate is None else (tokens * gate).to(tokens.dtype), matches


@full_precision
def match(windows: Tensor, offsets: Tensor, log_sharpness: Tensor) -> Tensor:
    """[N, V, h, w] -> expected displacement and certainty [N, 3, h, w].

    bfloat16 has eight bits: an offset of 12 cells would be good to half a px of the image.
    """
    scores = windows.flatten(2) * log_sharpness.exp()
    # The softmax, divided by its sum only where the window has been summed over: torch's own is
    # slow over a dimension that is not the last. The largest weight is 1 here.
    weights = (scores - scores.amax(dim=1, keepdim=True)).exp_()
    sums = F.pad(offsets, (0, 0, 0, 1), value=1.0)  # of displacements, of weights
    moments = (sums @ weights).unflatten(2, windows.shape[2:])
    total = moments[:, 2:]
    return torch.cat((moments[:, :2] / total, -total.log()), dim=1)


def fake(windows, fade, gate, offsets, log_sharpness, weight, bias):
    return empty_reading(offsets, windows.shape[0], windows.shape[2:], weight)


def empty_reading(
    like: Tensor, count: int, size: Sequence[int], weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Tokens and matches of `count` items, the latter of the dtype of `like`."""
    if weight is None:
        tokens = like.new_empty((count, 0, *size))
    else:
        tokens = weight.new_empty((count, weight.shape[0], *size))
    return tokens, like.new_empty((count, 3, *size))


def example(dtype: torch.dtype, size: tuple, *, tokens: int = 11) -> Example:
    count, height, width = size
    exact = sum_dtype(dtype)
    windows = draw(2 * count, 70, height, width, dtype=exact)
    fade = draw(count, 1, height, width, dtype=exact, seed=1).sigmoid()
    gate = draw(2 * count, 1, height, width, dtype=exact, seed=2).sigmoid()
    offsets = draw(2, 70, dtype=exact, seed=3)
    sharpness = torch.full((), 0.3, dtype=exact)
    weight = draw(tokens, 73, 1, 1, dtype=dtype, seed=4)
    bias = draw(tokens, dtype=dtype, seed=5)
    return Example(read_windows, (windows, fade, gate, offsets, sharpness, weight, bias))


def bare_example(dtype: torch.dtype, size: tuple) -> Example:
    exact = sum_dtype(dtype)
    windows, offsets = draw(size[0], 9, *size[1:], dtype=exact), draw(2, 9, dtype=exact, seed=1)
    sharpness = torch.full((), -0.5, dtype=exact)
    return Example(
        lambda windows, offsets, sharpness: read_windows(windows, None, None, offsets, sharpness),
        (windows, offsets, sharpness),
    )


OPERATOR = Operator(
    "read_windows",
    check=check,
    reference=reference,
    fake=fake,
    gradient=None,
    examples={
        "read_windows": example,
        "read_windows, many tokens": lambda *given: example(*given, tokens=41),
        "read_windows, no tokens": bare_example,
    },
    trained_by_reference=True,
)
