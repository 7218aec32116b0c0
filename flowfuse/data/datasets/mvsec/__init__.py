"""MVSEC: its sequences read, written, as training samples, and how papers evaluate on them.

recording.py     events, frames and ground truth of a sequence
ground_truth.py  its flow maps, followed from one frame time to another
dataset.py       training samples; what the registry of data sets finds
protocols.py     evaluation: time intervals, pixels, outliers
writer.py        writing sequences in its files
"""

from flowfuse.data.datasets.mvsec.dataset import DATASET

__all__ = ["DATASET"]
