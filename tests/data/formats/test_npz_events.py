"""Events in .npz archives that are damaged."""

from __future__ import annotations

import numpy as np
import pytest
from event_cases import (
    GOOD,
)

from flowfuse.data.registry import open_event_file


def test_npz_that_leads_before_its_beginning(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **GOOD)
    data = bytearray(path.read_bytes())
    data[data.find(b"PK\5\6") + 17] += 64  # where the directory begins, and with it all members
    path.write_bytes(data)
    with pytest.raises((OSError, ValueError), match=r"a\.npz: "):
        open_event_file(path)
