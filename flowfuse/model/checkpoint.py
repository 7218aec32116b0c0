"""Checkpoints: safetensors files that hold a model, its configuration and, if wanted, a training.

Layout of a file
    metadata  format = "flowfuse-checkpoint", version, config = JSON of ModelConfig,
              training = JSON of what the training says about itself ({} where there is none)
    tensors   "model.<name>": the weights to use for inference (of a training: their average);
              any other prefix belongs to whoever wrote it (see flowfuse/training/state.py)
A checkpoint of an unfinished training is therefore a model like any other. Nothing is ever
unpickled: a checkpoint from a stranger cannot run code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from flowfuse.config import ConfigError, config_from_json, config_to_json
from flowfuse.io.atomic import atomic_path
from flowfuse.model import FlowFuse, ModelConfig
from flowfuse.model.config import EARLIER_CONFIG

FORMAT = "flowfuse-checkpoint"
VERSION = 1
SUFFIX = ".safetensors"
WEIGHTS = Path(__file__).parent.parent / "weights"
_MODEL = "model."
# Modules that had another name when version 1 began: old name -> name.
_RENAMED = {"first_estimate.": "init_head."}
# How the names begin of parts that earlier files lack; each changes nothing at first.
_LATER_PARTS = ("refinement.boundary.", "refinement.correction.")
_NAMED_AT_MOST = 4  # tensor names in one message


class CheckpointError(ValueError):
    """A file that is no usable checkpoint; the message names the file and what is wrong."""


def available() -> tuple[str, ...]:
    """Names of the checkpoints that ship with the package, for `load` and `--checkpoint`."""
    return tuple(sorted(path.stem for path in WEIGHTS.glob(f"*{SUFFIX}")))


def resolve_checkpoint(name_or_path: str | Path) -> Path:
    """Find a checkpoint by its shipped name, its path, or the run directory that holds it.

    Args:
        name_or_path: "small", "runs/mine/model.safetensors" or "runs/mine".

    Returns:
        The path of a file that exists. A name that ships wins over a path of the same name
        without a directory part; write "./small" for the latter.

    Raises:
        FileNotFoundError: neither a shipped name nor a file; the shipped names are listed.
    """
    if str(name_or_path) in available():
        return WEIGHTS / f"{name_or_path}{SUFFIX}"
    path = Path(name_or_path)
    if path.is_dir():
        exported = path / f"model{SUFFIX}"
        if exported.is_file():
            return exported
        raise FileNotFoundError(f"{path}: a directory without model{SUFFIX}: no training run?")
    if path.is_file():
        return path
    shipped = ", ".join(available()) or "none"
    raise FileNotFoundError(
        f"checkpoint {name_or_path}: no such file, and no shipped checkpoint of that name "
        f"(shipped: {shipped})"
    )


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    *,
    training: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model to a safetensors file, whole or not at all.

    Args:
        path: the file; its directory must exist. Written beside and renamed.
        model: a FlowFuse: has `config` (a ModelConfig) and weights.
        training: facts that JSON can hold (data, seed, steps, measured numbers, ...).
        tensors: more tensors to keep beside the weights; no name may begin with "model.".

    Raises:
        ValueError: a name in `tensors` begins with "model.".
        OSError: the file cannot be written.
    """
    stored = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
    for name, tensor in (tensors or {}).items():
        if name.startswith(_MODEL):
            raise ValueError(f"save_checkpoint: tensor name {name} is kept for the model's weights")
        stored[name] = tensor
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": config_to_json(model.config),
        "training": json.dumps(dict(training or {})),
    }
    write_tensors(path, stored, metadata)


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors of any device and layout to a safetensors file, whole or not at all."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with atomic_path(path) as beside:
        # Not save_file: it makes files that only their owner can read, whatever the umask says.
        beside.write_bytes(serialize(plain, metadata=dict(metadata)))


def read_header(path: str | Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Read and check what a checkpoint says about itself; the tensors are not touched.

    Args:
        path: the file.

    Returns:
        The model's configuration, and info: {"path": str, "version": int, "training": dict}.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not safetensors or truncated, not written by flowfuse, of a newer
            version, or with a configuration that this version does not know.
    """
    with _open(path) as file:
        return _check_metadata(path, file.metadata())


def read_tensors(
    path: str | Path, prefix: str, map_location: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Read the tensors whose names begin with a prefix.

    Returns:
        {name without the prefix: tensor on `map_location`}.

    Raises:
        FileNotFoundError, CheckpointError: as `read_header`.
    """
    with _open(path, str(map_location)) as file:
        return {
            _current_name(name.removeprefix(prefix)): file.get_tensor(name)
            for name in file.keys()  # not iterable itself
            if name.startswith(prefix)
        }


def load_checkpoint(
    path: str | Path, map_location: str | torch.device = "cpu"
) -> tuple[FlowFuse, dict[str, Any]]:
    """Build the model that a checkpoint describes and load its weights.

    Args:
        path: the file (`resolve_checkpoint` turns names into files).
        map_location: the device of the model.

    Returns:
        The model in eval mode, and info: {"path": str, "version": int, "training": dict}.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: as `read_header` and `check_weights`.
    """
    config, info = read_header(path)
    weights = read_tensors(path, _MODEL)
    # Checked without memory first: a file may ask for more than there is.
    try:
        with torch.device("meta"):
            empty = FlowFuse(config)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: no model has this configuration: {reason}") from None
    check_weights(empty, weights, where=str(path))
    with torch.random.fork_rng(devices=[]):  # no draw is spent, and later parts are always the same
        torch.manual_seed(0)
        model = FlowFuse(config)
    model.load_state_dict({**later_parts(model, weights), **weights})
    return model.to(map_location).eval(), info


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Copy weights into a model after checking them.

    What a file of an earlier version lacks stays as it is in the model, which must be a new one.

    Raises:
        CheckpointError: as `check_weights`.
    """
    check_weights(model, weights, where=where)
    model.load_state_dict({**later_parts(model, weights), **weights})


def later_parts(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a file of an earlier version lacks, as a new model has it."""
    lacking = tuple(
        part for part in _LATER_PARTS if not any(name.startswith(part) for name in weights)
    )
    return {name: x for name, x in model.state_dict().items() if name.startswith(lacking)}


def check_weights(model: nn.Module, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Check that weights have the names, shapes and kinds of number of a model, and are finite.

    Raises:
        CheckpointError: tensors are missing that no later version added, unknown, of another shape
            or dtype, or hold NaN or infinity. Floating dtypes may differ.
    """
    expected = model.state_dict()
    later = later_parts(model, weights)
    missing = [name for name in expected if name not in weights and name not in later]
    unknown = [name for name in weights if name not in expected]
    reshaped = [
        f"{name} (file {list(weights[name].shape)}, model {list(tensor.shape)})"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    retyped = [
        f"{name} (file {weights[name].dtype}, model {tensor.dtype})"
        for name, tensor in expected.items()
        if name in weights
        and weights[name].dtype != tensor.dtype
        and not (weights[name].is_floating_point() and tensor.is_floating_point())
    ]
    faults = [
        f"{len(names)} {what}: {_some(names)}"
        for names, what in (
            (missing, "tensors missing"),
            (unknown, "tensors that the model does not have"),
            (reshaped, "tensors of another shape"),
            (retyped, "tensors of another dtype"),
        )
        if names
    ]
    if faults:
        raise CheckpointError(f"{where}: does not fit the model: {'; '.join(faults)}")
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{where}: tensor {name} must be finite, got NaN or infinity")


def _open(path: str | Path, device: str = "cpu") -> safe_open:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        return safe_open(str(path), framework="pt", device=device)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a safetensors file, or truncated ({path.stat().st_size} bytes: {error})"
        ) from None


def _check_metadata(
    path: str | Path, metadata: Mapping[str, str] | None
) -> tuple[ModelConfig, dict[str, Any]]:
    metadata = metadata or {}
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: no flowfuse checkpoint: its metadata has format = "
            f"{metadata.get('format')!r}, expected {FORMAT!r}"
        )
    version = metadata.get("version", "")
    if not re.fullmatch("[1-9][0-9]{0,8}", version):
        raise CheckpointError(f"{path}: version must be a positive whole number, got {version!r}")
    if int(version) > VERSION:
        raise CheckpointError(
            f"{path}: written by a newer flowfuse (checkpoint version {version}; this one reads "
            f"up to {VERSION}): upgrade flowfuse"
        )
    try:
        config = config_from_json(
            ModelConfig,
            metadata.get("config", ""),
            where=f"{path}: model configuration",
            earlier=EARLIER_CONFIG,
        )
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    try:
        training = json.loads(metadata.get("training", "{}"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: training metadata is no JSON: {error}") from None
    return config, {"path": str(path), "version": int(version), "training": training}


def _current_name(tensor: str) -> str:
    for old, new in _RENAMED.items():
        tensor = tensor.replace(old, new)
    return tensor


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
