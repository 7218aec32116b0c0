"""The scripts of data_tools as modules, for tests that call them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).resolve().parents[1] / "data_tools"


def load_tool(name: str) -> ModuleType:
    """Run a script as a module of its own, without putting its folder on the path."""
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
