"""Builds instrumented kernels: a library that takes the place of the CPU kernels of flowfuse._C.

    python tests/emulator/build.py conflicts|few_blocks|sanitizers|cpu_sanitizers DIRECTORY

prints the path of the library. `conflicts` is the CUDA sources with every memory access of the
kernels recorded, `few_blocks` that with at most three blocks a launch and little workspace,
`sanitizers` the CUDA sources under AddressSanitizer and UndefinedBehaviorSanitizer,
`cpu_sanitizers` the CPU sources.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SANITIZE = [
    "-fsanitize=address,undefined",
    "-fno-sanitize=vptr",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
]
# Calls of ThreadSanitizer's instrumentation, answered by emulator.cpp and not by its runtime.
RECORD = ["-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"]
VARIANTS = {  # what to compile with, and to link with
    "conflicts": (RECORD, []),
    # Few enough that every block's loop over its items is run through, and so little workspace that
    # items, and parts of an item, come one after the other.
    "few_blocks": ([*RECORD, "-DFLOWFUSE_MOST_BLOCKS=3", "-DFLOWFUSE_WORKSPACE=50000"], []),
    "sanitizers": (SANITIZE, ["-fsanitize=address,undefined"]),
    "cpu_sanitizers": (SANITIZE, ["-fsanitize=address,undefined"]),
}
FLAGS = [
    "-std=c++17",
    "-O1",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",  # "unroll" is for nvcc
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    "-DFLOWFUSE_CUDA_KEY=CPU",
]


def cuda_sources(csrc: Path) -> list[Path]:
    """The sources that the emulator runs: all but launch.cu, whose part it plays itself."""
    return sorted(path for path in csrc.glob("cuda/*.cu") if path.name != "launch.cu")


def build(
    variant: str,
    directory: Path,
    csrc: Path = ROOT / "csrc",
    only: tuple[str, ...] = (),
    emulator: Path | None = None,
) -> Path:
    """Compile what changed since the last build in `directory` and link it.

    Args:
        variant: a name in VARIANTS.
        directory: where objects and the library go; made when missing.
        csrc: the sources, or a changed copy of them.
        only: names of operators' sources without .cu; empty for all.
        emulator: object of the emulator, as another build of the variant left it; None: compile it.

    Returns:
        path of the library.

    Raises:
        RuntimeError: the compiler or the linker failed; its output is the message.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    compile_flags, link_flags = VARIANTS[variant]
    package = Path(torch.__file__).parent
    library = directory / "libflowfuse_emulated.so"
    if variant == "cpu_sanitizers":
        sources, includes = sorted(csrc.glob("cpu/*.cpp")), []
    else:
        sources, includes = [*cuda_sources(csrc), HERE / "emulator.cpp"], [f"-I{HERE}"]
    if only:
        sources = [path for path in sources if path.stem in (*only, "emulator")]
    if emulator is not None:
        sources = [path for path in sources if path.stem != "emulator"]
    includes += [f"-isystem {package / 'include'}", f"-I{csrc}"]
    lines = [
        "ninja_required_version = 1.5",
        f"flags = {' '.join([*FLAGS, *includes])}",
        "rule compile",
        "  command = c++ $flags $extra -MMD -MF $out.d -x c++ -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = c++ -shared -Wl,-z,defs $in -o $out -L{package / 'lib'} "
        f"-Wl,-rpath,{package / 'lib'} -ltorch_cpu {' '.join(link_flags)}",
    ]
    objects = [] if emulator is None else [str(emulator)]
    for source in sources:
        own = source.stem == "emulator"
        flags = [*(compile_flags if not own or variant == "sanitizers" else []), *(["-O2"] * own)]
        objects.append(f"{source.stem}.o")
        lines += [
            f"build {source.stem}.o: compile {source}",
            f"  extra = {' '.join(flags)}",
        ]
    lines += [f"build {library.name}: link {' '.join(objects)}", f"default {library.name}", ""]
    command = [sys.executable, "-m", "ninja", "-C", str(directory)]
    with open(directory / ".lock", "w") as lock:  # tests in other processes want the same library
        fcntl.flock(lock, fcntl.LOCK_EX)
        (directory / "build.ninja").write_text("\n".join(lines))
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stdout + result.stderr)
    return library


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in VARIANTS:
        sys.exit(__doc__)
    print(build(sys.argv[1], Path(sys.argv[2])))
