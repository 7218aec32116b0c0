"""Tests mirror the package: a folder of tests is a folder of flowfuse, or of the repository."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_folders_of_tests_mirror_those_of_the_package():
    beside = {"benchmarks", "data_tools", "docs", "examples"}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        folder = path.parent.relative_to(ROOT / "tests")
        if str(folder) in (".", "emulator"):  # of single modules; of what only tests have
            continue
        home = ROOT if folder.parts[0] in beside else ROOT / "flowfuse"
        assert (home / folder).is_dir(), f"{path}: there is no {home / folder}"


def test_single_modules_have_their_test():
    alone = {"distributed", "infer", "runner", "train"}  # by tests/training and tests/cli
    modules = {path.stem for path in (ROOT / "flowfuse").glob("*.py") if path.stem[0] != "_"}
    missing = [
        name for name in modules - alone if not (ROOT / "tests" / f"test_{name}.py").is_file()
    ]
    assert not missing


def test_the_types_are_marked_as_there():
    assert (ROOT / "flowfuse" / "py.typed").is_file()
