"""Operators and model on a CUDA device, against the CPU and the references."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from device_cases import recorded
from test_model import TINY, make_batch, make_inputs, make_model
from torch.utils._pytree import tree_map_only

from flowfuse import ops
from flowfuse.inputs import InputSpec, ModelInputs
from flowfuse.losses.self_supervised import SelfSupervisionConfig, self_supervised_loss
from flowfuse.losses.supervised import LossConfig, supervised_loss
from flowfuse.model import CONFIGS
from flowfuse.ops import EXAMPLES
from flowfuse.ops.correlation import example as correlation
from flowfuse.ops.correlation_lookup import reference as reference_lookup
from flowfuse.ops.examples import DTYPES, LAYOUTS, TOLERANCE, Example, draw, moved, sum_dtype
from flowfuse.ops.extension import kernels_on

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
needs_kernels = pytest.mark.skipif(
    torch.cuda.is_available() and "cuda" not in ops.build_info()["devices"],
    reason="needs operators built for CUDA",
)
DEVICE = torch.device("cuda")
SIZE = (2, 13, 37)  # batch, height and width that no tile divides
# Empty; a pixel; a row; a column; a tile of 32 x 16 and one pixel more; several tiles.
SIZES = [(0, 5, 6), (1, 1, 1), (1, 1, 40), (2, 33, 1), (1, 16, 32), (1, 17, 33), (2, 35, 67)]
every_operator = pytest.mark.parametrize("name", EXAMPLES)


def assert_close(
    found: list[torch.Tensor], expected: list[torch.Tensor], rounding: float = 1.0
) -> None:
    """Equal up to the rounding of sums, relative to the largest value; the same NaN."""
    for actual, wanted in zip(found, expected, strict=True):
        assert (actual.shape, actual.dtype) == (wanted.shape, wanted.dtype)
        actual, wanted = actual.cpu(), wanted.cpu()
        if not wanted.is_floating_point():
            assert torch.equal(actual, wanted)
            continue
        finite = wanted[wanted.isfinite()].double().abs()
        limit = rounding * TOLERANCE[wanted.dtype]
        atol = limit * float(finite.max()) if finite.numel() else 0.0
        torch.testing.assert_close(actual, wanted, rtol=limit, atol=atol, equal_nan=True)


def assert_same_bits(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0, equal_nan=True)


def check(case: Example) -> None:
    """The kernels of the device give what those of the CPU and the reference give."""
    found = case.on(DEVICE).run()
    assert all(tensor.device.type == DEVICE.type for tensor in found)
    assert_close(found, case.run(), case.rounding)
    with kernels_on():
        assert_close(found, case.run(), case.rounding)


# ---- operators -----------------------------------------------------------------------------------


@needs_kernels
@every_operator
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_operators_agree(name, dtype, layout):
    check(EXAMPLES[name](dtype, SIZE).laid_out(layout))


@needs_kernels
@every_operator
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_operators_agree_at_odd_sizes(name, size):
    if size[0] == 0 and ("voxelize" in name or "warp_events" in name):
        pytest.skip("a batch of events has at least one item")
    check(EXAMPLES[name](torch.float32, size))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gradients", [False, True])
def test_single_products_of_one_map_at_many_places(gradients, dtype):
    """As motion of neighbours is scored: radius 0, both maps expanded."""
    torch.manual_seed(0)
    maps = [torch.randn(1, 24, 20, 28, dtype=dtype) for _ in range(2)]
    coords = 20 * torch.rand(17, 2, 20, 28)

    def look_up(device):
        f0, f1 = (one.to(device, copy=True).requires_grad_(gradients) for one in maps)
        correlation = ops.Correlation(
            f0.expand(17, -1, -1, -1), f1.expand(17, -1, -1, -1),
            levels=1, radius=0, strategy="on_demand",
        )  # fmt: skip
        found = correlation(coords.to(device)).float()
        if gradients:
            found.square().sum().backward()
            return found.detach().cpu(), f0.grad.float().cpu(), f1.grad.float().cpu()
        return (found.cpu(),)

    for found, expected in zip(look_up(DEVICE), look_up("cpu"), strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(found, expected, atol=1e-2 * scale, rtol=1e-2)


@needs_kernels
def test_correlation_of_many_channels_and_a_large_window():
    for dtype in DTYPES:
        for strategy in ("volume", "on_demand"):
            check(correlation(strategy, dtype, (1, 19, 23), channels=130))
            f0, f1, coords = correlation(strategy, dtype, (1, 9, 10)).tensors
            wide = Example(
                lambda f0, f1, coords, strategy=strategy: ops.Correlation(
                    f0, f1, levels=2, radius=16, strategy=strategy
                )(coords),
                (f0, f1, coords),
                (0, 1, 2),
            )
            check(wide)


@needs_kernels
@pytest.mark.parametrize("channels", [3, 64, 264])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_correlation_of_windows_that_lie_far_apart(channels, dtype):
    """On the first levels; on the last one they overlap."""
    f0 = draw(1, channels, 12, 19, dtype=dtype)
    f1 = draw(1, channels, 60, 83, dtype=dtype, seed=1)
    coords = 40 + 30 * draw(1, 2, 12, 19, dtype=sum_dtype(dtype), seed=2)

    def look_up(f0: torch.Tensor, f1: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
        return ops.Correlation(f0, f1, levels=4, radius=4, strategy="on_demand")(coords)

    check(Example(look_up, (f0, f1, coords), (0, 1, 2)))


@needs_kernels
@pytest.mark.parametrize("strategy", ["volume", "on_demand"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_correlation_of_half_features_without_gradients(dtype, strategy):
    """On demand all levels are taken in the dtype of the features; products are exact."""
    f0, f1, coords = correlation(strategy, dtype, SIZE, channels=72).tensors
    levels = ops.pool_levels(f1, 3)
    if strategy == "on_demand":
        levels = [level.to(dtype) for level in levels]
    on_device = [tensor.to(DEVICE) for tensor in (f0, f1)]
    found = ops.Correlation(*on_device, levels=3, radius=4, strategy=strategy)(coords.to(DEVICE))
    assert_close([found], [reference_lookup(f0, levels, coords, 4)])


@needs_kernels
@pytest.mark.parametrize("kind", ["voxelize, pixels", "voxelize, rectified"])
@pytest.mark.parametrize("size", [SIZE, (3, 120, 160)], ids=str)
def test_voxelize_has_the_bits_of_the_cpu(kind, size):
    case = EXAMPLES[kind](torch.float32, size)
    assert_same_bits([tensor.cpu() for tensor in case.on(DEVICE).run()], case.run())


@needs_kernels
@every_operator
def test_same_bits_twice(name):
    case = EXAMPLES[name](torch.float32, (2, 45, 50)).on(DEVICE)
    first = case.run()
    for _ in range(3):
        assert_same_bits(case.run(), first)


@needs_kernels
@every_operator
def test_on_another_stream(name):
    """The arguments get their values late on a stream that the default one does not wait for."""
    source = EXAMPLES[name](torch.float32, SIZE).on(DEVICE)
    expected = source.run()
    case = source.on(DEVICE)
    for tensor in case.tensors:
        tensor.zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel on the default stream would see the zeros
        for tensor, values in zip(case.tensors, source.tensors, strict=True):
            tensor.copy_(values)  # on the device: nothing waits
        found = case.run()
    stream.synchronize()
    assert_same_bits(found, expected)


@needs_kernels
@every_operator
def test_nothing_waits_for_the_device(name):
    case = EXAMPLES[name](torch.float32, SIZE).on(DEVICE)
    case.run()  # the first call may set things up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        case.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_kernels
@every_operator
def test_in_a_cuda_graph(name):
    """Captured forward and backward, replayed with other numbers in the same tensors."""
    given = EXAMPLES[name](torch.float32, SIZE)
    case = given.on(DEVICE)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        case.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = case.run()
    for tensor, fresh in zip(case.tensors, given.tensors, strict=True):
        if tensor.is_floating_point():
            tensor.copy_(fresh.flip(0) * 0.75)
    expected = [result.clone() for result in case.run()]
    graph.replay()
    assert_same_bits(results, expected)


@needs_kernels
@every_operator
def test_opcheck(name):
    """Schema, fake kernels, autograd registration and tracing of every operator that is called."""
    for operator, arguments in recorded(EXAMPLES[name](torch.float32, (1, 4, 5)).on(DEVICE)):
        if not str(operator).endswith("_backward.default"):
            arguments = tree_map_only(
                torch.Tensor, lambda t: t.requires_grad_(t.is_floating_point()), arguments
            )
        torch.library.opcheck(operator, arguments)


@needs_kernels
@pytest.mark.parametrize(
    "name",
    ["correlation, volume", "correlation, on demand", "common_gradient", "convex_upsample"],
)
def test_gradcheck(name):
    case = EXAMPLES[name](torch.float64, (1, 3, 4)).on(DEVICE)
    tensors = list(case.tensors)
    if name.startswith("correlation"):  # in the middle of a cell: no step crosses an integer
        cells = torch.randint(-1, 3, tensors[2].shape, generator=torch.Generator().manual_seed(0))
        tensors[2] = (cells.double() + 0.4).to(DEVICE)
        tensors[:2] = [features[:, :3].contiguous() for features in tensors[:2]]
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    torch.autograd.gradcheck(case.function, leaves, nondet_tol=0.0)


@needs_kernels
@pytest.mark.parametrize("mode", ["signed", "split"])
def test_gradcheck_warp_events(mode):
    case = EXAMPLES["warp_events, split, curves"](torch.float64, (1, 5, 6)).on(DEVICE)
    *events, _, t0, t1, t_ref = case.tensors
    keep = events[0].isfinite() & events[1].isfinite()
    events = [value[keep] for value in events[:4]]
    events.append(torch.tensor([0, len(events[0])], device=DEVICE))
    generator = torch.Generator().manual_seed(1)
    flow = torch.rand(1, 2, 5, 6, dtype=torch.float64, generator=generator).to(DEVICE)

    def warp(flow: torch.Tensor) -> torch.Tensor:
        return ops.warp_events(*events, flow, t0, t1, t_ref, mode, 5, 6)

    # Votes are rounded to 2^-48, which a step of 1e-3 does not notice; within a cell they are
    # linear in the flow, up to products of both axes.
    torch.autograd.gradcheck(warp, flow.requires_grad_(), eps=1e-3, atol=2e-2, rtol=1e-2)


@needs_kernels
@every_operator
def test_arguments_on_two_devices_are_refused(name):
    case = EXAMPLES[name](torch.float32, (1, 4, 5))
    there = case.on(DEVICE)
    for index, tensor in enumerate(case.tensors):
        mixed = list(there.tensors)
        mixed[index] = tensor
        with pytest.raises(ValueError, match="must be on"):
            case.function(*mixed)


@needs_kernels
@every_operator
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_on_the_second_device(name):
    """While the first one is the current device."""
    case = EXAMPLES[name](torch.float32, SIZE)
    second = torch.device("cuda", 1)
    found = case.on(second).run()
    assert all(tensor.device == second for tensor in found)
    assert torch.cuda.current_device() == 0
    assert_close(found, case.run(), case.rounding)


@needs_kernels
def test_a_volume_that_cannot_fit_is_named():
    f0 = torch.zeros(1, 2, 1500, 1500, device=DEVICE)  # volumes of 4 * 1500^4 bytes and more
    message = "correlation_volume: out of memory: 20250000000000 bytes .*on_demand"
    with pytest.raises(torch.OutOfMemoryError, match=message):
        ops.Correlation(f0, f0, levels=1, radius=1, strategy="volume")
    case = correlation("volume", torch.float32, SIZE)  # and nothing is broken by it
    assert_close(case.on(DEVICE).run(), case.run())


@needs_kernels
@pytest.mark.parametrize("strategy", ["volume", "on_demand"])
def test_autocast_of_correlation(strategy):
    """Features go to bfloat16, coordinates and sums stay float32."""
    f0, f1, coords = correlation(strategy, torch.float32, SIZE).on(DEVICE).tensors

    def look_up(f0: torch.Tensor, f1: torch.Tensor) -> torch.Tensor:
        return ops.Correlation(f0, f1, levels=1, radius=2, strategy=strategy)(coords)

    with torch.autocast(DEVICE.type, torch.bfloat16):
        found = look_up(f0, f1)
    assert found.dtype == torch.float32
    assert_close([found], [look_up(f0.bfloat16(), f1.bfloat16())])


@needs_kernels
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("strategy", ["volume", "on_demand"])
def test_compiled_correlation(strategy, backend):
    if backend == "inductor":
        pytest.importorskip("triton")
    torch._dynamo.reset()
    case = correlation(strategy, torch.float32, SIZE).on(DEVICE)
    compiled = torch.compile(case.function, fullgraph=True, backend=backend)
    assert_close(Example(compiled, case.tensors, case.leaves).run(), case.run())


# ---- the model -----------------------------------------------------------------------------------


@pytest.fixture
def full_precision():
    """Without TF32, whose 10 bits would hide what else is different."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def inputs_on_device(config, **options) -> ModelInputs:
    return ModelInputs(*(tensor.to(DEVICE) for tensor in make_inputs(config, **options)))


def training_loss(model, inputs, supervision="ground_truth", bf16=False):
    """The loss of a batch that fits the inputs, as training computes it."""
    batch = make_batch(inputs).to(inputs.slices.device)
    with torch.autocast(inputs.slices.device.type, torch.bfloat16, enabled=bf16):
        output = model(inputs)
    if supervision == "ground_truth":
        return supervised_loss(output, batch, LossConfig())[0]
    return self_supervised_loss(output, batch, SelfSupervisionConfig())[0]


def gradients(model, loss) -> list[torch.Tensor]:
    return torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True,
                               allow_unused=True)  # fmt: skip


def relative_error(found, expected) -> float:
    found, expected = (
        torch.cat([t.cpu().double().flatten() for t in v]) for v in (found, expected)
    )
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("supervision", ["ground_truth", "self"])
@pytest.mark.parametrize("strategy", ["volume", "on_demand"])
def test_a_training_step_agrees_with_the_cpu(full_precision, supervision, strategy):
    config = replace(CONFIGS["small"], correlation=strategy)
    results = []
    for device in ("cpu", DEVICE):
        model = make_model(config).to(device)
        inputs = ModelInputs(*(t.to(device) for t in make_inputs(config, batch=2, height=64)))
        loss = training_loss(model, inputs, supervision)
        results.append((loss.detach(), gradients(model, loss)))
    (loss, grads), (found, found_grads) = results
    # Float32 through three iterations; flow crosses cells where the gradient in it jumps.
    assert float(found) == pytest.approx(float(loss), rel=1e-3)
    assert relative_error(found_grads, grads) < 2e-2


def test_a_training_step_in_bfloat16():
    config = CONFIGS["small"]
    model = make_model(config, settle=False).to(DEVICE).train()
    inputs = inputs_on_device(config, batch=2, height=64)
    exact = training_loss(model, inputs)
    loss = training_loss(model, inputs, bf16=True)
    found = gradients(model, loss)
    assert all(grad.isfinite().all() for grad in found)
    assert all(grad.dtype == torch.float32 for grad in found)
    assert float(loss) == pytest.approx(float(exact), rel=0.05)  # 8 bits of mantissa


@needs_kernels
@pytest.mark.parametrize("supervision", ["ground_truth", "self"])
def test_a_training_step_does_not_wait_for_the_device(supervision):
    model = make_model(TINY).to(DEVICE).train()
    inputs = inputs_on_device(TINY, batch=2, channels=3)
    batch = make_batch(inputs).to(DEVICE)
    losses = {
        "ground_truth": lambda output: supervised_loss(output, batch, LossConfig())[0],
        "self": lambda output: self_supervised_loss(output, batch, SelfSupervisionConfig())[0],
    }

    def step() -> None:
        gradients(model, losses[supervision](model(inputs)))

    step()  # cuDNN and cuBLAS set themselves up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_kernels
def test_the_model_in_a_cuda_graph():
    model = make_model(TINY).to(DEVICE)
    inputs = inputs_on_device(TINY)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad():
        with torch.cuda.stream(stream):
            for _ in range(2):
                model(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = model(inputs)
        for tensor, other in zip(inputs, inputs_on_device(TINY, seed=1), strict=True):
            tensor.copy_(other)
        graph.replay()
        expected = model(inputs)
    # Convolutions may be chosen differently outside the graph.
    assert relative_error([output.control_points], [expected.control_points]) < 1e-2


@needs_kernels
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_the_compiled_model(full_precision, backend):
    if backend == "inductor":
        pytest.importorskip("triton")
    torch._dynamo.reset()
    model = make_model(TINY).to(DEVICE)
    inputs = inputs_on_device(TINY)
    with torch.no_grad():
        expected = model(inputs).control_points
        found = torch.compile(model, fullgraph=True, backend=backend)(inputs).control_points
    assert relative_error([found], [expected]) < 1e-3


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16], ids=str)
def test_the_sample_agrees_with_the_cpu(precision):
    for package in ("cv2", "h5py", "hdf5plugin", "safetensors"):
        pytest.importorskip(package)
    import flowfuse
    from flowfuse.data.opening import open_recording

    recording = open_recording(flowfuse.sample_recording())
    t0, t1 = map(int, recording.frame_times[:2])
    given = (recording.frame(0), recording.frame(1), recording.events(2 * t0 - t1, t1))
    expected = flowfuse.load("small")(*given, t0=t0, t1=t1).flow
    result = flowfuse.load("small", device="auto", dtype=precision)(*given, t0=t0, t1=t1)
    error = ((result.flow - expected) ** 2).sum(0) ** 0.5
    # TF32 has 10 bits of mantissa, as float16 has; bfloat16 has 7.
    assert error.mean() < (0.1 if precision == torch.bfloat16 else 0.02)
    assert result.at([0.25, 0.5]).shape == (2, *expected.shape)
    points = result.track([[10.0, 10.0]], 0.5)
    assert math.isfinite(float(points[0, 0]))
    frame0, frame1 = (torch.from_numpy(frame).to(DEVICE) for frame in given[:2])
    as_torch = flowfuse.load("small", device="cuda")(frame0, frame1, given[2], t0=t0, t1=t1)
    assert as_torch.flow.device.type == "cuda"


def test_scenes_rendered_on_the_device():
    pytest.importorskip("cv2")
    from flowfuse.data.synthetic.dataset import scene_sample
    from flowfuse.data.synthetic.scenes import PRESETS, generate_scene

    for preset in PRESETS:
        here, there = (generate_scene(3, preset, 48, 64, device=d) for d in ("cpu", DEVICE))
        again = generate_scene(3, preset, 48, 64, device=DEVICE)
        assert (again.frames == there.frames).all() and len(again.events) == len(there.events)
        assert (here.frame_times == there.frame_times).all()
        # Rounding decides which way a gray value or an event at its threshold goes.
        difference = abs(here.frames.astype(int) - there.frames.astype(int))
        assert difference.mean() < 0.1 and difference.max() <= 32
        assert len(there.events) == pytest.approx(len(here.events), rel=0.02, abs=20)
        a, b = (scene_sample(s, spec=InputSpec(2, 2), seed=1) for s in (here, there))
        assert all(tensor.device.type == "cpu" for tensor in b.tensors().values())
        same = (a.flow - b.flow).abs().amax(dim=(0, 1)) < 0.05
        assert same.float().mean() > 0.99  # but where an edge falls on another pixel


def test_training_from_the_command_line(tmp_path, capsys):
    for package in ("cv2", "jsonargparse", "docstring_parser", "safetensors", "tqdm", "yaml"):
        pytest.importorskip(package)
    from flowfuse.cli import train

    small = ["--scenes", "2", "--scene-size", "48", "64", "--crop", "32", "48", "--batch", "2"]
    small += ["--validation-scenes", "1", "--validate-every", "2", "--checkpoint-every", "2"]
    small += ["--model.iterations", "2", "--log-every", "1", "--no-tensorboard"]
    run = ["-o", str(tmp_path / "run"), "--device", "cuda"]
    first = [*run, *small, "--steps", "2", "--bf16", "--scene-device", "cuda"]
    assert train.main(first) == 0, capsys.readouterr().err
    # Carried on with other settings of the machine: scenes of the CPU, full precision.
    longer = [*run, "--resume", "--steps", "4", "--no-bf16", "--scene-device", "cpu"]
    assert train.main([*longer, "--workers", "1"]) == 0, capsys.readouterr().err
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert "on cuda" in capsys.readouterr().err


def test_devices_that_are_not_there_are_named():
    pytest.importorskip("safetensors")
    from flowfuse.estimator import select_device

    assert select_device("auto") == DEVICE
    count = torch.cuda.device_count()
    with pytest.raises(
        ValueError, match=rf"sees {count} CUDA device\(s\) here; use device 'cuda:0'"
    ):
        select_device(f"cuda:{count}")


@needs_kernels
def test_moved_keeps_strides():
    """The helper behind these tests: what was strided on the CPU is so on the device."""
    tensor = torch.arange(24.0).view(2, 3, 4)[:, ::2, 1:]
    there = moved(tensor.expand(2, 2, 3), DEVICE)
    assert there.stride() == tensor.stride() and torch.equal(there.cpu(), tensor)
    assert sum_dtype(torch.bfloat16) == torch.float32


# At the end: a kernel that took such a gradient would leave no working device to the other tests.
@needs_kernels
@every_operator
def test_a_gradient_on_another_device_is_refused(name):
    for operator, arguments in recorded(EXAMPLES[name](torch.float32, (1, 4, 5)).on(DEVICE)):
        if not str(operator).endswith("_backward.default"):
            continue
        gradient = tree_map_only(torch.Tensor, torch.Tensor.cpu, arguments[0])
        with pytest.raises(ValueError, match="device"):
            operator(gradient, *arguments[1:])
