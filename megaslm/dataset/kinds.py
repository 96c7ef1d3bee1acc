"""What a path is, by the names of its files: a dataset, or something that a user took for one."""

from collections.abc import Iterator
from enum import Enum
from itertools import islice
from pathlib import Path

from megaslm.config.run_files import CHECKPOINTS, COMPLETE, CONFIG, LAYOUT, METRICS, SMOKE
from megaslm.errors import DataError
from megaslm.files import looked_in

_MANIFEST = "manifest.json"
_OF_RUNS = (CHECKPOINTS, METRICS, "model")
_OF_DATASETS = ("train", "heldout", "tokenizer")
_OF_UNFINISHED_DATASETS = (".prepare", ".score", ".mask", ".attach", ".derived", ".upload.json")
# The second one is in the manifests that another program has written anew.
_OF_MANIFESTS = (b'{\n "checksum": "', b'"schema_version"')
_OF_WEIGHTS = ("*.safetensors", "*.bin")
_WITHIN = (*_OF_DATASETS, CHECKPOINTS, "model", "exports", "tokens", "tensorboard")
_MADE = "a folder that `megaslm prepare`, `score` or `mask` has made"
_BEGINNING_BYTES = 4096
_MOST_LOOKED_AT = 200
_MOST_SHOWN = 10


class Kind(Enum):
    """What a path is. The value continues a sentence about it: what it is, and what to do."""

    DATASET = "is a dataset"
    """A finished dataset, perhaps a damaged one."""
    UNFINISHED = (
        "holds an unfinished dataset; wait for the job that makes it, run its command again, which resumes, or name "
        "its finished output"
    )
    RUN = (
        "is the folder of a training run, not a dataset; `megaslm inspect` shows the run, `megaslm export` writes its "
        "model"
    )
    SMOKE_TEST = (
        "is the folder of a smoke test, neither a dataset nor a run; its smoke.json has what was measured; name the "
        "folder of the run itself"
    )
    CHECKPOINT = (
        "is a checkpoint of a training run, not a dataset; `megaslm checkpoint verify` checks it, `megaslm export` "
        "writes its model"
    )
    MODEL = (
        "is a Hugging Face model folder, not a dataset; model.from_pretrained and `megaslm score --reference` take it"
    )
    TOKENIZER = "is a tokenizer's folder, not a dataset; tokenizer.huggingface of a recipe takes it"
    WITHIN = "is one of the folders of a dataset or a run; name the folder above it"
    FILE = "is a file; a dataset is a folder that `megaslm prepare`, `score` or `mask` has written"
    OTHER = "is not a dataset, for it holds no manifest.json that MegaSLM wrote; name " + _MADE
    MISSING = "does not exist"


def kind_of(path: Path) -> Kind:
    """What `path` is. Only the beginning of a manifest is read."""

    def has(*names: str) -> bool:
        return any((path / name).exists() for name in names)

    if not path.is_dir():
        return Kind.FILE if path.exists() else Kind.MISSING
    if _is_manifest(path / _MANIFEST):
        return Kind.DATASET
    if has(SMOKE):
        return Kind.SMOKE_TEST
    if has(LAYOUT, COMPLETE):
        return Kind.CHECKPOINT
    if has(CONFIG) and has(*_OF_RUNS):
        return Kind.RUN
    if has(*_OF_UNFINISHED_DATASETS):
        return Kind.UNFINISHED
    if has(_MANIFEST) and has(*_OF_DATASETS):
        return Kind.DATASET
    if has("config.json") and any(True for ending in _OF_WEIGHTS for _ in path.glob(ending)):
        return Kind.MODEL
    if path.name in _WITHIN and _is_whole(path.parent):
        return Kind.WITHIN
    return Kind.TOKENIZER if has("tokenizer.json", "tokenizer.model") else Kind.OTHER


def described(path: Path) -> str:
    """What `path` is, to continue a sentence about it. Of another folder, with the datasets and the runs in it."""
    kind = kind_of(path)
    if kind is Kind.MISSING:
        return f"{kind.value}{looked_in(path)}; name {_MADE}"
    inside = contents(path) if kind is Kind.OTHER else ""
    return f"is neither a dataset nor a run, but holds {inside}; name one of them" if inside else kind.value


def contents(path: Path) -> str:
    """The datasets and the runs in a folder and in its folders, in words; empty where there are none."""
    found: dict[Kind, list[str]] = {Kind.DATASET: [], Kind.RUN: []}
    folders = list(islice(_folders(path), _MOST_LOOKED_AT))
    inner = (folder for outer in folders if kind_of(outer) is Kind.OTHER for folder in _folders(outer))
    for folder in (*folders, *islice(inner, _MOST_LOOKED_AT)):
        kind = kind_of(folder)
        if kind in found:
            found[kind].append(str(folder))
    names = (("datasets", sorted(found[Kind.DATASET])), ("runs", sorted(found[Kind.RUN])))
    return " and ".join(
        f"the {noun} {', '.join(folders[:_MOST_SHOWN])}{', …' if len(folders) > _MOST_SHOWN else ''}"
        for noun, folders in names
        if folders
    )


def _folders(path: Path) -> Iterator[Path]:
    try:
        yield from (entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        # It helps no further in a message about another folder.
        return


def require_output(path: Path) -> None:
    """Raises DataError where `path` holds something else than a dataset, or than the work on one."""
    if kind_of(path) in (Kind.DATASET, Kind.UNFINISHED, Kind.MISSING):
        return
    if not path.is_dir():
        raise DataError(f"{path} is a file; choose another folder")
    if any(path.iterdir()):
        raise DataError(f"{path} is not empty and holds no dataset; choose another folder")


def _is_whole(path: Path) -> bool:
    return _is_manifest(path / _MANIFEST) or (path / CONFIG).exists()


def _is_manifest(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING_BYTES)
    return any(mark in beginning for mark in _OF_MANIFESTS)
