"""Small datasets of known rows, in every format that shards have."""

from pathlib import Path
from typing import Literal

import numpy as np

from megaslm.dataset.index import merge_index
from megaslm.dataset.manifest import DomainSplit, Manifest, Part, Reference, write_manifest
from megaslm.dataset.shards import RowFormat, part_name, part_writer

SEQ_LEN, ROWS = 6, 40


def tokens_of(part: int, dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(part).integers(0, 60_000, (ROWS + part, SEQ_LEN + 1)).astype(dtype)


def losses_of(part: int) -> np.ndarray:
    return np.random.default_rng(part).uniform(0, 20, (ROWS + part, SEQ_LEN)).astype(np.float16)


def entropies_of(part: int) -> np.ndarray:
    return np.random.default_rng(1000 + part).uniform(0, 11, (ROWS + part, SEQ_LEN)).astype(np.float16)


def bits_of(part: int) -> np.ndarray:
    return np.random.default_rng(part).integers(0, 1 << SEQ_LEN, (ROWS + part, 1), dtype=np.uint8)


def kind_of(row_format: RowFormat) -> Literal["tokens", "scored", "masked"]:
    return "scored" if row_format.scored else "masked" if row_format.masked else "tokens"


def write(folder: Path, part: int, row_format: RowFormat) -> Part:
    tokens = tokens_of(part, row_format.tokens_dtype.name)
    with part_writer(folder / part_name(part), row_format) as writer:
        for start in range(0, len(tokens), 7):
            losses = losses_of(part)[start : start + 7] if row_format.scored else None
            entropies = entropies_of(part)[start : start + 7] if row_format.entropy else None
            bits = bits_of(part)[start : start + 7] if row_format.masked else None
            writer.write(tokens[start : start + 7], 3, losses, entropies, bits)
    return writer.part


def make(dataset: Path, row_format: RowFormat, parts: tuple[int, ...] = (0, 1, 12)) -> None:
    folder = dataset / "train" / "a"
    written = tuple(write(folder, part, row_format) for part in parts)
    rows = merge_index(folder, written)
    share = DomainSplit(rows=rows, tokens=0, documents=0, parts=written)
    reference = Reference(
        weights_sha256="", name="", precision="fp32", document_isolation=True, window=SEQ_LEN, stride=SEQ_LEN,
        batch_rows=8, dataset_sha256="", entropy=row_format.entropy,
    )  # fmt: skip
    manifest = Manifest(
        kind=kind_of(row_format), name="n", megaslm_version="0", recipe_sha256="",
        seq_len=SEQ_LEN, vocab_size=row_format.vocab_size, tokenizer_sha256="", tokenizer_files={}, eos_id=2,
        bos_id=None, domains=("a",), licences={}, splits={"train": {"a": share}}, sources=(),
        reference=reference if row_format.scored else None,
    )  # fmt: skip
    write_manifest(dataset, manifest)


# Small shards, so that a part has several.
FORMATS = {
    "narrow": RowFormat(SEQ_LEN, 65_536, shard_bytes=700),
    "wide": RowFormat(SEQ_LEN, 65_537, shard_bytes=700),
    "scored": RowFormat(SEQ_LEN, 65_536, scored=True, shard_bytes=700),
    "entropy": RowFormat(SEQ_LEN, 65_536, scored=True, entropy=True, shard_bytes=700),
    "masked": RowFormat(SEQ_LEN, 65_536, masked=True, shard_bytes=700),
    "compressed": RowFormat(SEQ_LEN, 65_536, scored=True, shard_bytes=700, compression="zstd"),
}
