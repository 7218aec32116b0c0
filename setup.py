"""Builds the compiled operators: one library for all Python versions (LibTorch Stable ABI).

Build switches, all environment variables:
  FLOWFUSE_EXTENSION  auto (default): build; where that fails, say so and install without it
                      1: build; a failure is an error
                      0: do not build
  FLOWFUSE_DEBUG      1: no optimization, debug information, AddressSanitizer-friendly frames
  CC, CXX, CXXFLAGS, LDFLAGS as with every setuptools extension, e.g. CXXFLAGS=-fsanitize=address

At run time (no rebuild): FLOWFUSE_DISABLE_EXTENSION=1 leaves the library unloaded and
FLOWFUSE_CPU_CAPABILITY=default|avx2|avx512 forces an instruction set.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
MODE = os.environ.get("FLOWFUSE_EXTENSION", "auto")
if MODE not in ("auto", "0", "1"):
    sys.exit(f"FLOWFUSE_EXTENSION must be auto, 0 or 1, got {MODE!r}")


class BuildExtension(build_ext):
    """Builds the extension, or with FLOWFUSE_EXTENSION=auto goes on without it."""

    def build_extension(self, extension: Extension) -> None:
        try:
            super().build_extension(extension)
        except Exception as error:
            if MODE == "1":
                raise
            # An earlier build's library must not pass for this one's.
            Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            line = "*" * 78
            print(
                f"{line}\nWARNING: flowfuse's compiled operators could not be built:\n  {error}\n"
                "flowfuse is installed without them and runs on slower references in plain torch.\n"
                f"Set FLOWFUSE_EXTENSION=1 to make this an error.\n{line}",
                file=sys.stderr,
            )


def extension() -> Extension:
    import torch  # only its headers and libraries are used

    package = Path(torch.__file__).parent
    optimize = ["-O0", "-g", "-fno-omit-frame-pointer"]
    if os.environ.get("FLOWFUSE_DEBUG", "0") != "1":
        optimize = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math"]
    return Extension(
        "flowfuse._C",
        sources=sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.cpp")),
        depends=sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.h")),
        include_dirs=["csrc"],
        library_dirs=[str(package / "lib")],
        libraries=["torch_cpu"],
        # The ABI of torch 2.11: without this the binary would bind to the torch it was built with.
        define_macros=[("TORCH_TARGET_VERSION", "0x020b000000000000")],
        extra_compile_args=[
            "-std=c++17",
            "-fvisibility=hidden",
            "-Wall",
            "-Wextra",
            f"-isystem{package / 'include'}",  # its warnings are not ours
            *optimize,
        ],
        py_limited_api=True,
        # In place, a library that could not be built is then not missed; one that was is copied.
        optional=MODE == "auto",
    )


setup(
    ext_modules=[] if MODE == "0" else [extension()],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
