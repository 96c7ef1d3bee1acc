"""YAML text to plain values, each with its file and line; and values to YAML that loads back equal.

PyYAML follows YAML 1.1: `2e-5` is text, `no` is false, `0123` is octal, and a key may be set twice. This parser reads
`2e-5` as a number, takes only `true` and `false` as booleans, and reports a repeated key as an error.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import yaml
from pydantic import BaseModel

from megaslm.config.section import without_credentials
from megaslm.errors import ConfigError
from megaslm.files import looked_in

KeyPath = tuple[str | int, ...]
"""Keys of mappings and indices of lists, from the top of a file down to a value."""

FLOAT_PATTERN = re.compile(
    r"""^[-+]?(?:
        [0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
      | \.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
      | [0-9][0-9_]*[eE][-+]?[0-9]+
      | \.(?:inf|Inf|INF)
    )$|^\.(?:nan|NaN|NAN)$""",
    re.VERBOSE,
)
INTEGER_PATTERN = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")
FLOAT_STARTS = list("-+0123456789.")


_MOST_VALUES = 100_000
"""More than any file needs. Nested aliases can expand a few lines to more."""
_LONGEST_SHOWN = 60
_UNREADABLE = object()


class _Resolver(yaml.SafeLoader):
    """PyYAML's parser with the scalar rules of this module."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML declares it as an instance attribute)


_Resolver.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Resolver.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Resolver.add_implicit_resolver("tag:yaml.org,2002:int", INTEGER_PATTERN, list("-+0123456789"))
_Resolver.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT_PATTERN, FLOAT_STARTS)


@dataclass(frozen=True)
class Source:
    """A parsed text: its value, and the origin (`runs/a.yaml:7`) of every scalar, list and empty mapping in it."""

    value: object
    origins: Mapping[KeyPath, str]


def read_source(path: Path) -> Source:
    """Parse the file at `path`, whose top must be a mapping. Raises one ConfigError that names the file."""
    text = _read_text(path)
    source = parse_source(text, str(path))
    if source.value is None:
        raise ConfigError(f"{path}: the file is empty; it must hold a mapping of settings")
    if not isinstance(source.value, dict):
        raise ConfigError(f"{path}: the file must hold a mapping of settings; found {type_name(source.value)}")
    return source


def parse_source(text: str, name: str, *, with_lines: bool = True) -> Source:
    """Parse one YAML document; origins and messages show `name` as its file."""
    try:
        loader = _Resolver(text)
        try:
            node = loader.get_single_node()
            return _Reader(loader, name, with_lines).read(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_describe_syntax_error(error, text, name)) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply to be read") from None


def type_name(value: object) -> str:
    """The YAML name of the type of `value`."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "a mapping"


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{looked_in(path)}{_files_beside(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: this is a folder; name one YAML file{_files_in(path)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _files_beside(path: Path) -> str:
    return _files_in(path.parent) if path.parent.is_dir() else f"; nor is there a folder {path.parent}"


def _files_in(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.glob("*.y*ml"))
    return f"; {folder} has {', '.join(names[:12])}" if names else ""


def _describe_syntax_error(error: yaml.MarkedYAMLError, text: str, name: str) -> str:
    mark = error.problem_mark or error.context_mark
    problem = ", ".join(part for part in (error.context, error.problem) if part)
    if mark is None:
        return f"{name}: not valid YAML: {problem}"
    lines = text.splitlines()
    line = without_credentials(lines[mark.line]) if mark.line < len(lines) else ""
    pointer = " " * mark.column + "^"
    return (
        f"{name}: not valid YAML at line {mark.line + 1}, column {mark.column + 1}: {problem}\n"
        f"    {line}\n"
        f"    {pointer}"
    )


@dataclass
class _Reader:
    loader: _Resolver
    name: str
    with_lines: bool
    origins: dict[KeyPath, str] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    open_nodes: set[int] = field(default_factory=set)
    values: int = 0

    def read(self, document: yaml.Node | None) -> Source:
        value = None if document is None else self._value(document, ())
        if self.mistakes:
            raise ConfigError("\n".join(self.mistakes))
        return Source(value, self.origins)

    def _value(self, node: yaml.Node, path: KeyPath) -> object:
        self.values += 1
        if self.values > _MOST_VALUES:
            raise ConfigError(f"{self._place(node)}: the file's aliases spell out more than {_MOST_VALUES:,} values")
        if id(node) in self.open_nodes:
            self.mistakes.append(f"{self._place(node)}: an alias refers to the value that contains it")
            return None
        self.open_nodes.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            self.origins[path] = self._place(node)
            if isinstance(node, yaml.SequenceNode):
                return [self._value(child, (*path, index)) for index, child in enumerate(node.value)]
            return self._scalar(node)
        finally:
            self.open_nodes.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, object]:
        if not node.value:
            self.origins[path] = self._place(node)
        values: dict[str, object] = {}
        first_places: dict[str, str] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.mistakes.append(f"{self._place(key_node)}: a key must be text")
                continue
            key = key_node.value
            if not _is_text(key):
                self.mistakes.append(f"{self._place(key_node)}: the key {key!r} has half of a surrogate pair in it")
                continue
            if key in values:
                dotted = dotted_key((*path, key))
                self.mistakes.append(f"{self._place(key_node)}: {dotted} is set twice; first at {first_places[key]}")
                continue
            first_places[key] = self._place(key_node)
            values[key] = self._value(value_node, (*path, key))
        return values

    def _scalar(self, node: yaml.Node) -> object:
        try:
            value = self.loader.construct_object(node)
        # Errors of PyYAML's constructors for text that does not fit its tag.
        except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            value = _UNREADABLE
        if value is _UNREADABLE or not isinstance(value, str | int | float | None):
            self.mistakes.append(f"{self._place(node)}: {_shown(node.value)} cannot be read as {node.tag}")
            return None
        if isinstance(value, str) and not _is_text(value):
            self.mistakes.append(f"{self._place(node)}: {_shown(value)} has half of a surrogate pair in it")
            return None
        return value

    def _place(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}" if self.with_lines else self.name


def _is_text(value: str) -> bool:
    """Whether `value` is valid Unicode, so that it can be written to a file."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}…"


def dotted_key(path: KeyPath) -> str:
    """`("sources", 1, "name")` as `sources.1.name`."""
    return ".".join(str(part) for part in path)


class _Dumper(yaml.SafeDumper):
    """Quotes text that a YAML 1.1 reader, or MegaSLM's own, would read as another type."""


def dump(value: BaseModel) -> str:
    """Every setting of `value` as YAML, defaults included."""
    return to_yaml(value.model_dump(mode="python"))


def to_yaml(value: object, *, one_line: bool = False) -> str:
    """Plain values as YAML, in their given order."""
    return yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=one_line,
        width=10**6 if one_line else 120,
    )


def _represent_decimal(dumper: yaml.SafeDumper, value: Decimal) -> yaml.Node:
    """A plain number where a float keeps all digits, else text."""
    if Decimal(str(float(value))) == value:
        return dumper.represent_float(float(value))
    return dumper.represent_str(str(value))


def _represent_tuple(dumper: yaml.SafeDumper, value: tuple[object, ...]) -> yaml.Node:
    return dumper.represent_list(value)


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    """Rare line ends survive only in double quotes, in which all line ends keep a text on one line."""
    style = '"' if any(mark in value for mark in "\n\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(Decimal, _represent_decimal)
_Dumper.add_representer(tuple, _represent_tuple)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT_PATTERN, FLOAT_STARTS)
