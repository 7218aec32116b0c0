"""File formats of events and of frames: intervals are read without loading the file.

One module a format; :mod:`flowfuse.data.registry` finds them, and those of other packages.

text.py           events in text files
hdf5_events.py    events in HDF5 files, flat or as DSEC has them
npz_events.py     events in .npz archives
prophesee_raw.py  events of Prophesee cameras
aedat4.py         events and frames of iniVation cameras
ros_bag.py        events and frames in ROS bags
images.py         frames in image files
video.py          frames in videos

What they share:

base.py           Format, EventFile and FrameSource: what a format gives
columns.py        events in columns, searched on the disk
frames.py         image files decoded; lists of frame times and exposures
hdf5.py           HDF5 files, kept open between reads
npz.py            arrays of .npz archives as memory maps
block_times.py    search in a sorted column of times that is stored in blocks
event_writer.py   writing events, part by part
hdf5_output.py    writing HDF5 files

What each format of events costs (N events):

=========  ==============================  =====================================================
format     on opening                      per window
=========  ==============================  =====================================================
.h5        the shapes                      the window's chunks; before that, without ms_to_idx,
                                           at first about log2(N) chunks of ``t``, later none
.npz       stored members: nothing;        the window's pages; at first about log2(N) of ``t``
           compressed members: unpacked
           once into unnamed temporary
           files (as large as the arrays)
.txt .csv  one pass over the whole file    the blocks of 1 MiB that the window touches
           (about 0.3 s per million
           events); 1 index entry per MiB
.raw       one pass over the whole file;   the blocks of 4 MiB that the window touches
           1 index entry per 4 MiB
.aedat4    the file's own index            the packets that the window touches
.bag       one pass over the event topic   the messages that the window touches
=========  ==============================  =====================================================

HDF5 files stay open between windows, in each process that reads them, with the chunks decoded last.
The passes check all that they see. The other formats are checked window by window, as they are
read.
"""
