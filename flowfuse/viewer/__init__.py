"""One HTML file that shows estimates in a browser, with all data inside.

payload.py  a frame pair as text: frame, events, trajectories and maps, quantised and compressed
page.py     the page around the payloads of a run
page/       its markup, style and script; no other code, no network
"""
