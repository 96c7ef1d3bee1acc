"""Kubernetes objects as data: read from a file, some of their fields set, written for `kubectl`.

Nothing is put into text, so that no value can become a key, a line or another object.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from megaslm.errors import ConfigError

Key = str | int
Field = str | int | list["Field"] | dict[str, "Field"]
"""What a field may hold."""


class Manifest:
    """One object of a file. Its fields can be replaced and removed, but none is invented: the file shows them all."""

    def __init__(self, file: Path, content: Any) -> None:
        self._file = file
        self._content = content

    @property
    def kind(self) -> str:
        """What it describes, such as Job."""
        return str(self._content["kind"])

    def set(self, value: Field, *path: Key) -> None:
        """Replaces the field that is reached by these keys.

        Raises:
            ConfigError: the file has no such field.
        """
        self._holder(path)[path[-1]] = value

    def remove(self, *path: Key) -> None:
        """Takes the field out that is reached by these keys.

        Raises:
            ConfigError: the file has no such field.
        """
        del self._holder(path)[path[-1]]

    def content(self) -> Any:
        """The whole, as plain values."""
        return self._content

    def _holder(self, path: Sequence[Key]) -> Any:
        holder, field = None, self._content
        for key in path:
            holder = field
            try:
                field = holder[key]
            except (KeyError, IndexError, TypeError):
                name = ".".join(map(str, path))
                raise ConfigError(
                    f"{self._file}: the {self.kind} has no field {name}, which `megaslm launch` sets; put it back"
                ) from None
        return holder


def read_manifests(file: Path) -> list[Manifest]:
    """The objects of a file.

    Raises:
        ConfigError: it is not YAML, or holds something else.
    """
    try:
        contents = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from error
    if not all(isinstance(content, dict) and "kind" in content for content in contents):
        raise ConfigError(f"{file}: must hold Kubernetes objects, each with its kind")
    return [Manifest(file, content) for content in contents]


def to_yaml(manifests: Sequence[Manifest]) -> str:
    """The objects as YAML, one document each."""
    contents = [manifest.content() for manifest in manifests]
    return yaml.dump_all(contents, Dumper=_Dumper, sort_keys=False, explicit_start=True, width=2**31 - 1)


class _Dumper(yaml.SafeDumper):
    """Readers of YAML do not agree on what `y`, `0o17` or `1e3` are: text is in quotes unless it is a plain word."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = None if re.fullmatch(r"[A-Za-z/][A-Za-z0-9/._-]+", value) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_text)
