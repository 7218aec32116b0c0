"""File formats of events and of frames: intervals are read without loading the file.

One module a format; :mod:`flowfuse.data.registry` finds them, and those of other packages.

===================  ====================  ==================================================
what you have        module                what it is
===================  ====================  ==================================================
Prophesee camera     prophesee_raw.py      .raw: EVT 2.0, 2.1, 3.0, 4.0
                     prophesee_dat.py      .dat
                     prophesee_hdf5.py     .hdf5 of Metavision, compressed as ECF or not
iniVation camera     aedat4.py             .aedat4 of DV: events and frames
                     aedat3.py             .aedat of cAER: events and frames
                     aedat2.py             .aedat, .dat of jAER: events
any, by ROS          ros_bag.py            .bag, .mcap, .db3: events and frames
arrays or text       hdf5_events.py        .h5 with x, y, t, p; DSEC, TUM-VIE, VECtor
                     hdf5_table.py         .h5 with one array (v2e, UEOF)
                     npz_events.py         .npz with x, y, t, p
                     npz_table.py          .npz with one array (EVIMO)
                     text.py               .txt, .csv
                     zipped_text.py        .zip with one text file (E2VID)
a data set's own     hdf5_m3ed.py          .h5 of M3ED
                     evimo2.py             a folder of EVIMO2
frames               images.py             image files with times
                     video.py              videos
===================  ====================  ==================================================

What they are made of:

=====================  =======================================================================
base.py                Format, EventFile and FrameSource: what a format gives
order.py, spool.py     why times go back; events in temporary files, repaired
triggers.py            frame times from trigger inputs of the camera
frames.py              image files decoded, the order of their names, lists of times
wrapped_frames.py      frames at full depth, in order, at other times
columns.py, table.py   events in four columns, or in one array of four, searched on the disk
column_order.py        which column of a table is which
block_times.py         search in a sorted column of times that is stored in blocks
hdf5.py, npz.py        HDF5 files kept open between reads; arrays of .npz as memory maps
prophesee_words.py     the words of Prophesee's encodings
ecf.py                 the compression of Prophesee's HDF5 files
aedat4_packets.py      the packets of .aedat4 files, looked at before they are read
event_packets.py       the messages event_camera_msgs/EventPacket
event_writer.py        writing events, part by part
hdf5_output.py         writing HDF5 files
=====================  =======================================================================

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
