"""The parts of a training run; flowfuse/cli/train.py wires them together.

settings.py    what a training is
data_spec.py   the text that names what to train on
pools.py       what is trained and measured on
sampling.py    which sample belongs to which step
trainer.py     the loop
schedule.py    the learning rate of each step
state.py       weights, their average, optimizer: saved and restored whole; the run directory
log.py         log.csv, validation.csv, TensorBoard
validation.py  errors on held-out scenes, and pictures of them
finetune.py    the same for a recording without ground truth
devices.py     where a process computes
stopping.py    Ctrl-C, SIGTERM, a time limit
"""
