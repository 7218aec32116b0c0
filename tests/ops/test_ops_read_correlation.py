from __future__ import annotations

import pytest
import torch
from thread_cases import with_thread_counts

from flowfuse import ops
from flowfuse.ops.correlation import Correlation
from flowfuse.ops.examples import places
from flowfuse.ops.extension import kernels_on
from flowfuse.ops.read_correlation import cuda_reading

needs_extension = pytest.mark.skipif(
    not ops.build_info()["extension"], reason="the compiled operators are not built"
)


def random_inputs(radius=2, levels=2, tokens=9, size=(2, 5, 18), dtype=torch.float32):
    """Features, coordinates, radius, and how the windows are read."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    batch, height, width = size
    channels = levels * (2 * radius + 1) ** 2
    f1 = 2 * draw(batch, 20, 9, 11)
    given = {
        "f0": 2 * draw(batch, 20, height, width).to(dtype),
        "f1_levels": ops.pool_levels(f1.to(dtype), levels),
        "coords": places(batch, height, width, torch.float32),
        "radius": radius,
        "fade": draw(1, 1, height, width).sigmoid(),
        "gate": 2 * draw(batch, 1, height, width).sigmoid(),
        "offsets": draw(2, channels),
        "log_sharpness": torch.tensor(0.2),
    }
    if tokens:
        given |= {"weight": draw(tokens, channels + 3, 1, 1), "bias": draw(tokens)}
    return given


def read(given):
    f0, levels, coords, radius, *reading = given.values()
    return ops.read_correlation(f0, levels, coords, radius, ops.WindowReading(*reading))


def one_after_the_other(given):
    f0, levels, coords, radius, *reading = given.values()
    return ops.read_windows(ops.correlation_lookup(f0, levels, coords, radius), *reading)


def assert_equal(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def assert_close(found, wanted):
    """Up to the rounding of sums of a hundred products, which compilers may fuse as they like."""
    for one, other in zip(found, wanted, strict=True):
        numbers = other.detach().nan_to_num(0, 0, 0).abs().flatten()
        scale = max(1.0, float(numbers.max())) if len(numbers) else 1.0
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * scale, equal_nan=True)


def test_hand_window():
    """Features of one channel: the window is that of the second map, times the first's value."""
    f0 = torch.full((1, 1, 1, 1), 2.0)
    f1 = torch.arange(9.0).view(1, 1, 3, 3)
    coords = torch.tensor([1.5, 1.0]).view(1, 2, 1, 1)
    window = 2 * torch.tensor([0.5, 3.5, 6.5, 1.5, 4.5, 7.5, 1.0, 2.5, 4.0])
    weight = torch.eye(9, 12).view(9, 12, 1, 1)
    how = ops.WindowReading(None, None, torch.ones(2, 9), torch.tensor(0.0), weight, torch.zeros(9))
    tokens, _ = ops.read_correlation(f0, [f1], coords, 1, how)
    torch.testing.assert_close(tokens.flatten(), window)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("radius", [0, 3, 4])
@pytest.mark.parametrize(("tokens", "size"), [(0, (2, 3, 7)), (5, (1, 1, 1)), (41, (2, 6, 35))])
def test_same_as_one_after_the_other(radius, tokens, size, dtype):
    """The same sums in the same order, in blocks of other pixels."""
    given = random_inputs(radius, 2, tokens, size, dtype)
    assert_close(read(given), one_after_the_other(given))


@needs_extension
@pytest.mark.parametrize("strategy", ["volume", "on_demand"])
@pytest.mark.parametrize("trained", [False, True])
def test_correlation_reads_groups(strategy, trained):
    """Items 0 and 1 with tokens, item 2 without: what each gives alone, with gradients or not."""
    torch.manual_seed(0)
    f0, f1 = torch.randn(2, 3, 20, 6, 19)
    coords = places(3, 6, 19, torch.float32)
    given = random_inputs(2, 1)
    how = ops.WindowReading(None, None, given["offsets"], given["log_sharpness"])
    with_tokens = how._replace(weight=given["weight"].requires_grad_(trained), bias=given["bias"])
    correlation = Correlation(f0, f1, levels=1, radius=2, strategy=strategy)
    found = correlation.read(coords, [2, 1], [with_tokens, how])
    windows = correlation(coords)
    assert_close(found[0], ops.read_windows(windows[:2], *with_tokens))
    assert_close(found[1], ops.read_windows(windows[2:], *how))
    assert found[0][0].requires_grad == trained and not found[1][0].requires_grad


@needs_extension
def test_reading_on_a_gpu_is_two_operators():
    """What CUDA tensors get, on the CPU: the check, the look-up, the reading."""
    given = random_inputs()
    f0, levels, coords, radius, *reading = given.values()
    found = cuda_reading(f0, levels, coords, radius, True, *reading)
    assert_equal(found, one_after_the_other(given))
    with pytest.raises(ValueError, match="read_correlation: gate must have shape"):
        cuda_reading(f0, levels, coords, radius, True, None, coords, *reading[2:])


def test_autocast():
    given = random_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        found = read(given)
        assert_close(found, one_after_the_other(given))
    assert found[0].dtype == found[1].dtype == torch.float32


def test_gradients_are_those_of_the_parts():
    given, parts = random_inputs(), random_inputs()
    for how, values in ((read, given), (one_after_the_other, parts)):
        values["coords"] = values["coords"].nan_to_num(3, 3, 3).requires_grad_()
        values["f0"].requires_grad_()
        tokens, matches = how(values)
        (tokens.square().sum() + matches.square().sum()).backward()
    for name in ("f0", "coords"):
        assert given[name].grad.any() and torch.equal(given[name].grad, parts[name].grad)


@needs_extension
def test_opcheck():
    f0, levels, coords, radius, *reading = random_inputs().values()
    coords = coords.nan_to_num(3, 3, 3)  # opcheck takes no NaN for another
    operator = torch.ops.flowfuse.read_correlation.default
    torch.library.opcheck(operator, (f0, levels, coords, radius, True, *reading))


@needs_extension
def test_same_bits_for_thread_counts():
    found = with_thread_counts(lambda: read(random_inputs(size=(2, 13, 40))))
    for other in found[1:]:
        assert_equal(found[0], other)


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"f0": torch.zeros(2, 20, 5)}, "f0 must have shape"),
        ({"f0": [1.0]}, "f0 must be a torch.Tensor, got list"),
        ({"coords": torch.zeros(2, 2, 5, 17)}, r"coords must have shape \[2, 2, 5, 18\], got"),
        ({"radius": -1}, r"radius must be in \[0, 16\], got -1"),
        ({"gate": torch.ones(2, 1, 5, 17)}, r"gate must have shape \[2, 1, 5, 18\], got"),
        ({"weight": torch.zeros(9, 53, 1, 1).double(), "bias": torch.zeros(9).double()},
         "f0 and weight must both be float64 or neither"),
        ({"weight": None}, "weight and bias must be given together"),
    ],
)  # fmt: skip
def test_error_messages(change, message, kernel):
    devices = ("cpu",) if kernel and ops.build_info()["extension"] else ()
    with kernels_on(*devices), pytest.raises(ValueError, match="read_correlation: " + message):
        read(random_inputs() | change)


def test_compile():
    compiled = torch.compile(ops.read_correlation, fullgraph=True, backend="aot_eager")
    given = random_inputs()
    f0, levels, coords, radius, *reading = given.values()
    found = compiled(f0, levels, coords, radius, ops.WindowReading(*reading))
    assert_equal(found, read(given))
