from __future__ import annotations

import math

import pytest
import torch
from thread_cases import with_thread_counts

from flowfuse import ops
from flowfuse.ops.extension import kernels_on
from flowfuse.ops.read_windows import reference

needs_extension = pytest.mark.skipif(
    not ops.build_info()["extension"], reason="the compiled operators are not built"
)


def random_inputs(count=4, window=25, tokens=9, height=5, width=30, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    return {
        "windows": 3 * draw(count, window, height, width),
        "fade": draw(count // 2, 1, height, width).sigmoid(),
        "gate": 2 * draw(count, 1, height, width).sigmoid(),
        "offsets": draw(2, window),
        "log_sharpness": torch.tensor(0.2, dtype=dtype),
        "weight": draw(tokens, window + 3, 1, 1),
        "bias": draw(tokens),
    }


def test_hand_match():
    """Three candidates with the weights 1, 1/2, 1/4; a faded pixel, where all weigh the same."""
    window = torch.tensor([0.0, math.log(2), math.log(4)]).view(1, 3, 1, 1).expand(-1, -1, 1, 2)
    fade = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    offsets = torch.tensor([[-1.0, 0.0, 1.0], [0.0, 7.0, 0.0]])
    tokens, matches = ops.read_windows(window, fade, None, offsets, torch.tensor(0.0))
    assert tokens.shape == (1, 0, 1, 2)
    expected = torch.tensor([[3 / 7, 2.0, math.log(4 / 7)], [0.0, 7 / 3, math.log(1 / 3)]])
    torch.testing.assert_close(matches[0, :, 0].T, expected)
    # Scores twice as large: the weights 1, 1/4, 1/16.
    sharp = ops.read_windows(window, fade, None, offsets, torch.tensor(math.log(2)))[1]
    torch.testing.assert_close(
        sharp[0, :, 0, 0], torch.tensor([15 / 21, 28 / 21, math.log(16 / 21)])
    )


def test_hand_token():
    """A token of each of the window's values, of what matches, and of the bias."""
    windows = torch.tensor([2.0, 2.0]).view(1, 2, 1, 1)
    offsets = torch.tensor([[4.0, 8.0], [0.0, 1.0]])
    weight = torch.zeros(3, 5)
    weight[0, 1], weight[1, 2], weight[2, 4] = 3, 1, 1
    tokens, matches = ops.read_windows(
        windows, torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), 2.0), offsets,
        torch.tensor(0.0), weight.view(3, 5, 1, 1), torch.tensor([1.0, 0.0, 0.0]),
    )  # fmt: skip
    torch.testing.assert_close(matches.flatten(), torch.tensor([6.0, 0.5, -math.log(2)]))
    # gate * leaky(3 * faded 1 + 1), gate * 6, gate * leaky(-log 2)
    torch.testing.assert_close(tokens.flatten(), torch.tensor([8.0, 12.0, -0.2 * math.log(2)]))


@pytest.mark.parametrize(("count", "items"), [(4, 1), (4, 2), (4, 4)])
def test_fades_are_used_in_turn(count, items):
    given = random_inputs(count)
    fade = torch.rand(items, 1, *given["windows"].shape[2:])
    found = ops.read_windows(**given | {"fade": fade})
    each = fade.repeat(count // items, 1, 1, 1)
    expected = ops.read_windows(**given | {"windows": given["windows"] * each, "fade": None})
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@needs_extension
@pytest.mark.parametrize("tokens", [1, 8, 24, 33])
@pytest.mark.parametrize("width", [1, 12, 13, 77])
def test_reference_blocks(tokens, width):
    """Every part of a block of pixels and of channels, against float64."""
    given = random_inputs(2, 40, tokens, 5, width)
    exact = reference(**{name: value.double() for name, value in given.items()})
    for found, wanted in zip(ops.read_windows(**given), exact, strict=True):
        bound = 2e-6 * float(wanted.abs().max())  # sums of 43 products in float32
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=bound)


def test_large_and_infinite_scores():
    given = random_inputs()
    far = ops.read_windows(**given | {"windows": given["windows"] + 1000, "fade": None})[1]
    near = ops.read_windows(**given | {"fade": None})[1]
    # Beside 1000, float32 has steps of 6e-5: scores move by as much.
    torch.testing.assert_close(far, near, atol=2e-3, rtol=2e-3)
    windows = given["windows"].clone()
    windows[1, 3, 2, 4] = math.nan
    tokens, matches = ops.read_windows(**given | {"windows": windows})
    for values in (tokens, matches):
        assert values[1, :, 2, 4].isnan().all() and values.isnan().sum() == values.shape[1]


def test_empty():
    given = random_inputs(0)
    tokens, matches = ops.read_windows(**given)
    assert tokens.shape == (0, 9, 5, 30) and matches.shape == (0, 3, 5, 30)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tokens_have_the_dtype_of_the_weights(dtype):
    given = random_inputs()
    half = {name: given[name].to(dtype) for name in ("weight", "bias")}
    tokens, matches = ops.read_windows(**given | half)
    assert tokens.dtype == dtype and matches.dtype == torch.float32
    exact = ops.read_windows(**given | {name: value.float() for name, value in half.items()})[0]
    torch.testing.assert_close(tokens, exact.to(dtype))


def test_gradients_go_through_plain_torch():
    given = {name: value.requires_grad_() for name, value in random_inputs().items()}
    tokens, matches = ops.read_windows(**given)
    (tokens.square().sum() + matches.square().sum()).backward()
    assert all(value.grad is not None and value.grad.any() for value in given.values())
    with torch.no_grad():
        for found, wanted in zip(ops.read_windows(**given), (tokens, matches), strict=True):
            torch.testing.assert_close(found, wanted)


@needs_extension
def test_opcheck():
    given = tuple(random_inputs().values())
    torch.library.opcheck(torch.ops.flowfuse.read_windows.default, given)
    bare = (given[0], None, None, *given[3:5], None, None)
    torch.library.opcheck(torch.ops.flowfuse.read_windows.default, bare)


@needs_extension
def test_same_bits_for_thread_counts():
    found = with_thread_counts(lambda: ops.read_windows(**random_inputs()))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows": torch.zeros(4, 25, 5)}, "windows must have shape"),
        ({"windows": torch.zeros(4, 25, 5, 30).half()}, "windows must be of dtype float32, float6"),
        ({"fade": torch.ones(3, 1, 5, 30)}, "fade must have"),
        ({"gate": torch.ones(2, 1, 5, 30)}, r"gate must have shape \[4, 1, 5, 30\], got \[2, 1"),
        ({"offsets": torch.zeros(2, 24)}, r"offsets must have shape \[2, 25\], got \[2, 24\]"),
        ({"log_sharpness": torch.zeros(1)}, r"log_sharpness must have shape \[\], got \[1\]"),
        ({"weight": torch.zeros(9, 27, 1, 1)}, "weight must have shape"),
        ({"bias": torch.zeros(8)}, r"bias must have shape \[9\], got \[8\]"),
        ({"bias": torch.zeros(9).half()}, "bias must be of dtype float32, got float16"),
        ({"weight": None}, "weight and bias must be given together"),
        ({"windows": [1.0]}, "windows must be a torch.Tensor, got list"),
    ],
)
def test_error_messages(change, message):
    with pytest.raises(ValueError, match="read_windows: " + message):
        ops.read_windows(**random_inputs() | change)


@pytest.mark.parametrize("devices", [("cpu",), ()])
def test_empty_windows_are_refused(devices):
    given = random_inputs(window=0)
    devices = devices if ops.build_info()["extension"] else ()
    with kernels_on(*devices), pytest.raises(ValueError, match=r"must have .* V >= 1, got"):
        ops.read_windows(**given)


def test_no_fades_of_no_windows():
    """The reference too: none is used in turn."""
    given = random_inputs(0)
    with kernels_on():
        assert ops.read_windows(**given)[1].shape == (0, 3, 5, 30)


def test_compile():
    compiled = torch.compile(ops.read_windows, fullgraph=True, backend="aot_eager")
    given = random_inputs()
    for found, wanted in zip(compiled(**given), ops.read_windows(**given), strict=True):
        assert torch.equal(found, wanted)
