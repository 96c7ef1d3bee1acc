"""The reference of the command line: every verb, from the parsers that read its arguments."""

from collections.abc import Iterator
from typing import Any

import typer

from docs.site.blocks import cell
from megaslm.cli import app

_LEAD = """# Command line

Every verb, as `megaslm VERB --help` prints it. Exit status 0 is success, 2 a mistake in what was given, 75 a run that
was told to stop and has saved, 1 a fault. [Operations](../operations.md#exit-statuses) says what to do after each.
"""


def command_line_page() -> str:
    """The page as Markdown."""
    return "\n".join([_LEAD, *_command("megaslm", typer.main.get_command(app))])


def verbs(command: Any, name: str = "megaslm") -> Iterator[tuple[str, Any]]:
    """Every command below a group, by its words: `megaslm checkpoint ls`."""
    for word, inner in getattr(command, "commands", {}).items():
        yield f"{name} {word}", inner
        yield from verbs(inner, f"{name} {word}")


def _command(name: str, group: Any) -> Iterator[str]:
    for words, command in verbs(group, name):
        context = command.make_context(words, [], resilient_parsing=True)
        if hasattr(command, "commands"):
            continue
        yield from (f"## `{words}`", "")
        for paragraph in (command.help or "").split("\n\n"):
            yield from (_prose(" ".join(paragraph.split())), "")
        yield from ("```text", *_usage(words, command, context), "```", "")
        yield from _table("argument", "argument", command, context)
        yield from _table("option", "option", command, context)


def _usage(words: str, command: Any, context: Any) -> Iterator[str]:
    yield " ".join([words, *command.collect_usage_pieces(context)])


def _table(heading: str, kind: str, command: Any, context: Any) -> Iterator[str]:
    records = [
        record
        for parameter in command.get_params(context)
        if parameter.param_type_name == kind and parameter.name != "help"
        for record in [parameter.get_help_record(context)]
        if record is not None
    ]
    if records:
        yield from (f"| {heading} | meaning |", "|---|---|")
        for name, meaning in records:
            yield f"| {cell(f'`{name}`')} | {cell(_prose(meaning))} |"
        yield ""


def _prose(text: str) -> str:
    """Text of --help, in which nothing is a mark of Markdown or HTML but code in backticks."""
    pieces = text.split("`")
    for place in range(0, len(pieces), 2):
        for mark in "\\*_[]<":
            pieces[place] = pieces[place].replace(mark, f"\\{mark}" if mark != "<" else "&lt;")
    return "`".join(pieces)
