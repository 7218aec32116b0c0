"""``flowfuse doctor``: what runs on this machine, and what to install for what."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from flowfuse import __version__
from flowfuse.cli.console import run_command

COMMAND = "flowfuse doctor"
PACKAGE = "flowfuse"
GOOD, MISSING, BROKEN = "ok", "--", "!!"
# What each extra is for. Its packages are those of the installed metadata.
PURPOSES = {
    "train": "TensorBoard event files of a training",
    "onnx": "flowfuse-export to ONNX",
    "cameras": "iniVation cameras and .aedat4, ROS bags",
    "view": "flowfuse-live --view rerun",
    "lint": "make lint",
    "docs": "make docs",
    "dev": "make test",
}
_WIDTH = 22  # of names; the longest is opencv-python-headless
# Each of them is `cv2`: any one serves, and two overwrite each other's files.
_OPENCV = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
)
_FOR_CONTRIBUTORS = ("lint", "docs", "dev")


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        part: versions, operators, devices, codecs or extras.
        name: of what was looked at.
        state: GOOD, MISSING (optional, and not there) or BROKEN (what is there does not work).
        text: what was found.
        remedy: what to install or to do; "" where nothing is.
    """

    part: str
    name: str
    state: str
    text: str
    remedy: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the command's name; None takes those of the process.

    Returns:
        0; 1 where something is broken; 2 on wrong usage.
    """
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.replace("``", ""))
    parser.add_argument("--version", action="version", version=f"{COMMAND} {__version__}")
    parser.add_argument(
        "--operators",
        action="store_true",
        help="also compare every operator with its reference, on every device",
    )
    try:
        asked = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
    except SystemExit as stop:
        return int(stop.code or 0)
    return run_command(COMMAND, lambda: run(operators=asked.operators))


def run(*, operators: bool) -> int:
    """Print the report.

    Args:
        operators: compare the operators with their references, too.

    Returns:
        0, or 1 where something is broken.
    """
    findings = list(examine())
    for line in report(findings):
        print(line)
    code = int(any(finding.state == BROKEN for finding in findings))
    if operators:
        from flowfuse.ops.__main__ import main as compare

        print("\noperators against their references\n")
        code = max(code, compare())
    return code


def report(findings: Iterable[Finding]) -> Iterator[str]:
    """Yield the lines to print.

    Args:
        findings: in the order of their parts.
    """
    part = ""
    for finding in findings:
        if finding.part != part:
            yield from [""] * bool(part)
            yield (part := finding.part)
        yield f"  {finding.state}  {finding.name:<{_WIDTH}}  {finding.text}"
        if finding.remedy:
            yield f"{'':{_WIDTH + 8}}-> {finding.remedy}"


def examine() -> Iterator[Finding]:
    """Look at everything; yields the findings, part by part."""
    yield from _versions()
    yield from _operators()
    yield from _devices()
    yield from _codecs()
    yield from _extras()


def _versions() -> Iterator[Finding]:
    part = "versions"
    where = Path(importlib.import_module(PACKAGE).__file__ or ".").resolve().parent
    yield Finding(part, PACKAGE, GOOD, f"{__version__}, {where}")
    try:
        installed = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        yield Finding(part, "installed", MISSING, "no: it runs from a folder", "make setup")
    else:
        if installed != __version__:
            text = f"as {installed}, not as {__version__}"
            yield Finding(part, "installed", BROKEN, text, "install it again")
    system = f"{platform.system()} {platform.machine()}"
    yield Finding(part, "Python", GOOD, f"{platform.python_version()}, {system}")
    for name in requirements(None):
        yield _package(part, name, BROKEN)


def _operators() -> Iterator[Finding]:
    part = "operators"
    try:
        from flowfuse.ops import build_info
        from flowfuse.ops.extension import DISABLED, REBUILD, REBUILD_CUDA
    except (ImportError, OSError) as error:  # a library of another machine or another torch
        yield Finding(part, "extension", BROKEN, _one_line(error), "install flowfuse again")
        return
    info = build_info()
    if not info["extension"]:
        cause = "switched off by FLOWFUSE_DISABLE_EXTENSION" if DISABLED else "not built"
        remedy = "unset it" if DISABLED else REBUILD
        yield Finding(part, "extension", MISSING, f"{cause}: slower references run", remedy)
        return
    built = f"{info['compiler']}, C++{str(info['cpp_standard'])[2:4]}"
    yield Finding(part, "extension", GOOD, f"built by {built} for torch >= {info['torch_target']}")
    sets = ", ".join(info["cpu_capabilities"] or ())
    yield Finding(part, "CPU kernels", GOOD, f"{info['cpu_capability']} of {sets}")
    if info["cuda"]:
        codes = ", ".join(info["cuda_architectures"])
        yield Finding(part, "CUDA kernels", GOOD, f"CUDA {info['cuda']}: {codes}")
    else:
        yield Finding(part, "CUDA kernels", MISSING, "none", f"on a GPU: {REBUILD_CUDA}")


def _devices() -> Iterator[Finding]:
    part = "devices"
    try:
        import torch

        from flowfuse.ops.extension import KERNEL_DEVICES, REBUILD_CUDA
        from flowfuse.precision import cpu_has_bfloat16
    except (ImportError, OSError):  # told by what was looked at before
        return
    bf16 = "has" if cpu_has_bfloat16() else "has no"
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    yield Finding(part, "cpu", GOOD, f"{_processor()}, {threads}, {bf16} bfloat16 instructions")
    if not torch.cuda.is_available():
        reason = "torch is built without CUDA" if torch.version.cuda is None else "no GPU is seen"
        yield Finding(part, "cuda", MISSING, reason)
        return
    for index in range(torch.cuda.device_count()):
        seen = torch.cuda.get_device_properties(index)
        text = f"{seen.name}, {seen.total_memory / 2**30:.0f} GiB, sm_{seen.major}{seen.minor}"
        if "cuda" in KERNEL_DEVICES:
            yield Finding(part, f"cuda:{index}", GOOD, text)
        else:
            text += ", but there are no CUDA kernels: slower references run"
            yield Finding(part, f"cuda:{index}", BROKEN, text, REBUILD_CUDA)


def _codecs() -> Iterator[Finding]:
    yield _look("Blosc", "events of DSEC", _has_blosc, "pip install hdf5plugin")
    yield _look("H.264", "videos are written", _has_h264, "pip install av")
    yield _look("PNG, JPEG", "images", _has_images, "pip install opencv-python-headless")
    # opencv-python has all that the headless one has, and windows.
    remedy = "pip uninstall opencv-python-headless && pip install opencv-python"
    yield _look("windows", "flowfuse-live --view window", _has_windows, remedy)


def _extras() -> Iterator[Finding]:
    part = "extras"
    try:
        names = metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        names = []
    for extra in sorted(names, key=lambda name: (name in _FOR_CONTRIBUTORS, name)):
        absent = [name for name in requirements(extra) if _installed(name) is None]
        purpose = PURPOSES.get(extra, "")
        if absent:
            text = f"{purpose}; missing: {', '.join(absent)}"
            yield Finding(part, extra, MISSING, text, f'pip install "{PACKAGE}[{extra}]"')
        else:
            yield Finding(part, extra, GOOD, purpose)
    found = importlib.util.find_spec("metavision_core") is not None
    remedy = "" if found else "the Metavision SDK or OpenEB of Prophesee, not on PyPI"
    state = GOOD if found else MISSING
    yield Finding(part, "metavision", state, "cameras of Prophesee, live", remedy)


def requirements(extra: str | None) -> list[str]:
    """Names of the packages that flowfuse, or one of its extras, needs.

    Args:
        extra: such as "train"; None for what is always needed.

    Returns:
        Names as the metadata has them; those of an extra that another extra contains are included.
        Empty where flowfuse is not installed.
    """
    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        wanted, _, marker = line.partition(";")
        asked = re.search(r"extra\s*==\s*[\"']([\w-]+)[\"']", marker)
        if (asked[1] if asked else None) != extra or _is_for_older_python(marker):
            continue
        name = re.split(r"[\s\[<>=!~]", wanted.strip())[0]
        inner = re.search(r"\[([\w, -]+)\]", wanted)
        if name == PACKAGE and inner:
            for other in inner[1].split(","):
                found += requirements(other.strip())
        else:
            found.append(name)
    return found


def _is_for_older_python(marker: str) -> bool:
    found = re.search(r"python_version\s*<\s*[\"'](\d+)\.(\d+)[\"']", marker)
    return found is not None and sys.version_info[:2] >= (int(found[1]), int(found[2]))


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package(part: str, name: str, absent: str) -> Finding:
    if name == _OPENCV[0]:
        there = [other for other in _OPENCV if _installed(other) is not None]
        if len(there) > 1:
            text = f"{' and '.join(there)} overwrite each other's files: keep one"
            remedy = f"pip uninstall {' '.join(there)} && pip install {_OPENCV[0]}"
            return Finding(part, "OpenCV", BROKEN, text, remedy)
        name = there[0] if there else name
    version = _installed(name)
    if version is None:
        return Finding(part, name, absent, "not installed", f"pip install {name}")
    return Finding(part, name, GOOD, version)


def _look(name: str, purpose: str, works: Callable[[], bool], remedy: str) -> Finding:
    try:
        good = works()
    except Exception as error:  # whatever a library raises: the report goes on
        return Finding("codecs", name, BROKEN, f"{purpose}: {_one_line(error)}", remedy)
    if good:
        return Finding("codecs", name, GOOD, purpose)
    return Finding("codecs", name, MISSING, f"{purpose}: not there", remedy)


def _has_blosc() -> bool:
    from flowfuse.data.formats.hdf5 import register_codecs

    return register_codecs()


def _has_h264() -> bool:
    import av

    return "libx264" in av.codecs_available


def _has_images() -> bool:
    import cv2
    import numpy as np

    image = np.zeros((8, 8), np.uint8)
    return all(cv2.imencode(suffix, image)[0] for suffix in (".png", ".jpg"))


def _has_windows() -> bool:
    import cv2

    toolkit = re.search(r"GUI:\s+(\S+)", cv2.getBuildInformation())
    return toolkit is not None and toolkit[1] != "NONE"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
