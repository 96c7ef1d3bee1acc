"""Datasets to verify, of every kind, whole or spoiled before they are written."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from megaslm.dataset.folder import tokenizer_files
from megaslm.dataset.index import merge_index
from megaslm.dataset.manifest import (
    TOKENIZER,
    AttachedColumn,
    DomainSplit,
    Manifest,
    Part,
    Reference,
    write_manifest,
)
from megaslm.dataset.rows import pack_mask
from megaslm.dataset.shards import RowFormat, part_name, part_writer
from megaslm.inspect.verify import verify
from megaslm.slm.valid_targets import valid_targets
from megaslm.tokenizer.tokenizer import tokenizer_facts
from tests.small_shards import kind_of
from tests.toy import EOS_ID, VOCAB_SIZE, make_tokenizer, random_rows

SEQ_LEN = 12
FORMATS = {
    "tokens": RowFormat(SEQ_LEN, VOCAB_SIZE, shard_bytes=700),
    "scored": RowFormat(SEQ_LEN, VOCAB_SIZE, scored=True, entropy=True, shard_bytes=1200),
    "masked": RowFormat(SEQ_LEN, VOCAB_SIZE, masked=True, shard_bytes=700),
    "target mask": RowFormat(SEQ_LEN, VOCAB_SIZE, scored=True, target_mask=True, shard_bytes=1200),
    "weighted": RowFormat(SEQ_LEN, VOCAB_SIZE, weighted=True, shard_bytes=1200),
    "compressed": RowFormat(SEQ_LEN, VOCAB_SIZE, scored=True, shard_bytes=900, compression="zstd"),
}

Change = Callable[[np.ndarray, np.ndarray], None]
"""Spoils the tokens and the losses of a part before they are written."""


def make(
    dataset: Path,
    row_format: RowFormat,
    *,
    domain: int | None = None,
    spoil: Change | None = None,
    more_bits: int = 0,
    spoil_mask: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> None:
    """Two domains of two parts; the rest changes part 1 of domain `b`, and nothing else knows.

    A mask selects what has a loss; `more_bits` come into the last byte of row 7. A target mask excludes every third
    target; `spoil_mask` is given the tokens and it. A weight equals the loss.
    """
    generator = np.random.default_rng(0)
    splits: dict[str, DomainSplit] = {}
    for number, name in enumerate(("a", "b")):
        parts: list[Part] = []
        targets = 0
        for place, count in enumerate((20, 20)):
            tokens = random_rows(generator, count, SEQ_LEN, VOCAB_SIZE).astype(np.uint16)
            losses = generator.uniform(0, 12, (count, SEQ_LEN)).astype(np.float16)
            target_mask = None
            if row_format.target_mask:
                target_mask = valid_targets(tokens, EOS_ID).astype(np.uint8)
                target_mask[:, ::3] = 0
            losses[~valid_targets(tokens, EOS_ID, target_mask)] = 0
            last = (number, place) == (1, 1)
            targets += int(valid_targets(tokens, EOS_ID, target_mask).sum())
            # The writer would refuse such losses: they come in after its look at them.
            with part_writer(dataset / "train" / name / part_name(place), row_format) as writer:
                writer._check_nats = lambda *_: None  # type: ignore[method-assign]
                if spoil is not None and last:
                    spoil(tokens, losses)
                if spoil_mask is not None and last:
                    spoil_mask(tokens, target_mask)
                of_domain = number if domain is None or not last else domain
                entropies = losses / 2 if row_format.entropy else None
                bits = pack_mask(losses > 0)
                bits[7, -1] |= more_bits if last else 0
                writer.write(
                    tokens,
                    of_domain,
                    losses if row_format.scored else None,
                    entropies,
                    bits if row_format.masked else None,
                    target_mask=target_mask,
                    weight=losses.astype(np.float32) if row_format.weighted else None,
                )
            parts.append(writer.part)
        rows = merge_index(dataset / "train" / name, parts)
        splits[name] = DomainSplit(rows=rows, tokens=targets, documents=1, parts=tuple(parts))
    make_tokenizer(dataset / TOKENIZER)
    facts = tokenizer_facts(dataset / TOKENIZER)
    reference = Reference(
        weights_sha256="", name="", precision="fp32", document_isolation=True, window=SEQ_LEN, stride=SEQ_LEN,
        batch_rows=8, dataset_sha256="", entropy=row_format.entropy,
    )  # fmt: skip
    column = AttachedColumn(file="c.parquet", sha256="", addressed_by="row", lines=0, targets=0, default=1.0)
    manifest = Manifest(
        kind=kind_of(row_format), name="n", megaslm_version="0", recipe_sha256="",
        seq_len=SEQ_LEN, vocab_size=VOCAB_SIZE, tokenizer_sha256=facts.sha256,
        tokenizer_files=tokenizer_files(dataset / TOKENIZER), eos_id=EOS_ID, bos_id=None, domains=("a", "b"),
        target_mask=row_format.target_mask, licences={}, splits={"train": splits}, sources=(),
        reference=reference if row_format.scored else None, columns={"weight": column} if row_format.weighted else {},
    )  # fmt: skip
    write_manifest(dataset, manifest)


def found_in(dataset: Path) -> list[str]:
    """What is wrong with a dataset, file by file."""
    return [f"{problem.path} {problem.finding}" for problem in verify(dataset, workers=1).problems]
