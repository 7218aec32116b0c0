from __future__ import annotations

import pytest
import torch
from thread_cases import with_thread_counts

from flowfuse import ops
from flowfuse.ops.examples import places
from flowfuse.ops.extension import kernels_on
from flowfuse.ops.read_volume import reference

needs_extension = pytest.mark.skipif(
    not ops.build_info()["extension"], reason="the compiled operators are not built"
)


def random_inputs(radius=2, levels=2, tokens=9, size=(2, 5, 18), dtype=torch.float32):
    """Volumes, coordinates, radius, and how the windows are read."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    batch, height, width = size
    channels = levels * (2 * radius + 1) ** 2
    given = {
        "volumes": [3 * draw(*size, 9 >> level, 11 >> level) for level in range(levels)],
        "coords": places(batch, height, width, torch.float32),
        "radius": radius,
        "fade": draw(1, 1, height, width).sigmoid(),
        "gate": 2 * draw(batch, 1, height, width).sigmoid(),
        "offsets": draw(2, channels),
        "log_sharpness": torch.tensor(0.2, dtype=dtype),
    }
    if tokens:
        given |= {"weight": draw(tokens, channels + 3, 1, 1), "bias": draw(tokens)}
    return given


def read(given):
    volumes, coords, radius, *reading = given.values()
    return ops.read_volume(volumes, coords, radius, ops.WindowReading(*reading))


def one_after_the_other(given):
    volumes, coords, radius, *reading = given.values()
    return ops.read_windows(ops.volume_lookup(volumes, coords, radius), *reading)


def assert_close(found, wanted, share=2e-6):
    for one, other in zip(found, wanted, strict=True):
        numbers = other.detach().nan_to_num(0, 0, 0).abs().flatten()
        scale = max(1.0, float(numbers.max())) if len(numbers) else 1.0
        torch.testing.assert_close(
            one.double(), other.double(), rtol=0, atol=share * scale, equal_nan=True
        )


def test_hand_window():
    """One pixel, whose window of 3 x 3 lies half a cell right of the middle of a map of 3 x 3."""
    volume = torch.arange(9.0).view(1, 1, 1, 3, 3)
    coords = torch.tensor([1.5, 1.0]).view(1, 2, 1, 1)
    # x slow, y fast; beyond the right border is 0.
    window = torch.tensor([0.5, 3.5, 6.5, 1.5, 4.5, 7.5, 1.0, 2.5, 4.0])
    weight = torch.eye(9, 12).view(9, 12, 1, 1)
    how = ops.WindowReading(None, None, torch.ones(2, 9), torch.tensor(0.0), weight, torch.zeros(9))
    tokens, matches = ops.read_volume([volume], coords, 1, how)
    torch.testing.assert_close(tokens.flatten(), window)
    certainty = window.softmax(0).max().log()
    torch.testing.assert_close(matches.flatten(), torch.stack((*torch.ones(2), certainty)))


@needs_extension
@pytest.mark.parametrize("radius", [0, 1, 3, 4, 7, 16])
@pytest.mark.parametrize(("tokens", "size"), [(0, (2, 3, 7)), (5, (1, 1, 1)), (41, (2, 6, 35))])
def test_reference_windows(radius, tokens, size):
    """Every radius splits its windows in other ways; rows of pixels end where they end."""
    given = random_inputs(radius, 2, tokens, size)
    volumes, *rest = (
        value.double() if isinstance(value, torch.Tensor) else value for value in given.values()
    )
    exact = reference([level.double() for level in volumes], *rest, *[None] * (tokens == 0) * 2)
    found = read(given)
    missing = given["coords"].isnan().any(1, keepdim=True)
    for one, other in zip(found, exact, strict=True):
        assert torch.equal(one.isnan(), missing.expand_as(one)) and one.shape == other.shape
    assert_close(found, exact, 2e-5)  # sums of up to 2181 products in float32


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tokens_have_the_dtype_of_the_weights(dtype):
    given = random_inputs()
    half = {name: given[name].to(dtype) for name in ("weight", "bias")}
    tokens, matches = read(given | half)
    assert tokens.dtype == dtype and matches.dtype == torch.float32
    wide = read(given | {name: value.float() for name, value in half.items()})[0]
    torch.testing.assert_close(tokens, wide.to(dtype), equal_nan=True)


def test_empty():
    tokens, matches = read(random_inputs(size=(0, 4, 5)) | {"fade": torch.zeros(0, 1, 4, 5)})
    assert tokens.shape == (0, 9, 4, 5) and matches.shape == (0, 3, 4, 5)


def test_gradients_are_those_of_the_parts():
    given, parts = random_inputs(), random_inputs()
    for values in (given, parts):
        values["coords"] = values["coords"].nan_to_num(3, 3, 3).requires_grad_()
        values["weight"].requires_grad_()
        values["volumes"][0].requires_grad_()
    for how, values in ((read, given), (one_after_the_other, parts)):
        tokens, matches = how(values)
        (tokens.square().sum() + matches.square().sum()).backward()
    for name in ("coords", "weight"):
        assert given[name].grad.any() and torch.equal(given[name].grad, parts[name].grad)
    assert torch.equal(given["volumes"][0].grad, parts["volumes"][0].grad)


@needs_extension
def test_opcheck():
    given = random_inputs()
    given["coords"] = given["coords"].nan_to_num(3, 3, 3)  # opcheck takes no NaN for another
    given = tuple(given.values())
    torch.library.opcheck(torch.ops.flowfuse.read_volume.default, given)
    bare = (*given[:3], None, None, *given[5:7], None, None)
    torch.library.opcheck(torch.ops.flowfuse.read_volume.default, bare)


@needs_extension
def test_same_bits_for_thread_counts():
    found = with_thread_counts(lambda: read(random_inputs(size=(2, 13, 40))))
    for other in found[1:]:
        assert all(
            torch.equal(a.nan_to_num(), b.nan_to_num())
            for a, b in zip(found[0], other, strict=True)
        )


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"volumes": [torch.zeros(2, 5, 18, 3)]}, "level 0 of volumes must have shape"),
        ({"coords": torch.zeros(2, 3, 5, 18)}, "coords must have shape"),
        ({"radius": 17}, r"radius must be in \[0, 16\], got 17"),
        ({"fade": torch.ones(3, 1, 5, 18)}, "fade must have"),
        ({"gate": torch.ones(1, 1, 5, 18)}, r"gate must have shape \[2, 1, 5, 18\], got \[1, 1"),
        ({"offsets": torch.zeros(2, 49)}, r"offsets must have shape \[2, 50\], got \[2, 49\]"),
        ({"offsets": torch.zeros(2, 50).double()}, "offsets must be of dtype float32, got float64"),
        ({"weight": torch.zeros(9, 50, 1, 1)}, "weight must have shape"),
        ({"weight": torch.zeros(9, 53, 1, 1).double(), "bias": torch.zeros(9).double()},
         "volumes and weight must both be float64 or neither"),
        ({"bias": None}, "weight and bias must be given together"),
        ({"coords": [1.0]}, "coords must be a torch.Tensor, got list"),
    ],
)  # fmt: skip
def test_error_messages(change, message, kernel):
    devices = ("cpu",) if kernel and ops.build_info()["extension"] else ()
    with kernels_on(*devices), pytest.raises(ValueError, match="read_volume: " + message):
        read(random_inputs() | change)


def test_compile():
    compiled = torch.compile(ops.read_volume, fullgraph=True, backend="aot_eager")
    given = random_inputs()
    volumes, coords, radius, *reading = given.values()
    result = compiled(volumes, coords, radius, ops.WindowReading(*reading))
    for found, wanted in zip(result, read(given), strict=True):
        assert torch.equal(found.nan_to_num(), wanted.nan_to_num())
