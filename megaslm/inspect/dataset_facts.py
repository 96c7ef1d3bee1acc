"""A dataset in numbers: from its manifest and, if it is scored, from its score summary or a sample of rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from megaslm.config.section import Split
from megaslm.dataset.index import in_order
from megaslm.dataset.manifest import SCORES, TOKENIZER, DomainSplit, Manifest, read_manifest
from megaslm.dataset.rows import RowReader
from megaslm.dataset.score_summary import DocumentLoss, DomainScores, ScoreSummary, perplexity, read_scores
from megaslm.errors import DataError
from megaslm.inspect.row_text import padding_of
from megaslm.slm.valid_targets import valid_targets
from megaslm.tokenizer.tokenizer import load_tokenizer

EXCERPT_TOKENS = 64
"""Maximum number of tokens in an excerpt of a document."""
_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"
SAMPLED_ROWS = 256
"""Rows per domain and split whose losses are read, evenly spread; all rows if there are fewer."""


def selected_share(reader: RowReader, rows: Sequence[int], eos_id: int) -> float:
    """The share of the given rows' targets that is selected."""
    selected = targets = 0
    for number in rows:
        row = reader[number]
        selected += int(np.bitwise_count(cast(NDArray[np.uint8], row["selected"])).sum())
        targets += int(valid_targets(row["tokens"], eos_id, row.get("target_mask")).sum())
    return selected / max(1, targets)


@dataclass(frozen=True)
class DocumentFacts:
    """A document and its reference loss."""

    row: int
    """The row of the domain in which it begins."""
    token: int
    """The index of its first token in that row."""
    targets: int
    """Its valid targets."""
    mean_loss: float
    """Mean loss of these targets, in nats."""
    excerpt: str
    """The beginning of its text."""


@dataclass(frozen=True)
class ScoreFacts:
    """The distribution of one domain's losses."""

    histogram: tuple[int, ...]
    """Targets in each bin; see `megaslm.dataset.score_summary.LOSS_BIN_EDGES`."""
    worst: tuple[DocumentFacts, ...]
    """The documents of largest mean loss, the largest first."""
    best: tuple[DocumentFacts, ...]
    """The documents of smallest mean loss, likewise."""


def scores_of(dataset: Path, manifest: Manifest) -> ScoreSummary | None:
    """The score summary of a dataset, None if it has none.

    Raises DataError where the file is not a summary, or lists other parts than the manifest.
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
            f"{dataset / SCORES}: lists {len(scores.parts)} parts that are not the {len(listed)} of the manifest; "
            "remove this file (the rows do not need it), or score the dataset again"
        )
    return scores


def score_facts(dataset: Path, manifest: Manifest, scores: DomainScores) -> ScoreFacts:
    """The score facts of one domain. Reads the beginnings of the listed documents."""
    reader = RowReader(dataset, scores.split, scores.domain)
    tokenizer = load_tokenizer(dataset / TOKENIZER)

    def with_text(documents: Sequence[DocumentLoss]) -> Iterator[DocumentFacts]:
        for document in documents:
            excerpt = _excerpt(reader, tokenizer, document, manifest)
            yield DocumentFacts(document.row, document.token, document.targets, document.mean_loss, excerpt)

    return ScoreFacts(scores.histogram, worst=tuple(with_text(scores.worst)), best=tuple(with_text(scores.best)))


def _excerpt(reader: RowReader, tokenizer: Tokenizer, document: DocumentLoss, manifest: Manifest) -> str:
    # A document has as many targets as tokens before its EOS, BOS included: the first one is not a target, but EOS is.
    shown = min(document.targets, EXCERPT_TOKENS)
    rows = reader.rows(document.row, document.row + -(-(document.token + shown) // manifest.seq_len))["tokens"]
    # The first token of a row is the last of the row before, or BOS.
    ids = np.append(rows[0, document.token :], rows[1:, 1:]).astype(np.int64)[:shown].tolist()
    if ids[0] == manifest.bos_in_rows:
        del ids[0]
    text = str(tokenizer.decode(ids, skip_special_tokens=False))
    # The cut may have removed some bytes of the last character.
    return text.rstrip(_NO_CHARACTER) if document.targets > EXCERPT_TOKENS else text


@dataclass(frozen=True)
class LossFacts:
    """The reference's losses: of all rows if the dataset has a score summary, else of sampled rows."""

    rows: int
    """Number of rows."""
    targets: int
    """Their valid targets."""
    mean: float
    """In nats."""
    median: float
    p95: float
    """The 95th percentile in nats."""
    perplexity: float
    """exp(mean)."""
    quantiles_are_exact: bool = True
    """Whether median and p95 are those of the targets. If not, they are interpolated within a bin of the histogram."""


@dataclass(frozen=True)
class ShareFacts:
    """One domain's share of one split."""

    split: Split
    domain: str
    licence: str
    rows: int
    targets: int
    documents: int
    targets_per_document: float
    parts: int
    bytes: int
    """Size on disk."""
    bytes_per_target: float
    """Size on disk of all columns, per target."""
    padding_share: float
    """The share of its rows' positions that is padding."""
    ref_loss: LossFacts | None
    scores: ScoreFacts | None
    """None if the dataset has no score summary."""
    trained_share: float | None
    """The share of sampled rows' targets that the target mask leaves; None if the dataset has none."""
    selected_share: float | None
    """The share of sampled rows' targets that the mask selects; None if the dataset is not masked."""
    mean_weight: float | None
    """The mean weight of sampled rows' targets; None if the dataset has no weights."""


@dataclass(frozen=True)
class DatasetFacts:
    """A dataset at a glance."""

    dataset: str
    manifest: Manifest
    shares: tuple[ShareFacts, ...]
    scores: ScoreSummary | None
    """The score summary of the whole dataset, if it has one."""


def dataset_facts(dataset: Path, split: Split | None = None, domain: str | None = None) -> DatasetFacts:
    """The facts of a whole dataset, or of one split or one domain of it.

    Raises DataError where there is no such dataset, split or domain.
    """
    manifest = read_manifest(dataset)
    chosen = [
        (found_split, found_domain, share)
        for found_split, domains in manifest.splits.items()
        for found_domain, share in domains.items()
        if split in (None, found_split) and domain in (None, found_domain)
    ]
    if not chosen:
        there = ", ".join(f"{name}/{domain}" for name, domains in manifest.splits.items() for domain in domains)
        raise DataError(f"{dataset} has nothing of {split or 'any split'}/{domain or 'any domain'}; it has {there}")
    scores = scores_of(dataset, manifest) if manifest.kind == "scored" else None
    return DatasetFacts(
        dataset=str(dataset),
        manifest=manifest,
        shares=tuple(_share_facts(dataset, manifest, scores, *share) for share in chosen),
        scores=scores,
    )


def _share_facts(
    dataset: Path, manifest: Manifest, scores: ScoreSummary | None, split: Split, domain: str, share: DomainSplit
) -> ShareFacts:
    stored_bytes = sum(part.bytes for part in share.parts)
    its_scores = None if scores is None else scores.of_domain(split, domain)
    return ShareFacts(
        split=split,
        domain=domain,
        licence=manifest.licences.get(domain, ""),
        rows=share.rows,
        targets=share.tokens,
        documents=share.documents,
        targets_per_document=share.tokens / share.documents,
        parts=len(share.parts),
        bytes=stored_bytes,
        bytes_per_target=stored_bytes / share.tokens,
        padding_share=_padding_share(dataset, manifest, split, domain),
        ref_loss=_loss_facts(dataset, manifest, split, domain, its_scores) if manifest.kind == "scored" else None,
        scores=None if its_scores is None else score_facts(dataset, manifest, its_scores),
        selected_share=_selected_share(dataset, manifest, split, domain) if manifest.kind == "masked" else None,
        trained_share=_trained_share(dataset, manifest, split, domain) if manifest.target_mask else None,
        mean_weight=_mean_weight(dataset, manifest, split, domain) if "weight" in manifest.columns else None,
    )


def _padding_share(dataset: Path, manifest: Manifest, split: Split, domain: str) -> float:
    """The share of EOS tokens that fill the last rows of the parts among all positions of the parts."""
    share = manifest.splits[split][domain]
    if manifest.packing.overlap_tokens and not manifest.target_mask:
        # A part of n rows is a stream of n · seq_len + 1 tokens: every document's tokens (its BOS included), which are
        # as many as its targets, an EOS after each document, and the padding.
        positions = share.rows * manifest.seq_len + len(share.parts)
        return (positions - share.tokens - share.documents) / positions
    # Rows that begin with BOS make the first token of some documents a valid target, and a target mask excludes some,
    # so that counts do not tell.
    reader = RowReader(dataset, split, domain)
    ends = accumulate(part.rows for part in in_order(dataset / split / domain, share.parts))
    padding = sum(padding_of(reader[end - 1]["tokens"].astype(np.int64), manifest.eos_id) for end in ends)
    return padding / (share.rows * (manifest.seq_len + 1))


def _loss_facts(dataset: Path, manifest: Manifest, split: Split, domain: str, scores: DomainScores | None) -> LossFacts:
    if scores is not None:
        rows = manifest.splits[split][domain].rows
        is_exact = scores.loss_counts is not None
        return LossFacts(rows, scores.targets, scores.mean, scores.median, scores.p95, scores.perplexity, is_exact)
    reader = RowReader(dataset, split, domain)
    sampled = _sampled(reader)
    losses = np.concatenate(list(_valid_losses(reader, sampled, manifest.eos_id)))
    mean = float(losses.mean())
    return LossFacts(
        rows=len(sampled),
        targets=len(losses),
        mean=mean,
        median=float(np.median(losses)),
        p95=float(np.quantile(losses, 0.95)),
        perplexity=perplexity(mean),
    )


def _selected_share(dataset: Path, manifest: Manifest, split: Split, domain: str) -> float:
    reader = RowReader(dataset, split, domain)
    return selected_share(reader, _sampled(reader), manifest.eos_id)


def _trained_share(dataset: Path, manifest: Manifest, split: Split, domain: str) -> float:
    reader = RowReader(dataset, split, domain)
    trained = targets = 0
    for number in _sampled(reader):
        row = reader[number]
        trained += int(valid_targets(row["tokens"], manifest.eos_id, row["target_mask"]).sum())
        targets += int(valid_targets(row["tokens"], manifest.eos_id).sum())
    return trained / max(1, targets)


def _mean_weight(dataset: Path, manifest: Manifest, split: Split, domain: str) -> float:
    reader = RowReader(dataset, split, domain)
    total, targets = 0.0, 0
    for number in _sampled(reader):
        row = reader[number]
        # The weight of what is no target is 0.
        total += float(cast(NDArray[np.float32], row["weight"]).sum(dtype=np.float64))
        targets += int(valid_targets(row["tokens"], manifest.eos_id, row.get("target_mask")).sum())
    return total / max(1, targets)


def _sampled(reader: RowReader) -> list[int]:
    rows = np.linspace(0, len(reader) - 1, min(len(reader), SAMPLED_ROWS)).round().astype(int)
    return [int(number) for number in np.unique(rows)]


def _valid_losses(reader: RowReader, rows: list[int], eos_id: int) -> Iterator[NDArray[np.float64]]:
    for number in rows:
        row = reader[number]
        losses = cast(NDArray[np.float16], row["ref_loss"]).astype(np.float64)
        yield losses[valid_targets(row["tokens"], eos_id, row.get("target_mask"))]
