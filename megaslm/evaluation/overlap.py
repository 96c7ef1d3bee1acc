"""Tasks' items whose words stand in a dataset: 13 words in a row, as for GPT-3 (arXiv 2005.14165, appendix C)."""

import re
import signal
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megaslm.config.section import Split
from megaslm.dataset.manifest import TOKENIZER, read_manifest
from megaslm.dataset.packing import documents_in
from megaslm.dataset.remote import open_dataset
from megaslm.dataset.rows import RowReader
from megaslm.jobs.progress import Watcher
from megaslm.tasks.items import Item
from megaslm.tokenizer.tokenizer import load_tokenizer

NGRAM_WORDS = 13
_WORD = re.compile(r"\w+")
_ROWS_AT_ONCE = 256
_DOCUMENTS_AT_ONCE = 256


class TaskOverlap(NamedTuple):
    """The numbers of a task's items that share 13 words in a row with a dataset.

    `short` counts the items that have fewer words and are never found.
    """

    task: str
    items: int
    short: int
    found: tuple[int, ...]


@dataclass(frozen=True)
class _PartOf:
    """One part of a dataset, which one process reads."""

    dataset: str
    cache: str
    split: Split
    domain: str
    part: str
    wanted: frozenset[str]


def overlaps(
    tasks: Mapping[str, Iterable[Item]], dataset: str, *, cache: str, workers: int | None, watcher: Watcher
) -> list[TaskOverlap]:
    """Looks for each item's question, with its written solution where there is one, in all documents of a dataset.

    Words are compared in lower case, without what stands between them. A document is read across its rows.
    """
    items = {name: list(each) for name, each in tasks.items()}
    of_items = {
        (name, item.number): frozenset(ngrams(f"{item.question} {item.solution}"))
        for name, each in items.items()
        for item in each
    }
    wanted = frozenset().union(*of_items.values())
    folder = open_dataset(dataset, cache)
    parts = [
        _PartOf(dataset, cache, split, domain, part.name, wanted)
        for split, domains in read_manifest(folder.path).splits.items()
        for domain, share in domains.items()
        for part in share.parts
    ]
    seen: set[str] = set()
    # Ctrl-C reaches all of these processes. The first one ends the others.
    quiet = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver"), initializer=quiet) as pool:
        for number, found in enumerate(pool.map(_seen_in, parts), start=1):
            seen |= found
            watcher.say(f"{number} of {len(parts)} parts read")
    return [
        TaskOverlap(
            name,
            len(each),
            sum(not of_items[name, item.number] for item in each),
            tuple(item.number for item in each if of_items[name, item.number] & seen),
        )
        for name, each in items.items()
    ]


def ngrams(text: str) -> Iterator[str]:
    """All runs of 13 words of a text."""
    words = _WORD.findall(text.lower())
    for start in range(len(words) - NGRAM_WORDS + 1):
        yield " ".join(words[start : start + NGRAM_WORDS])


def _seen_in(part: _PartOf) -> set[str]:
    folder = open_dataset(part.dataset, part.cache)
    manifest = read_manifest(folder.path)
    tokenizer = load_tokenizer(folder.path / TOKENIZER)
    rows = _rows(folder.reader(part.split, part.domain, part.part, checked=True))
    documents = documents_in(rows, manifest.eos_id, manifest.packing.bos)
    seen: set[str] = set()
    while some := [document.tolist() for document in islice(documents, _DOCUMENTS_AT_ONCE)]:
        for text in tokenizer.decode_batch(some):
            seen.update(ngram for ngram in ngrams(text) if ngram in part.wanted)
    return seen


def _rows(reader: RowReader) -> Iterator[NDArray[np.integer]]:
    for start in range(0, len(reader), _ROWS_AT_ONCE):
        yield reader.rows(start, min(start + _ROWS_AT_ONCE, len(reader)))["tokens"].astype(np.int64)
