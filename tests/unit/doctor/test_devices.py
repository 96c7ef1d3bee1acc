"""What the doctor says of devices and of a run, by planted facts: on either side of each limit."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megaslm.doctor.check import Check
from megaslm.doctor.devices import Gpus, judge_attention, judge_compiler, judge_gpus, resources
from megaslm.doctor.run import inputs, judge_run_folder, memory
from megaslm.health.disk import Disk
from megaslm.model.documents import CPU_KERNEL, NO_KERNEL
from tests.messages import Says
from tests.planted_facts import GIB, planted

Look = Callable[[], Iterator[Check]]


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
}
PROBLEMS: dict[str, Look] = {
    "no NCCL": lambda: gpus("NVIDIA H100", "NVIDIA H100", nccl=None),
    "little memory": lambda: few_resources(2, checkpoints=None, memory_bytes=5 * GIB),
    "run folder of others": lambda: judge_run_folder(Path("/data/a"), Path("/data"), False),
    "missing inputs": lambda: inputs(["data.train: tokens: there is no such dataset folder"], [], {}, 1),
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
    says(warned[0].lines())


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_stops_a_run_is_a_problem(name: str, says: Says) -> None:
    found = [check for check in PROBLEMS[name]() if check.status != "ok"]
    assert [check.status for check in found] == ["problem"]
    says(found[0].lines())
