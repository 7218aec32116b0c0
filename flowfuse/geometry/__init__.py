"""Where pixels are and how they move.

grid.py     pixel grids, sampling, warping, padding
carry.py    flow moved along itself, to start from
bezier.py   trajectories: the displacement of a pixel at any time
laplace.py  how far off a displacement may be: a mixture of two Laplace distributions
"""
