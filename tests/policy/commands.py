"""The commands in the blocks of code of the pages: what they call, what they need, and whether a program takes them.

A comment that begins with `needs` marks a command that no test runs: `# needs GPUs`. It stands behind the command, or
on a line of its own for the commands up to the next empty line.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from docs.site.blocks import blocks, is_commands
from megaslm.cli import app

MARK = re.compile(r"needs (GPUs|a cluster|the network|the run)\b")
PLACEHOLDERS = ("data/web.yaml", "data/eval")
"""Names of files that a page's reader has, and this repository has not."""
OTHER_PROGRAMS = ("git", "hf", "ray", "tensorboard")
_SBATCH = {"train.sbatch": "train", "score_array.sbatch": "score", "prepare_array.sbatch": "prepare"}
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


@dataclass(frozen=True)
class Command:
    """One command of a page."""

    page: str
    words: tuple[str, ...]
    """Without the variables before it."""
    needs: str
    """What its mark says that it needs; empty where it has no mark."""

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def commands_of(page: Path, root: Path) -> Iterator[Command]:
    """Every command in the blocks of code of a page."""
    for block in blocks(page.read_text(encoding="utf-8")):
        if is_commands(block):
            for words, needs in _commands(block.content):
                yield Command(str(page.relative_to(root)), words, needs)


def problems(command: Command, root: Path) -> Iterator[str]:
    """What is wrong with a command: an unknown program, verb or option, a value that is refused, a missing file."""
    for word in command.words[1:]:
        is_ours = re.match(r"(?:configs|data|launcher)/.*\.(?:yaml|sh|sbatch)$", word)
        if is_ours and word not in PLACEHOLDERS and not (root / word).is_file():
            yield f"{word}: no such file"
    match command.words:
        case ["make", *targets]:
            makefile = (root / "Makefile").read_text(encoding="utf-8")
            yield from (f"make {target}: no such target" for target in targets if f"\n{target}:" not in makefile)
        case [program, *_] if program in OTHER_PROGRAMS:
            return
        case _:
            arguments = verb_words(command.words)
            yield from [f"{command.words[0]}: unknown program"] if arguments is None else _refusals(arguments)


def verb_words(words: Sequence[str]) -> list[str] | None:
    """The verb of MegaSLM that a command runs, with its arguments; None where it runs none."""
    match list(words):
        case ["megaslm" | "launcher/local.sh" | "launcher/torchrun.sh", *arguments]:
            return arguments
        case ["launcher/hostfile.sh", _, *arguments]:
            return arguments
        case ["torchrun", *options] if "megaslm" in options:
            return options[options.index("megaslm") + 1 :]
        case ["sbatch", *options]:
            for place, option in enumerate(options):
                if (name := Path(option).name) in _SBATCH:
                    return [_SBATCH[name], *options[place + 1 :]]
    return None


def calls_of(command: Command) -> set[str]:
    """What a command uses: its program, its verb, and each option of the verb, as `score --share`."""
    arguments = verb_words(command.words)
    if arguments is None:
        return {" ".join(word for word in command.words[:2])}
    verb, rest = _verb(arguments)
    options = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
    program = {command.words[0]} - {"megaslm"}
    return program | {verb} | {f"{verb} {option}" for option in options}


def _commands(content: str) -> Iterator[tuple[tuple[str, ...], str]]:
    needs_of_block = ""
    for line in content.replace("\\\n", " ").split("\n"):
        code, _, comment = f" {line}".partition(" # ")
        code = re.sub(r"^\s*[a-z_]+=\$\((.*)\)\s*$", r"\1", code)
        mark = MARK.match(comment.strip())
        words = [word for word in shlex.split(code) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
        if not line.strip():
            needs_of_block = ""
        elif not words:
            needs_of_block = mark[1] if mark else needs_of_block
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            if words[0] != "cd":
                yield tuple(words[:end]), mark[1] if mark else needs_of_block
            words = words[end + 1 :]


def _verb(arguments: Sequence[str]) -> tuple[str, list[str]]:
    groups = getattr(typer.main.get_command(app), "commands", {})
    count = 2 if arguments[:1] and hasattr(groups.get(arguments[0]), "commands") else 1
    return " ".join(arguments[:count]), list(arguments[count:])


def _refusals(arguments: Sequence[str]) -> Iterator[str]:
    """What the parser of a verb says about its arguments. Nothing is run."""
    command: Any = typer.main.get_command(app)
    words = list(arguments)
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            yield f"{' '.join(arguments)}: no such verb"
            return
        command = command.commands[words.pop(0)]
    try:
        context = command.make_context(command.name, words)
    except _UsageError as error:
        yield f"{' '.join(arguments)}: {error}"
        return
    if command.name == "launch":
        launched = context.params["words"]
        known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
        yield from _refusals(launched if launched[0] in known else ["train", *launched])
