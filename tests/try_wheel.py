"""Try a wheel in fresh environments, away from the checkout: all that the README shows runs there.

    python tests/try_wheel.py dist/cpu/*.whl --python python3.10 python3.13 --torch 2.11.0

One environment for each Python and each torch, made in a temporary folder and removed after it.
torch comes from pip's index: its builds for CUDA have several gigabytes. Prints a Markdown table;
the exit code is 1 where a command failed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

SAMPLE = "import flowfuse; print(flowfuse.sample_recording())"
LIBRARY = (
    "from flowfuse.ops import build_info as b; "
    "print(b()['path'], b()['torch_target'], '+'.join(b()['devices']))"
)
# What the README shows would train for hours: the same commands, for two steps.
SHORT = "--steps 2 --batch 1 --crop 32 32 --device cpu"
ON_SCENES = (
    "--model nano --scenes 2 --scene-size 48 64 --final-crop 32 32 --validation-scenes 1 "
    "--validate-every 2"
)
ELSEWHERE = ("DSEC", "dv:")  # a data set and a camera that are not here
TOOLS = (
    "convert", "inspect", "simulate", "generate", "download-dsec", "check-submission",
    "write-dsec", "write-mvsec", "evaluate",
)  # fmt: skip
TIMEOUT = 3600.0  # s
MOST_OF_CPU = 3.0  # MB of libraries in a wheel for CPUs


def library_size(wheel: Path) -> float:
    """MB of the compiled libraries in a wheel, unpacked."""
    with zipfile.ZipFile(wheel) as archive:
        found = [info for info in archive.infolist() if ".so" in Path(info.filename).suffixes]
    return sum(info.file_size for info in found) / 1e6


def shown_in_readme(wheel: Path) -> tuple[str, list[str]]:
    """The program in Python and the command lines that the description of a wheel shows."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode()
    program = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    lines = re.findall(r"^(flowfuse-.*?) +#", text, re.MULTILINE)
    if program is None or len(lines) < 3:
        raise ValueError(f"{wheel}: its README shows no program, or fewer than 3 command lines")
    return program[1], lines


def commands(wheel: Path, sample: str) -> Iterator[str]:
    """What is run, as lines for a shell."""
    program, lines = shown_in_readme(wheel)
    yield "python -m flowfuse.ops"
    yield f"python -c {shlex.quote(program.replace('RECORDING', sample))}"
    for line in lines:
        if any(word in ELSEWHERE for word in line.split()):
            continue
        line = line.replace("RECORDING", sample)
        if line.startswith("flowfuse-train"):
            line = f"{line} {SHORT} {'' if '--self-supervised' in line else ON_SCENES}"
        elif line.startswith("flowfuse-infer"):
            line += " --overwrite"
        yield line
    yield "flowfuse-data inspect " + sample
    yield f"flowfuse-data convert {sample} copy"
    yield "flowfuse-data generate scene --frames 3 --size 64x48"
    yield "flowfuse-export small -o small.pt2 --height 32 --width 48 --iterations 1"
    for tool in TOOLS:
        yield f"flowfuse-data {tool} --help"
    for command in ("infer", "train", "data", "export", "live"):
        yield f"flowfuse-{command} --help"
    # OpenCV's own package, over the one that flowfuse depends on.
    yield "pip install --quiet opencv-python"
    yield f"flowfuse-infer {sample} -o beside --overwrite"
    yield "pip check"


class Environment:
    """A virtual environment in a folder of its own, and what is run there."""

    def __init__(self, folder: Path, python: str) -> None:
        self.work = folder / "work"
        self.work.mkdir()
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FLOWFUSE_", "PYTHON", "VIRTUAL_ENV"))
        }
        binaries = folder / "env" / "bin"
        self.variables = {**clean, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
        subprocess.run([python, "-m", "venv", str(folder / "env")], check=True)

    def run(self, line: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            line, shell=True, cwd=self.work, env=self.variables, capture_output=True, text=True,
            timeout=TIMEOUT,
        )  # fmt: skip

    def answer(self, line: str) -> str:
        """What a line prints.

        Raises:
            RuntimeError: it failed; tells its last words.
        """
        done = self.run(line)
        if done.returncode:
            raise RuntimeError(f"{line}: exit code {done.returncode}\n{done.stderr[-2000:]}")
        return done.stdout.strip()


def try_in(folder: Path, wheel: Path, python: str, torch: str) -> tuple[str, str, list[str]]:
    """Try a wheel with one Python and one torch.

    Returns:
        The versions of both, and what failed.
    """
    environment = Environment(folder, python)
    install = f"pip install --quiet torch=={torch} {shlex.quote(str(wheel.resolve()))}"
    environment.answer(install)
    versions = environment.answer(
        "python -c 'import platform, torch; print(platform.python_version(), torch.__version__)'"
    ).split()
    path, target, devices = environment.answer(f"python -c {shlex.quote(LIBRARY)}").split()
    failed = []
    if not Path(path).resolve().is_relative_to(folder.resolve()):
        failed.append(f"the operators were loaded from {path}, expected them in {folder}")
    size = library_size(wheel)
    if devices == "cpu" and size >= MOST_OF_CPU:
        failed.append(f"{wheel}: libraries of {size:.2f} MB, expected less than {MOST_OF_CPU:g}")
    print(f"Python {versions[0]}, torch {versions[1]}: operators for torch >= {target}", flush=True)
    for line in commands(wheel, environment.answer(f"python -c '{SAMPLE}'")):
        done = environment.run(line)
        shown = line.splitlines()[0]
        print(f"  {'ok    ' if done.returncode == 0 else 'FAILED'} {shown}", flush=True)
        if done.returncode:
            failed.append(f"{shown}: {(done.stderr or done.stdout)[-1000:]}")
    return versions[0], versions[1], failed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters")
    parser.add_argument("--torch", nargs="+", required=True, help="versions, such as 2.11.0")
    arguments = parser.parse_args(argv)
    if not arguments.wheel.is_file():
        parser.error(f"{arguments.wheel} is not a file")
    sizes = f"{arguments.wheel.stat().st_size / 1e6:.1f} | {library_size(arguments.wheel):.1f}"
    rows, faults = [], []
    for python, torch in itertools.product(arguments.python, arguments.torch):
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = try_in(Path(folder), arguments.wheel, python, torch)
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                found = (python, torch, [str(error)])
        faults += found[2]
        result = f"{len(found[2])} failed" if found[2] else "all passed"
        rows.append(f"| {arguments.wheel.name} | {sizes} | {found[0]} | {found[1]} | {result} |")
    print("\n| wheel | MB | MB of libraries | Python | torch | commands |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))
    for fault in faults:
        print(f"\n{fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
