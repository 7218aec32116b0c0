"""DSEC: its sequences read, written, and as training samples.

files.py     where its files lie, and the small ones of them
sequence.py  events, frames and ground truth of a sequence, in one view
dataset.py   training samples; what the registry of data sets finds
writer.py    writing sequences in its files
"""

from flowfuse.data.datasets.dsec.dataset import DATASET

__all__ = ["DATASET"]
