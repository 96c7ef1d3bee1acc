"""A YAML file, its bases and the command line's overrides, as one checked and frozen configuration.

All problems are reported at once, by the keys and lines of the user's files.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from megaslm.config.layers import Layers, gather
from megaslm.config.problems import describe_booleans_for_numbers, describe_credentials, describe_problems
from megaslm.config.source import KeyPath, dotted_key
from megaslm.errors import ConfigError

M = TypeVar("M", bound=BaseModel)
M_co = TypeVar("M_co", bound=BaseModel, covariant=True)

DEFAULT = "default"
"""The origin of a value that neither a file nor the command line sets."""
_KINDS = {
    "train": "a run's configuration, which `megaslm train` takes",
    "sources": "a corpus's recipe, which `megaslm prepare` takes",
    "kind": "a cluster's file, which `megaslm launch --cluster` takes",
}
"""What a file is, by the key that no other kind of file has."""


@dataclass(frozen=True)
class Loaded(Generic[M_co]):
    """A checked configuration, and where each of its settings came from."""

    value: M_co
    provenance: Mapping[str, str]
    """Dotted key to origin: `FILE:LINE`, `--set` or `default`."""
    warnings: tuple[str, ...] = ()
    """Deprecated names that were read."""


def load(model_class: type[M], path: str | Path, overrides: Sequence[str] = ()) -> Loaded[M]:
    """Read `path` and its bases, apply `overrides` (`train.lr=2e-5`), and check the result.

    All problems are reported in one ConfigError: each with its dotted key, the value, what is allowed, and its origin.
    """
    layers = gather(Path(path), overrides)
    _refuse_other_kind(path, model_class, layers.settings)
    layers.rename(getattr(model_class, "OLD_NAMES", {}))
    # Reported alone: other messages show the values of settings.
    _refuse(path, describe_credentials(layers))
    problems = layers.mistakes + describe_booleans_for_numbers(model_class, layers)
    try:
        value = model_class.model_validate(layers.settings)
    except ValidationError as error:
        problems += describe_problems(error, model_class, layers)
    _refuse(path, problems)
    return Loaded(value, _provenance(value, layers), tuple(layers.warnings))


def settings_of(value: BaseModel) -> Iterator[tuple[KeyPath, object]]:
    """Path and value of every single setting; sections and collections of sections are descended into."""
    for name in type(value).model_fields:
        yield from _opened((name,), getattr(value, name))


def _refuse_other_kind(path: str | Path, model_class: type[BaseModel], settings: object) -> None:
    """Of a file of another kind, each setting would be a problem."""
    given = set(settings) & _KINDS.keys() if isinstance(settings, Mapping) else set()
    wanted = [kind for key, kind in _KINDS.items() if key in model_class.model_fields]
    if wanted and given and not given & model_class.model_fields.keys():
        kinds = " and ".join(_KINDS[key] for key in sorted(given))
        raise ConfigError(f"{path}: is {kinds}; expected {wanted[0]}")


def _refuse(path: str | Path, problems: Sequence[str]) -> None:
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(f"{path}: {count}\n" + "\n".join(f"  {problem}" for problem in problems))


def _opened(path: KeyPath, value: object) -> Iterator[tuple[KeyPath, object]]:
    if isinstance(value, BaseModel):
        children: list[tuple[str | int, object]] = [(name, getattr(value, name)) for name in type(value).model_fields]
    elif isinstance(value, Mapping):
        children = [(str(key), entry) for key, entry in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(entry, BaseModel) for entry in value):
        children = list(enumerate(value))
    else:
        children = []
    if not children:
        yield path, value
    for part, child in children:
        yield from _opened((*path, part), child)


def _provenance(value: BaseModel, layers: Layers) -> dict[str, str]:
    return {dotted_key(path): layers.origin_of(path) or DEFAULT for path, _ in settings_of(value)}
