"""Where live frames and events come from, and where they are kept.

base.py        what a source is, and the packets that it gives
opening.py     a source by its name, such as "dv:" or a recording
replay.py      a recording, as it came, in real time
dv_camera.py   cameras of iniVation and network streams, by dv-processing
metavision.py  cameras of Prophesee, by Metavision or OpenEB
webcam.py      any camera of OpenCV, with events from the simulator
recorder.py    a recording of what comes in
"""
