"""The parts of a training run; flowfuse/train.py wires them together.

samples.py     which sample belongs to which step
state.py       weights, their average, optimizer: saved and restored whole; the run directory
log.py         log.csv, validation.csv, TensorBoard
validation.py  errors on held-out scenes, and pictures of them
"""
