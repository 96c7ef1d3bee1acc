"""The settings of the run that is looked at. Nothing here imports torch."""

from collections.abc import Iterator
from pathlib import Path

from megaslm.config.load import Loaded, settings_of
from megaslm.config.schema import RunConfig
from megaslm.config.source import dotted_key
from megaslm.doctor.check import Check


def settings(path: Path, loaded: Loaded[RunConfig]) -> Iterator[Check]:
    """The warnings of a configuration, and its settings, none of which holds a secret."""
    for warning in loaded.warnings:
        yield Check("config", "warning", warning)
    run = loaded.value
    facts = {dotted_key(key): str(value) for key, value in settings_of(run)}
    yield Check("config", "ok", f"{path}: {run.train.objective} → {run.run_dir}", facts=facts)
