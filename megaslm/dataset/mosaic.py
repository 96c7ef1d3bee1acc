"""The only file that imports mosaicml-streaming.

Importing streaming imports its readers of images and texts too, with torchvision and much of transformers. MegaSLM uses
none of them, and does not install torchvision. Empty modules replace these readers during the import.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_UNUSED = ("streaming.multimodal", "streaming.text", "streaming.vision")


@contextmanager
def _without_unused_readers() -> Iterator[None]:
    stand_ins = {} if "streaming" in sys.modules else {name: ModuleType(name) for name in _UNUSED}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        # A program that imports one of them by its name later gets the real one.
        for name in stand_ins:
            del sys.modules[name]


with _without_unused_readers():
    from streaming import MDSWriter, Stream, StreamingDataset
    from streaming.base.shuffle import get_shuffle

__all__ = ["MDSWriter", "Stream", "StreamingDataset", "get_shuffle"]
