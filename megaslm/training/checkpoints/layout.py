"""Which rank's file holds which stretch of which parameter, so that any number of ranks can read a checkpoint."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from megaslm.config.run_files import LAYOUT
from megaslm.engine.training_state import Fragment
from megaslm.errors import CheckpointError

_FORMAT = 1


class Stretch(NamedTuple):
    """Consecutive elements of a flattened parameter in one file."""

    rank: int
    """A rank of the run that wrote the checkpoint."""
    start: int
    size: int


@dataclass(frozen=True)
class StoredParameter:
    """A parameter's shape, and its stretches in order."""

    shape: tuple[int, ...]
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True)
class Layout:
    """The parameters in the files of a checkpoint."""

    parameters: Mapping[str, StoredParameter]
    adam_steps: int = 0
    """Updates accumulated in Adam's moments."""

    @classmethod
    def of(cls, fragments: Sequence[Sequence[Fragment]]) -> "Layout":
        """The layout of the fragments that each rank holds. If several ranks hold a stretch, the first writes it.

        Raises CheckpointError where the fragments do not cover their parameters.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        stretches: dict[str, dict[int, Stretch]] = {}
        for rank, held in enumerate(fragments):
            for fragment in held:
                shapes[fragment.name] = fragment.shape
                stretches.setdefault(fragment.name, {}).setdefault(
                    fragment.start, Stretch(rank, fragment.start, fragment.count)
                )
        parameters = {
            name: StoredParameter(shape, tuple(stretches[name][start] for start in sorted(stretches[name])))
            for name, shape in shapes.items()
        }
        for name, parameter in parameters.items():
            _check_covered(name, parameter)
        return cls(parameters)

    def written_by(self, rank: int) -> set[str]:
        """The names of the parameters of which this rank's files hold a stretch."""
        return {
            name
            for name, parameter in self.parameters.items()
            if any(stretch.rank == rank for stretch in parameter.stretches)
        }

    def as_json(self) -> str:
        """The text that `read_layout` reads."""
        return json.dumps(
            {
                "format": _FORMAT,
                "adam_steps": self.adam_steps,
                "parameters": {name: [stored.shape, stored.stretches] for name, stored in self.parameters.items()},
            }
        )


def read_layout(checkpoint: Path) -> Layout:
    """The layout of a checkpoint. Raises CheckpointError where another version of MegaSLM wrote it."""
    path = checkpoint / LAYOUT
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["format"] != _FORMAT:
        raise CheckpointError(f"{path}: format {stored['format']}; this version of MegaSLM reads format {_FORMAT}")
    parameters = {
        name: StoredParameter(tuple(shape), tuple(Stretch(*stretch) for stretch in stretches))
        for name, (shape, stretches) in stored["parameters"].items()
    }
    return Layout(parameters, stored["adam_steps"])


def _check_covered(name: str, parameter: StoredParameter) -> None:
    expected = 1
    for size in parameter.shape:
        expected *= size
    end = 0
    for stretch in parameter.stretches:
        if stretch.start != end:
            break
        end += stretch.size
    if end != expected:
        raise CheckpointError(f"{name}: the ranks hold its elements up to {end} of {expected}; nothing was saved")
