"""How the commands describe their arguments, and what they say to too many of them."""

import re
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from megaslm.errors import ConfigError

_KINDS = {"path": "PATH", "str": "TEXT", "int": "N", "int range": "N", "float": "NUMBER", "float range": "NUMBER"}
_SHOWN = 3


class Verb(TyperCommand):
    """A command whose help is read without knowing Python, and that knows what an unquoted pattern looks like."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the words of a command line. Raises ConfigError where there are more than the command takes."""
        takes_more, ctx.allow_extra_args = ctx.allow_extra_args, True
        rest: list[str] = super().parse_args(ctx, args)
        if rest and not takes_more:
            raise ConfigError(self._too_many(ctx.command_path, rest))
        return rest

    def _too_many(self, command: str, rest: list[str]) -> str:
        taken = " and ".join(self._arguments()) or "no argument"
        more = f" and {len(rest) - _SHOWN} more" if len(rest) > _SHOWN else ""
        message = f"{command}: takes {taken}; found {', '.join(rest[:_SHOWN])}{more} too"
        if not all(Path(word).exists() for word in rest):
            return f"{message}; leave out what is too much, or look at `{command} --help`"
        reads_patterns = [param.opts[0] for param in self.params if param.metavar == "PLACE"]
        what_to_do = f"quote it, as in {reads_patterns[0]} 'text/*.jsonl'" if reads_patterns else "run once for each"
        return f"{message}; an unquoted pattern becomes the files that it matches: {what_to_do}"

    def _arguments(self) -> list[str]:
        return [
            (param.metavar or str(param.name)).upper() for param in self.params if param.param_type_name == "argument"
        ]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words behind the command's name: `[OPTIONS] RECIPE OUTPUT`."""
        return [re.sub(r"[{}]", "", piece).upper() for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the arguments and the options, without the names of Python's types."""
        arguments, options = [], []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            name, help_text = record[0], _plain_bounds(record[1])
            if param.param_type_name == "argument":
                arguments.append((name.partition(" ")[0].upper(), help_text))
            else:
                options.append((re.sub("<(.*?)>", lambda kind: _KINDS.get(kind[1], kind[1]), name), help_text))
        for title, records in (("Arguments", arguments), ("Options", options)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class VerbApp(typer.Typer):
    """Commands that are all of class `Verb`."""

    def command(self, name: str | None = None, **settings: Any) -> Any:
        """Registers a command, as `typer.Typer` does."""
        return super().command(name, cls=Verb, **settings)


def _plain_bounds(help_text: str) -> str:
    """The end of a help text in words: `x>=1` is `at least 1`, and a default in parentheses loses them."""
    help_text = re.sub(r"default: \((.*?)\)(?=[;\]])", r"default: \1", help_text)
    help_text = re.sub(r"([\d.]+)<=x<=([\d.]+)(?=[;\]])", r"\1 to \2", help_text)
    return re.sub(r"x>=([\d.]+?)(\.0)?(?=[;\]])", r"at least \1", help_text)
