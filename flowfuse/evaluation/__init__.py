"""How good a flow is.

metrics.py     the measures of the field, on arrays
boundaries.py  the error at motion boundaries
baselines.py   DIS, Farneback and zero flow, which networks are compared with
evaluate.py    all measures over many frame pairs, by method or modality, and by mask
"""
