"""How good a flow is.

metrics.py  the measures of the field, on arrays
"""
