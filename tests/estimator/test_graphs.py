"""CUDA graphs: when they are recorded, replayed, dropped; with a recorder that has no GPU.

It keeps to what a CUDA graph does: a replay reads and writes the memory of its recording.
"""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from estimator_cases import T0, T1, make_model
from torch import nn

from flowfuse.estimator import Estimator, graphs
from flowfuse.estimator.graphs import CudaRecorder, GraphCache, Recording


class Recorder:
    """Runs recorded work again, into the tensors of the recording."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.recording = False
        self.calls: list[str] = []

    def is_recording(self) -> bool:
        return self.recording

    def record(self, work) -> Recording:
        self.calls.append("record")
        if self.failure is not None:
            raise self.failure
        results = work()

        def replay() -> None:
            self.calls.append("replay")
            for kept, new in zip(results, work(), strict=True):
                kept.copy_(new)

        return Recording(replay, results)

    def begin(self) -> None:
        self.calls.append("begin")

    def end(self) -> None:
        self.calls.append("end")

    def wait(self) -> None:
        self.calls.append("wait")

    def count(self, name: str) -> int:
        return self.calls.count(name)


class Case:
    """A layer, work that reads its weights, and a cache with a recorder."""

    def __init__(self, *, failure: Exception | None = None, always: bool = True, **options) -> None:
        self.model = nn.Linear(3, 2).eval()
        self.recorder = Recorder(failure)
        self.cache = GraphCache(self.model, self.recorder, always=always, **options)

    def work(self, tensors):
        return (self.model(tensors[0]),)

    def __call__(self, x, name="work"):
        (found,) = self.cache(name, self.work, [x])
        (expected,) = self.work([x])
        assert torch.equal(found, expected)
        return found

    @property
    def recorded(self) -> int:
        return self.recorder.count("record")


def test_each_shape_is_recorded_once_and_replayed():
    case = Case()
    for rows in (1, 4, 1, 4, 4):
        case(torch.randn(rows, 3))
    assert case.recorded == len(case.cache) == 2
    assert case.recorder.count("replay") == 5
    case(torch.randn(4, 3), name="other work")
    assert case.recorded == 3


def test_streams_are_ordered_around_each_replay():
    case = Case()
    case(torch.randn(1, 3))
    case(torch.randn(1, 3))
    assert case.recorder.calls == ["record", *["begin", "replay", "end"] * 2]


def test_a_shape_that_comes_once_is_not_recorded():
    case = Case(always=False)
    for rows in (1, 2, 3):
        case(torch.randn(rows, 3))
    assert case.recorded == 0
    case(torch.randn(2, 3))
    case(torch.randn(2, 3))
    assert case.recorded == 1 and case.recorder.count("replay") == 2


def test_shapes_that_take_turns_are_not_recorded_all_the_time(monkeypatch):
    monkeypatch.setattr(graphs, "PATIENCE", 5)
    case = Case(always=False, capacity=1)
    for _ in range(2):
        for rows in (1, 2):
            case(torch.randn(rows, 3))
    assert case.recorded == 2  # each when it came a second time; 1 made room for 2
    for _ in range(5):
        for rows in (1, 2):
            case(torch.randn(rows, 3))
    assert case.recorded == 2
    case(torch.randn(1, 3))
    assert case.recorded == 3


def test_shapes_that_came_once_are_forgotten(monkeypatch):
    monkeypatch.setattr(graphs, "REMEMBERED", 2)
    case = Case(always=False)
    for rows in (1, 2, 3, 1):
        case(torch.randn(rows, 3))
    assert case.recorded == 0


def test_results_stay_when_the_next_replay_comes():
    case = Case()
    x = torch.randn(2, 3)
    first = case(x)
    before = first.clone()
    case(x + 1)
    assert torch.equal(first, before)
    with torch.inference_mode():
        first.zero_()  # nor does the caller change what the graph keeps
    case(x)


def test_what_a_caller_gives_is_not_kept():
    case = Case()
    x = torch.randn(2, 3)
    case(x)
    x += 1
    case(x)
    strided = torch.randn(3, 2).T
    case(strided)
    case(torch.randn(1, 3).expand(2, 3))
    assert case.recorded == 1


def test_the_graph_used_least_recently_goes_first():
    case = Case(capacity=2)
    for rows in (1, 2, 1, 3):  # 3 takes the place of 2
        case(torch.randn(rows, 3))
    assert len(case.cache) == 2 and case.recorder.count("wait") == 1
    case(torch.randn(1, 3))
    assert case.recorded == 3
    case(torch.randn(2, 3))
    assert case.recorded == 4 and len(case.cache) == 2


def test_weights_that_change_in_place_are_read_by_the_next_replay():
    case = Case()
    x = torch.randn(2, 3)
    case(x)
    with torch.no_grad():
        case.model.weight.mul_(2)
    case(x)
    case.model.load_state_dict({"weight": torch.ones(2, 3), "bias": torch.ones(2)})
    case(x)
    assert case.recorded == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda case: setattr(case.model, "weight", nn.Parameter(torch.ones(2, 3))),
        lambda case: case.model.load_state_dict(
            {"weight": torch.ones(2, 3), "bias": torch.ones(2)}, assign=True
        ),
        lambda case: case.model.double().float(),
        lambda case: setattr(case.model, "bias", None),
        lambda case: case.model.register_buffer("more", torch.ones(1)),
    ],
)
def test_weights_that_lie_elsewhere_drop_all_graphs(change):
    case = Case()
    for rows in (1, 2):
        case(torch.randn(rows, 3))
    kept = dict(case.model.named_parameters())  # their memory is not given to the new ones
    change(case)
    case(torch.randn(1, 3))
    assert kept and case.recorded == 3 and len(case.cache) == 1
    assert case.recorder.count("wait") == 1


def test_another_dtype_or_mode_is_another_graph():
    case = Case()
    case(torch.randn(1, 3))
    case.model.train()
    case(torch.randn(1, 3))
    assert case.recorded == 2
    case.model.eval()
    case(torch.randn(1, 3))
    assert case.recorded == 2
    case.model.double()
    case(torch.randn(1, 3, dtype=torch.float64))
    assert case.recorded == 3


def test_another_precision_of_products_is_another_graph():
    case = Case()
    before = torch.get_float32_matmul_precision()
    case(torch.randn(1, 3))
    try:
        torch.set_float32_matmul_precision("high")
        case(torch.randn(1, 3))
    finally:
        torch.set_float32_matmul_precision(before)
    assert case.recorded == 2


def test_hooks_are_called():
    case = Case()
    x = torch.randn(1, 3)
    case(x)
    seen = []
    hook = case.model.register_forward_hook(lambda *given: seen.append(given))
    (found,) = case.cache("work", case.work, [x])
    assert len(seen) == 1 and case.recorder.count("replay") == 1
    hook.remove()
    assert torch.equal(case(x), found) and case.recorder.count("replay") == 2


def test_inside_a_recording_of_the_callers_own_nothing_is_recorded():
    case = Case()
    case.recorder.recording = True
    case(torch.randn(1, 3))
    assert case.recorder.calls == []


def test_threads_get_their_own_results():
    case = Case()
    errors = []

    def run(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        try:
            for _ in range(20):
                case(torch.randn(seed % 2 + 1, 3, generator=generator))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and case.recorded == 2
    # No replay began before the one before it had ended.
    rest = [call for call in case.recorder.calls if call != "record"]
    assert rest == ["begin", "replay", "end"] * 80


def test_without_a_graph_work_goes_on_and_it_is_said_once():
    case = Case(failure=RuntimeError("operation not permitted\nsecond line"), always=False)
    case(torch.randn(1, 3))
    with pytest.warns(RuntimeWarning) as told:
        case(torch.randn(1, 3))
    (warning,) = told
    assert str(warning.message) == (
        "estimator: no CUDA graph could be recorded (operation not permitted): estimates go on "
        "without, and are slower; graph=False does so from the start"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            case(torch.randn(2, 3))
    assert case.recorded == 1 and len(case.cache) == 0


def test_a_graph_that_must_be_is_an_error_where_it_cannot():
    case = Case(failure=RuntimeError("operation not permitted"))
    with pytest.raises(RuntimeError, match=r"\(operation not permitted\); graph=False does"):
        case(torch.randn(1, 3))
    case = Case(failure=torch.OutOfMemoryError("no memory"))
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        case(torch.randn(1, 3))


def test_wrong_arguments_are_told_as_without_graphs():
    case = Case()

    def work(tensors):
        raise ValueError("iterations must be at least 1")

    with pytest.raises(ValueError, match="iterations must be at least 1"):
        case.cache("work", work, [torch.randn(1, 3)])
    case(torch.randn(1, 3))


def test_a_copy_has_graphs_of_its_own():
    cache = GraphCache(nn.Linear(3, 2), CudaRecorder(torch.device("cuda", 1)), always=True)
    for copied in (pickle.loads(pickle.dumps(cache)), copy.deepcopy(cache)):
        assert copied.recorder.device == cache.recorder.device
        assert (copied.always, copied.capacity, len(copied)) == (True, cache.capacity, 0)
        assert copied.model is not cache.model


class FakeCuda:
    """What CudaRecorder uses of torch.cuda; keeps a list of what was done, on which stream."""

    def __init__(self, monkeypatch, failure: Exception | None = None) -> None:
        self.done: list[str] = []
        self.current = self.user = self.stream_of("user")
        self.failure = failure
        for name in (
            "Stream", "CUDAGraph", "current_stream", "device", "graph", "set_stream", "stream",
        ):  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, getattr(self, name), raising=False)
        monkeypatch.setattr(torch, "clear_autocast_cache", lambda: self.done.append("forget casts"))

    def stream_of(self, name):
        def record_event():
            self.done.append(f"event on {name}")
            return SimpleNamespace(
                record=lambda stream: self.done.append(f"event on {stream.name}"),
                synchronize=lambda: self.done.append("wait for event"),
            )

        return SimpleNamespace(
            name=name,
            wait_stream=lambda other: self.done.append(f"{name} waits for {other.name}"),
            wait_event=lambda event: self.done.append(f"{name} waits for event"),
            record_event=record_event,
        )

    def Stream(self):  # noqa: N802 - as torch has it
        return self.stream_of("side")

    def CUDAGraph(self):  # noqa: N802
        return SimpleNamespace(replay=lambda: self.done.append(f"replay on {self.current.name}"))

    def current_stream(self, device=None):
        return self.current

    def set_stream(self, stream):
        self.current = stream

    @contextmanager
    def device(self, device):
        self.done.append(f"on {device}")
        yield

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def graph(self, graph, *, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.current = stream  # and stays so where recording fails, as torch has it
        self.done.append("begin graph")
        try:
            yield
        finally:
            if self.failure is not None:
                raise self.failure
        self.done.append("end graph")
        self.set_stream(self.user)


def test_a_cuda_graph_is_warmed_up_on_its_stream_and_then_recorded(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    recorder = CudaRecorder(torch.device("cuda", 1))
    recording = recorder.record(lambda: cuda.done.append(f"work on {cuda.current.name}"))
    assert cuda.done == [
        "on cuda:1", "side waits for user", "work on side", "user waits for side",
        "forget casts", "begin graph", "work on side", "end graph", "forget casts",
    ]  # fmt: skip
    assert cuda.current is cuda.user
    cuda.done.clear()
    recorder.wait()  # nothing has run yet
    for _ in range(2):
        recorder.begin()
        recording.replay()
        recorder.end()
    recorder.wait()
    assert cuda.done == [
        "replay on user", "event on user",
        "user waits for event", "replay on user", "event on user", "wait for event",
    ]  # fmt: skip


def test_a_failed_recording_leaves_the_callers_stream(monkeypatch):
    cuda = FakeCuda(monkeypatch, RuntimeError("capture is invalid"))
    cache = GraphCache(nn.Linear(3, 2), CudaRecorder(torch.device("cuda", 0)), always=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False, raising=False)

    def work(tensors):
        if cuda.done and cuda.done[-1] == "begin graph":
            raise RuntimeError("no nonzero in a graph")
        return (tensors[0] + 1,)

    x = torch.zeros(1)
    assert cache("work", work, [x])[0] == 1
    with pytest.warns(RuntimeWarning, match=r"recorded \(no nonzero in a graph\): estimates go on"):
        assert cache("work", work, [x])[0] == 1
    assert cuda.current is cuda.user and cuda.done[-1] == "forget casts"


@pytest.fixture
def graphed() -> Estimator:
    """An estimator on the CPU whose graphs have a recorder for it."""
    estimator = Estimator(make_model())
    estimator._network.graphs = GraphCache(estimator.model, Recorder(), always=True)
    return estimator


def test_estimates_by_graphs_are_those_without(graphed, frames, events):
    plain = Estimator(graphed.model)
    start = np.full((2, *frames.shape[1:]), 2.0)
    results = []
    for options in ({}, {"iterations": 1}, {"flow_init": start}, {}, {"flow_init": start + 1}):
        given = {"t0": T0, "t1": T1, **options}
        expected = plain(*frames, events, **given)
        results.append((graphed(*frames, events, **given), expected))
        results.append((graphed(*frames[::-1], None, **given), plain(*frames[::-1], None, **given)))
    for result, expected in results:  # after all replays
        assert np.array_equal(result.control_points, expected.control_points)
        assert np.array_equal(result.uncertainty, expected.uncertainty)
        assert np.array_equal(result.boundary, expected.boundary)
    assert len(graphed._network.graphs) == 3
    batch = graphed.estimate_batch(frames, frames[::-1], None, t0=[T0] * 2, t1=T1)
    assert len(batch) == 2 and len(graphed._network.graphs) == 4


def test_encoded_frames_come_from_graphs_too(graphed, frames, events):
    plain = Estimator(graphed.model)
    item = plain.prepare(*frames, events, t0=T0, t1=T1)
    encoded = graphed.encode_frame(item.frame0), graphed.encode_frame(item.frame1)
    expected = plain(*frames, events, t0=T0, t1=T1)
    for _ in range(2):
        (result,) = graphed.run(item, t0=T0, t1=T1, encoded_frames=encoded)
        assert np.array_equal(result.control_points, expected.control_points)
    assert len(graphed._network.graphs) == 2


def test_an_estimator_with_graphs_goes_to_other_processes(graphed):
    assert isinstance(pickle.loads(pickle.dumps(Estimator(make_model()))), Estimator)
    copied = copy.deepcopy(graphed)
    assert copied._network.graphs.model is copied.model is not graphed.model


def test_where_there_are_graphs():
    model = make_model()
    assert Estimator(model)._network.graphs is None and Estimator(model).graph == "auto"
    assert Estimator(model, graph=False)._network.graphs is None
    with pytest.raises(ValueError, match="graph=True needs a CUDA device, got device cpu"):
        Estimator(model, graph=True)
    with pytest.raises(ValueError, match="graph must be \"auto\", True or False, got 'yes'"):
        Estimator(model, graph="yes")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_on_a_gpu(frames, events, dtype):
    """Replays give what is estimated without graphs, in any autocast, stream and thread."""
    plain = Estimator(make_model(), device="cuda", dtype=dtype, graph=False)
    graphed = Estimator(make_model(), device="cuda", dtype=dtype, graph=True)
    pairs = [(frames, events), (frames[::-1], events), (frames, None)]
    expected = [plain(*pair, given, t0=T0, t1=T1).flow for pair, given in pairs]
    largest = max(np.abs(flow).max() for flow in expected)

    def check() -> None:
        found = [graphed(*pair, given, t0=T0, t1=T1) for pair, given in pairs]
        for result, flow in zip(found, expected, strict=True):
            # Convolutions may be chosen differently on another stream.
            assert np.abs(result.flow - flow).max() <= 1e-2 * largest + 1e-2

    check()
    with torch.autocast("cuda", torch.float16):
        check()
    with torch.cuda.stream(torch.cuda.Stream()):
        check()
    failures = []

    def checked() -> None:
        try:
            check()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=checked) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(graphed._network.graphs) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_estimate_does_not_wait_for_the_gpu(frames, events):
    estimator = Estimator(make_model(), device="cuda")
    for _ in range(3):  # eager, recorded, replayed
        estimator(*frames, events, t0=T0, t1=T1, as_torch=True)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        estimator(*frames, events, t0=T0, t1=T1, as_torch=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
