from __future__ import annotations

import os
from collections.abc import Iterator
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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread of torch: tiny tensors gain nothing from more, and processes can be compared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_configure(config: pytest.Config) -> None:
    """FLOWFUSE_TEST_EMULATOR names a library of tests/emulator: the CUDA device code, run on the
    CPU. It takes the place of the CPU kernels, so that every test of the operators tests it.
    """
    library = os.environ.get("FLOWFUSE_TEST_EMULATOR")
    if library:
        import torch

        import flowfuse.ops  # the operators must exist first

        assert flowfuse.ops.build_info()["extension"], "the emulator needs the extension"
        torch.ops.load_library(library)
