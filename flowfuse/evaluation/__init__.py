"""How good a flow is.

metrics.py     the measures of the field, on arrays
boundaries.py  the error at motion boundaries
baselines.py   DIS, Farneback and zero flow, which networks are compared with
evaluate.py    all measures over many frame pairs, by method or modality, and by mask
statistics.py  averages over sets, with bootstrap intervals, ratios and sweeps
thresholds.py  measures whose threshold belongs to a set: what is certain, what is a boundary
cases.py       frame pairs with ground truth from folders of images and real recordings
rotation.py    ground truth of a turning camera
report.py      tables of it all
pictures.py    sheets with all estimates of a pair side by side
"""
