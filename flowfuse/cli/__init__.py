"""The commands.

console.py           what all commands share: how they are told, and how they end
infer.py             flowfuse-infer
infer_options.py     its options
infer_recording.py   one recording, by one process or several
infer_outputs.py     its output directory
infer_extras.py      what it writes on request beside flow
infer_figures.py     its pictures
infer_report.py      metrics.json, and what is printed
infer_submission.py  the predictions that the benchmark of DSEC asks for
train.py             flowfuse-train
train_options.py     its options, from defaults, a recipe and the command line
"""
