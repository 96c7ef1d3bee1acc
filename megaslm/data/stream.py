"""mosaicml-streaming: the only file that imports it, and what that import needs.

Importing streaming imports its vision readers, and these torchvision, which MegaSLM never calls and its installation
leaves out. Stand-ins take torchvision's place for the length of the import, after transformers, which would else take
them for the real one.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from types import ModuleType

import transformers  # noqa: F401

from megaslm.errors import DataError

_STAND_INS: dict[str, dict[str, object]] = {
    "torchvision": {},
    "torchvision.datasets": {"VisionDataset": object},
    "torchvision.transforms": {},
    "torchvision.transforms.functional": {"to_tensor": None},
}


@contextmanager
def _torchvision_or_stand_in() -> Iterator[None]:
    if importlib.util.find_spec("torchvision") is not None:
        _check_torchvision()
        yield
        return
    for name, attributes in _STAND_INS.items():
        module = ModuleType(name)
        vars(module).update(attributes)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in _STAND_INS:
            del sys.modules[name]


def _check_torchvision() -> None:
    try:
        importlib.import_module("torchvision.datasets")
        importlib.import_module("torchvision.transforms.functional")
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise DataError(
            f"torchvision {version('torchvision')} does not fit torch {version('torch')} ({error}); MegaSLM needs no "
            f"torchvision: `pip uninstall torchvision`, or install the release made for this torch"
        ) from error


# The deepspeed launcher calls it LOCAL_SIZE; without the name that torchrun uses, ranks disagree and wait for ever.
if "LOCAL_SIZE" in os.environ:
    os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ["LOCAL_SIZE"])

with _torchvision_or_stand_in():
    from streaming import MDSWriter, Stream, StreamingDataset
    from streaming.base.constant import BARRIER_FILELOCK, CACHE_FILELOCK, LOCALS, SHM_TO_CLEAN, TICK
    from streaming.base.dataset import _ShardState as ShardState
    from streaming.base.hashing import get_hash
    from streaming.base.shared import SharedArray, SharedScalar
    from streaming.base.shared import _get_path as shared_name
    from streaming.base.shared.prefix import _check_and_find

__all__ = [
    "LOCALS",
    "LOCK_FILES",
    "SHARED_OBJECTS",
    "TICK",
    "MDSWriter",
    "ShardState",
    "SharedArray",
    "SharedScalar",
    "Stream",
    "StreamingDataset",
    "free_prefix",
    "get_hash",
    "shared_name",
]

SHARED_OBJECTS = tuple(SHM_TO_CLEAN)
"""What a dataset keeps in shared memory, each after the dataset's prefix: `shared_name(prefix, name)`."""
LOCK_FILES = (BARRIER_FILELOCK, CACHE_FILELOCK)
"""What it keeps in the folder for temporary files, likewise."""


def free_prefix(folders: list[str], remotes: list[str | None]) -> int:
    """The prefix that a dataset takes which is opened now.

    Raises ValueError where another dataset on this host fetches into one of `folders`.
    """
    return max(_check_and_find(folders, remotes, name) for name in SHARED_OBJECTS)
