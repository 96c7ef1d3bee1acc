"""mosaicml-streaming: the only file that imports it, and what that import needs.

Importing streaming imports its vision readers, and these torchvision, which MegaSLM never calls and its installation
leaves out. Stand-ins take torchvision's place for the length of the import, after transformers, which would else take
them for the real one.
"""

import importlib.util
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


with _torchvision_or_stand_in():
    from streaming import MDSWriter, Stream, StreamingDataset
    from streaming.base.shuffle import get_shuffle

__all__ = ["MDSWriter", "Stream", "StreamingDataset", "get_shuffle"]
