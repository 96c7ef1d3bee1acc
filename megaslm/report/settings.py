"""In which settings runs differ, leaving out how a run is carried out and measured."""

from fnmatch import fnmatchcase

from megaslm.config.load import settings_of
from megaslm.config.schema import RunConfig
from megaslm.config.source import dotted_key

_CARRIED_OUT = (
    *("run_dir", "zero.*", "checkpoint.*", "guard.*", "log.*", "validation.*", "probe.*"),
    *("model.compile", "model.recompute", "model.hub", "model.hub.*", "data.fetch.*", "data.loader_workers"),
    *(
        "train.micro_batch_rows",
        "train.epochs",
        "train.deterministic",
        "slm.exact_by",
        "slm.measure_unselected",
        "slm.head",
    ),
    *("slm.head_cache_gib", "slm.verify_rows", "slm.reference", "data.streams.*.reference"),
)
_SELECTION = ("train.objective", "slm.*", "data.train", "data.streams.*.dataset")


def settings(config: RunConfig) -> dict[str, object]:
    """The settings that decide what a run learns, by their dotted keys."""
    return {
        key: value
        for path, value in settings_of(config)
        if not any(fnmatchcase(key := dotted_key(path), pattern) for pattern in _CARRIED_OUT)
    }


def difference(one: RunConfig, other: RunConfig) -> set[str]:
    """The keys in which two runs differ beside the selection: whether, by what, and on which copy of the data."""
    first, second = settings(one), settings(other)
    return {
        key
        for key in first.keys() | second.keys()
        if first.get(key) != second.get(key) and not any(fnmatchcase(key, pattern) for pattern in _SELECTION)
    }
