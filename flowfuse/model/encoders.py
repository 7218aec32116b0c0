"""Encoders of events and frames into one latent space at 1/8 resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowfuse.ops import group_norm_activate

SCARCE = frozenset({"cpu"})  # types of devices on which little memory counts
LARGEST_CORRELATION = 12.0  # at the start: sharp enough for a softmax over a window


class Encoded(NamedTuple):
    """What the encoders make of one modality, N slices or frames.

    Attributes:
        stem: [B, C_stem, H/4, W/4], features of the first one; zero where the modality is absent.
        fine: [B, N, C_t, H/4, W/4], of all of them, to be matched at 1/4; the same everywhere where
            the modality is absent, so that nothing matches best.
        latents: [B, N, C, h, w], of all of them at 1/8; zero where the modality is absent.
    """

    stem: Tensor
    fine: Tensor
    latents: Tensor


class EncodedFrame(NamedTuple):
    """What the encoders make of one frame of B items, to be used in several estimates.

    Attributes:
        stem: [B, C_stem, H/4, W/4].
        fine: [B, C_t, H/4, W/4], to be matched at 1/4.
        latent: [B, C, h, w] at 1/8.
    """

    stem: Tensor
    fine: Tensor
    latent: Tensor


class EncodedSlice(NamedTuple):
    """What the network needs of one event slice of B items, to be used in several estimates.

    Attributes:
        stem: [B, C_stem, H/4, W/4].
        fine: [B, C_t, H/4, W/4], to be matched at 1/4.
        latent: [B, C, h, w] at 1/8.
        total: [B, 1, H, W], sum of the normalized slice over its bins.
        density: [B, 1, h, w], its mean magnitude in the cells.
    """

    stem: Tensor
    fine: Tensor
    latent: Tensor
    total: Tensor
    density: Tensor


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(group_count(channels), channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(group_count(channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        y = normalize(self.norm1, self.conv1(x))
        return normalize(self.norm2, self.conv2(y), residual=x)


class EventStem(nn.Module):
    """[N, bins, H, W] -> [N, C_stem, H/4, W/4]: one strided convolution keeps slices cheap."""

    def __init__(self, bins: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(bins, channels, 7, stride=4, padding=3)
        self.norm = nn.GroupNorm(group_count(channels), channels)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, slices: Tensor) -> Tensor:
        x = normalize(self.norm, self.conv(slices))
        return x + activate(self.mix(x))


class FrameStem(nn.Module):
    """[N, 1, H, W] -> [N, C_stem, H/4, W/4] from the luma."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels // 2, 7, stride=2, padding=3)
        self.norm1 = nn.GroupNorm(group_count(channels // 2), channels // 2)
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm2 = nn.GroupNorm(group_count(channels), channels)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, luma: Tensor) -> Tensor:
        x = normalize(self.norm1, self.conv1(luma))
        x = normalize(self.norm2, self.conv2(x))
        return x + activate(self.mix(x))


class Trunk(nn.Module):
    """The part both modalities share: [N, C_stem, H/4, W/4] -> latent [N, C, H/8, W/8]."""

    def __init__(self, stem_channels: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(stem_channels, channels, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(group_count(channels), channels)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.project = nn.Conv2d(channels, channels, 1)
        length = math.sqrt(LARGEST_CORRELATION * math.sqrt(channels))
        self.log_length = nn.Parameter(torch.tensor(math.log(length)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(self.blocks(normalize(self.norm, self.down(x))))
        # Vectors of one length: correlations compare directions, contrast has no say.
        return (F.normalize(x.float(), dim=1) * self.log_length.exp()).to(x.dtype)


class Images(NamedTuple):
    """What one stem encodes.

    Attributes:
        stem: the encoder of the modality.
        images: [B, N, channels, H, W].
        present: [B, N], 0 where there is none.
    """

    stem: nn.Module
    images: Tensor
    present: Tensor

    def in_turn(self) -> list[Images]:
        """Parts that are encoded one after the other."""
        parts = zip(in_turn(self.images), in_turn(self.present), strict=True)
        return [Images(self.stem, images, present) for images, present in parts]


def encode_images(given: Sequence[Images], fine_head: nn.Module, trunk: nn.Module) -> list[Encoded]:
    """Encode images of one modality or more: one after the other (:func:`in_turn`), or all at once.

    An absent one would still give the features of an empty image: stem and latents are made
    zero.
    """
    batch = given[0].images.shape[0]
    counts = [images.images.shape[1] for images in given]
    firsts: list[Tensor] = []
    fine: list[Tensor] = []
    latents: list[Tensor] = []
    for parts in zip(*(images.in_turn() for images in given), strict=True):
        features, flags = [], []
        for stem, images, present in parts:
            there = present.reshape(-1, 1, 1, 1)
            values = stem(images.flatten(0, 1))
            features.append(values * there.to(values.dtype))
            flags.append(there)
        if not firsts:
            firsts = [values.unflatten(0, (batch, -1))[:, 0] for values in features]
        values = features[0] if len(features) == 1 else torch.cat(features)
        there = flags[0] if len(flags) == 1 else torch.cat(flags)
        latent = trunk(values)
        latent = latent * there.to(latent.dtype)
        sizes = [values.shape[0] for values in features]
        for maps, made in ((fine, fine_head(values)), (latents, latent)):
            for values in made.split(sizes):
                maps += values.unflatten(0, (batch, -1)).unbind(dim=1)
    ends = list(accumulate(counts))
    return [
        Encoded(first, stack_maps(fine[end - count : end]), stack_maps(latents[end - count : end]))
        for first, count, end in zip(firsts, counts, ends, strict=True)
    ]


def zero_features(other: Encoded, count: int, fine: Tensor | None = None) -> Encoded:
    """Zeros in place of a modality that is not encoded, shaped by the other one.

    ``fine``: [C_t], of all pixels: what an absent modality has there; None: zeros.
    """
    empty, latents = (
        torch.zeros_like(maps[:, :1]).expand(-1, count, -1, -1, -1)
        for maps in (other.fine, other.latents)
    )
    if fine is not None:
        empty = empty + fine.to(empty.dtype).view(-1, 1, 1)
    return Encoded(torch.zeros_like(other.stem), empty, latents)


def join_encoded(parts: Sequence[EncodedFrame] | Sequence[EncodedSlice]) -> Encoded:
    """Join frames, or slices, that were encoded one by one."""
    return Encoded(
        parts[0].stem,
        stack_maps([part.fine for part in parts]),
        stack_maps([part.latent for part in parts]),
    )


def in_turn(values: Tensor) -> tuple[Tensor, ...]:
    """Parts of [B, N, ...] along N, to be worked on one after another.

    One at a time where :func:`little_memory` counts; else all at once.
    """
    return values.split(1 if little_memory(values) else values.shape[1], dim=1)


def little_memory(values: Tensor) -> bool:
    """Whether little memory counts more than few, large operations.

    So it does on a CPU; but where gradients are taken, all is kept for them anyway.
    """
    return values.device.type in SCARCE and not torch.is_grad_enabled()


def stack_maps(maps: Sequence[Tensor]) -> Tensor:
    """N times [B, C, h, w] -> [B, N, C, h, w], channels last: look-ups need no copy for B = 1."""
    return torch.stack([values.movedim(1, -1) for values in maps], dim=1).movedim(-1, 2)


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU: units of a ReLU die in the first, rough steps of a short training."""
    return F.leaky_relu(x, 0.1)


def normalize(norm: nn.GroupNorm, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """Normalize, add a residual and :func:`activate`, in one."""
    return group_norm_activate(x, residual, norm.weight, norm.bias, norm.num_groups)


def group_count(channels: int) -> int:
    """Groups of eight channels; a width that is no multiple of eight is one group."""
    return channels // 8 if channels % 8 == 0 else 1


def convolve_parts(layer: nn.Conv2d, parts: Sequence[Tensor]) -> Tensor:
    """Apply a 1 x 1 convolution to parts side by side in channels.

    Where little memory counts they are not put there, which saves theirs.
    """
    if not little_memory(parts[0]):
        return layer(torch.cat(list(parts), dim=1))
    weights = layer.weight.split([part.shape[1] for part in parts], dim=1)
    first, *others = zip(parts, weights, strict=True)
    total = F.conv2d(*first, layer.bias)
    for part, weight in others:
        total = total + F.conv2d(part, weight)
    return total
