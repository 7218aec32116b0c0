"""estimator.py and result.py: arrays in, trajectories out."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import flowfuse
from flowfuse.estimator import Estimator, load
from flowfuse.events import Events
from flowfuse.inputs import ModelInputs
from flowfuse.model import CONFIGS, FlowFuse, ModelConfig
from flowfuse.model.checkpoint import save_checkpoint
from flowfuse.result import Result

T0, T1 = 20_000, 60_000
HEIGHT, WIDTH = 37, 50  # no multiples of 8
CONFIG = ModelConfig(
    name="tiny", slices=2, stem_channels=8, channels=8, hidden=8, token_channels=8,
    boundary_channels=8, iterations=2, radius=1, levels=1, dilations=(1, 2),
)  # fmt: skip


def make_model(**changes) -> FlowFuse:
    torch.manual_seed(0)
    model = FlowFuse(ModelConfig(**{**vars(CONFIG), **changes}))
    for name, parameter in model.named_parameters():
        if not parameter.any() and name.endswith("weight"):  # zero at step 0: let it matter
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def estimator() -> Estimator:
    return Estimator(make_model())


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH), np.uint8)


@pytest.fixture(scope="module")
def events() -> Events:
    return make_events(0, 70_000)


def make_events(first: int, last: int, count: int = 3000) -> Events:
    rng = np.random.default_rng(1)
    return Events(
        rng.integers(0, WIDTH, count), rng.integers(0, HEIGHT, count),
        np.sort(rng.integers(first, last, count)), rng.integers(0, 2, count),
        height=HEIGHT, width=WIDTH,
    )  # fmt: skip


def known_result(as_torch: bool = False) -> Result:
    """Quadratic motion (4, 2) tau + (0, 6) tau^2 px everywhere, on 20 x 30 px in 0.1 s."""
    velocity, acceleration = torch.tensor([4.0, 2.0]), torch.tensor([0.0, 6.0])
    # tau = (P_1: 1/2, P_2: 1) and tau^2 = (0, 1) in the quadratic Bernstein basis.
    points = torch.stack((velocity / 2, velocity + acceleration))[None, :, :, None, None]
    uncertainty = torch.zeros(1, 2, 20, 30)
    return Result(
        points.expand(1, 2, 2, 20, 30).clone(), uncertainty, torch.zeros(1, 2, 20, 30),
        t0=1_000_000, t1=1_100_000, modalities=("frames",), as_torch=as_torch,
    )  # fmt: skip


def test_shapes_and_dtypes(estimator, frames, events):
    result = estimator(*frames, events, t0=T0, t1=T1)
    image = (HEIGHT, WIDTH)
    assert result.modalities == ("frames", "events")
    for value, shape in (
        (result.flow, (2, *image)),
        (result.at(0.5), (2, *image)),
        (result.at([0.2, 0.4, 1.0]), (3, 2, *image)),
        (result.velocity(0.5), (2, *image)),
        (result.boundary, (2, *image)),
        (result.uncertainty, image),
        (result.control_points, (3, 2, *image)),
        (result.track(np.ones((5, 2)), 0.5), (5, 2)),
        (result.track(np.ones((5, 2)), [0.1, 0.5]), (2, 5, 2)),
        (result.at_events(events.slice_time(T0, T1)), (len(events.slice_time(T0, T1)), 2)),
    ):
        assert isinstance(value, np.ndarray) and value.dtype == np.float32 and value.shape == shape
        assert np.isfinite(value).all()
    assert np.array_equal(result.flow, result.control_points[-1])
    assert (result.boundary > 0).all() and (result.boundary < 1).all()
    assert (result.uncertainty >= 0.25).all()  # a mixture of scales of 1/4 px and more


def test_trajectory_by_hand():
    result = known_result()
    assert np.allclose(result.flow[:, 3, 4], [4, 8])
    assert np.allclose(result.at(0.5)[:, 3, 4], [2, 2.5])
    assert not result.at(0).any()
    # px per second: derivative (4, 2 + 12 tau) per unit tau of 0.1 s
    assert np.allclose(result.velocity(0.5)[:, 3, 4], [40, 80])
    points = np.array([[3.5, 7.0], [29.5, 1.0], [np.nan, 1.0]])
    assert np.allclose(
        result.track(points, 0.5), [[5.5, 9.5], [np.nan, np.nan], [np.nan, np.nan]], equal_nan=True
    )
    assert np.allclose(result.boundary, 0.5)


def test_events_follow_the_trajectory_through_them():
    """u grows by 0.2 px per px of x: an event's origin is not its own pixel."""
    grid = torch.arange(40.0).expand(16, 40)
    points = torch.stack((0.2 * grid, torch.zeros(16, 40)))[None, None]  # [1, n = 1, 2, H, W]
    blank = torch.zeros(1, 2, 16, 40)
    result = Result(points, blank, blank, t0=0, t1=100, modalities=("events",), as_torch=False)
    # x = x0 (1 + 0.2 tau); the flow of x0 is 0.2 x0
    events = Events([10, 20, 22], [3, 3, 3], [0, 50, 99], [1, 0, 1])
    tau = events.t / 100
    expected = 0.2 * events.x / (1 + 0.2 * tau)
    # Six fixed-point steps with a gradient of 0.2 leave 0.2^6 of 4 px, times 0.2.
    assert np.allclose(result.at_events(events)[:, 0], expected, atol=1e-4)
    assert result.at_events(Events.empty()).shape == (0, 2)
    outside = result.at_events(([0, 0, 40], [0, 16, 0], [5, 5, 5], [1, 1, 1]))
    assert np.isnan(outside).all(axis=1).tolist() == [False, True, True]


def test_torch_in_torch_out_and_no_aliasing(estimator, frames, events):
    as_numpy = estimator(*frames, events, t0=T0, t1=T1)
    tensors = [torch.from_numpy(frame) for frame in frames]
    as_torch = estimator(*tensors, events, t0=T0, t1=T1)
    assert isinstance(as_torch.flow, torch.Tensor) and not as_torch.flow.is_inference()
    assert np.array_equal(as_torch.flow.numpy(), as_numpy.flow)
    for result in (as_numpy, as_torch):
        before = result.flow
        result.flow[:] = 0
        result.control_points[:] = 0
        assert (result.flow == before).all()
    arrays = tuple(torch.from_numpy(getattr(events, name).astype(int)) for name in "xytp")
    sized = Events(*arrays, height=HEIGHT, width=WIDTH)
    assert isinstance(estimator(None, None, sized, t0=T0, t1=T1).flow, np.ndarray)


def test_float_color_and_event_containers_are_equal(estimator, frames, events):
    reference = estimator(*frames, events, t0=T0, t1=T1).flow
    floats = [frame.astype(np.float64) / 255 for frame in frames]
    arrays = {name: getattr(events, name) for name in "xytp"}
    for given in (events, arrays, tuple(arrays.values())):
        assert np.array_equal(estimator(*floats, given, t0=T0, t1=T1).flow, reference)
    color = [np.repeat(frame[..., None], 3, axis=2) for frame in frames]
    # The luma weights sum to 1 only up to rounding.
    assert np.allclose(estimator(*color, events, t0=T0, t1=T1).flow, reference, atol=1e-3)


def test_inputs_are_not_modified(estimator, frames, events):
    floats = frames.astype(np.float32) / 255
    before = floats.copy(), events.x.copy(), events.t.copy()
    estimator(*floats, events, t0=T0, t1=T1)
    assert np.array_equal(floats, before[0])
    assert np.array_equal(events.x, before[1]) and np.array_equal(events.t, before[2])


def test_absent_modalities(estimator, frames, events):
    fused = estimator(*frames, events, t0=T0, t1=T1)
    frames_only = estimator(*frames, None, t0=T0, t1=T1)
    events_only = estimator(None, None, events, t0=T0, t1=T1)
    assert frames_only.modalities == ("frames",) and events_only.modalities == ("events",)
    flows = [fused.flow, frames_only.flow, events_only.flow]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in ((flows[0], flows[1]), (flows[0], flows[2])))
    # the second frame alone is not used
    assert np.array_equal(estimator(None, frames[1], events, t0=T0, t1=T1).flow, flows[2])
    # events outside the window only: the same as none
    silent = estimator(*frames, make_events(0, T0 // 2), t0=T0, t1=T1)
    assert silent.modalities == ("frames",) and np.array_equal(silent.flow, flows[1])
    single = estimator(None, None, events.slice_time(30_000, 30_030), t0=T0, t1=T1)
    assert np.isfinite(single.flow).all()


def test_history_is_used_when_it_is_there(estimator, frames, events):
    late = events.slice_time(T0, T1)
    with_history = estimator(*frames, events, t0=T0, t1=T1).flow
    without = estimator(*frames, late, t0=T0, t1=T1).flow
    assert np.abs(with_history - without).max() > 1e-4
    assert np.array_equal(estimator(*frames, events, t0=T0, t1=T1, history=False).flow, without)
    # nothing happened before t0, and the caller knows it
    assert np.abs(estimator(*frames, late, t0=T0, t1=T1, history=True).flow - without).max() > 1e-5


def test_exposures_iterations_and_precision_matter(estimator, frames, events):
    reference = estimator(*frames, events, t0=T0, t1=T1).flow
    exposed = estimator(*frames, events, t0=T0, t1=T1, exposure0=20_000, exposure1=10_000).flow
    assert np.abs(exposed - reference).max() > 1e-4
    assert np.abs(estimator(*frames, events, t0=T0, t1=T1, iterations=1).flow - reference).max() > 0
    half = Estimator(estimator.model, dtype=torch.bfloat16)(*frames, events, t0=T0, t1=T1).flow
    # bfloat16 has 8 bits: about 1 % of the flow, over two iterations
    assert half.dtype == np.float32
    assert np.abs(half - reference).max() < 0.1 * np.abs(reference).max()


def test_a_long_first_exposure_reaches_back_beyond_the_first_slice(estimator, frames, events):
    times = {"t0": 50_000, "t1": 90_000, "exposure0": 60_000}  # E_0 begins at 30 ms
    whole = estimator(*frames, events, **times).flow
    cut = estimator(*frames, events.slice_time(30_000, 70_000), **times).flow
    assert np.abs(whole - cut).max() > 1e-4
    assert np.array_equal(
        estimator(*frames, events.slice_time(20_000, 70_000), **times).flow, whole
    )


def test_without_frames_there_are_no_exposures(estimator, frames, events):
    exposures = {"exposure0": 20_000, "exposure1": 10_000}
    for frame0 in (None, frames[0]):
        reference = estimator(frame0, None, events, t0=T0, t1=T1).flow
        result = estimator(frame0, None, events, t0=T0, t1=T1, **exposures)
        assert np.array_equal(result.flow, reference)


def test_frame_0_alone_is_used_where_the_network_can(frames, events):
    by_evidence, guided = (
        Estimator(FlowFuse(replace(CONFIGS["nano"], fusion=fusion)))
        for fusion in ("evidence", "guided")
    )
    one = by_evidence(frames[0], None, events, t0=T0, t1=T1)
    assert one.modalities == ("frame0", "events")
    none = by_evidence(None, None, events, t0=T0, t1=T1)
    both = by_evidence(*frames, events, t0=T0, t1=T1)
    assert np.abs(one.flow - none.flow).max() > 1e-6 and np.abs(one.flow - both.flow).max() > 1e-6
    alone = guided(frames[0], None, events, t0=T0, t1=T1)
    assert alone.modalities == ("events",)
    assert np.array_equal(alone.flow, guided(None, None, events, t0=T0, t1=T1).flow)
    with pytest.raises(ValueError, match="both frames, or events"):
        by_evidence(frames[0], None, None, t0=T0, t1=T1)


def test_an_exposure_that_cannot_be_is_named(estimator, frames, events):
    with pytest.raises(ValueError, match=r"exposure1 must be at most 2 \(t1 - t0\) = 80000 us"):
        estimator(*frames, events, t0=T0, t1=T1, exposure0=80_000, exposure1=80_001)


def test_smallest_size_and_same_bits_twice(estimator):
    frames = np.random.default_rng(2).integers(0, 256, (2, 16, 16), np.uint8)
    first, second = (estimator(*frames, None, t0=0, t1=10).flow for _ in range(2))
    assert first.shape == (2, 16, 16) and np.array_equal(first, second)


GOOD = dict(t0=T0, t1=T1)
FLAT = np.zeros((HEIGHT, WIDTH), np.uint8)
OUTSIDE = ([WIDTH], [0], [T0 + 5], [1])


@pytest.mark.parametrize(
    ("frame0", "frame1", "events", "times", "message"),
    [
        (FLAT, FLAT, None, dict(t0=5, t1=5), "t1 must be later than t0, got t0 = 5 us"),
        (FLAT, FLAT, None, dict(t0=0.1, t1=0.2), "t0 must be integer microseconds, got 0.1"),
        (FLAT, FLAT, None, dict(t0=0, t1=1), "too short for 2 slices"),
        (FLAT, FLAT, None, dict(t0=7, t1=2**43), f"most {2**40} us, got t0 = 7 us, t1 = {2**43}"),
        (FLAT, FLAT, None, dict(GOOD, history="yes"), "True, False or None, got 'yes'"),
        (
            FLAT,
            FLAT,
            None,
            dict(GOOD, flow_init="zero"),
            r"numbers of shape \[2, 37, 50\], got str",
        ),
        (
            FLAT,
            FLAT,
            None,
            dict(GOOD, flow_init=[None]),
            r"numbers of shape \[2, 37, 50\], got list",
        ),
        (FLAT, FLAT, None, dict(GOOD, exposure0=-1), "exposure0 must not be negative"),
        (FLAT, FLAT, None, dict(GOOD, iterations=0), "iterations must be at least 1"),
        (FLAT, FLAT[1:], None, GOOD, "one size in px, got frame0 is 50 x 37, frame1 is 50 x 36"),
        (FLAT, FLAT, None, dict(GOOD, iterations=1.5), "iterations must be an integer, got 1.5"),
        (FLAT, FLAT, None, dict(GOOD, iterations="a"), "iterations must be an integer, got 'a'"),
        (FLAT, FLAT, None, dict(t0=0, t1=2**70), r"t1 must be within \+-2305843009213693952 us"),
        (FLAT, FLAT.astype(">f4"), None, GOOD, "frame1 must be .*; got dtype >f4"),
        (FLAT.astype(np.uint32), FLAT, None, GOOD, "frame0 must be .*; got dtype uint32"),
        (FLAT[:9], FLAT[:9], None, GOOD, "frame0 must be at least 16 x 16 px, got 50 x 9"),
        (FLAT[None], FLAT, None, GOOD, r"frame0 must have shape \[H, W\] or \[H, W, 3\]"),
        (FLAT.tolist(), FLAT, None, GOOD, "frame0 must be a numpy array or a tensor, got list"),
        (FLAT.astype(np.int32), FLAT, None, GOOD, "must be uint8, uint16, or float16"),
        (FLAT + 200.0, FLAT, None, GOOD, r"must lie in \[0, 1\], got 200 to 200; divide by 255"),
        (FLAT - 0.5, FLAT, None, GOOD, r"must lie in \[0, 1\]"),
        (FLAT * np.nan, FLAT, None, GOOD, "frame0 must be finite"),
        (None, None, None, GOOD, "frames and events are None"),
        (FLAT, None, None, GOOD, "got no frame pair, and no event in"),
        (None, None, Events.empty(HEIGHT, WIDTH), GOOD, "got no frame pair, and no event in"),
        (None, None, ([1], [1], [T0], [1]), GOOD, "the sensor size must be known"),
        (FLAT, FLAT, OUTSIDE, GOOD, r"x\[0\] = 50 lies outside the sensor"),
        (FLAT, FLAT, Events.empty(5, 6), GOOD, "events is 6 x 5"),
        (None, None, Events([1], [1], [T0], [1], height=8, width=99), GOOD, "at least 16 x 16"),
        (FLAT, FLAT, ([1], [1], [T0]), GOOD, r"tuple \(x, y, t, p\), got 3 arrays"),
        (FLAT, FLAT, dict(x=[1]), GOOD, "must have the keys x, y, t, p; got x"),
        (FLAT, FLAT, "events.h5", GOOD, "got str"),
        (FLAT, FLAT, ([1, 2], [1, 2], [T1, T0], [1, 1]), GOOD, "t must be sorted"),
        (FLAT, FLAT, ([np.nan], [1], [T0], [1]), GOOD, "x must be finite"),
    ],
)
def test_wrong_inputs_are_named(estimator, frame0, frame1, events, times, message):
    with pytest.raises(ValueError, match=message):
        estimator(frame0, frame1, events, **times)


def wanted_events(count=4000, factor=1.0, start=T0, end=T1):
    rng = np.random.default_rng(0)
    t = np.sort(rng.integers(start, end, count)) * factor
    x, y = rng.integers(0, WIDTH, count), rng.integers(0, HEIGHT, count)
    return Events(x, y, t.astype(np.int64), rng.integers(0, 2, count), height=HEIGHT, width=WIDTH)


@pytest.mark.parametrize(
    ("factor", "told"),
    [
        (1000, "4000 would, were their times in nanoseconds: all times are microseconds"),
        (0.001, "would, were their times in milliseconds"),
        (100, "is it one clock"),
    ],
)
def test_events_at_other_times_are_warned_of(estimator, factor, told):
    with pytest.warns(UserWarning, match=f"lie in .*{told}"):
        estimator(FLAT, FLAT, wanted_events(factor=factor), **GOOD)


def test_next_to_none_of_the_events_in_the_interval(estimator):
    few = wanted_events(4000, 1, T0 + 10 * (T1 - T0), T0 + 20 * (T1 - T0))
    with pytest.warns(UserWarning, match="0 of the 4000 events given lie in"):
        estimator(FLAT, FLAT, few, **GOOD)


@pytest.mark.filterwarnings("error")
def test_events_of_the_interval_are_not_warned_of(estimator):
    for start in (T0, T0 - 5 * (T1 - T0)):
        estimator(FLAT, FLAT, wanted_events(start=max(0, start)), **GOOD)
    estimator(FLAT, FLAT, wanted_events(0), **GOOD)


def test_frames_of_16_bits_and_mixed_coordinates(estimator):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8) for _ in range(2)]
    deep = [frame.astype(np.uint16) * 257 for frame in frames]
    events = wanted_events()
    mixed = (events.x.astype(np.uint16), events.y.astype(np.int64), events.t, events.p)
    expected = estimator(*frames, events, **GOOD).flow
    np.testing.assert_allclose(estimator(*deep, mixed, **GOOD).flow, expected, atol=1e-4)
    with pytest.warns(UserWarning, match="frame0: values up to .* multiply by 65535 / 4095"):
        estimator(*(frame // 17 for frame in deep), events, **GOOD)


def test_wrong_questions_are_named():
    result = known_result()
    for call, message in (
        (lambda: result.at(1.5), r"tau must lie in \[0, 1\], got 1.5"),
        (lambda: result.at("a"), r"tau must be a number or \[T\], got 'a'"),
        (lambda: result.at(None), r"tau must be a number or \[T\], got None"),
        (lambda: result.track("a", 0.5), "track: points must be numbers"),
        (lambda: result.at_events(None), "at_events: events must be .*got None"),
        (lambda: load(None), "load: checkpoint must be a name or a path, got None"),
        (lambda: load("small", None), "device must be auto, cpu, cuda or cuda:N, got 'None'"),
        (lambda: result.at(np.nan), "tau must lie in"),
        (lambda: result.velocity(np.zeros((2, 2))), r"got shape \[2, 2\]"),
        (lambda: result.track(np.zeros(2), 0.5), r"points must have shape \[N, 2\], got \[2\]"),
        (lambda: result.at_events(([1], [1], [5], [1])), "events must lie in"),
        (lambda: result.at_events(Events.empty(7, 9)), "got those of a sensor of 9 x 7 px"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_repr(estimator):
    assert repr(estimator) == "Estimator(tiny, cpu, torch.float32)"
    assert repr(known_result()) == "Result(30 x 20 px, 1000000 to 1100000 us, from frames)"


def test_load(tmp_path, frames, events):
    model = make_model()
    save_checkpoint(tmp_path / "tiny.safetensors", model, training={"steps": 3})
    loaded = load(tmp_path / "tiny.safetensors")
    assert loaded.info["training"] == {"steps": 3}
    expected = Estimator(model)(*frames, events, t0=T0, t1=T1).flow
    assert np.array_equal(loaded(*frames, events, t0=T0, t1=T1).flow, expected)
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        load(tmp_path / "none.safetensors")
    whole = (tmp_path / "tiny.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated"):
        load(tmp_path / "cut.safetensors")


def test_device_and_dtype_are_checked(estimator):
    for device, message in (("toaster", "'toaster'"), ("mps", "got 'mps'"), ("cuda:99", "sees")):
        with pytest.raises(ValueError, match=message):
            Estimator(estimator.model, device=device)
    with pytest.raises(ValueError, match="dtype on cpu must be one of"):
        Estimator(estimator.model, dtype=torch.float16)


def test_networks_of_one_modality_say_what_they_need(frames, events):
    with pytest.raises(ValueError, match="uses frames only"):
        Estimator(make_model(events=False))(None, None, events, t0=T0, t1=T1)
    with pytest.raises(ValueError, match="uses events only"):
        Estimator(make_model(frames=False))(*frames, None, t0=T0, t1=T1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu(estimator, frames, events):
    expected = estimator(*frames, events, t0=T0, t1=T1).flow
    found = Estimator(make_model(), device="cuda")(*frames, events, t0=T0, t1=T1).flow
    # TF32 convolutions have 10 bits of mantissa.
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max() + 0.01


def test_public_names_and_light_import():
    for name in flowfuse.__all__:
        assert name in dir(flowfuse)
        if name != "sample_recording":
            assert getattr(flowfuse, name) is not None
    with pytest.raises(AttributeError, match="nothing_here"):
        flowfuse.nothing_here  # noqa: B018
    code = "import sys, flowfuse; sys.exit('torch' in sys.modules or 'cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_former_name_of_flow_init_still_works():
    estimator = load("small")
    frame = np.random.default_rng(0).random((16, 24))
    start = np.full((2, 16, 24), 3.0)
    expected = estimator(frame, frame, None, t0=0, t1=9, flow_init=start)
    with pytest.warns(FutureWarning, match="flow_init"):
        found = estimator(frame, frame, None, t0=0, t1=9, initial=start)
    np.testing.assert_array_equal(found.flow, expected.flow)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_frames_are_not_copied_to_the_host(monkeypatch, dtype):
    def refuse(*_):
        raise AssertionError("copied to the host")

    estimator = Estimator(FlowFuse(CONFIG))
    frame = torch.rand(32, 40, 3)
    frame = frame if dtype == torch.float32 else (255 * frame).to(dtype)
    for name in ("cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    result = estimator(frame, frame, None, t0=0, t1=1000)
    assert isinstance(result.flow, torch.Tensor)


def test_modalities_are_those_that_the_network_used(frames, events):
    times = {"t0": T0, "t1": T1}
    assert Estimator(make_model())(*frames, events, **times).modalities == ("frames", "events")
    for given, used in (({"frames": False}, "events"), ({"events": False}, "frames")):
        result = Estimator(make_model(**given))(*frames, events, **times)
        assert result.modalities == (used,)


def test_prepare_and_run_are_a_call(estimator, frames, events):
    """The same bits, from an item, from a batch of one, and through a DataLoader."""
    called = estimator(*frames, events, t0=T0, t1=T1, exposure0=4_000, iterations=1)
    item = estimator.prepare(*frames, events, t0=T0, t1=T1, exposure0=4_000)
    assert item.slices.shape == (3, 3, HEIGHT, WIDTH) and item.exposure.tolist()[1] == 0
    (batch,) = torch.utils.data.DataLoader([item], batch_size=1)
    assert isinstance(batch, ModelInputs)
    for inputs in (item, batch):
        (result,) = estimator.run(inputs, t0=T0, t1=[T1], iterations=1)
        assert np.array_equal(result.control_points, called.control_points)
        assert np.array_equal(result.uncertainty, called.uncertainty)
        assert (result.t0, result.t1, result.modalities) == (T0, T1, ("frames", "events"))
    (result,) = estimator.run(item, t0=T0, t1=T1, iterations=1, as_torch=True)
    assert isinstance(result.flow, torch.Tensor) and not result.flow.is_inference()
    for wrong, message in (
        ({"t0": [T0, T0]}, r"t0 must be one number, or \[1\], got 2 numbers"),
        ({"t1": T0}, "t1 must be later than t0"),
        ({"iterations": 1.5}, "iterations must be an integer"),
        ({"flow_init": np.zeros((2, HEIGHT, WIDTH))}, r"shape \[1, 2, 37, 50\], got \[2, 37, 50\]"),
    ):
        with pytest.raises(ValueError, match=message):
            estimator.run(item, **{"t0": T0, "t1": T1, **wrong})
    with pytest.raises(ValueError, match="run: inputs must be ModelInputs"):
        estimator.run(tuple(item), t0=T0, t1=T1)


def test_a_batch_is_as_its_items(estimator, frames, events):
    early = estimator(*frames, events, t0=T0, t1=T1, exposure0=2_000)
    alone = estimator(None, None, events, t0=T0 + 1_000, t1=T1)
    first, second = frames
    results = estimator.estimate_batch(
        [first, None], [second, None], [events, events], t0=[T0, T0 + 1_000], t1=np.array([T1, T1]),
        exposure0=[2_000, None],
    )  # fmt: skip
    for result, one in zip(results, (early, alone), strict=True):
        # Sums of two items may be made in another order: some ulps of some px.
        assert np.allclose(result.control_points, one.control_points, atol=1e-4)
        assert (result.modalities, result.t0, result.t1) == (one.modalities, one.t0, one.t1)
    stacked = torch.from_numpy(np.stack((first, first)))
    tensors = estimator.estimate_batch(stacked, stacked, None, t0=[T0, T0], t1=[T1, T1])
    assert isinstance(tensors[1].flow, torch.Tensor) and tensors[1].modalities == ("frames",)
    assert torch.allclose(tensors[0].flow, tensors[1].flow, atol=1e-4)
    arrays = estimator.estimate_batch(stacked, stacked, None, t0=[T0] * 2, t1=T1, as_torch=False)
    assert isinstance(arrays[0].flow, np.ndarray)


def test_wrong_batches_are_refused(estimator, frames, events):
    first, second = frames
    colour = np.repeat(first[:, :, None], 3, axis=2)
    times = {"t0": [T0, T0], "t1": [T1, T1]}
    for arguments, message in (
        (([first], [second] * 2, None), "frame0: 1, frame1: 2, events: NoneType, t0: 2"),
        (([first] * 2, [second, second[1:]], None), "item 1: .*one size"),
        (([first, colour], [second, colour], None), "gray and RGB frames"),
        (([first, first[1:]], [second, second[1:]], None), "50 x 36, 50 x 37 px"),
        (([None] * 2, [None] * 2, [events, Events.empty(HEIGHT, WIDTH)]), "item 1: .*no event in"),
    ):
        with pytest.raises(ValueError, match=message):
            estimator.estimate_batch(*arguments, **times)


def test_velocity_at_events_by_hand():
    """x(tau) = x0 + 4 tau in x, 2 tau + 6 tau^2 in y, in 0.1 s: 40 px/s, and (20 + 120 tau)."""
    result = known_result()
    t = [1_000_000, 1_050_000, 1_100_000]
    events = Events([10, 12, 14], [3, 6, 11], t, [1, 1, 0])
    velocity = result.velocity_at_events(events)
    assert np.allclose(velocity, [[40, 20], [40, 80], [40, 140]], atol=1e-3)
    outside = result.velocity_at_events(Events([31], [3], [1_000_000], [1]))
    assert np.isnan(outside).all() and result.velocity_at_events(Events.empty()).shape == (0, 2)
    with pytest.raises(ValueError, match="velocity_at_events: events must lie in"):
        result.velocity_at_events(Events([1], [1], [5], [1]))


def test_origins_are_the_inverse_of_tracks():
    result = known_result()
    points = np.array([[3.5, 7.0], [12.0, 2.0]], np.float32)
    back = result.origins(result.track(points, 0.5), 0.5)
    assert np.allclose(back, points, atol=1e-4)
    assert np.isnan(result.origins([[-5.0, 1.0]], 0.5)).all()
    with pytest.raises(ValueError, match=r"origins: tau must be one number, got shape \[2\]"):
        result.origins(points, [0.1, 0.2])
    with pytest.raises(ValueError, match=r"origins: points must have shape \[N, 2\], got \[3\]"):
        result.origins([1.0, 2.0, 3.0], 0.5)


def test_encoded_frames_are_used_again(estimator, frames, events):
    """The same bits; and a network without frames has none to encode."""
    called = estimator(*frames, events, t0=T0, t1=T1)
    item = estimator.prepare(*frames, events, t0=T0, t1=T1)
    encoded = estimator.encode_frame(item.frame0), estimator.encode_frame(item.frame1[None])
    (result,) = estimator.run(item, t0=T0, t1=T1, encoded_frames=encoded)
    assert np.array_equal(result.control_points, called.control_points)
    assert np.array_equal(result.boundary, called.boundary)
    swapped = estimator.run(item, t0=T0, t1=T1, encoded_frames=encoded[::-1])[0]
    assert not np.array_equal(swapped.flow, called.flow), "they are what counts"
    with pytest.raises(ValueError, match="uses no frames, so none can be encoded"):
        Estimator(make_model(frames=False)).encode_frame(item.frame0)
