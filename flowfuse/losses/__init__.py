"""What a network is trained to make small.

supervised.py       against ground truth
self_supervised.py  from frames and events alone
"""
