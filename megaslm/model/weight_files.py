"""The safetensors of a Hugging Face folder: file names, contents and fingerprint."""

import hashlib
import math
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open

from megaslm.errors import ModelError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_HASHED_AT_ONCE = 4
_COMPARED_ELEMENTS = 1 << 24
_FLOATING_POINT = ("F64", "F32", "F16", "BF16")
_NORM = re.compile(r"norm\.weight$")
NEEDLESS = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$")
"""Unused by the supported releases: the angles of rotary embeddings, which follow from config.json."""


class StoredWeight(NamedTuple):
    """A weight, as its file's header describes it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """As safetensors writes it: F32, BF16, F8_E4M3 …"""


class _Index(BaseModel):
    metadata: dict[str, Any]
    """Unused here, but transformers requires it."""
    weight_map: dict[str, str] = Field(min_length=1)
    """Name of a weight to the file that holds it, relative to the folder."""


def weight_files(folder: Path) -> list[Path]:
    """The files that a model is loaded from: one, or those in its index, sorted by name.

    Raises:
        ModelError: there are none, or the index cannot be read, or names files outside of the folder.
    """
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if (folder / _INDEX).is_file():
        return [folder / name for name in sorted(set(_read_index(folder).weight_map.values()))]
    raise ModelError(f"{folder}: holds neither {_SINGLE} nor {_INDEX}; convert the weights with save_pretrained first")


def stored_weights(folder: Path) -> Mapping[str, StoredWeight]:
    """The weights of a folder by name; reads the headers of its files only.

    Raises:
        ModelError: a file is missing or truncated, lacks a weight that the index says it has, or differs from another
            file in a weight that both hold.
    """
    files = weight_files(folder)
    found: dict[str, StoredWeight] = {}
    for path in files:
        for name, weight in _weights_in(path, folder).items():
            # transformers would use the last file's.
            if name in found and not _are_equal(name, weight, name, found[name]):
                raise ModelError(
                    f"{folder}: {name} is in {found[name].file.name} and in {weight.file.name}, with other values; "
                    "either may be the right one: save the model again from where it was made"
                )
            found[name] = weight
    if files != [folder / _SINGLE]:
        _require_listed(folder, found)
    return found


def plain_weights(folder: Path) -> Mapping[str, StoredWeight]:
    """As `stored_weights`. Raises ModelError where one is stored as anything but floating point."""
    weights = stored_weights(folder)
    for name, weight in weights.items():
        if weight.dtype not in _FLOATING_POINT and not NEEDLESS.search(name):
            raise ModelError(
                f"{folder}: {name} is stored as {weight.dtype}; expected one of {', '.join(_FLOATING_POINT)}: the "
                "model is quantised, or this weight does not belong to it; use the model that it was made from, or "
                "load it with transformers and save it again"
            )
    return weights


def hold_the_same(weights: Mapping[str, StoredWeight], first: str, second: str) -> bool:
    """Whether two weights are equal in every element. Reads both."""
    return _are_equal(first, weights[first], second, weights[second])


def is_untrained(folder: Path) -> bool:
    """Whether the weights are as they were drawn: training would have changed the norms, which begin as one value.

    Reads them up to the first that has changed. Raises as `stored_weights` does.
    """
    norms = {name: weight for name, weight in stored_weights(folder).items() if _NORM.search(name)}
    return bool(norms) and all(_holds_one_value(name, weight) for name, weight in norms.items())


def count_parameters(folder: Path) -> int:
    """The number of elements of all weights. Reads the headers of their files only. Raises as `stored_weights` does."""
    return sum(math.prod(weight.shape) for weight in stored_weights(folder).values())


def weights_sha256(folder: Path) -> str:
    """SHA-256 of all weight files of a folder, over the lines "<sha256 of the file>  <name>"."""
    total = hashlib.sha256()
    files = weight_files(folder)
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        for path, digest in zip(files, pool.map(_sha256_of, files), strict=True):
            total.update(f"{digest}  {path.relative_to(folder).as_posix()}\n".encode())
    return total.hexdigest()


def _weights_in(path: Path, folder: Path) -> dict[str, StoredWeight]:
    if not path.is_file():
        raise ModelError(f"{path}: is missing, though {folder / _INDEX} lists it; complete the folder")
    try:
        with safe_open(path, framework="numpy") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
            return {
                name: StoredWeight(path, tuple(piece.get_shape()), piece.get_dtype()) for name, piece in slices.items()
            }
    except SafetensorError as error:
        raise ModelError(
            f"{path}: is corrupt or incomplete, with {path.stat().st_size} bytes: {error}; copy it again"
        ) from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error


def _are_equal(first: str, stored: StoredWeight, second: str, other: StoredWeight) -> bool:
    """Compares blocks of rows, so that the host's memory never holds a whole matrix."""
    if stored.shape != other.shape:
        return False
    # Here, because the headers alone are read by commands that should not wait for it.
    import torch

    with safe_open(stored.file, framework="pt") as these, safe_open(other.file, framework="pt") as those:
        this, that = these.get_slice(first), those.get_slice(second)
        if not stored.shape:
            return bool(torch.equal(this[...].float(), that[...].float()))
        step = max(1, _COMPARED_ELEMENTS // max(1, math.prod(stored.shape[1:])))
        return all(
            torch.equal(this[start : start + step].float(), that[start : start + step].float())
            for start in range(0, stored.shape[0], step)
        )


def _holds_one_value(name: str, stored: StoredWeight) -> bool:
    import torch

    with safe_open(stored.file, framework="pt") as weights:
        return int(torch.unique(weights.get_tensor(name)).numel()) <= 1


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_index(folder: Path) -> _Index:
    try:
        index = _Index.model_validate_json((folder / _INDEX).read_bytes())
    except ValidationError as error:
        found = "; ".join(" ".join((*map(str, each["loc"]), each["msg"])) for each in error.errors())
        raise ModelError(f"{folder / _INDEX}: is not an index of weights: {found}: copy it again") from error
    for file in index.weight_map.values():
        if PurePosixPath(file).suffix != ".safetensors":
            raise ModelError(
                f"{folder / _INDEX}: names {file!r}; expected the name of a .safetensors file: convert the weights "
                "with save_pretrained first"
            )
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise ModelError(f"{folder / _INDEX}: names {file!r}, which lies outside of the folder; copy it into it")
    return index


def _require_listed(folder: Path, found: Mapping[str, StoredWeight]) -> None:
    for name, file in _read_index(folder).weight_map.items():
        if name not in found:
            raise ModelError(f"{folder}: {_INDEX} says that {name} is in {file}, but none of its files has it")
