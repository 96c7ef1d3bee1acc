"""What a machine lacks to compile for a GPU, on machines made of a folder of commands and one of headers."""

import sys
from pathlib import Path

import pytest

from megaslm.slm import toolchain
from tests.messages import Says


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Has all that is needed: a folder of modules with Triton, one of commands with clang, one of headers."""
    (tmp_path / "modules" / "triton").mkdir(parents=True)
    (tmp_path / "modules" / "triton" / "__init__.py").touch()
    (tmp_path / "commands").mkdir()
    (tmp_path / "commands" / "clang").touch(mode=0o755)
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").touch()
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "commands"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(toolchain, "get_path", lambda name: str(tmp_path / name))
    return tmp_path


def test_a_machine_with_everything_lacks_nothing(machine: Path) -> None:
    assert toolchain.lacking_for_gpu() is None


def test_without_triton(machine: Path, monkeypatch: pytest.MonkeyPatch, says: Says) -> None:
    # The installed Triton, where there is one, would be found behind the machine's.
    monkeypatch.setitem(sys.modules, "triton", None)
    says(toolchain.lacking_for_gpu() or "", "Triton")


def test_without_a_compiler(machine: Path, monkeypatch: pytest.MonkeyPatch, says: Says) -> None:
    (machine / "commands" / "clang").unlink()
    says(toolchain.lacking_for_gpu() or "", "CC", "gcc", "clang")
    (machine / "commands" / "own").touch(mode=0o755)
    monkeypatch.setenv("CC", "own")
    assert toolchain.lacking_for_gpu() is None


def test_without_headers(machine: Path, says: Says) -> None:
    header = machine / "include" / "Python.h"
    header.unlink()
    says(toolchain.lacking_for_gpu() or "", header)
