"""What a viewer is told of a run before its first record."""

from dataclasses import dataclass

Scalar = bool | int | float | str


@dataclass(frozen=True)
class RunDescription:
    """The configuration of a run."""

    text: str
    """The resolved configuration, in YAML."""
    settings: dict[str, Scalar]
    """The settings that shape what is learned, by dotted key."""
