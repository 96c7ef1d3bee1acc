"""What a scored dataset's scores.json says of one domain, with the text of the documents that it names."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from megaslm.data.dataset.manifest import SCORES, TOKENIZER, Manifest
from megaslm.data.dataset.row_reader import RowReader
from megaslm.data.dataset.score_summary import DocumentLoss, DomainScores, ScoreSummary, read_scores
from megaslm.data.tokenizing.tokenizer import load_tokenizer
from megaslm.errors import DataError

EXCERPT_TOKENS = 64
"""Most tokens of a document whose text is given."""
_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class DocumentFacts:
    """One document and how hard the reference finds it."""

    row: int
    """The row of the domain in which it begins."""
    token: int
    """The place of its first token there."""
    targets: int
    """Its valid targets."""
    mean_loss: float
    """Of these, in nats."""
    excerpt: str
    """How its text begins."""


@dataclass(frozen=True)
class ScoreFacts:
    """How the losses of one domain are distributed."""

    histogram: tuple[int, ...]
    """Targets in each bin; see `megaslm.data.dataset.score_summary.LOSS_BIN_EDGES`."""
    worst: tuple[DocumentFacts, ...]
    """The documents of largest mean loss, that first."""
    best: tuple[DocumentFacts, ...]
    """Those of smallest mean loss, likewise."""


def scores_of(dataset: Path, manifest: Manifest) -> ScoreSummary | None:
    """The summary of a dataset; null where it has none.

    Raises DataError where the file is no summary, or one of other parts than the manifest lists.
    """
    scores = read_scores(dataset)
    if scores is None:
        return None
    listed = [
        (split, domain, part.name, part.rows)
        for split, domains in manifest.splits.items()
        for domain, share in domains.items()
        for part in share.parts
    ]
    if [(part.split, part.domain, part.part, part.rows) for part in scores.parts] != listed:
        raise DataError(
            f"{dataset / SCORES}: tells of {len(scores.parts)} parts that are not the {len(listed)} of the manifest; "
            "remove this file, which the rows do not need, or score the dataset again"
        )
    return scores


def score_facts(dataset: Path, manifest: Manifest, scores: DomainScores) -> ScoreFacts:
    """What is known of one domain; reads the beginnings of the documents that are named."""
    reader = RowReader(dataset, scores.split, scores.domain)
    tokenizer = load_tokenizer(dataset / TOKENIZER)

    def with_text(documents: Sequence[DocumentLoss]) -> Iterator[DocumentFacts]:
        for document in documents:
            excerpt = _excerpt(reader, tokenizer, document, manifest.seq_len)
            yield DocumentFacts(document.row, document.token, document.targets, document.mean_loss, excerpt)

    return ScoreFacts(scores.histogram, worst=tuple(with_text(scores.worst)), best=tuple(with_text(scores.best)))


def _excerpt(reader: RowReader, tokenizer: Tokenizer, document: DocumentLoss, seq_len: int) -> str:
    # A document has as many targets as tokens: none is its first, and one is its EOS.
    stop = document.token + min(document.targets, EXCERPT_TOKENS)
    rows = reader.rows(document.row, document.row + -(-stop // seq_len))["tokens"]
    # Rows share a token: without their last they are one stream.
    ids = rows[:, :-1].astype(np.int64).ravel()[document.token : stop].tolist()
    text = str(tokenizer.decode(ids, skip_special_tokens=False))
    # The last character may have lost some of its bytes.
    return text.rstrip(_NO_CHARACTER) if document.targets > EXCERPT_TOKENS else text
