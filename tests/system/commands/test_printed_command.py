"""A command as it is printed, and as a program takes over."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from megaslm.errors import ConfigError
from megaslm.launch.command import Command
from tests.messages import Says

HOSTILE = [
    "a b",
    "$(touch pwned)",
    "`touch pwned`",
    'it\'s "so"',
    "a\nb",
    "; touch pwned",
    "-oProxyCommand=x",
    "",
    "*",
]


def test_a_shell_that_reads_the_printed_line_gets_every_value(tmp_path: Path) -> None:
    probe = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['VALUE']]))"
    for value in HOSTILE:
        command = Command((sys.executable, "-c", probe, *HOSTILE), {"VALUE": value})
        shown = subprocess.run(
            str(command),
            shell=True,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert (
            shown.stdout
            == subprocess.run(
                command.words,
                env={**os.environ, "VALUE": value},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
    assert not list(tmp_path.iterdir())
    assert shlex.split(str(Command(("x", *HOSTILE)))) == ["x", *HOSTILE]


def test_a_program_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: Says) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError) as refused:
        Command(("sbatch", "x")).take_over(Path("cluster.yaml"))
    says(refused, "sbatch")


def test_what_launchers_are_told_by_does_not_come_from_the_shell() -> None:
    program = "from megaslm.launch.command import Command; Command(('env', '-0'), {'RANKS': '3'}).take_over('my.yaml')"
    left = {"RANKS": "7", "MASTER_ADDR": "elsewhere", "RANK": "1", "NCCL_DEBUG": "INFO"}
    command = [sys.executable, "-c", program]
    told = subprocess.run(command, env={**os.environ, **left}, capture_output=True, text=True, check=True).stdout
    assert {"RANKS=3", "NCCL_DEBUG=INFO", "MEGASLM_CLUSTER=my.yaml"} <= set(told.split("\0"))
    assert "MASTER_ADDR=" not in told
    assert "RANK=" not in told
