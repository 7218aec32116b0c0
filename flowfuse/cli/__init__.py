"""The commands.

console.py           what all commands share: how they are told, and how they end
infer.py             flowfuse-infer
infer_options.py     its options
infer_outputs.py     its output directory
infer_figures.py     its pictures
infer_report.py      metrics.json, and what is printed
infer_submission.py  the predictions that the benchmark of DSEC asks for
train.py             flowfuse-train
train_options.py     its options, from defaults, a recipe and the command line
"""
