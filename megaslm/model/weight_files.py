"""The safetensors of a Hugging Face folder: which they are, whether they are whole, and their fingerprint."""

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open

from megaslm.errors import ModelError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_HASHED_AT_ONCE = 4


class _Index(BaseModel):
    weight_map: dict[str, str]
    """Name of a weight to the file that holds it."""


def weight_files(folder: Path) -> list[Path]:
    """The files that a model is loaded from, by name: one, or those that its index lists.

    Raises:
        ModelError: there are none, or the index cannot be read.
    """
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if (folder / _INDEX).is_file():
        return [folder / name for name in sorted(set(_read_index(folder).weight_map.values()))]
    raise ModelError(f"{folder}: holds neither {_SINGLE} nor {_INDEX}; convert the weights with save_pretrained first")


def check_weight_files(folder: Path) -> None:
    """Raise ModelError unless all weight files are there and whole; reads their headers only."""
    files = weight_files(folder)
    found: dict[str, str] = {}
    for path in files:
        found |= dict.fromkeys(_parameters_in(path), path.name)
    if files != [folder / _SINGLE]:
        _check_index(folder, found)


def count_parameters(folder: Path) -> int:
    """The elements of all weights; reads the headers of their files only. Raises ModelError where one is not whole."""
    return sum(count for path in weight_files(folder) for count in _parameters_in(path).values())


def weights_sha256(folder: Path) -> str:
    """One SHA-256 for all weight files of a folder: over the lines "<sha256 of the file>  <name>"."""
    total = hashlib.sha256()
    files = weight_files(folder)
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        for path, digest in zip(files, pool.map(_sha256_of, files), strict=True):
            total.update(f"{digest}  {path.name}\n".encode())
    return total.hexdigest()


def _parameters_in(path: Path) -> dict[str, int]:
    """The elements of each weight in a file."""
    if not path.is_file():
        raise ModelError(f"{path}: is missing, though {_INDEX} lists it; complete the folder")
    try:
        with safe_open(path, framework="pt") as weights:
            return {name: math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError(
            f"{path}: is damaged or incomplete, with {path.stat().st_size} bytes: {error}; copy it again"
        ) from error


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_index(folder: Path) -> _Index:
    try:
        return _Index.model_validate_json((folder / _INDEX).read_bytes())
    except (ValidationError, json.JSONDecodeError) as error:
        raise ModelError(f"{folder / _INDEX}: is not an index of weights: {error}") from error


def _check_index(folder: Path, found: dict[str, str]) -> None:
    """Whether every weight is in the file that the index names."""
    for name, file in _read_index(folder).weight_map.items():
        if found.get(name) != file:
            where = f"in {found[name]}" if name in found else "in none of its files"
            raise ModelError(f"{folder}: {_INDEX} says that {name} is in {file}, it is {where}; copy the folder again")
