"""What launcher/hostfile.sh refuses, and what it makes of a host's answers. Jobs that it starts: tests/multinode."""

import base64
import json
import os
import shutil
import socket
import string
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some

from tests.launched import ROOT
from tests.messages import Says

HOSTFILE = ROOT / "launcher" / "hostfile.sh"
# How the user calls the port and the address.
NAMES = ("MASTER_PORT", "MASTER_ADDR")
# No text of these starts anything, so that one folder serves for all of them.
TRIES = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
SAYS_NOTHING = set(string.ascii_letters + string.digits + "_./:=,@%+^-")
SAYS_SOMETHING_TO_A_SHELL = some.text(
    some.one_of(
        some.sampled_from(" ;&|<>$`\\'\"(){}[]*?!~#aA1-="), some.characters(codec="utf-8", exclude_characters="\0")
    )
).filter(lambda text: not text or not set(text) <= SAYS_NOTHING)


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
    assert "launcher/hostfile.sh" in told.stdout
    assert refusal_of(workplace) == told.stdout


def test_a_hostfile_must_exist(workplace: Path, says: Says) -> None:
    says(refusal_of(workplace, "absent", "train", "run.yaml"), "absent")


@settings(TRIES)
@example("--set=a b")
@example("run_dir=$HOME")
@example("a\nb")
@example("$(touch pwned)")
@example("`touch pwned`")
@example("")
@given(SAYS_SOMETHING_TO_A_SHELL)
def test_arguments_that_a_remote_shell_would_change_are_refused(workplace: Path, argument: str) -> None:
    assert refusal_of(workplace, "hosts", "train", argument).startswith("argument ")


def test_what_an_argument_may_hold_is_told(workplace: Path, says: Says) -> None:
    says(refusal_of(workplace, "hosts", "train", "a;b"), "a\\;b")


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
    assert refusal_of(workplace, "hosts", "train", "run.yaml").startswith("hosts: ")


def test_what_a_hostfile_holds_is_told(workplace: Path, says: Says) -> None:
    (workplace / "hosts").write_text("node-1 slots=two\n", encoding="utf-8")
    said = refusal_of(workplace, "hosts", "train", "run.yaml")
    says(said, "hosts: ", "slots=two", "`node-1 slots=8`", "~/.ssh/config")


def test_a_host_is_named_once_and_there_is_one(workplace: Path, says: Says) -> None:
    (workplace / "hosts").write_text("node-1 slots=8\nnode-2 slots=8\nnode-1 slots=8\n", encoding="utf-8")
    says(refusal_of(workplace, "hosts", "train", "run.yaml"), "hosts: ", "node-1")
    (workplace / "hosts").write_text("# none\n", encoding="utf-8")
    says(refusal_of(workplace, "hosts", "train", "run.yaml"), "hosts")


@pytest.mark.parametrize("variable", ["MASTER_ADDR", "MASTER_PORT", "REMOTE_SHELL"])
@settings(TRIES)
@example("a; touch pwned")
@example("a\ntouch pwned")
@example("'")
@example("`touch pwned`")
@example("-oX=y")
@example("a[$(touch pwned)]")
@given(SAYS_SOMETHING_TO_A_SHELL.filter(bool))
def test_variables_that_a_remote_shell_would_run_are_refused(workplace: Path, variable: str, value: str) -> None:
    assert refusal_of(workplace, "hosts", "train", "run.yaml", **{variable: value}).startswith(f"{variable} ")


@pytest.mark.parametrize("address", ["node-1:29500", "[fd77::1]", "fe80::1%eth0", "node-1.", "fd77::1;"])
def test_the_place_to_meet_is_an_address_or_a_name(workplace: Path, address: str) -> None:
    assert refusal_of(workplace, "hosts", "train", "run.yaml", MASTER_ADDR=address).startswith("MASTER_ADDR ")


def test_what_a_place_to_meet_is_is_told(workplace: Path, says: Says) -> None:
    says(refusal_of(workplace, "hosts", "train", "run.yaml", MASTER_ADDR="node-1."), "MASTER_ADDR node-1.: ")


@pytest.mark.parametrize("port", ["0", "65536", "1e3"])
def test_a_port_is_a_port(workplace: Path, port: str) -> None:
    assert refusal_of(workplace, "hosts", "train", "run.yaml", MASTER_PORT=port).startswith("MASTER_PORT ")


@pytest.mark.parametrize("names", ["$(touch pwned)", "A B", "a;b", "1A", "A,,B", "A=B", "A\nB", "x[$(touch pwned)]"])
def test_names_of_variables_are_names(workplace: Path, names: str) -> None:
    said = refusal_of(workplace, "hosts", "train", "run.yaml", EXPORT=names, A="1", B="2")
    assert said.startswith("EXPORT ")


def test_a_variable_to_hand_on_has_a_name_and_is_set(workplace: Path, says: Says) -> None:
    says(refusal_of(workplace, "hosts", "train", "run.yaml", EXPORT="1A"), "EXPORT = 1A: ")
    says(refusal_of(workplace, "hosts", "train", "run.yaml", EXPORT="A,ABSENT", A="1"), "EXPORT: ", "ABSENT")


@pytest.mark.parametrize("name", ["MEGASLM_JOB", "RANK", "CUDA_VISIBLE_DEVICES"])
def test_what_the_launcher_tells_the_ranks_is_not_taken_from_here(workplace: Path, name: str, says: Says) -> None:
    """A job inside a job would be ended with the outer one's mark."""
    said = refusal_of(workplace, "hosts", "train", "run.yaml", EXPORT=f"A,{name}", A="1", **{name: "0"})
    says(said, f"EXPORT: {name} ")


@pytest.mark.parametrize("value", ["a\nb", "a\tb", "a\x1bb", " a", "a "])
def test_values_that_would_not_arrive_as_they_are_are_refused(workplace: Path, value: str) -> None:
    assert refusal_of(workplace, "hosts", "train", "run.yaml", EXPORT="A", A=value).startswith("A ")


@pytest.mark.parametrize(
    ("variables", "remedy"),
    [({}, "REMOTE_SHELL=ssh"), ({"MEGASLM_CLUSTER": "my hosts.yaml"}, "remote_shell: ssh in my hosts.yaml")],
    ids=["a variable", "a key"],
)
def test_what_has_to_change_is_named_as_the_user_has_it(
    workplace: Path, variables: dict[str, str], remedy: str, says: Says
) -> None:
    """`megaslm launch` sets the variables from the keys of a file, and drops those of the shell."""
    (workplace / "bin" / "pdsh").unlink()
    for name in ("bash", "date", "dirname", "python"):
        (workplace / "bin" / name).symlink_to(shutil.which(name) or "absent")
    ended = subprocess.run(
        [HOSTFILE, "hosts", "train", "run.yaml"],
        cwd=workplace,
        env={"PATH": f"{workplace}/bin", **variables},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert ended.returncode == 2
    says(ended.stderr, remedy)


def test_a_folder_that_a_remote_shell_would_run_is_refused(workplace: Path, says: Says) -> None:
    folder = workplace / "a $(touch pwned)"
    folder.mkdir()
    (folder / "hosts").write_text("node-1 slots=1\n", encoding="utf-8")
    says(refusal_of(workplace, "hosts", "train", "run.yaml", cwd=folder), "_./:=,@%+^-")


def test_a_folder_that_cannot_stand_on_the_path_is_refused(workplace: Path, says: Says) -> None:
    folder = workplace / "a:b"
    folder.mkdir()
    (folder / "hosts").write_text("node-1 slots=1\n", encoding="utf-8")
    says(refusal_of(workplace, "hosts", "train", "run.yaml", cwd=folder), folder)


def test_a_host_without_python_is_told_so(workplace: Path, says: Says) -> None:
    (workplace / "launcher").mkdir()
    for script in (ROOT / "launcher").glob("*.sh"):
        shutil.copy(script, workplace / "launcher")
    programs = [shutil.which(name) for name in ("bash", "date", "dirname", "printf", "sort", "uniq", "paste")]
    for program in programs:
        assert program is not None
        (workplace / "bin" / Path(program).name).symlink_to(program)
    ended = subprocess.run(
        [workplace / "launcher" / "hostfile.sh", "hosts", "train", "run.yaml"],
        cwd=workplace,
        env={"PATH": f"{workplace}/bin"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    says(ended.stderr, "PATH", ".venv", workplace)


def answered(workplace: Path, meeting: str) -> "subprocess.CompletedProcess[str]":
    """A job by ssh on hosts of which the first prints this when it is asked where to meet."""
    (workplace / "bin" / "ssh").write_text(f"""#!/bin/sh
case "$*" in
    *"on_host.sh meeting "*) printf '{meeting}' ;;
    *"on_host.sh run "*) echo "$*" >{workplace}/ran ;;
esac
""")
    environment = {**os.environ, "PATH": f"{workplace}/bin:{os.environ['PATH']}", "REMOTE_SHELL": "ssh"}
    words = [HOSTFILE, "hosts", "train", "run.yaml"]
    return subprocess.run(words, cwd=workplace, env=environment, capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize("address", ["10.0.0.1", "node-1.example", "fd77::1"])
@pytest.mark.parametrize("shell_prints", ["", r"Welcome!\n", r"Welcome!\n10.9.9.9\n\n"])
def test_what_a_shell_prints_by_itself_is_no_part_of_the_address(
    workplace: Path, shell_prints: str, address: str
) -> None:
    ended = answered(workplace, rf"{shell_prints}{address}\n")
    assert ended.returncode == 0, ended.stderr
    assert f" 0 {address} 29500 train run.yaml" in (workplace / "ran").read_text()


@pytest.mark.parametrize("last_line", ["Have a nice day!", "", "10.0.0.1 10.0.0.2", "$(touch pwned)", "-oX=y"])
def test_an_answer_that_is_no_address_is_refused_with_its_host(workplace: Path, last_line: str) -> None:
    ended = answered(workplace, rf"10.0.0.1\n{last_line}" if last_line else "")
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[1].startswith("node-1: ")
    assert not (workplace / "ran").exists()
    assert not list(workplace.rglob("pwned"))


def test_what_a_host_printed_is_told(workplace: Path, says: Says) -> None:
    says(answered(workplace, "Hello!").stderr, "node-1: ", "Hello\\!", "`ssh node-1 true`")


REFUSAL = """
import os, sys
if os.environ["RANK"] == "0":
    print("SomeError: why", file=sys.stderr)
sys.exit(2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("remote_shell", ["pdsh", "ssh"])
def test_the_last_word_of_a_refusal_is_the_ranks(workplace: Path, remote_shell: str) -> None:
    """Two hosts that are both this one, and the real pdsh and DeepSpeed."""
    if remote_shell == "pdsh":
        if shutil.which("pdsh") is None:
            pytest.skip("pdsh is not installed")
        (workplace / "bin" / "pdsh").unlink()
    (workplace / "bin" / "ssh").write_text("""#!/usr/bin/env bash
while [[ "$1" == -* ]]; do if [[ "$1" == -[ol] ]]; then shift; fi; shift; done
exec bash -c "${*:2}"
""")
    (workplace / "hosts").write_text("node-1 slots=1\nnode-2 slots=1\n", encoding="utf-8")
    (workplace / "megaslm").mkdir()
    (workplace / "megaslm" / "__init__.py").touch()
    (workplace / "megaslm" / "__main__.py").write_text(REFUSAL, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    path = f"{workplace}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "EXPORT": "DS_ACCELERATOR", "DS_ACCELERATOR": "cpu"}
    ended = subprocess.run(
        [HOSTFILE, "hosts", "train", "run.yaml"],
        cwd=workplace,
        env={**os.environ, **place, "PATH": path, "REMOTE_SHELL": remote_shell},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    first = f"launch: 2 ranks on 2 hosts of hosts by {remote_shell}: megaslm train run.yaml"
    assert ended.stderr.splitlines() == [first, "node-1: SomeError: why"]


def on_host(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """What a host is asked through ssh."""
    words = [ROOT / "launcher" / "on_host.sh", *arguments]
    return subprocess.run(words, env={**os.environ, **variables}, capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1", "203.0.113.7"])
def test_an_address_to_meet_at_may_be_one_that_the_network_translates(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ended = on_host("meeting", sys.executable, str(port), *NAMES, address)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{address}\n", "")


@pytest.mark.parametrize("address", ["127.0.0.1", "203.0.113.7"])
def test_a_port_that_is_taken_is_named(address: str, says: Says) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        ended = on_host("meeting", sys.executable, str(port), *NAMES, address)
    assert ended.returncode == 1
    says(ended.stderr, "MASTER_PORT = ", address, PORT=port, NEXT=port + 1, HOST=socket.gethostname())


def test_a_name_that_the_host_does_not_know_is_named() -> None:
    ended = on_host("meeting", sys.executable, "29500", *NAMES, "no-such-host.invalid")
    assert ended.returncode == 1
    assert ended.stderr.startswith("MASTER_ADDR = no-such-host.invalid: ")


def test_a_login_shell_that_hands_no_variables_on_is_told_of(says: Says) -> None:
    here = str(Path.cwd())
    assert on_host("check", here, sys.executable, MEGASLM_JOB="1").returncode == 0
    ended = on_host("check", here, sys.executable, MEGASLM_JOB="")
    assert ended.returncode == 1
    says(ended.stderr, "`export NAME=VALUE`")


def test_a_host_starts_its_ranks_by_the_launcher_of_one_host(tmp_path: Path) -> None:
    """`deepspeed` would import DeepSpeed once more before that."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    words = ["run", str(python), "1", "10.0.0.1", "29500", "train", "run.yaml"]
    ended = on_host(*words, MEGASLM_HOSTS="node-1:2,node-2.example:11")
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout.splitlines()
    assert said[:3] == ["-u", "-m", "deepspeed.launcher.launch"]
    assert said[-3:] == ["megaslm", "train", "run.yaml"]
    options = dict(pairwise(said))
    assert (options["--node_rank"], options["--master_addr"], options["--master_port"]) == ("1", "10.0.0.1", "29500")
    slots = json.loads(base64.urlsafe_b64decode(options["--world_info"]))
    assert list(slots.items()) == [("node-1", [0, 1]), ("node-2.example", list(range(11)))]
