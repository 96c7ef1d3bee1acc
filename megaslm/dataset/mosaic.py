"""The only file that imports mosaicml-streaming.

Importing streaming imports its vision readers, which import torchvision. MegaSLM never calls torchvision and does not
install it. Stand-ins replace torchvision during the import. transformers is imported first: otherwise it would take the
stand-ins for the real torchvision.
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
            f"torchvision {version('torchvision')} does not fit torch {version('torch')} ({error}); MegaSLM does not "
            f"need it: run `pip uninstall torchvision`, or install the release made for this torch"
        ) from error


with _torchvision_or_stand_in():
    from streaming import MDSWriter, Stream, StreamingDataset
    from streaming.base.shuffle import get_shuffle

__all__ = ["MDSWriter", "Stream", "StreamingDataset", "get_shuffle"]
