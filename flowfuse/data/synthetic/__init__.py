"""Generated scenes: from a seed to frames, events and exact ground truth at any time.

presets.py         what scenes are drawn from: every range
motion.py          how layers move: curves in time, homographies
textures.py        patterns and shapes
thin_shapes.py     thin, branching and jointed objects
layout.py          which layers a scene has, where, and how they move
layers.py          pictures of layers at any time, and which is on top
camera.py          the frame camera
simulator.py       the event sensor
v2e.py             another event sensor
sensor_readout.py  from its pixels to its recording
rendering.py       a scene watched by both
interpolation.py   events between two images whose flow is known
scenes.py          all of it together: a scene from a seed, with its ground truth
dataset.py         scenes as training samples

camera.py, simulator.py and sensor_readout.py also serve alone, on images that come from elsewhere.
"""
