"""Data: recordings read from disk, and scenes generated with exact truth.

formats/    files of events and frames, one module a format
datasets/   the data sets DSEC and MVSEC
synthetic/  generated scenes, and the simulated cameras that watch them

recording.py         a recording of any camera or data set, opened by one function
recording_writer.py  writing one
recording_copy.py    copying one into another layout
calibration.py       the cameras of a rig, brought onto one pixel grid
remapping.py         events and frames looked up in maps from pixel to pixel
inspection.py        what a recording is like
samples.py           two frames and their events as a training sample
augment.py           augmentation of samples
"""
