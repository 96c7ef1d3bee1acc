"""A command as it is printed, and as a program takes over."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from megaslm.errors import ConfigError
from megaslm.launch.command import Command

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


def test_a_program_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="sbatch: no such program on this host"):
        Command(("sbatch", "x")).take_over()
