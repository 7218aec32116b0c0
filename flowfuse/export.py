"""A network as a file that runs without this code: torch.export, AOTInductor or ONNX.

All take the tensors of :class:`~flowfuse.inputs.ModelInputs`, as
:func:`~flowfuse.inputs.prepare_inputs` makes them, and give ``OUTPUTS``. Sizes are fixed: those of
the images, the number of iterations, and the batch unless it is dynamic.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from flowfuse import __version__, sample_recording
from flowfuse.data.opening import open_recording
from flowfuse.events import Events
from flowfuse.geometry.laplace import expected_error
from flowfuse.inputs import ModelInputs, input_interval, prepare_inputs
from flowfuse.io.atomic import atomic_path
from flowfuse.model import FlowFuse
from flowfuse.model.flowfuse import MINIMUM_SIZE
from flowfuse.ops.extension import LIBRARY, REBUILD, kernels_on

OUTPUTS = ("control_points", "uncertainty", "boundary")
OPSET = 18
# px; what rounding makes of sums in another order stays well below, but for single pixels where
# matches are undecided: iterations make more of it there.
TOLERANCE = 1e-3
SINGLE_PIXELS = 5e-3  # share of the values that may differ by more
LARGEST = 0.02  # px, by which these may
MAX_SIDE = 8192  # px
MAX_BATCH = 256
_SOLVE = torch.ops.aten._linalg_solve_ex.default


@dataclass(frozen=True)
class ExportSpec:
    """What is fixed in an exported file.

    Attributes:
        height, width: of the images, px, in [16, 8192].
        batch: number of items, in [1, 256]; None: dynamic, any of these numbers in each call.
        iterations: recurrent updates, in [1, 100].
        channels: of the frames, 1 (gray) or 3 (RGB).

    Raises:
        ValueError: a number cannot be; names it, what was found and what was expected.
    """

    height: int
    width: int
    batch: int | None = 1
    iterations: int = 2
    channels: int = 1

    def __post_init__(self) -> None:
        for name, least, most in (
            ("height", MINIMUM_SIZE, MAX_SIDE),
            ("width", MINIMUM_SIZE, MAX_SIDE),
            ("batch", 1, MAX_BATCH),
            ("iterations", 1, 100),
        ):
            value = getattr(self, name)
            if value is None and name == "batch":
                continue
            if not least <= value <= most:
                raise ValueError(f"export: {name} must be in [{least}, {most}], got {value}")
        if self.channels not in (1, 3):
            raise ValueError(
                f"export: channels must be 1 (gray frames) or 3 (RGB), got {self.channels}"
            )


class ExportedFlow(nn.Module):
    """The network from tensors to tensors.

    Args:
        model: the network.
        iterations: recurrent updates.
    """

    def __init__(self, model: FlowFuse, iterations: int) -> None:
        super().__init__()
        self.model = model
        self.iterations = iterations

    def forward(
        self,
        slices: Tensor,
        frame0: Tensor,
        frame1: Tensor,
        event_sum: Tensor,
        exposure: Tensor,
        modality_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Estimate.

        Args:
            slices, frame0, frame1, event_sum, exposure, modality_mask: see
                :class:`~flowfuse.inputs.ModelInputs`.

        Returns:
            ``control_points`` [B, n, 2, H, W] px, of which the last is the flow; ``uncertainty``
            [B, H, W] px; ``boundary`` [B, 2, H, W] probabilities. All float32.
        """
        inputs = ModelInputs(slices, frame0, frame1, event_sum, exposure, modality_mask)
        output = self.model(inputs, iterations=self.iterations)
        uncertainty = expected_error(output.uncertainty)
        return output.control_points, uncertainty, torch.sigmoid(output.boundary)


def sample_inputs(model: FlowFuse, spec: ExportSpec, batch: int = 1) -> ModelInputs:
    """Make inputs of the wanted size from the recording that ships with the package, stretched.

    Args:
        model: whose inputs.
        spec: the size.
        batch: how often the item is repeated.
    """
    recording = open_recording(sample_recording())
    t0, t1 = map(int, recording.frame_times[:2])
    assert recording.exposures is not None
    exposures = [int(end - start) for start, end in recording.exposures[:2]]
    both = (exposures[0], exposures[1])
    used = recording.events(*input_interval(t0, t1, model.config.slices, *both))
    scale_x, scale_y = spec.width / recording.width, spec.height / recording.height
    x, y = (np.asarray(values, np.float32) for values in (used.x, used.y))
    events = Events(
        np.minimum((x * scale_x).astype(np.int32), spec.width - 1),
        np.minimum((y * scale_y).astype(np.int32), spec.height - 1),
        used.t,
        used.p,
        height=spec.height,
        width=spec.width,
    )
    frames = []
    for index in (0, 1):
        gray = recording.frame(index)
        frame = cv2.resize(gray, (spec.width, spec.height), interpolation=cv2.INTER_AREA)
        frames.append(np.stack([frame] * 3, axis=2) if spec.channels == 3 else frame)
    item = prepare_inputs(
        frames[0], frames[1], events, t0=t0, t1=t1, spec=model.config.input_spec, exposures=both
    ).as_batch()
    return ModelInputs(*(value.repeat_interleave(batch, dim=0) for value in item))


def write_program(path: Path, model: FlowFuse, spec: ExportSpec, about: Mapping[str, Any]) -> float:
    """Write a torch.export program, .pt2, which calls the operators of flowfuse.

    Args:
        path: the file.
        model: the network.
        spec: what is fixed.
        about: what is known of the weights; goes into the file ``flowfuse.json`` of the archive.

    Returns:
        Largest difference of a control point to the network's on :func:`sample_inputs`, px.

    Raises:
        ImportError: the operators are not compiled.
        ValueError: the program differs by over TOLERANCE: nothing is written then.
    """
    network = _prepare(model, spec)
    program = _trace(network, spec)
    difference = _compare(path, program.module(), network, spec)
    content = io.BytesIO()  # torch's own writer does not say why a file cannot be written
    facts = json.dumps(_facts(model, spec, about))
    torch.export.save(program, content, extra_files={"flowfuse.json": facts})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())
    return difference


def write_package(path: Path, model: FlowFuse, spec: ExportSpec, about: Mapping[str, Any]) -> float:
    """Write an AOTInductor package, .pt2: machine code for this processor, run without Python.

    It calls the operators of flowfuse, so the library of them must be loaded first. Compiling takes
    minutes.

    Args:
        path, model, spec: as for :func:`write_program`.
        about: goes into the metadata, all of which are strings whose names begin with
            ``flowfuse_``.

    Returns:
        Largest difference of a control point to the network's on :func:`sample_inputs`, px.

    Raises:
        ImportError: the operators are not compiled.
        FileNotFoundError: there is no C++ compiler.
        ValueError: the package differs by over TOLERANCE: nothing is written then.
    """
    from torch._inductor.exc import InvalidCxxCompiler  # here: the compiler is a large package

    network = _prepare(model, spec)
    # torch's own solver is called for each pixel by name; this one becomes a part of the kernels.
    program = _trace(network, spec).run_decompositions({_SOLVE: _solve})
    facts = {f"flowfuse_{key}": _as_text(v) for key, v in _facts(model, spec, about).items()}
    content = io.BytesIO()
    try:
        with torch.no_grad(), _quiet():
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=content,
                inductor_configs={"aot_inductor.metadata": facts},
            )
    except InvalidCxxCompiler as error:
        raise FileNotFoundError(
            "an AOTInductor package needs a C++ compiler: install g++, or name one in CXX"
        ) from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())
        return _compare(path, torch._inductor.aoti_load_package(str(temporary)), network, spec)


def write_onnx(path: Path, model: FlowFuse, spec: ExportSpec, about: Mapping[str, Any]) -> float:
    """Write ONNX of standard operators alone, compared with torch by ONNX Runtime.

    The operators of flowfuse are written by their formulas; the network's values stay.

    Args:
        path, model, spec: as for :func:`write_program`.
        about: goes into the metadata.

    Returns:
        Largest difference of a control point to the network's on :func:`sample_inputs`, px.

    Raises:
        ImportError: the operators are not compiled, or a package is missing; says how to get it.
        ValueError: ONNX Runtime differs by over TOLERANCE: nothing is written then.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch needs it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'ONNX needs the package {error.name}: pip install "flowfuse[onnx]"'
        ) from error
    network = _prepare(model, spec)
    names = list(ModelInputs._fields)
    with torch.no_grad(), _quiet():
        with kernels_on():  # none: the formulas are traced
            program = _trace(network, spec)
        converted = torch.onnx.export(
            program.run_decompositions({**torch.export.default_decompositions(), _SOLVE: _solve}),
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=list(OUTPUTS),
            optimize=False,  # it would try to evaluate thousands of constants; ONNX Runtime does
            verbose=False,
        )
    assert converted is not None
    with atomic_path(path) as temporary:
        converted.save(temporary)
        content = onnx.load(temporary)
        # Source lines of every node: four fifths of the file, and paths of this machine.
        for part in (*content.graph.node, *content.graph.value_info, *content.graph.initializer):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
        content.graph.ClearField("value_info")
        for key, value in _facts(model, spec, about).items():
            content.metadata_props.add(key=f"flowfuse.{key}", value=json.dumps(value))
        onnx.save(content, temporary)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors: not which constants it leaves in the graph
        session = onnxruntime.InferenceSession(
            temporary, options, providers=["CPUExecutionProvider"]
        )
        wanted = {entry.name for entry in session.get_inputs()}

        def run(*inputs: Tensor) -> list[Tensor]:
            feed = {n: v.numpy() for n, v in zip(names, inputs, strict=True) if n in wanted}
            return [torch.from_numpy(value) for value in session.run(list(OUTPUTS), feed)]

        return _compare(path, run, network, spec)


def _prepare(model: FlowFuse, spec: ExportSpec) -> ExportedFlow:
    """The network as a module on the CPU; the caller's stays where and as it is."""
    if LIBRARY is None:
        raise ImportError(f"export needs the compiled operators of flowfuse: {REBUILD}")
    model = copy.deepcopy(model).cpu()
    if spec.batch is None:  # "auto" goes by the size of the volume, which grows with the batch
        model.config = replace(model.config, correlation="on_demand")
    return ExportedFlow(model, spec.iterations).eval()


def _trace(network: ExportedFlow, spec: ExportSpec) -> torch.export.ExportedProgram:
    # Two items where the batch is dynamic: torch takes a size of 1 for a fixed one.
    inputs = sample_inputs(network.model, spec, batch=spec.batch or 2)
    shapes = None
    if spec.batch is None:
        shapes = ({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},) * len(inputs)
    with torch.no_grad():
        return torch.export.export(network, tuple(inputs), dynamic_shapes=shapes, strict=False)


def _compare(
    path: Path,
    exported: Callable[..., Sequence[Tensor]],
    network: ExportedFlow,
    spec: ExportSpec,
) -> float:
    """Run the exported network beside the other; where the batch is dynamic, with 1 and 3 items."""
    difference = 0.0
    for batch in (1, 3) if spec.batch is None else (spec.batch,):
        inputs = sample_inputs(network.model, spec, batch)
        with torch.no_grad():
            gaps = (exported(*inputs)[0] - network(*inputs)[0]).abs()
        gap, share = gaps.max().item(), (gaps > TOLERANCE).float().mean().item()
        if not (gap <= LARGEST and share <= SINGLE_PIXELS):  # NaN too
            raise ValueError(
                f"{path}: not written, its control points differ from torch's by up to "
                f"{gap:.2g} px, and {100 * share:.2g} % of them by over {TOLERANCE:g} px; expected "
                f"at most {LARGEST:g} px, and {100 * SINGLE_PIXELS:g} %"
            )
        difference = max(difference, gap)
    return difference


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torch says of its own conversions, and of packages that are not needed."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "torch._inductor")]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)


def _facts(model: FlowFuse, spec: ExportSpec, about: Mapping[str, Any]) -> dict[str, Any]:
    config = model.config
    return {
        "version": __version__,
        "model": config.name,
        "slices": config.slices,
        "bins": config.bins,
        "degree": config.degree,
        "height": spec.height,
        "width": spec.width,
        "channels": spec.channels,
        "batch": spec.batch or "dynamic",
        "iterations": spec.iterations,
        "weights": {key: str(value) for key, value in about.items()},
    }


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _solve(
    matrix: Tensor, right: Tensor, *, left: bool = True, check_errors: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``linalg.solve_ex`` by elimination: ONNX and AOTInductor have no such operator.

    Without pivots: the matrices are symmetric and positive definite.
    """
    size = matrix.shape[-1]
    rows = [torch.cat((matrix[..., i, :], right[..., i, :]), dim=-1) for i in range(size)]
    for i in range(size):
        rows[i] = rows[i] / rows[i][..., i : i + 1]
        for j in range(size):
            if j != i:
                rows[j] = rows[j] - rows[j][..., i : i + 1] * rows[i]
    solved = torch.stack([row[..., size:] for row in rows], dim=-2)
    # The factors and pivots, which nobody asks for.
    return solved, matrix, matrix[..., 0].to(torch.int32), matrix[..., 0, 0].to(torch.int32)
