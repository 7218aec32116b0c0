"""Writes event_camera_msgs/EventPacket to ROS bags; skips the test without rosbags."""

from __future__ import annotations

import numpy as np
import pytest
from container_cases import HEIGHT, START, WIDTH

DEFINITION = """\
std_msgs/Header header
uint32 height
uint32 width
uint64 seq
uint64 time_base
string encoding
bool is_bigendian
uint8[] events
"""
KIND = "event_camera_msgs/msg/EventPacket"
TOPIC = "/event_camera/events"
SENSOR = START - 7_000_000  # what the camera's own clock lags behind that of ROS, us


class PacketWriter:
    """Writes packets by rosbags, for storages "bag", "db3" and "mcap"."""

    def __init__(self, path, storage):
        pytest.importorskip("rosbags")
        from rosbags import rosbag1, rosbag2
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore

        self.ros1 = storage == "bag"
        self.types = get_typestore(Stores.ROS1_NOETIC if self.ros1 else Stores.ROS2_HUMBLE)
        self.types.register(get_types_from_msg(DEFINITION, KIND))
        if self.ros1:
            self.bag = rosbag1.Writer(path)
        else:
            plugin = getattr(rosbag2.StoragePlugin, {"db3": "SQLITE3", "mcap": "MCAP"}[storage])
            self.bag = rosbag2.Writer(path, version=9, storage_plugin=plugin)
        self.bag.open()
        self.topic = self.bag.add_connection(TOPIC, KIND, typestore=self.types)

    def message(self, stamp, number, time_base, encoding, data, big=False, size=(HEIGHT, WIDTH)):
        make = self.types.types
        seconds, rest = divmod(int(stamp), 10**6)
        time = make["builtin_interfaces/msg/Time"](sec=seconds, nanosec=1000 * rest)
        count = {"seq": 3} if self.ros1 else {}
        frame = "camera"[: number % 5]  # names of every length: what follows is aligned
        header = make["std_msgs/msg/Header"](stamp=time, frame_id=frame, **count)
        packet = make[KIND](
            header=header, height=size[0], width=size[1], seq=number, time_base=time_base,
            encoding=encoding, is_bigendian=big, events=np.frombuffer(data, np.uint8),
        )  # fmt: skip
        encode = self.types.serialize_ros1 if self.ros1 else self.types.serialize_cdr
        return bytes(encode(packet, KIND))

    def write(self, stamp, *fields, **options):
        # Two messages are recorded at one time.
        time = 1000 * (int(stamp) // 20_000 * 20_000) + 90_000_000
        self.bag.write(self.topic, time, self.message(stamp, *fields, **options))
