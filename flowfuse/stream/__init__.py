"""Frames and events as they come, flow at any moment.

stream.py    Stream: what a user pushes into and takes results from
settings.py  StreamSettings: what a user may choose beside
intake.py    what is pushed, put in order and into memory
buffers.py   the memory: the newest events and frames, in constant space
schedule.py  which interval comes next: on a fixed grid, or between frames
estimates.py from an interval in memory to its flow, and what the next one is spared
features.py  encoder features of event slices that intervals share
policy.py    what happens when more comes in than can be estimated; counts of what was lost
clocks.py    the times that sensors give: refused, with a guess of the unit
"""
