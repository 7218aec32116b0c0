"""Cameras of Prophesee, by the Python packages of Metavision or OpenEB."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator

import numpy as np

from flowfuse.events import Events
from flowfuse.live_sources.base import Packet, SourceLostError

PACKET = 5_000  # us


class MetavisionSource:
    """Events of a camera, or of a file that Metavision reads; there are no frames.

    Args:
        source: serial number or file; "": the first camera.

    Raises:
        ModuleNotFoundError: Metavision is not installed.
        FileNotFoundError: there is no such camera or file.
    """

    def __init__(self, source: str = "") -> None:
        try:
            package = importlib.import_module("metavision_core.event_io")
        except ImportError as error:
            raise ModuleNotFoundError(
                "cameras of Prophesee are read by metavision_core, which is not installed: install "
                "the Metavision SDK or OpenEB (docs.prophesee.ai), and let Python find its packages"
            ) from error
        self.name = f"metavision:{source}"
        try:
            self._iterator = package.EventsIterator(
                input_path=source, mode="delta_t", delta_t=PACKET
            )
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise FileNotFoundError(
                f"{self.name}: no such camera or file, or it cannot be opened ({reason})"
            ) from error
        self.height, self.width = map(int, self._iterator.get_size())
        self.has_frames = False
        self._closed = threading.Event()

    def packets(self) -> Iterator[Packet]:
        batches = iter(self._iterator)
        while not self._closed.is_set():
            try:
                batch = next(batches, None)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise SourceLostError(f"{self.name} is gone: {reason}") from error
            if batch is None:
                return
            if len(batch):
                # The buffer is used again for the next batch.
                columns = (np.array(batch[name]) for name in ("x", "y", "t", "p"))
                yield Events(*columns, height=self.height, width=self.width)

    def close(self) -> None:
        self._closed.set()
