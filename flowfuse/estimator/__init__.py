"""Frames and events in, dense and continuous flow out: what a user calls.

estimator = load("small")
result = estimator(frame0, frame1, events, t0=t0, t1=t1)
result.flow          # [2, H, W] px, from t0 to t1
result.at(0.5)       # [2, H, W] px, from t0 to the middle

loading.py      load: from a checkpoint to an estimator
estimator.py    Estimator: from arrays to results; the steps of a call in order
pairs.py        a frame pair: checked as a whole, made a network's inputs
frame_checks.py checks of one image
arguments.py    checks of times, exposures and other numbers
event_times.py  a warning where the events have other times, with a guess why
alignment.py    a warning where frames and events do not share axes or polarity
late_start.py   events alone without history: the first ones serve as such
batches.py      several frame pairs at once
running.py      the network: without gradients, in its precision
casting.py      weights in low precision, cast once
graphs.py       CUDA graphs, which start all of its kernels in one go
devices.py      where it can run, and how precisely
"""

from flowfuse.estimator.devices import select_device
from flowfuse.estimator.estimator import Estimator
from flowfuse.estimator.frame_checks import as_frame
from flowfuse.estimator.loading import load

__all__ = ["Estimator", "as_frame", "load", "select_device"]
