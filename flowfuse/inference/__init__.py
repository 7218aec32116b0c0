"""The parts of one run of flowfuse-infer; flowfuse/infer.py wires them together.

settings.py         the command line
windows.py          which windows of a recording to estimate, and estimating one
outputs.py          the files of a run: names, what is finished, writing, reading back
pictures.py         what is drawn of one window
report.py           errors against truth, and what to say in the end
dsec_submission.py  the predictions that the benchmark of DSEC asks for
"""
