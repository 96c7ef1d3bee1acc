"""A cluster's file, read as the section of its kind."""

from pathlib import Path
from typing import get_args

from megaslm.config.cluster import Cluster
from megaslm.config.layers import gather
from megaslm.config.load import load
from megaslm.config.problems import show
from megaslm.errors import ConfigError


def load_cluster(path: str | Path) -> Cluster:
    """The checked cluster that a file describes.

    Raises:
        ConfigError: all that is wrong with the file.
    """
    kinds = {get_args(section.model_fields["kind"].annotation)[0]: section for section in get_args(Cluster)}
    settings = gather(Path(path), ()).settings
    kind = settings.get("kind") if isinstance(settings, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"{path}: kind = {show(kind)}: must be one of {', '.join(kinds)}")
    return load(kinds[kind], path).value
