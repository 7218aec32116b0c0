"""File formats of events and of frames: intervals are read without loading the file.

One module a format; :mod:`flowfuse.data.registry` finds them, and those of other packages.

text.py            events in text files
zipped_text.py     the same in .zip archives
hdf5_events.py     events in HDF5 files, flat or as DSEC has them
hdf5_table.py      events in one data set of an HDF5 file
hdf5_m3ed.py       events in the HDF5 files of M3ED
prophesee_hdf5.py  events in the HDF5 files of Prophesee
npz_events.py      events in .npz archives
npz_table.py       events in one array of an .npz archive
prophesee_raw.py   events of Prophesee cameras
prophesee_dat.py   events in Prophesee's .dat files
aedat4.py          events and frames of iniVation cameras
aedat2.py          events of iniVation cameras, recorded by jAER
aedat3.py          events and frames of iniVation cameras, recorded by cAER
ros_bag.py         events and frames in ROS bags
evimo2.py          events in the folders of EVIMO2
images.py          frames in image files
video.py           frames in videos

What they share:

base.py            Format, EventFile and FrameSource: what a format gives
columns.py         events in columns, searched on the disk
table.py           events in one array of four columns
column_order.py    which column of a table is which
prophesee_words.py the words of Prophesee's encodings
ecf.py             the compression of Prophesee's HDF5 files
event_packets.py   the messages event_camera_msgs/EventPacket
triggers.py        frame times from trigger inputs
frames.py          image files decoded; lists of frame times and exposures
hdf5.py            HDF5 files, kept open between reads
npz.py             arrays of .npz archives as memory maps
order.py           why times go back
spool.py           events in temporary files, repaired
wrapped_frames.py  frames at full depth, in order, at other times
block_times.py     search in a sorted column of times that is stored in blocks
event_writer.py    writing events, part by part
hdf5_output.py     writing HDF5 files

What each format of events costs (N events):

=========  ==============================  =====================================================
format     on opening                      per window
=========  ==============================  =====================================================
.h5        ``t`` of up to 2^23 events, of  the window's chunks; before that, without ms_to_idx,
           more 512 times, all if these    at first about log2(N) chunks of ``t``, later none
           go back
.npz       stored members: as .h5;         the window's pages; at first about log2(N) of ``t``
           compressed members: unpacked
           once into unnamed temporary
           files (as large as the arrays)
.txt .csv  one pass over the whole file    the blocks of 1 MiB that the window touches
           (about 0.3 s per million
           events); 1 index entry per MiB
.zip       unpacked once into a temporary  as text
           file, then as text
.raw .dat  one pass over the whole file;   the blocks of 4 MiB that the window touches
.aedat 2   1 index entry per 4 MiB
.aedat 3   one pass over the whole file    the packets that the window touches
.aedat4    one pass over the whole file;   the packets that the window touches
           without a table of times
           unpacked as compressed .npz
.bag .mcap one pass over the event topic   the messages that the window touches
.db3
=========  ==============================  =====================================================

HDF5 files stay open between windows, in each process that reads them, with the chunks decoded last.
The passes check all that they see. The other formats are checked window by window, as they are
read, besides.
"""
