"""Flow of a webcam as it comes, with simulated events: for who has no event camera yet.

    python examples/live_webcam.py [CAMERA] [SECONDS]

CAMERA is the number of a camera (0), or a video. With an event camera, put `dv:` (iniVation) or
`metavision:` (Prophesee) in the place of `webcam:`; flowfuse-live does the same as a command.
"""

from __future__ import annotations

import sys
import threading
import time

import numpy as np

import flowfuse
from flowfuse.live_sources.base import LiveFrame, Source, SourceLostError
from flowfuse.live_sources.opening import open_source


def feed(source: Source, stream: flowfuse.Stream) -> None:
    """Push what comes from the source, until it ends or is closed."""
    try:
        for packet in source.packets():
            if isinstance(packet, LiveFrame):
                stream.push_frame(packet.image, packet.t, packet.exposure)
            else:
                stream.push_events(packet.x, packet.y, packet.t, packet.p)
    except SourceLostError as error:  # the cable was pulled, the video has ended
        print(error, file=sys.stderr)
    finally:
        stream.close()


def main(camera: str = "0", seconds: float = float("inf")) -> int:
    """Show the motion of each interval; returns how many there were."""
    source = open_source(f"webcam:{camera}")
    stream = flowfuse.Stream(
        "small", height=source.height, width=source.width, device="auto", policy="latest"
    )
    thread = threading.Thread(target=feed, args=(source, stream))
    thread.start()
    ends, count = time.monotonic() + seconds, 0
    try:
        for result in stream:  # waits for the next interval; ends when the stream is closed
            count += 1
            u, v = result.flow.mean(axis=(1, 2))
            fastest = np.hypot(*result.flow).max()
            late = 1e3 * stream.timing.latency
            print(
                f"{result.t1 * 1e-6:7.3f} s: mean ({u:+.1f}, {v:+.1f}) px, "
                f"fastest {fastest:.1f} px, {late:.0f} ms late"
            )
            if time.monotonic() > ends:
                break
    except KeyboardInterrupt:
        pass
    finally:
        source.close()
        thread.join()
    print(f"{count} results, {stream.stats.intervals_skipped} intervals passed over")
    return count


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(float, sys.argv[2:3]))
