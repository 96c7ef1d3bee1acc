"""What the doctor says of software and host, by planted facts: on either side of each limit."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from megaslm.doctor.check import Check
from megaslm.doctor.host import judge_interfaces, judge_processors, launcher, temporary_folder
from megaslm.doctor.software import extras, judge_bytecode, required
from megaslm.errors import LaunchError
from tests.messages import Says

Look = Callable[[], Iterator[Check]]
INTERFACES = {"lo": ["127.0.0.1"], "eth0": ["10.0.0.1"], "docker0": ["172.17.0.1"]}
NEEDED = [Requirement("torch>=2.11"), Requirement("numpy>=2")]
STREAMED = {"ray": [Requirement("ray>=2.40")], "s3": [Requirement("s3fs>=2024.6"), Requirement("boto3<2")]}
PACKAGES = Path("/some/site-packages")


ENOUGH: dict[str, Look] = {
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
    "old library": lambda: required(NEEDED, {"torch": "2.10.1", "numpy": "2.0"}),
    "new extra": lambda: extras(STREAMED, {"ray": None, "s3fs": None, "boto3": "2.1"}),
    "no bytecode": lambda: judge_bytecode(False, False, PACKAGES),
    "many threads": lambda: judge_processors(4, 8, "5"),
}
PROBLEMS: dict[str, Look] = {
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


def test_a_temporary_folder_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (check,) = temporary_folder()
    assert check.status == "ok"
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    (check,) = temporary_folder()
    assert check.status == "warning"
    says(check.lines(), tmp_path / "nowhere", FALLBACK=tempfile.gettempdir())


def test_what_a_launcher_has_left_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    (check,) = launcher()
    assert check.status == "ok"
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(LaunchError):
        list(launcher())
    seat = {"WORLD_SIZE": "8", "LOCAL_RANK": "3", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    for name, value in seat.items():
        monkeypatch.setenv(name, value)
    (check,) = launcher()
    assert check.status == "warning"
