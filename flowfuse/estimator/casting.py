"""Weights in low precision: cast once, not by autocast wherever they are used."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from flowfuse.estimator.graphs import addresses, has_hooks
from flowfuse.model import FlowFuse
from flowfuse.model.fusion import CorrelationTokens
from flowfuse.model.selection import NeighbourSelection


class CastNetwork:
    """A network with the weights of its convolutions and matrix products in low precision.

    They are what autocast makes of them: results are the same, bit by bit. All other tensors are
    the network's own. Weights that change in place are cast anew before the next call, but for
    those changed behind torch's back, by ``.data``.

    Args:
        model: the network, which stays as it is.
        dtype: the low precision.
    """

    def __init__(self, model: FlowFuse, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        self._cast: FlowFuse | None = None
        self._lock = threading.Lock()
        self._addresses: list[tuple[int, torch.dtype]] = []
        self._pairs: list[tuple[Tensor, Tensor]] = []  # weights, and what they became
        self._versions: list[int] = []

    def __reduce__(self) -> tuple:
        return CastNetwork, (self.model, self.dtype)

    def current(self) -> FlowFuse:
        """The network to call under autocast.

        It is the one given where that is in training, or has hooks, which a copy would not call;
        where its weights are inference tensors, which do not tell that they have changed; and while
        the caller records a CUDA graph, which would cast at every replay or never.
        """
        if self.model.training or has_hooks(self.model) or self._is_recording():
            return self.model
        if any(weight.is_inference() for weight in self.model.parameters()):
            return self.model
        with self._lock:
            return self._refreshed()

    def _is_recording(self) -> bool:
        on_gpu = next(self.model.parameters()).is_cuda
        return on_gpu and torch.cuda.is_current_stream_capturing()

    def _refreshed(self) -> FlowFuse:
        where = addresses(self.model)
        if self._cast is None or where != self._addresses:
            self._addresses, self._cast = where, self._make()
        versions = self._read_versions()
        if versions != self._versions:
            with torch.no_grad():
                for weight, cast in self._pairs:
                    cast.copy_(weight)
            self._versions = versions
        self._cast.config = self.model.config  # of another strategy of the correlation, say
        return self._cast

    def _make(self) -> FlowFuse:
        # Of what is named here, deepcopy takes what is given.
        known: dict[int, Tensor] = {
            id(tensor): tensor for tensor in chain(self.model.parameters(), self.model.buffers())
        }
        with torch.inference_mode(False):
            self._pairs = [
                (weight, nn.Parameter(weight.detach().to(self.dtype), requires_grad=False))
                for weight in cast_by_autocast(self.model)
            ]
        self._versions = self._read_versions()
        known |= {id(weight): cast for weight, cast in self._pairs}
        return copy.deepcopy(self.model, known)

    def _read_versions(self) -> list[int]:
        return [weight._version for weight, _ in self._pairs]


def cast_by_autocast(module: nn.Module) -> Iterator[Tensor]:
    """Weights that torch's own operators read, and autocast casts; flowfuse's do so as they are."""
    if isinstance(module, CorrelationTokens):
        return
    if isinstance(module, NeighbourSelection):
        yield module.place  # which it casts itself
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        yield from module.parameters()
    for child in module.children():
        yield from cast_by_autocast(child)
