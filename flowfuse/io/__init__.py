"""Files that belong to no camera and no data set.

atomic.py  files written whole or not at all
flow.py    flow files: .flo, 16-bit PNG, .npy, .npz
images.py  colour images to gray
opencv.py  names of files as OpenCV takes them
"""
