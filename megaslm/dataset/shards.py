"""The columns of a dataset's rows, and their writer, part by part."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megaslm.dataset.index import CHECKSUM, parse_index, read_index_bytes
from megaslm.dataset.manifest import Manifest, Part
from megaslm.dataset.packing import token_dtype
from megaslm.dataset.rows import mask_bytes
from megaslm.errors import DataError
from megaslm.files import abandon_folder, finish_folder, start_folder


def part_name(number: int) -> str:
    """The folder name of a part."""
    return f"part-{number:05d}"


@dataclass(frozen=True)
class RowFormat:
    """The columns of a dataset's rows and how its shards are cut."""

    seq_len: int
    """Targets per row."""
    vocab_size: int
    """Determines the width of `tokens`."""
    scored: bool = False
    """Whether rows carry `ref_loss`."""
    entropy: bool = False
    """Whether scored rows carry `ref_entropy` too."""
    top_logits: int = 0
    """How many of the reference's most likely tokens scored rows carry per target; 0: none."""
    masked: bool = False
    """Whether rows carry `selected` instead of the losses it was made of."""
    weighted: bool = False
    """Whether rows carry `weight`."""
    target_mask: bool = False
    """Whether rows carry `target_mask`, the targets that the text itself excludes or not."""
    shard_bytes: int = 64 * 2**20
    """Maximum size of a shard in bytes, before compression."""
    compression: str | None = None

    def __post_init__(self) -> None:
        if self.entropy and not self.scored:
            raise ValueError("entropy goes with ref_loss: only scored rows can have it")
        if self.top_logits and not self.scored:
            raise ValueError("the reference's top tokens go with ref_loss: only scored rows can have them")
        if self.masked and self.scored:
            raise ValueError("rows carry either ref_loss or the mask that was made of it")

    @classmethod
    def of(cls, manifest: Manifest) -> "RowFormat":
        """The columns of a dataset by its manifest. The manifest does not tell how its shards are cut."""
        scored = manifest.kind == "scored"
        reference = manifest.reference if scored else None
        masked = manifest.kind == "masked"
        return cls(
            manifest.seq_len,
            manifest.vocab_size,
            scored=scored,
            entropy=reference is not None and reference.entropy,
            top_logits=0 if reference is None else reference.top_logits,
            masked=masked,
            weighted="weight" in manifest.columns,
            target_mask=manifest.target_mask,
        )

    @property
    def tokens_dtype(self) -> np.dtype[np.unsignedinteger]:
        """The type of the column `tokens`."""
        return token_dtype(self.vocab_size)

    @property
    def columns(self) -> dict[str, str]:
        """Column name to MDS encoding."""
        columns = {"tokens": f"ndarray:{self.tokens_dtype.name}:{self.seq_len + 1}", "domain": "uint16"}
        if self.target_mask:
            columns["target_mask"] = f"ndarray:uint8:{self.seq_len}"
        if self.scored:
            columns["ref_loss"] = f"ndarray:float16:{self.seq_len}"
        if self.entropy:
            columns["ref_entropy"] = f"ndarray:float16:{self.seq_len}"
        if self.top_logits:
            columns["ref_top_logprob"] = f"ndarray:float16:{self.seq_len},{self.top_logits + 1}"
            columns["ref_top_id"] = f"ndarray:{self.tokens_dtype.name}:{self.seq_len},{self.top_logits}"
        if self.masked:
            columns["selected"] = f"ndarray:uint8:{mask_bytes(self.seq_len)}"
        if self.weighted:
            columns["weight"] = f"ndarray:float32:{self.seq_len}"
        return columns

    @property
    def row_bytes(self) -> int:
        """The size of a row's columns, uncompressed, without what MDS adds to each row."""
        forms = (encoding.removeprefix("ndarray:").split(":") for encoding in self.columns.values())
        return sum(
            np.dtype(name).itemsize * prod(int(side) for side in (shape[0].split(",") if shape else ()))
            for name, *shape in forms
        )


class PartWriter:
    """Receives the rows of one part; see `part_writer`."""

    def __init__(self, folder: Path, row_format: RowFormat) -> None:
        # Importing streaming takes seconds; readers should not pay for it.
        from megaslm.dataset.mosaic import MDSWriter

        self._folder = folder
        self._format = row_format
        self._hashes = {name: hashlib.sha256() for name in row_format.columns if name != "domain"}
        self._rows = 0
        self._part: Part | None = None
        self._writer = MDSWriter(
            columns=row_format.columns,
            out=str(start_folder(folder)),
            compression=row_format.compression,
            hashes=[CHECKSUM],
            size_limit=row_format.shard_bytes,
            max_workers=1,
        )

    @property
    def part(self) -> Part:
        """The record of the part. It exists once `part_writer` was left without an exception."""
        if self._part is None:
            raise RuntimeError(f"{self._folder} is not finished")
        return self._part

    def write(
        self,
        tokens: NDArray[np.unsignedinteger],
        domain: int,
        ref_loss: NDArray[np.float16] | None = None,
        ref_entropy: NDArray[np.float16] | None = None,
        selected: NDArray[np.uint8] | None = None,
        target_mask: NDArray[np.uint8] | None = None,
        weight: NDArray[np.float32] | None = None,
        ref_top_logprob: NDArray[np.float16] | None = None,
        ref_top_id: NDArray[np.unsignedinteger] | None = None,
    ) -> None:
        """Append rows of one domain.

        Args:
            tokens: (n, seq_len + 1) of the format's `tokens_dtype`.
            domain: its number.
            ref_loss: (n, seq_len) float16 in nats, in [0, 65504]; only where rows are scored.
            ref_entropy: likewise; only where the format has entropy.
            selected: (n, bytes) uint8 of `pack_mask`; only where rows are masked.
            target_mask: (n, seq_len) uint8, 1 where a target is valid and 0 elsewhere; only where the format has it.
            weight: (n, seq_len) float32, finite, 0 where a target is not valid; only where rows are weighted.
            ref_top_logprob: (n, seq_len, top_logits + 1) float16 in nats, at most 0: the log-probabilities of the
                reference's most likely tokens, largest first, then that of all others together; only where the format
                has them.
            ref_top_id: (n, seq_len, top_logits) of the type of `tokens`: the ids of these tokens; likewise.

        Raises:
            DataError: a wrong shape or type, a missing column or one that the format lacks, or a value out of range.
        """
        self._check_tokens(tokens)
        self._check_nats("ref_loss", ref_loss, len(tokens))
        self._check_nats("ref_entropy", ref_entropy, len(tokens))
        shape, top = (len(tokens), self._format.seq_len), self._format.top_logits
        self._check_form("ref_top_logprob", ref_top_logprob, (*shape, top + 1), np.dtype(np.float16))
        self._check_form("ref_top_id", ref_top_id, (*shape, top), self._format.tokens_dtype)
        if ref_top_logprob is not None and not (np.isfinite(ref_top_logprob) & (ref_top_logprob <= 0)).all():
            raise DataError(f"{self._folder}: ref_top_logprob has values outside of [-65504, 0]; clamp them first")
        self._check_form("selected", selected, (len(tokens), mask_bytes(self._format.seq_len)), np.dtype(np.uint8))
        self._check_form("target_mask", target_mask, shape, np.dtype(np.uint8))
        self._check_form("weight", weight, shape, np.dtype(np.float32))
        columns = {
            "tokens": tokens,
            "target_mask": target_mask,
            "ref_loss": ref_loss,
            "ref_entropy": ref_entropy,
            "ref_top_logprob": ref_top_logprob,
            "ref_top_id": ref_top_id,
            "selected": selected,
            "weight": weight,
        }
        given = {name: values for name, values in columns.items() if values is not None}
        for name, values in given.items():
            self._hashes[name].update(np.ascontiguousarray(values).data)
        number = np.uint16(domain)
        for row in range(len(tokens)):
            self._writer.write({"domain": number, **{name: values[row] for name, values in given.items()}})
        self._rows += len(tokens)

    def finish(self) -> None:
        """Sync the part to disk, then rename it to its final name."""
        self._wait_for_idle_writer()
        self._writer.finish()
        finish_folder(self._folder)
        index = read_index_bytes(self._folder)
        self._part = Part(
            name=self._folder.name,
            rows=self._rows,
            tokens_sha256=self._hashes["tokens"].hexdigest(),
            target_mask_sha256=self._sha256("target_mask"),
            ref_loss_sha256=self._sha256("ref_loss"),
            ref_entropy_sha256=self._sha256("ref_entropy"),
            ref_top_logprob_sha256=self._sha256("ref_top_logprob"),
            ref_top_id_sha256=self._sha256("ref_top_id"),
            selected_sha256=self._sha256("selected"),
            weight_sha256=self._sha256("weight"),
            index_sha256=hashlib.sha256(index).hexdigest(),
            bytes=parse_index(self._folder, index).stored_bytes,
        )

    def abandon(self) -> None:
        """Remove the written files."""
        self._writer.cancel_future_jobs()
        abandon_folder(self._folder)

    def _sha256(self, column: str) -> str | None:
        return self._hashes[column].hexdigest() if column in self._hashes else None

    def _wait_for_idle_writer(self) -> None:
        """Avoids that MDSWriter.finish sleeps a second if its thread, which has nothing to upload, is not idle yet."""
        if self._writer.new_samples:
            self._writer.flush_shard()
            self._writer.new_samples = []
        self._writer.executor.submit(int).result()

    def _check_tokens(self, tokens: NDArray[np.unsignedinteger]) -> None:
        width, dtype = self._format.seq_len + 1, self._format.tokens_dtype
        if tokens.ndim != 2 or tokens.shape[1] != width or tokens.dtype != dtype:
            raise DataError(
                f"{self._folder}: tokens are {tokens.dtype} of shape {tokens.shape}; expected {dtype} (rows, {width})"
            )

    def _check_nats(self, name: str, values: NDArray[np.float16] | None, rows: int) -> None:
        self._check_form(name, values, (rows, self._format.seq_len), np.dtype(np.float16))
        if values is not None and not (np.isfinite(values) & (values >= 0)).all():
            raise DataError(f"{self._folder}: {name} has NaN, infinite or negative values; clamp to [0, 65504] first")

    def _check_form(
        self, name: str, values: NDArray[np.generic] | None, shape: tuple[int, ...], dtype: np.dtype[np.generic]
    ) -> None:
        """Raises DataError unless a column beside the tokens is given exactly if the format has it, with its form."""
        if name not in self._format.columns:
            if values is not None:
                raise DataError(
                    f"{self._folder}: {name} was given for a dataset without it; leave it out or write to one with it"
                )
            return
        if values is None or values.shape != shape or values.dtype != dtype:
            found = "missing" if values is None else f"{values.dtype} of shape {values.shape}"
            raise DataError(f"{self._folder}: {name} is {found}; expected {dtype} {shape}")


@contextmanager
def part_writer(folder: Path, row_format: RowFormat) -> Iterator[PartWriter]:
    """Write one part as `folder` (DATASET/<split>/<domain>/part-00000). `writer.part` describes it afterwards.

    The folder appears, complete and synced, when the block ends. An exception in the block leaves nothing behind.
    """
    writer = PartWriter(folder, row_format)
    try:
        yield writer
        writer.finish()
    except BaseException:
        writer.abandon()
        raise
