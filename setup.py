"""Builds the compiled operators: one library for all Python versions (LibTorch Stable ABI).

Build switches, all environment variables:
  FLOWFUSE_EXTENSION  auto (default): build; where that fails, say so and install without it
                      1: build; a failure is an error
                      0: do not build
  FLOWFUSE_CUDA       auto (default): with the CUDA kernels where nvcc is found ($NVCC, in
                      $CUDA_HOME/bin or on the PATH); no GPU and no CUDA build of torch is needed
                      1: with them; a missing nvcc is an error
                      0: without them
  FLOWFUSE_CUDA_ARCHITECTURES
                      GPU codes to compile for, in nvcc's names: sm_NN is machine code, compute_NN
                      is PTX for later GPUs. Default, and the order of compile time it costs:
                      sm_80,sm_86,sm_89,sm_90,compute_80,compute_90
  FLOWFUSE_WERROR     1: compiler warnings, nvcc's and those of register spills are errors
  FLOWFUSE_DEBUG      1: no optimization, debug information, AddressSanitizer-friendly frames
  MAX_JOBS            compilers that run at once (default: one a core)
  CXX, CXXFLAGS, LDFLAGS, NVCC, NVCCFLAGS   as usual, e.g. CXXFLAGS=-fsanitize=address

At run time (no rebuild): FLOWFUSE_DISABLE_EXTENSION=1 leaves the library unloaded and
FLOWFUSE_CPU_CAPABILITY=default|avx2|avx512|avx512_bf16 forces an instruction set.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
ARCHITECTURES = "sm_80,sm_86,sm_89,sm_90,compute_80,compute_90"
# The ABI of torch 2.11: without this the binary would bind to the torch it was built with.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"

# At the borders of an image windows are cut: GCC makes a loop for each way that they can be, which
# is a tenth of the whole library for a few vectors of pixels.
SOURCE_FLAGS = {"csrc/cpu/common_gradient.cpp": "-fno-split-loops"}


def switch(name: str) -> str:
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        sys.exit(f"{name} must be auto, 0 or 1, got {value!r}")
    return value


MODE = switch("FLOWFUSE_EXTENSION")
CUDA = switch("FLOWFUSE_CUDA")
DEBUG = os.environ.get("FLOWFUSE_DEBUG", "0") == "1"
WERROR = os.environ.get("FLOWFUSE_WERROR", "0") == "1"


def find_nvcc() -> str | None:
    """The CUDA compiler, or None where there is none or FLOWFUSE_CUDA=0."""
    if CUDA == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    asked = os.environ.get("NVCC")
    if asked and shutil.which(asked) is None:
        sys.exit(f"NVCC={asked} is not a program")
    candidates = [asked, home and f"{home}/bin/nvcc", "nvcc"]
    found = next((path for name in candidates if name and (path := shutil.which(name))), None)
    if found is None and CUDA == "1":
        sys.exit("FLOWFUSE_CUDA=1, but nvcc is not in NVCC, CUDA_HOME/bin or PATH")
    return found


def cuda_facts(nvcc: str) -> tuple[str, Path]:
    """Version of nvcc ("13.0") and the folder of its static runtime library."""
    version = subprocess.check_output([nvcc, "--version"], text=True)
    version = version.partition("release ")[2].partition(",")[0]
    # It may be a link or a script: only nvcc itself knows where its toolkit is.
    steps = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True).stderr
    tops = [line[len("#$ TOP=") :] for line in steps.splitlines() if line.startswith("#$ TOP=")]
    if not version or not tops:
        raise RuntimeError(f"{nvcc} does not answer as nvcc does")
    top = tops[0]
    found = [
        path
        for folder in ("lib64", "lib", "targets/*/lib")
        for path in Path(top).glob(f"{folder}/libcudart_static.a")
    ]
    if not found:
        raise RuntimeError(f"{nvcc}: no libcudart_static.a in the toolkit at {top}")
    return version, found[0].parent


def architecture_flags(names: list[str]) -> list[str]:
    flags = []
    for name in names:
        kind, _, number = name.partition("_")
        if kind not in ("sm", "compute") or not number[:2].isdigit():
            sys.exit(
                "FLOWFUSE_CUDA_ARCHITECTURES must name codes such as sm_90 or compute_90 with "
                f"commas between, got {name!r}"
            )
        if int(number[:-1] if number[-1].isalpha() else number) < 80:
            sys.exit(f"FLOWFUSE_CUDA_ARCHITECTURES: the kernels need sm_80 or later, got {name!r}")
        flags.append(f"-gencode=arch=compute_{number},code={name}")
    return flags


def quoted(arguments: list[str]) -> str:
    """Arguments as a shell takes them, in a line of build.ninja."""
    return " ".join(shlex.quote(argument) for argument in arguments).replace("$", "$$")


def ninja_path(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def build_plan(library: Path, nvcc: str | None) -> str:
    """A build.ninja that makes `library` of all sources, those of csrc/cuda where there is nvcc."""
    import torch  # only its headers and libraries are used

    package = Path(torch.__file__).parent
    definitions = [TORCH_TARGET]
    sources = sorted(ROOT.glob("csrc/*.cpp")) + sorted(ROOT.glob("csrc/cpu/*.cpp"))
    # The headers of torch are not ours to warn about.
    common = ["-std=c++17", "-isystem", f"{package / 'include'}", f"-I{ROOT / 'csrc'}"]
    warnings = ["-Wall", "-Wextra", *["-Werror"] * WERROR]
    # What messages name is csrc/checks.h, wherever it was built.
    prefixes = (f"{ROOT}/", f"{package / 'include'}/")
    short_names = [
        f"-fmacro-prefix-map={prefix}="
        for prefix in prefixes
        if not set(prefix) & set(" ,")  # nvcc would take such an argument apart
    ]
    optimize = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math"]
    if DEBUG:
        optimize = ["-O0", "-g", "-fno-omit-frame-pointer"]
    cuda_flags, libraries = [], [f"-L{package / 'lib'}", "-ltorch_cpu"]
    if nvcc is not None:
        version, folder = cuda_facts(nvcc)
        names = os.environ.get("FLOWFUSE_CUDA_ARCHITECTURES") or ARCHITECTURES
        names = [name for name in names.replace(";", ",").split(",") if name] or [""]
        definitions += [
            f"-DFLOWFUSE_CUDA_VERSION={version}",
            f"-DFLOWFUSE_CUDA_ARCHITECTURES={'+'.join(names)}",  # nvcc would split it at commas
        ]
        sources += sorted(ROOT.glob("csrc/cuda/*.cu"))
        libraries += [f"-L{folder}", "-lcudart_static", "-lrt", "-lpthread", "-ldl"]
        libraries += ["-Wl,--exclude-libs,libcudart_static.a"]  # torch may bring another version
        cuda_flags = [
            *common,
            *architecture_flags(names),
            *(["-O0", "-g", "-lineinfo"] if DEBUG else ["-O3"]),
            "-Xptxas=-warn-spills",
            *["-Werror=all-warnings"] * WERROR,
            "-Xcompiler=" + ",".join(["-fPIC", "-fvisibility=hidden", *short_names, *warnings]),
            *definitions,
        ]
    lines = [
        "ninja_required_version = 1.5",
        f"cxx = {os.environ.get('CXX', 'c++')}",
        f"cxxflags = {quoted([*common, *warnings, *optimize, *definitions, *short_names])} "
        f"-fPIC -fvisibility=hidden {os.environ.get('CXXFLAGS', '')}",
        f"nvcc = {quoted([nvcc or 'nvcc'])}",
        f"nvccflags = {quoted(cuda_flags)} {os.environ.get('NVCCFLAGS', '')}",
        "rule cxx",
        "  command = $cxx $cxxflags -MMD -MF $out.d -c $in -o $out",
        "  description = compile $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule nvcc",
        "  command = $nvcc $nvccflags -MD -MF $out.d -c $in -o $out",
        "  description = compile $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = $cxx -shared $in -o $out {quoted(libraries)} {os.environ.get('LDFLAGS', '')}",
        "  description = link $out",
    ]
    objects = []
    # Those that take longest come first, or one of them would keep a single core busy at the end.
    for source in sorted(sources, key=lambda path: (path.suffix != ".cu", -path.stat().st_size)):
        name = f"{source.relative_to(ROOT)}.o"
        objects.append(name)
        rule = "nvcc" if source.suffix == ".cu" else "cxx"
        lines.append(f"build {name}: {rule} {ninja_path(source)}")
        flag = SOURCE_FLAGS.get(str(source.relative_to(ROOT)))
        if flag is not None and not DEBUG and taken_by_compiler(flag):
            lines.append(f"  cxxflags = $cxxflags {flag}")
    return "\n".join([*lines, f"build {ninja_path(library)}: link {' '.join(objects)}", ""])


def taken_by_compiler(flag: str) -> bool:
    """Whether the C++ compiler knows a flag; clang lacks some of GCC's."""
    command = [*shlex.split(os.environ.get("CXX", "c++")), "-Werror", flag, "-x", "c++"]
    done = subprocess.run([*command, "-fsyntax-only", os.devnull], capture_output=True)
    return done.returncode == 0


def warn(text: str, error: Exception) -> None:
    line = "*" * 78
    print(f"{line}\nWARNING: {text}\nThe cause: {error}\n{line}", file=sys.stderr)


class BuildExtension(build_ext):
    """Builds the library with ninja; what is on auto and fails is left out, with a warning."""

    def build_extension(self, extension: Extension) -> None:
        library = Path(self.get_ext_fullpath(extension.name)).resolve()
        nvcc = find_nvcc()
        try:
            try:
                self.build_library(library, nvcc)
            except Exception as error:
                if nvcc is None or CUDA == "1":
                    raise
                warn(
                    "flowfuse's CUDA kernels could not be built; it is built for CPUs only.\n"
                    "Set FLOWFUSE_CUDA=1 to make this an error, 0 not to try.",
                    error,
                )
                self.build_library(library, None)
        except Exception as error:
            # An earlier build's library must not pass for this one's.
            library.unlink(missing_ok=True)
            if "1" in (MODE, CUDA):
                raise
            warn(
                "flowfuse's compiled operators could not be built.\n"
                "flowfuse is installed without them and runs on slower references in plain torch.\n"
                "Set FLOWFUSE_EXTENSION=1 to make this an error.",
                error,
            )

    def build_library(self, library: Path, nvcc: str | None) -> None:
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        library.parent.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(build_plan(library, nvcc))
        kinds = "the CPU kernels" if nvcc is None else f"the CPU and, with {nvcc}, the CUDA kernels"
        minutes = "one to two minutes" if nvcc is None else "several minutes"
        print(f"flowfuse: compiling {kinds}; on two cores this takes {minutes}", flush=True)
        jobs = [f"-j{os.environ['MAX_JOBS']}"] if os.environ.get("MAX_JOBS") else []
        subprocess.run([sys.executable, "-m", "ninja", "-C", str(folder), *jobs], check=True)


class BuildPython(build_py):
    """Puts the data tools into the wheel; in a checkout, flowfuse-data finds them beside it."""

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):
            return
        target = Path(self.build_lib) / "flowfuse" / "data_tools"
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(ROOT.glob("data_tools/*.py")):
            shutil.copyfile(path, target / path.name)


# In place, a library that could not be built is then not missed; one that was is copied.
EXTENSION = Extension("flowfuse._C", sources=[], py_limited_api=True, optional=MODE == "auto")

setup(
    ext_modules=[] if MODE == "0" else [EXTENSION],
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPython},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
