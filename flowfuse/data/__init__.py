"""Data: recordings read from disk, and scenes generated with exact ground truth.

formats/    files of events and frames, one module a format
datasets/   the plain directory, DSEC and MVSEC, one module or folder a data set
synthetic/  generated scenes, and the simulated cameras that watch them

recording.py         what a recording is: the interface
opening.py           opening a recording of any camera or data set
registry.py          the formats that are known, of this package and of others
file_recording.py    a recording made of an event file and frames
recording_writer.py  writing one
recording_copy.py    copying one into another layout
calibration.py       the cameras of a rig, brought onto one pixel grid
remapping.py         events and frames looked up in maps from pixel to pixel
inspection.py        what a recording is like
samples.py           two frames and their events as a training sample
augment.py           augmentation of samples
corruption.py        corruption of one modality of a sample
"""
