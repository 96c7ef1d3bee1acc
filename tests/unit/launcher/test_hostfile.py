"""What launcher/hostfile.sh refuses before it asks any host. Jobs that it starts: tests/multinode."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.ranks import ROOT

HOSTFILE = ROOT / "launcher" / "hostfile.sh"


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with a hostfile, and an ssh that leaves a note of being called."""
    (tmp_path / "hosts").write_text("node-1 slots=8\n", encoding="utf-8")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("ssh", "pdsh"):
        (programs / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexit 1\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    return tmp_path


def refusal_of(workplace: Path, *arguments: str, cwd: Path | None = None, **variables: str) -> str:
    """What it says when it refuses these, having called nothing."""
    environment = {**os.environ, "PATH": f"{workplace}/bin:{os.environ['PATH']}", **variables}
    ended = subprocess.run(
        [HOSTFILE, *arguments], cwd=cwd or workplace, env=environment, capture_output=True, text=True, timeout=20
    )
    assert ended.returncode == 2
    assert not list(workplace.rglob("pwned"))
    assert not (workplace / "called").exists()
    return ended.stderr


def test_help_is_instant_and_no_arguments_are_a_mistake(workplace: Path) -> None:
    told = subprocess.run([HOSTFILE, "--help"], capture_output=True, text=True, timeout=20, check=True)
    assert told.stdout.startswith("usage: launcher/hostfile.sh")
    assert refusal_of(workplace).startswith("usage: launcher/hostfile.sh")


def test_a_hostfile_must_exist(workplace: Path) -> None:
    assert refusal_of(workplace, "absent", "train", "run.yaml") == "absent: no such hostfile\n"


@pytest.mark.parametrize(
    "argument", ["--set=a b", "run_dir=$HOME", "a;b", "data={a}", "a\nb", "'a'", "$(a)", "`a`", ""]
)
def test_arguments_that_a_remote_shell_would_change_are_refused(workplace: Path, argument: str) -> None:
    assert "put such a value into the YAML" in refusal_of(workplace, "hosts", "train", argument)


@pytest.mark.parametrize(
    "line",
    [
        "node-1",
        "node-1 slots=0",
        "node-1 slots=two",
        "-oProxyCommand=touch slots=1",
        "$(touch pwned) slots=1",
        "`touch pwned` slots=1",
        "a;reboot slots=1",
        "a|b slots=1",
        "a,b slots=1",
        "node[1-9] slots=1",
        "me@node-1 slots=1",
        "'node-1' slots=1",
        "node-1 slots=1; touch pwned",
    ],
)
def test_a_line_that_names_no_host_is_refused(workplace: Path, line: str) -> None:
    (workplace / "hosts").write_text(f"# the hosts\n\nnode-2 slots=8 # eight GPUs\n{line}\n", encoding="utf-8")
    assert "must be like `node-1 slots=8`" in refusal_of(workplace, "hosts", "train", "run.yaml")


def test_a_host_is_named_once_and_there_is_one(workplace: Path) -> None:
    (workplace / "hosts").write_text("node-1 slots=8\nnode-2 slots=8\nnode-1 slots=8\n", encoding="utf-8")
    assert refusal_of(workplace, "hosts", "train", "run.yaml") == "hosts: names node-1 more than once\n"
    (workplace / "hosts").write_text("# none\n", encoding="utf-8")
    assert refusal_of(workplace, "hosts", "train", "run.yaml") == "hosts: names no host\n"


@pytest.mark.parametrize("variable", ["MASTER_ADDR", "MASTER_PORT", "REMOTE_SHELL"])
@pytest.mark.parametrize(
    "value",
    ["$(touch pwned)", "a; touch pwned", "a b", "a\ntouch pwned", "'", "`touch pwned`", "-oX=y", "a[$(touch pwned)]"],
)
def test_variables_that_a_remote_shell_would_run_are_refused(workplace: Path, variable: str, value: str) -> None:
    assert refusal_of(workplace, "hosts", "train", "run.yaml", **{variable: value}).startswith(f"{variable} ")


@pytest.mark.parametrize("port", ["0", "65536", "1e3"])
def test_a_port_is_a_port(workplace: Path, port: str) -> None:
    assert refusal_of(workplace, "hosts", "train", "run.yaml", MASTER_PORT=port).startswith("MASTER_PORT ")


@pytest.mark.parametrize("names", ["$(touch pwned)", "A B", "a;b", "1A", "A,,B", "A=B", "A\nB", "x[$(touch pwned)]"])
def test_names_of_variables_are_names(workplace: Path, names: str) -> None:
    said = refusal_of(workplace, "hosts", "train", "run.yaml", EXPORT=names, A="1", B="2")
    assert said.startswith("EXPORT ")
    assert said.endswith("must be names of variables, with commas between\n")


def test_a_variable_to_hand_on_is_set(workplace: Path) -> None:
    said = refusal_of(workplace, "hosts", "train", "run.yaml", EXPORT="A,ABSENT", A="1")
    assert said == "EXPORT: ABSENT is not set here\n"


@pytest.mark.parametrize("value", ["a\nb", "a\tb", "a\x1bb", " a", "a "])
def test_values_that_would_not_arrive_as_they_are_are_refused(workplace: Path, value: str) -> None:
    assert refusal_of(workplace, "hosts", "train", "run.yaml", EXPORT="A", A=value).startswith("A ")


def test_a_folder_that_a_remote_shell_would_run_is_refused(workplace: Path) -> None:
    folder = workplace / "a $(touch pwned)"
    folder.mkdir()
    (folder / "hosts").write_text("node-1 slots=1\n", encoding="utf-8")
    assert "move it to another path" in refusal_of(workplace, "hosts", "train", "run.yaml", cwd=folder)
