"""Paths as people write them: `~` for a home folder."""

from pathlib import Path

from megaslm.errors import ConfigError


def home_expanded(path: str | Path) -> Path:
    """The path with the folder that `~` or `~name` stands for. Raises ConfigError where nobody has that name."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{path}: no home folder is known for {Path(path).parts[0]!r}; write the path in full, from / on"
        ) from error
