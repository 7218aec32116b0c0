"""Files of events and of frames: windows are read without loading the file.

events.py         event files of every format, opened by one function; what each costs
frames.py         frames and their times: a directory of images or a video
event_writer.py   writing events, part by part
text.py           events in text files
prophesee_raw.py  events of Prophesee cameras
aedat4.py         events and frames of iniVation cameras
ros_bag.py        events and frames in ROS bags
containers.py     which of the last two a path is; they are imported only when one is opened
hdf5.py           HDF5 files, kept open between reads
npz.py            arrays of .npz archives as memory maps
block_times.py    search in a sorted column of times that is stored in blocks
"""
