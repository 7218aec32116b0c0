from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings: FLOWFUSE_SHARED_DATA, or ../shared/data beside the repository."""
    beside = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    path = Path(os.environ.get("FLOWFUSE_SHARED_DATA", beside))
    if not path.is_dir():
        pytest.skip(f"no real recordings at {path} (set FLOWFUSE_SHARED_DATA)")
    return path
