"""CUDA graphs: what a network does is recorded once for each shape, then started in one go.

An estimate is one to three thousand kernels of some microseconds each. Started one by one, they
keep a GPU waiting for Python; a graph of them does not. A graph reads and writes fixed memory: a
call copies its tensors in, replays, and copies the results out, so that the next call cannot change
them. A lock orders threads, an event orders streams.

Events are not in the graph: their number changes from call to call, and a graph would always do the
work of the largest one, while voxel grids of them take only a few kernels. They are uploaded once,
from page-locked memory, and voxelized on the device before the graph runs.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

Tensors = tuple[Tensor, ...]
Work = Callable[[Sequence[Tensor]], Tensors]

# Graphs: a live stream has one for frames, one for slices, and some for kinds of estimates. Each
# keeps all memory that its work needs.
CAPACITY = 8
REMEMBERED = 64  # shapes of which it is known how often they came
# Recording takes the time of some estimates: a shape whose graph had to make room for others is not
# recorded again at once, or a few too many shapes in turn would all be recorded each time.
PATIENCE = 50


class Recording(NamedTuple):
    """Work that was recorded.

    Attributes:
        replay: does it again, on the current stream.
        results: where it leaves its results.
    """

    replay: Callable[[], object]
    results: Tensors


class Recorder(Protocol):
    """Records work on a device: :class:`CudaRecorder`, or what stands for it in tests."""

    def is_recording(self) -> bool:
        """Whether the caller itself is being recorded."""

    def record(self, work: Callable[[], Tensors]) -> Recording:
        """Do the work once, then record it."""

    def begin(self) -> None:
        """Order what the current stream does next after the last :meth:`end`."""

    def end(self) -> None:
        """Mark that the current stream has been given all that uses the memory of a graph."""

    def wait(self) -> None:
        """Wait until no graph runs: before one is dropped."""


class CudaRecorder:
    """Records CUDA graphs, each in memory of its own.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: torch.cuda.Stream | None = None
        self._done: torch.cuda.Event | None = None

    def __reduce__(self) -> tuple:
        return CudaRecorder, (self.device,)

    def is_recording(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def record(self, work: Callable[[], Tensors]) -> Recording:
        with torch.cuda.device(self.device):
            if self._stream is None:
                self._stream = torch.cuda.Stream()
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            # What libraries set up on first use, on this stream too, must not be recorded.
            with torch.cuda.stream(self._stream):
                work()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Inside another autocast, weights stay cast until that one ends: those cast before
            # would be read after they are gone, those cast here would stay in the graph's memory.
            torch.clear_autocast_cache()
            try:
                # Other threads may go on: only what this one does is recorded.
                with torch.cuda.graph(
                    graph, stream=self._stream, capture_error_mode="thread_local"
                ):
                    results = work()
            finally:
                torch.clear_autocast_cache()
                torch.cuda.set_stream(current)  # which torch leaves where recording fails
        return Recording(graph.replay, results)

    def begin(self) -> None:
        if self._done is not None:
            torch.cuda.current_stream(self.device).wait_event(self._done)

    def end(self) -> None:
        stream = torch.cuda.current_stream(self.device)
        if self._done is None:
            self._done = stream.record_event()
        else:
            self._done.record(stream)

    def wait(self) -> None:
        if self._done is not None:
            self._done.synchronize()


class Graph(NamedTuple):
    """A recording and the memory that it reads."""

    inputs: Tensors
    recording: Recording


class GraphCache:
    """Does work on tensors by graphs, one for each of the shapes that were used last.

    Args:
        model: whose weights the work reads. Where they lie elsewhere than before (``.to()``, other
            parameters), all graphs are dropped; values that change in place are read by the next
            replay. In another mode (``train()``), or in another precision of matrix products and
            convolutions, work is recorded apart. With forward hooks there are no graphs.
        recorder: of the device.
        always: record a shape whenever it has no graph, and let a failure through; else when it
            comes a second time, and go on without graphs, with a warning, where that fails.
        capacity: graphs that are kept; the one that was used least recently goes first.
    """

    def __init__(
        self, model: nn.Module, recorder: Recorder, *, always: bool, capacity: int = CAPACITY
    ) -> None:
        self.model, self.recorder = model, recorder
        self.always, self.capacity = always, capacity
        self._lock = threading.Lock()
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._patience: OrderedDict[Hashable, int] = OrderedDict()  # calls before it is recorded
        self._failed = False
        self._weights = addresses(model)

    def __reduce__(self) -> tuple:
        # A copy, as in a process that prepares inputs, records graphs of its own.
        make = partial(GraphCache, always=self.always, capacity=self.capacity)
        return make, (self.model, self.recorder)

    def __len__(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    def __call__(self, name: Hashable, work: Work, tensors: Sequence[Tensor]) -> Tensors:
        """Do some work: by a graph where there is one, or is to be one.

        Args:
            name: tells kinds of work apart: all that it depends on beside the tensors.
            work: of tensors on the device. It gives tensors there, asks for none of their values,
                and enters autocast itself.
            tensors: what it takes.

        Returns:
            What it gives, in memory of the caller's own.

        Raises:
            RuntimeError: with ``always``, where it cannot be recorded.
        """
        # Hooks are Python, which no replay calls.
        if self._failed or self.recorder.is_recording() or has_hooks(self.model):
            return work(tensors)
        with self._lock, torch.inference_mode():
            graph = self._find(name, work, tensors)
            if graph is not None:
                return self._replay(graph, tensors)
        return work(tensors)

    def _find(self, name: Hashable, work: Work, tensors: Sequence[Tensor]) -> Graph | None:
        """The graph of some work, recorded where it is due; None: there is none yet."""
        weights = addresses(self.model)
        if weights != self._weights:
            self._drop_to(0)
            self._patience.clear()
            self._weights = weights
        key = name, _settings(self.model), tuple((t.shape, t.dtype) for t in tensors)
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        if not (self.always or self._is_due(key)):
            return None
        inputs = tuple(tensor.clone() for tensor in tensors)
        try:
            recording = self.recorder.record(lambda: work(inputs))
        except RuntimeError as error:
            self._drop_to(0)
            self._give_up(error)
            return None
        self._graphs[key] = Graph(inputs, recording)
        self._drop_to(self.capacity)
        return self._graphs[key]

    def _is_due(self, key: Hashable) -> bool:
        calls = self._patience.pop(key, 1)
        self._patience[key] = PATIENCE if calls == 0 else calls - 1
        if len(self._patience) > REMEMBERED:
            self._patience.popitem(last=False)
        return calls == 0

    def _replay(self, graph: Graph, tensors: Sequence[Tensor]) -> Tensors:
        self.recorder.begin()
        for kept, given in zip(graph.inputs, tensors, strict=True):
            kept.copy_(given, non_blocking=True)
        graph.recording.replay()
        results = tuple(result.clone() for result in graph.recording.results)
        self.recorder.end()
        return results

    def _drop_to(self, count: int) -> None:
        """Drop the graphs that were used least recently, until so many are left."""
        if len(self._graphs) > count:
            self.recorder.wait()
        while len(self._graphs) > count:
            self._graphs.popitem(last=False)

    def _give_up(self, error: RuntimeError) -> None:
        if isinstance(error, torch.OutOfMemoryError) and self.always:
            raise error
        # Where an operator fails, torch fails once more at the end of the recording.
        reason = str(error.__context__ or error).partition("\n")[0]
        failure = f"estimator: no CUDA graph could be recorded ({reason})"
        if self.always:
            raise RuntimeError(f"{failure}; graph=False does without") from error
        self._failed = True
        warnings.warn(
            f"{failure}: estimates go on without, and are slower; graph=False does so from the "
            "start",
            RuntimeWarning,
            stacklevel=6,
        )


def addresses(model: nn.Module) -> list[tuple[int, torch.dtype]]:
    """Where the weights lie, and what they are."""
    return [
        (tensor.data_ptr(), tensor.dtype)
        for module in model.modules()
        for tensors in (module._parameters, module._buffers)
        for tensor in tensors.values()
        if tensor is not None
    ]


def has_hooks(model: nn.Module) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _settings(model: nn.Module) -> Hashable:
    """What chooses kernels, beside shapes."""
    return (
        model.training,
        torch.backends.fp32_precision,  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )
