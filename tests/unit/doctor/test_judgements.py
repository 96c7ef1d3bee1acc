"""What the doctor says of software, host, devices and a run, by planted facts: on either side of each limit."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from megaslm.config.run_files import CONFIG
from megaslm.doctor.check import Check
from megaslm.doctor.devices import Gpus, judge_attention, judge_compiler, judge_gpus, resources, usual_ranks
from megaslm.doctor.host import judge_interfaces, judge_processors
from megaslm.doctor.run import inputs, judge_run_folder, memory, run_folder
from megaslm.doctor.software import extras, judge_bytecode, required
from megaslm.health.disk import Disk
from megaslm.model.documents import CPU_KERNEL, NO_KERNEL
from tests.messages import Says
from tests.planted_facts import GIB, planted

Look = Callable[[], Iterator[Check]]
INTERFACES = {"lo": ["127.0.0.1"], "eth0": ["10.0.0.1"], "docker0": ["172.17.0.1"]}
NEEDED = [Requirement("torch>=2.11"), Requirement("numpy>=2")]
STREAMED = {"ray": [Requirement("ray>=2.40")], "s3": [Requirement("s3fs>=2024.6"), Requirement("boto3<2")]}
PACKAGES = Path("/some/site-packages")


def gpus(*names: str, **changes: Any) -> Iterator[Check]:
    """The findings on a host with these GPUs."""
    facts: dict[str, Any] = {
        "names": names,
        "capabilities": ("9.0",) * len(names),
        "memory_bytes": (79 * GIB,) * len(names),
        "driver": "550.54.15",
        "cuda": "13.0",
        "nccl": "2.27.3",
    }
    return judge_gpus(Gpus(**(facts | changes)))


def few_resources(ranks: int, **fields: Any) -> Iterator[Check]:
    (facts,) = planted(1, **fields)
    return resources(facts, ranks)


ENOUGH: dict[str, Look] = {
    "GPUs": lambda: gpus(*["NVIDIA H100"] * 8),
    "a GPU": lambda: gpus("NVIDIA H200", nccl=None),
    "a GPU that no table has": lambda: gpus("NVIDIA Z9"),
    "no GPU": lambda: gpus(driver="none", cuda=None, nccl=None),
    "kernel of a GPU": lambda: judge_attention("FA2"),
    "kernel of a CPU": lambda: judge_attention(CPU_KERNEL),
    "compiler for a GPU": lambda: judge_compiler(True, None),
    "compiler for a CPU": lambda: judge_compiler(False, None),
    "compiler that nothing needs": lambda: judge_compiler(False, "there is no C++ compiler (CXX or g++)"),
    "resources": lambda: few_resources(2, checkpoints=None),
    "nothing shared": lambda: few_resources(2, checkpoints=None, shared_memory=None),
    "run folder": lambda: judge_run_folder(Path("runs/a"), Path("runs"), True),
    "memory": lambda: memory(9 * GIB, 9 * GIB, "h100-80g", "megaslm plan --fit"),
    "inputs": lambda: inputs([], [], {"only the ranks read it": ["data.train = s3://a/b"]}, 2),
    "libraries": lambda: required(NEEDED, {"torch": "2.13.0+cpu", "numpy": "2.0"}),
    "extras": lambda: extras(STREAMED, {"ray": None, "s3fs": "2025.1", "boto3": None}),
    "compiled": lambda: judge_bytecode(True, False, PACKAGES),
    "to be compiled": lambda: judge_bytecode(False, True, PACKAGES),
    "threads": lambda: judge_processors(4, 8, "4"),
    "no threads": lambda: judge_processors(1, 8, None),
    "no interfaces named": lambda: judge_interfaces(INTERFACES, {}),
    "whole names": lambda: judge_interfaces(
        INTERFACES, {"GLOO_SOCKET_IFNAME": "lo,eth0", "NCCL_SOCKET_IFNAME": "=eth0"}
    ),
    "beginning of a name": lambda: judge_interfaces(INTERFACES, {"NCCL_SOCKET_IFNAME": "ib,eth"}),
    "all but one": lambda: judge_interfaces(INTERFACES, {"NCCL_SOCKET_IFNAME": "^docker,lo"}),
}
WARNINGS: dict[str, Look] = {
    "torch without CUDA": lambda: gpus(cuda=None),
    "hidden GPUs": lambda: gpus(visible=""),
    "old driver": lambda: gpus(torch_says=("The NVIDIA driver on your system is too old (found version 11040).",)),
    "no driver": lambda: gpus(driver="none", torch_says=("CUDA initialization: unknown error",)),
    "two kinds of GPUs": lambda: gpus("NVIDIA H100", "NVIDIA L4", memory_bytes=(79 * GIB, 22 * GIB)),
    "no kernel": lambda: judge_attention(NO_KERNEL),
    "no compiler": lambda: judge_compiler(True, "there is no C compiler (CC, cc, gcc or clang)"),
    "little shared memory": lambda: few_resources(8, checkpoints=None, shared_memory=Disk("/dev/shm", 64 << 20)),
    "little cache": lambda: few_resources(1, checkpoints=None, cache=Disk("/local", 0)),
    "large model": lambda: memory(9 * GIB + 1, 9 * GIB, "h100-80g", "megaslm plan --fit"),
    "warned of inputs": lambda: inputs([], ["run_dir is nearly full"], {}, 1),
    "old library": lambda: required(NEEDED, {"torch": "2.10.1", "numpy": "2.0"}),
    "new extra": lambda: extras(STREAMED, {"ray": None, "s3fs": None, "boto3": "2.1"}),
    "no bytecode": lambda: judge_bytecode(False, False, PACKAGES),
    "many threads": lambda: judge_processors(4, 8, "5"),
}
PROBLEMS: dict[str, Look] = {
    "no NCCL": lambda: gpus("NVIDIA H100", "NVIDIA H100", nccl=None),
    "little memory": lambda: few_resources(2, checkpoints=None, memory_bytes=5 * GIB),
    "run folder of others": lambda: judge_run_folder(Path("/data/a"), Path("/data"), False),
    "missing inputs": lambda: inputs(["data.train: tokens: there is no such dataset folder"], [], {}, 1),
    "no library": lambda: required(NEEDED, {"torch": None, "numpy": "2.0"}),
    "no such interface for gloo": lambda: judge_interfaces(INTERFACES, {"GLOO_SOCKET_IFNAME": "eth"}),
    "no such interface for NCCL": lambda: judge_interfaces(INTERFACES, {"NCCL_SOCKET_IFNAME": "=eth"}),
    "no interface left": lambda: judge_interfaces(INTERFACES, {"NCCL_SOCKET_IFNAME": "^lo,eth,docker"}),
}


@pytest.mark.parametrize("name", ENOUGH)
def test_what_is_well_is_told_as_it_is(name: str, says: Says) -> None:
    for check in ENOUGH[name]():
        assert (check.status, check.to_do) == ("ok", "")
        says(check.lines())


@pytest.mark.parametrize("name", WARNINGS)
def test_a_warning_says_what_to_do(name: str, says: Says) -> None:
    warned = [check for check in WARNINGS[name]() if check.status != "ok"]
    assert [check.status for check in warned] == ["warning"]
    varying = {"PYTHON": sys.executable} if name == "no bytecode" else {}
    says(warned[0].lines(), **varying)


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_stops_a_run_is_a_problem(name: str, says: Says) -> None:
    found = [check for check in PROBLEMS[name]() if check.status != "ok"]
    assert [check.status for check in found] == ["problem"]
    says(found[0].lines())


def test_a_folder_that_holds_a_run_is_told(tmp_path: Path, says: Says) -> None:
    assert [check.status for check in run_folder(tmp_path)] == ["ok"]
    (tmp_path / CONFIG).touch()
    (warned,) = (check for check in run_folder(tmp_path) if check.status != "ok")
    assert warned.status == "warning"
    says(warned.lines(), FOLDER=tmp_path)


@pytest.mark.parametrize(("gpus_here", "ranks"), [(0, 2), (1, 1), (8, 8)])
def test_a_run_has_as_many_ranks_as_the_launcher_of_one_host_starts(
    gpus_here: int, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus_here)
    assert usual_ranks() == ranks
