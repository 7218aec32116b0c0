"""Encoder features of event slices, kept from one interval of a stream to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from flowfuse.estimator import Estimator
from flowfuse.events import Events
from flowfuse.inputs import EventTensors, voxelize_slices
from flowfuse.model.encoders import EncodedSlice
from flowfuse.model.normalization import SliceCounts, SliceScale, count_slice, scale_of


@dataclass
class _Slice:
    """A slice in memory; ``encoded`` is None until it is, and again when the scale changes."""

    voxels: Tensor  # [1, bins, H, W]
    total: Tensor  # [1, H, W], polarity sums
    counts: SliceCounts
    encoded: EncodedSlice | None = None


class SliceFeatures:
    """Encodes the slices of overlapping intervals once.

    An interval divides all of its slices by one scale, which changes a little from interval to
    interval. The scale of an earlier interval is kept while the present one differs by no more than
    ``tolerance``; else all slices are encoded anew. A pixel that is hot when a slice is encoded
    stays masked in this slice.

    Args:
        estimator: whose network encodes.
        height, width: of the sensor, px.
        tolerance: relative.

    Attributes:
        reused: how many slices were not encoded, because they had been.
    """

    def __init__(self, estimator: Estimator, height: int, width: int, tolerance: float) -> None:
        self._estimator, self._height, self._width = estimator, height, width
        self._tolerance = tolerance
        self._known: dict[tuple[int, int], _Slice] = {}
        self._scale: SliceScale | None = None
        self.reused = 0

    def forget_from(self, t: int) -> None:
        """Forget the slices that end later than ``t`` us: their events have changed."""
        self._known = {limits: known for limits, known in self._known.items() if limits[1] <= t}

    def missing(self, limits: Sequence[int]) -> tuple[int, int]:
        """The interval (us) of the events of slices that are not known; empty where all are."""
        unknown = [pair for pair in pairwise(limits) if pair not in self._known]
        return (unknown[0][0], unknown[-1][1]) if unknown else (limits[-1], limits[-1])

    def encode(self, limits: Sequence[int], events: Events) -> tuple[list[EncodedSlice], Tensor]:
        """Encode the slices of an interval, as far as they are not.

        Args:
            limits: K + 2 times, us, see :func:`flowfuse.inputs.slice_times`.
            events: those of :meth:`missing` at least.

        Returns:
            E_0 .. E_K, and the polarity sum [1, H, W] of E_1 .. E_K.
        """
        pairs = list(pairwise(limits))
        unknown = [pair for pair in pairs if pair not in self._known]
        with torch.inference_mode():
            if len(unknown) == len(pairs):
                self._scale = None  # nothing is shared with those before
            if unknown:
                tensors = EventTensors.upload(events, self._estimator.device)
                for pair in unknown:
                    self._known[pair] = self._count(tensors, pair)
            # Later intervals share slices with this one, not with those before.
            self._known = {pair: self._known[pair] for pair in pairs}
            slices = list(self._known.values())
            self._renew(scale_of([one.counts for one in slices]))
            self.reused += sum(one.encoded is not None for one in slices)
            found = [one.encoded or self._encode(one) for one in slices]
            total = slices[1].total
            for one in slices[2:]:
                total = total + one.total
        return found, total

    def _count(self, events: EventTensors, limits: tuple[int, int]) -> _Slice:
        bins = self._estimator.model.config.bins
        voxels = voxelize_slices(events, limits, bins, self._height, self._width)
        return _Slice(voxels, voxels.sum(1), count_slice(voxels))

    def _renew(self, fresh: SliceScale) -> None:
        """Keep the scale, or take a fresh one where it has changed too much."""
        kept = fresh if self._scale is None else self._scale
        change = float((fresh.divisor / kept.divisor - 1).abs().max())
        if change > self._tolerance:
            kept = fresh
            for known in self._known.values():
                known.encoded = None
        self._scale = SliceScale(kept.divisor, fresh.kept)

    def _encode(self, known: _Slice) -> EncodedSlice:
        assert self._scale is not None, "it was found before"
        known.encoded = self._estimator.encode_slice(known.voxels, self._scale)
        return known.encoded
