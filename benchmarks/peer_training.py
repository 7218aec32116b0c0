"""The networks of benchmarks/trained_peers.py, and their trainings, all by one recipe."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace
from peers import ERaft
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from flowfuse.cli import train
from flowfuse.cli.train_options import read_command_line
from flowfuse.config import read_yaml, write_yaml
from flowfuse.geometry.grid import pad_to_multiple
from flowfuse.inputs import InputSpec, ModelInputs
from flowfuse.io.atomic import atomic_path
from flowfuse.model import CONFIGS
from flowfuse.training.log import TrainingLog
from flowfuse.training.pools import make_pool
from flowfuse.training.sampling import StepSamples, batches
from flowfuse.training.schedule import learning_rate_at
from flowfuse.training.settings import TrainConfig

SPEC = InputSpec(slices=4, bins=3)  # of all samples, whichever network sees them
GAMMA = 0.8  # of RAFT's sequence loss
CHECKPOINT, MODEL = "checkpoint.pt", "model.safetensors"  # of a peer, of ours
# Options of flowfuse-train that make it alike: all modalities, no average, no validation between.
ALIKE = (
    "--augment.drop-frames 0 --augment.drop-events 0 --augment.drop-history 0 --ema 0 "
    "--validate-every 1000000000 --validation-scenes 1 --checkpoint-every 100 --no-tensorboard "
    "--device cpu --resume"
).split()


def standardize(grid: Tensor) -> Tensor:
    """E-RAFT's voxel grids [B, C, H, W]: mean 0, deviation 1 over the non-zero cells of each."""
    filled, axes = grid != 0, (1, 2, 3)
    count = filled.sum(axes, keepdim=True)
    centred = torch.where(filled, grid - grid.sum(axes, keepdim=True) / count.clamp(min=1), 0)
    variance = centred.square().sum(axes, keepdim=True) / (count - 1).clamp(min=1)
    return centred / variance.sqrt().clamp(min=1e-6)


def event_grids(slices: Tensor) -> tuple[Tensor, Tensor]:
    """Event slices [B, K + 1, bins, H, W] as E-RAFT's old and new grid, [B, K bins, H, W] each."""
    old, new = slices[:, 0], slices[:, 1:].flatten(1, 2)
    missing = new.shape[1] - old.shape[1]  # before the slice
    return standardize(F.pad(old, (0, 0, 0, 0, missing, 0))), standardize(new)


def pad_for_pyramid(image: Tensor, mode: str) -> Tensor:
    """Pad right and bottom to multiples of 8 px, and at least 128: RAFT's pyramid has four levels.

    The last one, of 1/64, needs two cells each way: its positions are divided by their number - 1.
    """
    image = pad_to_multiple(image, 8, mode=mode)
    height, width = image.shape[-2:]
    return F.pad(image, (0, max(0, 128 - width), 0, max(0, 128 - height)), mode=mode)


class FrameRaft(nn.Module):
    """torchvision's raft_small: inputs and a number of iterations -> the flow of each."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from torchvision.models.optical_flow import raft_small
        except ImportError as error:
            reason = f"raft_small needs torchvision: pip install torchvision ({error})"
            raise ImportError(reason) from None
        self.network = raft_small(weights=None)

    def forward(self, inputs: ModelInputs, iterations: int) -> list[Tensor]:
        height, width = inputs.frame0.shape[-2:]
        images = (
            (2 * pad_for_pyramid(frame, "replicate") - 1).expand(-1, 3, -1, -1)
            for frame in (inputs.frame0, inputs.frame1)
        )
        flows = self.network(*images, num_flow_updates=iterations)
        return [flow[..., :height, :width] for flow in flows]

    def last(self, inputs: ModelInputs, iterations: int) -> Tensor:
        """The flow of the last iteration alone."""
        return self(inputs, iterations)[-1]


class EventRaft(nn.Module):
    """E-RAFT on event slices: inputs and a number of iterations -> the flow of each."""

    def __init__(self) -> None:
        super().__init__()
        self.network = ERaft(SPEC.slices * SPEC.bins)

    def forward(self, inputs: ModelInputs, iterations: int) -> list[Tensor]:
        height, width = inputs.slices.shape[-2:]
        flows = self.network.flows(*self._grids(inputs), iterations)
        return [flow[..., :height, :width] for flow in flows]

    def last(self, inputs: ModelInputs, iterations: int) -> Tensor:
        """The flow of the last iteration alone, which alone is brought to full resolution."""
        height, width = inputs.slices.shape[-2:]
        return self.network(*self._grids(inputs), iterations)[..., :height, :width]

    def _grids(self, inputs: ModelInputs) -> list[Tensor]:
        return [pad_for_pyramid(grid, "constant") for grid in event_grids(inputs.slices)]


PEERS: dict[str, type[FrameRaft] | type[EventRaft]] = {"raft_small": FrameRaft, "eraft": EventRaft}


# Training


def sequence_loss(flows: Sequence[Tensor], ground_truth: Tensor, valid: Tensor) -> Tensor:
    """RAFT's: the absolute error of every iteration, an earlier one GAMMA times the next.

    Args:
        flows: [B, 2, H, W] px of each iteration.
        ground_truth: [B, 2, H, W] px.
        valid: [B, H, W] bool.
    """
    known, loss = valid.sum().clamp(min=1), ground_truth.new_zeros(())
    for i, flow in enumerate(reversed(flows)):
        error = torch.where(valid.unsqueeze(1), flow - ground_truth, 0)
        loss = loss + GAMMA**i * error.abs().sum() / known
    return loss


def train_words(name: str, folder: Path, options: Namespace) -> list[str]:
    """What flowfuse-train is told; of a peer, its settings are taken alone."""
    batch = read_command_line([*recipe_words(options), "-o", str(folder)])[0].batch
    steps = str(options.samples // batch)
    ours = ["--model", name] if name in CONFIGS else []
    return [*recipe_words(options), *ALIKE, *ours, "--steps", steps, "-o", str(folder)]


def recipe_words(options: Namespace) -> list[str]:
    words = [] if options.recipe is None else ["--config", options.recipe]
    for name in ("cache", "textures"):
        value = getattr(options, name)
        words += [] if value is None else [f"--{name}", str(value)]
    return words


def train_peer(name: str, config: TrainConfig, folder: Path, iterations: int) -> None:
    """Train a peer, or go on with it; writes a checkpoint, config.yaml and log.csv."""
    torch.manual_seed(config.seed)
    module = PEERS[name]().train()
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=config.weight_decay)
    done, path = 0, folder / CHECKPOINT
    fixed = {"steps": config.steps, "batch": config.batch, "iterations": iterations}
    if path.exists():
        saved = torch.load(path, weights_only=True)
        if saved["fixed"] != fixed:
            raise ValueError(f"{path}: was trained with {saved['fixed']}, expected {fixed}")
        done = saved["step"]
        module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
    folder.mkdir(parents=True, exist_ok=True)
    write_yaml(folder / "config.yaml", config)
    log = TrainingLog(folder, done, tensorboard=False)
    samples = StepSamples(make_pool(config), config.seed, config.plan(), config.augment)
    steps = range(done + 1, config.steps + 1)
    feed = batches(
        samples, first_step=done + 1, last_step=config.steps, workers=config.workers, pin=False
    )
    bar, sums = tqdm(steps, desc=name, initial=done, total=config.steps), np.zeros(3)
    start = time.monotonic()
    for step in bar:
        batch = next(feed)
        optimizer.param_groups[0]["lr"] = learning_rate_at(
            step, config.steps, config.learning_rate, config.warmup
        )
        flows = module(batch.inputs, iterations)
        ground_truth, valid = batch.flow[:, -1], batch.valid[:, -1]
        loss = sequence_loss(flows, ground_truth, valid)
        if not loss.isfinite():
            raise ValueError(f"{name}, step {step}: the loss is {loss.item()}, expected a number")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), config.clip)
        optimizer.step()
        error = (flows[-1].detach() - ground_truth).norm(dim=1)[valid]
        now = time.monotonic()
        sums += loss.item(), error.mean().item() if len(error) else 0.0, now - start
        start = now
        last = step == config.steps
        if step % config.log_every == 0 or last:
            # A training that went on may have begun between two lines.
            means = sums / min(step - done, (step - 1) % config.log_every + 1)
            names = ("loss", "epe", "seconds_per_step")
            log.log_training(step, dict(zip(names, means.tolist(), strict=True)))
            sums[:] = 0
        if step % config.checkpoint_every == 0 or last:
            found = {"step": step, "fixed": fixed, "module": module.state_dict()}
            with atomic_path(path) as partial:
                torch.save(found | {"optimizer": optimizer.state_dict()}, partial)
    log.close()


def train_all(options: Namespace) -> int:
    """Train what is asked for, one after the other; returns an exit code."""
    for name in options.networks:
        folder = options.runs / name
        words = train_words(name, folder, options)
        if name in PEERS:
            resumed = [word for word in words if word != "--resume"]
            train_peer(name, read_command_line(resumed)[0], folder, options.train_iterations)
        elif code := train.main(words):
            return code
    return 0


def describe_training(folder: Path) -> dict[str, float | str]:
    """What a training was: samples, steps, iterations, seconds a step, EPE of its last lines."""
    config = read_yaml(folder / "config.yaml")
    iterations = str(config["iterations"] or config["model"]["iterations"])
    if (folder / CHECKPOINT).exists():
        saved = torch.load(folder / CHECKPOINT, weights_only=True)
        iterations = str(saved["fixed"]["iterations"])
    elif config["max_iterations"] is not None:  # half of the steps draw their number
        iterations += f", or 1 to {config['max_iterations']}"
    with open(folder / "log.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    steps = int(lines[-1]["step"])
    seconds = [float(line["seconds_per_step"]) for line in lines]
    return {
        "steps": steps,
        "samples": steps * config["batch"],
        "iterations": iterations,
        "seconds_per_step": float(np.median(seconds)),
        "training_epe": float(np.mean([float(line["epe"]) for line in lines[-5:]])),
    }
