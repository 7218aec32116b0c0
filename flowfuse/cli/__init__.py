"""The commands.

console.py           what all commands share: how they are told, and how they end
infer.py             flowfuse-infer
infer_options.py     its options
infer_recording.py   one recording, by one process or several
reading_options.py   options of all commands that read recordings
infer_outputs.py     its output directory
infer_extras.py      what it writes on request beside flow
infer_figures.py     its pictures
infer_motion.py      its tracks, and the velocity of events
infer_report.py      metrics.json, and what is printed
infer_submission.py  the predictions that the benchmark of DSEC asks for
live.py              flowfuse-live
live_options.py      its options
live_views.py        text, JSON, a window, or a stream for rerun
live_figures.py      its picture
live_report.py       rates, latency, and what was lost
train.py             flowfuse-train
train_options.py     its options, from defaults, a recipe and the command line
"""
