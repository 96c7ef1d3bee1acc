"""Documents whose kinds are known character by character, and how they are cut, drawn and mixed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megaslm.corpus.documents import hash_of
from megaslm.errors import DataError

PIECE_CHARACTERS = 1_500
"""Long documents are cut into pieces of at most this many characters, so that few rows hold many documents."""


class Span(NamedTuple):
    """Characters of a text, from `start` to before `stop`, that are of another kind than the rest."""

    start: int
    stop: int
    kind: str


@dataclass(frozen=True)
class Document:
    """A text, the kind of its characters, and the spans that are of other kinds, in order and apart."""

    text: str
    kind: str
    spans: tuple[Span, ...] = ()

    def kinds(self, numbers: Mapping[str, int]) -> NDArray[np.int16]:
        """The kind of every character by its number, (characters,)."""
        found = np.full(len(self.text), numbers[self.kind], np.int16)
        for span in self.spans:
            found[span.start : span.stop] = numbers[span.kind]
        return found

    @property
    def all_kinds(self) -> set[str]:
        return {self.kind, *(span.kind for span in self.spans)}


def pieces(document: Document, most_characters: int = PIECE_CHARACTERS) -> list[Document]:
    """The document cut at line ends; a line that is longer than a piece is cut too. Pieces of white space are left
    out."""
    cuts, begun = [0], 0
    for line in document.text.splitlines(keepends=True):
        end = begun + len(line)
        while end - cuts[-1] > most_characters:
            cuts.append(begun if begun > cuts[-1] else cuts[-1] + most_characters)
        begun = end
    parts = (part_of(document, start, stop) for start, stop in zip(cuts, [*cuts[1:], begun], strict=True))
    return [part for part in parts if part.text.strip()]


def part_of(document: Document, start: int, stop: int) -> Document:
    """The characters from `start` to before `stop`, with the spans that lie in them."""
    clipped = (Span(max(span.start, start) - start, min(span.stop, stop) - start, span.kind) for span in document.spans)
    return Document(document.text[start:stop], document.kind, tuple(span for span in clipped if span.stop > span.start))


def shuffled(documents: Sequence[Document]) -> list[Document]:
    """In an order that their texts alone decide, the same on every machine. Each text once."""
    once = {document.text: document for document in documents}
    return sorted(once.values(), key=lambda document: hash_of("order", document.text))


def mixed(
    pools: Mapping[str, tuple[float, Sequence[Document]]], sizes_bytes: Sequence[int]
) -> tuple[list[Document], ...]:
    """Mixtures of these sizes that share no document. Each pool gives its share of every mixture.

    Raises DataError where a pool holds too little text.
    """
    mixtures: list[list[Document]] = [[] for _ in sizes_bytes]
    for name, (share, pool) in pools.items():
        drawn = iter(shuffled(pool))
        for mixture, size in zip(mixtures, sizes_bytes, strict=True):
            wanted = share * size
            while wanted > 0:
                document = next(drawn, None)
                if document is None:
                    raise DataError(
                        f"{name}: holds {sum(len(each.text.encode()) for each in pool):,} bytes of text; expected "
                        f"{share * sum(sizes_bytes):,.0f}: make corpus_bytes or the share smaller"
                    )
                mixture.append(document)
                wanted -= len(document.text.encode())
    return tuple(shuffled(mixture) for mixture in mixtures)


def inserted(document: Document, place: int, text: str, kind: str) -> Document:
    """The document with `text` before the character `place`, which no span covers."""
    length = len(text)
    before = [span for span in document.spans if span.stop <= place]
    after = [Span(span.start + length, span.stop + length, span.kind) for span in document.spans if span.start >= place]
    spans = (*before, Span(place, place + length, kind), *after)
    return replace(document, text=document.text[:place] + text + document.text[place:], spans=spans)
