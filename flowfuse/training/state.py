"""The whole state of a training, and the directory of a run that keeps it.

A training checkpoint (run/checkpoints/step_00001000.safetensors) is a model checkpoint whose
weights are the averaged ones, with these tensors beside them:
    raw.<name>                the weights that are being trained
    optimizer.<kind>.<name>   the optimizer's state of one parameter (exp_avg, exp_avg_sq, step)
Random draws have no state to keep: all are functions of (seed, step).
"""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowfuse.config import changed_keys, config_to_dict
from flowfuse.io.atomic import remove_abandoned
from flowfuse.model import FlowFuse, ModelConfig
from flowfuse.model.checkpoint import (
    SUFFIX,
    CheckpointError,
    load_weights,
    read_header,
    read_tensors,
    save_checkpoint,
    write_tensors,
)

_log = logging.getLogger(__name__)


# What the weights of some networks lack: the setting that may differ, and how the names begin.
NEW_PARTS = {"fusion": "evidence.", "selection": "refinement.selection."}


class TrainingState:
    """Weights, their moving average, the optimizer and the counters of a training.

    Args:
        config: architecture.
        device: where to train.
        seed: fixes the first weights.
        weight_decay: of AdamW; biases and norms have none.
        evidence_rate: learning rate of the evidence head over that of the rest.
        decay: of the moving average; early steps use less, so that it forgets the first weights,
            unless they are those of a checkpoint (:meth:`start_from`).
        channels_last: memory layout of the weights on a GPU; on a CPU, other layouts are faster.
    """

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device,
        *,
        seed: int,
        weight_decay: float,
        evidence_rate: float,
        decay: float,
        channels_last: bool,
    ) -> None:
        torch.manual_seed(seed)
        last = channels_last and device.type == "cuda"
        layout = torch.channels_last if last else torch.contiguous_format
        self.model = FlowFuse(config).to(device)
        # The stubs know memory_format only with other arguments.
        self.model = self.model.to(memory_format=layout).train()  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.decay = decay
        self.keeps_first = False  # whether the average forgets no sooner than its decay says
        # (averaged, trained) weights: the same storage for good.
        pairs = list(
            zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True)
        )
        self._averaged = tuple(zip(*(p for p in pairs if p[0].is_floating_point()), strict=True))
        self._copied = [p for p in pairs if not p[0].is_floating_point()]
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            decayed = weight_decay if parameter.ndim > 1 else 0.0
            scale = evidence_rate if name.startswith("evidence.") else 1.0
            groups.setdefault((scale, decayed), []).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": parameters, "weight_decay": decayed, "scale": scale}
                for (scale, decayed), parameters in groups.items()
            ],
            fused=True,  # many small tensors, each a dozen operators otherwise
        )
        self.step = 0
        self.seconds = 0.0  # spent training, over all sessions
        self.best: dict[str, float] = {}  # the best validation: its "step", and the criterion
        self.sums: dict[str, float] = {}  # what the next line of the log averages
        self.summed = 0  # steps in them

    def apply_gradients(self, learning_rate: float) -> None:
        """Take one optimizer step with the gradients at hand, and update the average."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        self.optimizer.step()
        self.step += 1
        decay = self.decay
        if not self.keeps_first:
            decay = min(decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            kept, new = self._averaged
            torch._foreach_lerp_(kept, new, 1.0 - decay)
            for kept, new in self._copied:
                kept.copy_(new)

    def save(self, path: Path, settings: dict[str, Any]) -> None:
        """Write all of it to a checkpoint.

        Args:
            path: the file.
            settings: the resolved configuration of the training, to be kept beside it.
        """
        tensors = {f"raw.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for kind, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{kind}.{name}"] = value
        save_checkpoint(path, self.average, training=self.facts(settings), tensors=tensors)

    def export(self, path: Path, settings: dict[str, Any]) -> None:
        """Write the averaged weights alone, for inference."""
        save_checkpoint(path, self.average, training=self.facts(settings))

    def facts(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint says about its training, as JSON can hold it."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "sums": self.sums,
            "summed": self.summed,
            "keeps_first": self.keeps_first,
            "settings": settings,
        }

    def start_from(self, path: Path) -> None:
        """Take the weights of a checkpoint, and nothing else, to begin a training with them.

        They are good, so the average keeps its share of them: decay ** n after n steps. An average
        of the weights before and after a finetuning often has smaller errors than either, on what
        it was finetuned on and elsewhere (Wortsman et al., Robust fine-tuning of zero-shot models,
        CVPR 2022). Weights of a guided fusion can begin one by evidence, and weights without
        motion of neighbours one with it.

        Raises:
            CheckpointError: unreadable, or of another architecture; the difference is named.
        """
        config, _ = read_header(path)
        # What the weights know nothing of may differ.
        free = {"name", "iterations", "correlation"}
        if (config.fusion, self.model.config.fusion) == ("guided", "evidence"):
            free.add("fusion")  # which is the same until what it adds is trained
        if self.model.config.selection and not config.selection:
            free.add("selection")  # likewise
        new = [part for key, part in NEW_PARTS.items() if key in free]
        for key, (there, here) in changed_keys(
            config_to_dict(config), config_to_dict(self.model.config)
        ).items():
            if key not in free:
                raise CheckpointError(
                    f"init: {path} has model.{key} = {there}, this training {here}: its weights "
                    "cannot begin it"
                )
        weights = read_tensors(path, "model.")
        for model in (self.model, self.average):
            begun = {
                name: value
                for name, value in model.state_dict().items()
                if name.startswith(tuple(new))
            }
            load_weights(model, begun | weights, where=str(path))
        # A part that the file lacks is random: that is forgotten as ever.
        self.keeps_first = not new

    def restore(self, path: Path) -> dict[str, Any]:
        """Take everything from a checkpoint: the next step is as it would have been.

        Returns:
            The settings that the checkpoint was saved with.

        Raises:
            CheckpointError: unreadable, of another model, or without a training's state. The state
                is as before when the file is unreadable.
        """
        config, info = read_header(path)
        facts = info["training"]
        average, raw = read_tensors(path, "model."), read_tensors(path, "raw.")
        moments = read_tensors(path, "optimizer.")
        if not raw or "step" not in facts:
            raise CheckpointError(f"{path}: holds a model but no training state to resume")
        for key, (there, here) in changed_keys(
            config_to_dict(config), config_to_dict(self.model.config)
        ).items():
            raise CheckpointError(
                f"{path}: was trained with model.{key} = {there}; {here} cannot go on from it"
            )
        load_weights(self.average, average, where=str(path))
        load_weights(self.model, raw, where=str(path))
        self._restore_optimizer(moments, path)
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.best, self.sums, self.summed = facts["best"], facts["sums"], facts["summed"]
        # Of checkpoints of former versions, none did.
        self.keeps_first = facts.get("keeps_first", False)
        return facts["settings"]

    def _restore_optimizer(self, moments: dict[str, Tensor], path: Path) -> None:
        parameters = dict(self.model.named_parameters())
        self.optimizer.state.clear()
        for key, value in moments.items():
            kind, name = key.split(".", 1)
            if name not in parameters or value.shape not in ((), parameters[name].shape):
                raise CheckpointError(f"{path}: optimizer state {key} does not fit the model")
            if value.ndim:
                # In the layout of its parameter, as the optimizer itself would have made it:
                # another layout can round differently.
                value = torch.empty_like(parameters[name]).copy_(value)
            # The count of steps, too, belongs on the device: the fused optimizer reads it there.
            self.optimizer.state[parameters[name]][kind] = value.to(parameters[name].device)


class RunDirectory:
    """The files of one run.

    Args:
        path: the directory.

    Attributes:
        config: resolved configuration of the run.
        model: the averaged weights of the newest checkpoint, for inference.
        best: the averaged weights with the best validation so far, for inference.
        nan_batch: the batch that made the loss not finite.
        validation: what was measured on held-out data, a table.
        pictures: directory of validation pictures.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.model = path / f"model{SUFFIX}"
        self.best = path / f"best{SUFFIX}"
        self.nan_batch = path / f"nan_batch{SUFFIX}"
        self.validation = path / "validation.csv"
        self.pictures = path / "pictures"
        self._checkpoints = path / "checkpoints"
        self._written = (self.config, self.model, self.best, path / "log.csv", self.validation)

    def create(self) -> None:
        """Make the directory, and clear what a killed writer left half-written.

        Raises:
            OSError: it cannot be made or written.
        """
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        for directory in (self.path, self._checkpoints, self.pictures):
            remove_abandoned(directory)

    def foreign_files(self) -> list[str]:
        """Names of files that a training would replace, in a directory that none has made."""
        if self._checkpoints.is_dir():
            return []
        return [p.name for p in self._written if p.exists()]

    def checkpoints(self) -> list[Path]:
        """Training checkpoints, oldest first."""
        return sorted(self._checkpoints.glob(f"step_*{SUFFIX}"))

    def save(self, state: TrainingState, settings: dict[str, Any], keep: int) -> Path:
        """Write a checkpoint and the exported model, then remove all but the newest and the best.

        Args:
            state: what to save.
            settings: the resolved configuration.
            keep: how many of the newest checkpoints stay.
        """
        path = self._checkpoint(state.step)
        state.save(path, settings)
        state.export(self.model, settings)
        wanted = {*self.checkpoints()[-keep:], path}
        if state.best:
            wanted.add(self._checkpoint(int(state.best["step"])))
        for old in self.checkpoints():
            if old not in wanted:
                old.unlink()
        return path

    def save_best(self, state: TrainingState, settings: dict[str, Any]) -> None:
        """Write the weights that are the best by validation, as the state says."""
        state.export(self.best, settings)

    def describe_models(self, state: TrainingState) -> str:
        """Say whether `model` is the best by validation, and where the best is."""
        known = {name: value for name, value in state.best.items() if name != "step"}
        if not known:
            return f"the model is {self.model}; it was never validated"
        (name, value), step = next(iter(known.items())), int(state.best["step"])
        measured = f"by validation ({name} {value:.4g})"
        if step == state.step:
            return f"the model is {self.model}, the best {measured}"
        return (
            f"the model of the last step is {self.model}; the best {measured} is that of step "
            f"{step}, {self.best}"
        )

    def restore_newest(self, state: TrainingState) -> tuple[Path, dict[str, Any]]:
        """Restore the newest checkpoint that can be read; tell of those that cannot.

        Returns:
            The checkpoint used, and the settings that it was saved with.

        Raises:
            CheckpointError: none can be used; says why the newest cannot.
        """
        refused: list[tuple[Path, CheckpointError]] = []
        for path in reversed(self.checkpoints()):
            try:
                read_header(path)
            except CheckpointError as error:
                refused.append((path, error))
                continue
            settings = state.restore(path)
            for broken, reason in refused:
                # Renamed: neither lost, nor taken for a checkpoint again.
                broken.rename(broken.with_name(f"unreadable_{broken.name}"))
                _log.warning("%s; set aside, using %s", reason, path.name)
            return path, settings
        raise refused[0][1]

    def save_bad_batch(self, batch: dict[str, Tensor], step: int, settings: dict[str, Any]) -> None:
        """Keep the batch that broke the training, with the step and the settings."""
        write_tensors(self.nan_batch, batch, {"step": str(step), "settings": json.dumps(settings)})

    def _checkpoint(self, step: int) -> Path:
        return self._checkpoints / f"step_{step:08d}{SUFFIX}"


def count_parameters(model: nn.Module) -> int:
    """Number of trainable numbers."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
