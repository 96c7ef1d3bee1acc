"""What compiling at run time needs: Triton builds the launchers of its kernels in C, Inductor writes C++ for a CPU."""

import os
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from sysconfig import get_path


def lacking_for_gpu() -> str | None:
    """What this machine lacks to compile for a GPU; None where nothing."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if not any(which(compiler) for compiler in (os.environ.get("CC", "cc"), "gcc", "clang")):
        return "there is no C compiler (CC, cc, gcc or clang)"
    return _lacking_headers()


def lacking_for_cpu() -> str | None:
    """What this machine lacks to compile for a CPU; None where nothing."""
    if which(os.environ.get("CXX", "g++")) is None:
        return "there is no C++ compiler (CXX or g++)"
    return _lacking_headers()


def _lacking_headers() -> str | None:
    header = Path(get_path("include"), "Python.h")
    return None if header.is_file() else f"Python's headers are not installed ({header})"
