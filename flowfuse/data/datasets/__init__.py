"""Data sets, one module or folder each; :mod:`flowfuse.data.opening` finds them.

base.py       DataSet: what tells one from another
blinkflow.py  BlinkFlow
directory.py  plain recordings of any camera
dsec/         DSEC
evimo2.py     EVIMO2
multiflow.py  MultiFlow
mvsec/        MVSEC
rotation.py   cameras that only turn, as in the Event Camera Dataset
tum_vie.py    TUM-VIE
ueof.py       UEOF
vector.py     VECtor
"""
