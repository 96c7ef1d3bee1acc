"""What this host offers: processors, open files, temporary folder, interfaces, environment. Nothing imports torch."""

import os
import resource
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from megaslm.doctor.check import Check
from megaslm.engine.network import GLOO_INTERFACE, NCCL_INTERFACE, addresses_by_interface
from megaslm.engine.seat import seat_in
from megaslm.health.disk import Disk, size_of
from megaslm.storage.file_systems import ENDPOINT_VARIABLES

_USUAL_OPEN_FILES = 1024
"""What Linux gives a process by default. The loader's maps of shards and the connections of ranks are made for it."""
_LEAST_TEMPORARY_BYTES = 1 << 30
_TOLD_OF = (
    *("CUDA_", "NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "TRITON_", "CUBLAS_", "DS_", "OMP_", "MKL_", "HF_"),
    *("TRANSFORMERS_", "AWS_", "S3_", "WANDB_", "MEGASLM_", "SLURM_", "MASTER_", "LOCAL_", "PYTHON", "MALLOC_", "LD_"),
    *("RANK", "WORLD_SIZE", "CC", "CXX", "TMPDIR"),
)
"""The beginnings of the names of environment variables that change what a run does."""


def processors() -> Iterator[Check]:
    """The processors that this process may use."""
    yield from judge_processors(len(os.sched_getaffinity(0)), os.cpu_count() or 1, os.environ.get("OMP_NUM_THREADS"))


def judge_processors(usable: int, present: int, threads: str | None) -> Iterator[Check]:
    """Judges the processors. `threads`: OMP_NUM_THREADS, where it is set."""
    found = f"{usable} of {present} may be used; OMP_NUM_THREADS {'is not set' if threads is None else f'= {threads}'}"
    facts = {"usable": usable, "present": present, "omp_num_threads": threads}
    if threads is not None and threads.isdecimal() and int(threads) > usable:
        found += ", more threads than processors: they wait for one another"
        yield Check(
            "processors", "warning", found, f"export OMP_NUM_THREADS={usable}, or less with several ranks", facts
        )
    else:
        yield Check("processors", "ok", found, facts=facts)


def open_files() -> Iterator[Check]:
    """How many files a process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    facts = {"soft": soft, "hard": hard}
    if soft != resource.RLIM_INFINITY and soft < _USUAL_OPEN_FILES:
        yield Check(
            "open files",
            "warning",
            f"a process may open {soft}, fewer than the usual {_USUAL_OPEN_FILES}: a loader keeps "
            "shards open, and a rank its connections to the others",
            f"ulimit -n {_USUAL_OPEN_FILES} before the start; for a container --ulimit nofile={_USUAL_OPEN_FILES}",
            facts,
        )
        return
    told = "any number" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    yield Check("open files", "ok", f"a process may open {told}", facts=facts)


def temporary_folder() -> Iterator[Check]:
    """The folder for temporary files, to which torch also compiles."""
    wanted = os.environ.get("TMPDIR")
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        yield Check(
            "temporary", "problem", f"no temporary folder can be written ({error.strerror})", "set TMPDIR to one"
        )
        return
    disk = Disk.of(folder)
    free_bytes = None if disk is None else disk.free_bytes
    facts = {"folder": folder, "tmpdir": wanted, "free_bytes": free_bytes}
    if wanted is not None and folder != Path(wanted).absolute():
        found = f"TMPDIR = {wanted} cannot be written, so that {folder} is used"
        yield Check("temporary", "warning", found, "set TMPDIR to a folder that you may write to", facts)
    elif free_bytes is not None and free_bytes < _LEAST_TEMPORARY_BYTES:
        found = f"{folder} has room for {size_of(free_bytes)}; torch also compiles there"
        yield Check("temporary", "warning", found, "make room, or set TMPDIR to another folder", facts)
    else:
        room = "unknown room" if free_bytes is None else size_of(free_bytes)
        yield Check("temporary", "ok", f"{folder} has room for {room}", facts=facts)


def interfaces() -> Iterator[Check]:
    """The network interfaces, and whether those that the environment names are there."""
    yield from judge_interfaces(addresses_by_interface(), os.environ)


def judge_interfaces(found: Mapping[str, Sequence[str]], environment: Mapping[str, str]) -> Iterator[Check]:
    """Judges the interfaces, with the addresses of each, by what the environment asks for."""
    there = ", ".join(found) or "none"
    for variable, matches in ((GLOO_INTERFACE, _gloo_takes), (NCCL_INTERFACE, _nccl_takes)):
        named = environment.get(variable)
        if named is not None and not any(matches(named, name) for name in found):
            told = f"{variable} = {named}: fits no interface of this host, which has {there}"
            yield Check("interfaces", "problem", told, f"unset {variable}, or set it to one of these")
    yield Check("interfaces", "ok", there, facts=dict(found))


def _gloo_takes(named: str, interface: str) -> bool:
    return interface in named.split(",")


def _nccl_takes(named: str, interface: str) -> bool:
    """By NCCL's rules: beginnings of names, with = whole names, with ^ those to leave out."""
    sign, names = named[:1], named.lstrip("^=").split(",")
    if sign == "=":
        return interface in names
    begins = any(interface.startswith(name) for name in names)
    return not begins if sign == "^" else begins


def launcher() -> Iterator[Check]:
    """The rank that the environment describes, if any. Raises LaunchError where there could be no such rank."""
    seat = seat_in(os.environ)
    if seat.world_size == 1:
        yield Check("launcher", "ok", "none has left a rank in the environment")
        return
    found = f"this process is rank {seat.rank} of {seat.world_size}; the doctor is one process"
    yield Check("launcher", "warning", found, "start `megaslm doctor` itself, without a launcher")


def environment() -> Iterator[Check]:
    """The names of the variables that change what a run does. Values may be secrets, and are left out."""
    names = sorted(name for name in os.environ if name.startswith(_TOLD_OF))
    yield Check("environment", "ok", f"set: {', '.join(names) or 'nothing that matters here'}", facts={"set": names})


def object_storage() -> Iterator[Check]:
    """Whether the driver of s3:// is installed, and which settings of it the environment has."""
    try:
        driver: str | None = version("s3fs")
    except PackageNotFoundError:
        driver = None
    endpoint = any(os.environ.get(name) for name in ENDPOINT_VARIABLES)
    has_key = "AWS_ACCESS_KEY_ID" in os.environ
    where = "the endpoint of the environment" if endpoint else "Amazon's endpoint"
    found = (
        "s3:// has no driver; `make install EXTRAS=s3` installs it"
        if driver is None
        else f"s3:// is read by s3fs {driver}, from {where}, AWS_ACCESS_KEY_ID {'set' if has_key else 'not set'}"
    )
    facts = {"s3fs": driver, "endpoint_is_set": endpoint, "key_is_set": has_key}
    yield Check("object storage", "ok", found, facts=facts)
