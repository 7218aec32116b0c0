"""Data sets, one module or folder each; :mod:`flowfuse.data.opening` finds them.

base.py       DataSet: what tells one from another
directory.py  plain recordings of any camera
dsec/         DSEC
mvsec/        MVSEC
"""
