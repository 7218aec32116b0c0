"""Files that belong to no camera and no data set, and what is told of long work.

atomic.py    files written whole or not at all
flow.py      flow files: .flo, 16-bit PNG, .npy, .npz
history.py   the commands that wrote into a directory of results
images.py    colour images to gray
opencv.py    names of files as OpenCV takes them
progress.py  bars, and lines where there is no terminal
"""
