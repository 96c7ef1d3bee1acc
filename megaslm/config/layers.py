"""The layers of one configuration: a file, the files it is based on, and the overrides of the command line."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megaslm.config.section import OldNames
from megaslm.config.source import KeyPath, Source, dotted_key, parse_source, read_source
from megaslm.errors import ConfigError

COMMAND_LINE = "--set"
"""The origin of a value from the command line."""
BASE_KEY = "base"
"""The key that names the file's base."""


@dataclass
class Layers:
    """Settings merged so far, the origin of every value, and the overrides that could not be applied."""

    settings: object = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def lay(self, source: Source, path: Sequence[str] = ()) -> None:
        """Merge `source` into the value at `path`. Mappings are merged; everything else is replaced.

        An empty mapping replaces too, except at the top of a file.
        """
        self.settings = self._laid(self.settings, (), tuple(path), source)

    def rename(self, old_names: OldNames) -> None:
        """Move settings from their old to their new names; where both are set, the later layer wins."""
        for old, (name, new_values) in old_names.items():
            if old not in self.origins:
                continue
            new, order = (*old[:-1], name), list(self.origins)
            section: Any = self.value_at(old[:-1])
            value, origin = section.pop(old[-1]), self.origins[old]
            self._forget(old)
            renamed = dotted_key(new)
            if isinstance(value, bool) and value in new_values:
                value = new_values[value]
                renamed += f" = {value}"
            if new not in order or order.index(new) < order.index(old):
                section[name] = value
                self._note(new, origin)
            self.warnings.append(
                f"{dotted_key(old)} is called {renamed} now, and the old name will be removed soon; use the "
                f"new one ({origin})"
            )

    def origin_of(self, path: KeyPath) -> str | None:
        """Origin of the value at `path`, None where not set. For a list with changed entries it is the last change."""
        found = [origin for known, origin in self.origins.items() if known[: len(path)] == path]
        return found[-1] if found else None

    def value_at(self, path: KeyPath) -> object:
        """The raw value at `path`, which must be set."""
        value: Any = self.settings
        for part in path:
            value = value[part]
        return value

    def _laid(self, current: object, reached: KeyPath, remaining: tuple[str, ...], source: Source) -> object:
        if not remaining:
            merged = self._merged(current, source.value, reached)
            for below, origin in source.origins.items():
                self._note((*reached, *below), origin)
            return merged
        name, rest = remaining[0], remaining[1:]
        if isinstance(current, list):
            if not (name.isdecimal() and int(name) < len(current)):
                self.mistakes.append(_not_an_index(reached, name, len(current)))
                return current
            index = int(name)
            entry = self._laid(current[index], (*reached, index), rest, source)
            return [*current[:index], entry, *current[index + 1 :]]
        if not isinstance(current, dict):
            self._forget(reached)
            current = {}
        return {**current, name: self._laid(current.get(name), (*reached, name), rest, source)}

    def _merged(self, old: object, new: object, path: KeyPath) -> object:
        if isinstance(old, dict) and isinstance(new, dict) and (new or not path):
            return {**old, **{key: self._merged(old.get(key), value, (*path, key)) for key, value in new.items()}}
        self._forget(path)
        return new

    def _note(self, path: KeyPath, origin: str) -> None:
        self.origins.pop(path, None)
        self.origins[path] = origin

    def _forget(self, path: KeyPath) -> None:
        for known in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[known]


def gather(path: Path, overrides: Sequence[str]) -> Layers:
    """Merge the chain of files that ends in `path`, then the overrides."""
    layers = Layers()
    for source in _chain(path):
        layers.lay(source)
    for override in overrides:
        try:
            key, source = _parse_override(override)
        except ConfigError as error:
            layers.mistakes.append(str(error))
        else:
            layers.lay(source, key)
    return layers


def _chain(path: Path) -> list[Source]:
    """The file and its bases, the deepest base first."""
    chain: list[Source] = []
    visited: dict[Path, Path] = {}
    current: Path | None = path
    while current is not None:
        identity = current.resolve()
        if identity in visited:
            circle = " -> ".join(str(name) for name in [*visited.values(), current])
            raise ConfigError(f"{path}: the files are based on one another in a circle: {circle}")
        source = _read_link(current, list(visited.values()))
        visited[identity] = current
        current, source = _split_base(source, current)
        chain.insert(0, source)
    return chain


def _read_link(path: Path, read_before: Sequence[Path]) -> Source:
    try:
        return read_source(path)
    except ConfigError as error:
        if not read_before:
            raise
        raise ConfigError(f"{error}\n  (named as {BASE_KEY}: by {read_before[-1]})") from None


def _split_base(source: Source, path: Path) -> tuple[Path | None, Source]:
    settings = source.value
    if not isinstance(settings, Mapping) or BASE_KEY not in settings:
        return None, source
    base = settings[BASE_KEY]
    if not isinstance(base, str) or "\0" in base:
        raise ConfigError(f"{path}: {BASE_KEY} = {base!r}: must be the name of one file, relative to this one")
    rest = Source(
        {key: value for key, value in settings.items() if key != BASE_KEY},
        {place: origin for place, origin in source.origins.items() if place[:1] != (BASE_KEY,)},
    )
    return Path(os.path.normpath(path.parent / base)), rest


def _parse_override(override: str) -> tuple[list[str], Source]:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"{COMMAND_LINE} {override}: must look like {COMMAND_LINE} train.lr=2e-5")
    try:
        return parts, parse_source(text, COMMAND_LINE, with_lines=False)
    except ConfigError as error:
        reason = str(error).splitlines()[0].removeprefix(f"{COMMAND_LINE}: ")
        raise ConfigError(
            f"{COMMAND_LINE} {override}: {reason}; text with YAML's special characters needs quotes"
        ) from None


def _not_an_index(path: KeyPath, found: str, length: int) -> str:
    known = f"a list with the indices 0 to {length - 1}" if length else "an empty list"
    return f"{dotted_key((*path, found))}: no such entry; {dotted_key(path)} is {known} ({COMMAND_LINE})"
