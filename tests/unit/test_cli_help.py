"""The help of every command, and what a command says to more words than it takes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from megaslm.cli import app
from megaslm.cli_help import Verb
from megaslm.errors import ConfigError
from tests.messages import Says

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def helps(commands: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, command in commands.items():
        yield from ((f"{name} {inner}", text) for inner, text in helps(getattr(command, "commands", {})))
        with command.make_context(name, [], resilient_parsing=True) as context:
            yield name, command.get_help(context)


def test_no_help_names_a_type_of_python() -> None:
    shown = dict(helps(COMMANDS))
    assert {"prepare", "config explain", "checkpoint prune"} <= shown.keys()
    for name, text in shown.items():
        assert not re.search(r"<\w|\{|x>|<=|default: \(", text), name
    assert "prepare [OPTIONS] RECIPE OUTPUT" in shown["prepare"]
    assert re.search(r"--workers N +.*\[at least 1\]", shown["verify"])
    assert re.search(r"0\.01 to 1\.0", shown["plan"])


@pytest.mark.parametrize("name", ["inspect", "init", "demo", "prepare"])
def test_words_from_an_unquoted_pattern_are_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [f"part-{number}.jsonl" for number in range(6)]
    for file in files:
        Path(file).touch()
    command: Verb = COMMANDS[name]
    given = ["--model", "m", "--curated", "good", "--corpus", "first"] if name == "init" else []
    with pytest.raises(ConfigError) as refused:
        command.make_context(f"megaslm {name}", [*given, *files])
    says(refused, f"megaslm {name}", "part-2.jsonl")
    (tmp_path / "part-5.jsonl").unlink()
    with pytest.raises(ConfigError) as refused:
        command.make_context(f"megaslm {name}", [*given, *files])
    says(refused, f"megaslm {name} --help")
