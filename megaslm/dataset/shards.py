"""The columns of a dataset's rows, and their writer, part by part."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import cast

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
    losses: tuple[str, ...] = ()
    """Names of further columns of losses."""
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
            losses=tuple(manifest.losses),
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
        return columns | dict.fromkeys(self.losses, f"ndarray:float16:{self.seq_len}")

    @property
    def losses_and_entropies(self) -> tuple[str, ...]:
        """The columns of one float16 per target, in nats."""
        per_target = f"ndarray:float16:{self.seq_len}"
        return tuple(name for name, encoding in self.columns.items() if encoding == per_target)

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
        ref_loss: NDArray[np.generic] | None = None,
        ref_entropy: NDArray[np.generic] | None = None,
        selected: NDArray[np.generic] | None = None,
        **others: NDArray[np.generic] | None,
    ) -> None:
        """Append rows of one domain.

        Args:
            tokens: (n, seq_len + 1) of the format's `tokens_dtype`.
            domain: its number.
            ref_loss: (n, seq_len) float16 in nats, in [0, 65504]; only where rows are scored.
            ref_entropy: likewise; only where the format has entropy.
            selected: (n, bytes) uint8 of `pack_mask`; only where rows are masked.
            others: the format's other columns, by name. `target_mask`: (n, seq_len) uint8, 1 where a target is valid
                and 0 elsewhere. `weight`: (n, seq_len) float32, finite, 0 where a target is not valid. Further losses:
                as `ref_loss`. `ref_top_logprob`: (n, seq_len, top_logits + 1) float16 in nats, at most 0, the
                log-probabilities of the reference's most likely tokens, largest first, then that of all others
                together. `ref_top_id`: (n, seq_len, top_logits) of the type of `tokens`, the ids of these tokens.

        Raises:
            DataError: a wrong shape or type, a missing column or one that the format lacks, or a value out of range.
        """
        self._check_tokens(tokens)
        columns = {"ref_loss": ref_loss, "ref_entropy": ref_entropy, "selected": selected, **others}
        for name in dict.fromkeys((*self._format.columns, *columns)):
            if name not in ("tokens", "domain"):
                self._check_form(name, columns.get(name), len(tokens))
        for name in self._format.losses_and_entropies:
            self._check_nats(name, cast(NDArray[np.float16], columns[name]))
        if self._format.top_logits:
            self._check_log_probabilities(cast(NDArray[np.float16], columns["ref_top_logprob"]))
        given = {"tokens": tokens, **{name: values for name, values in columns.items() if values is not None}}
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
            losses_sha256=tuple((name, self._hashes[name].hexdigest()) for name in self._format.losses),
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

    def _check_nats(self, name: str, values: NDArray[np.float16]) -> None:
        if not (np.isfinite(values) & (values >= 0)).all():
            raise DataError(f"{self._folder}: {name} has NaN, infinite or negative values; clamp to [0, 65504] first")

    def _check_log_probabilities(self, values: NDArray[np.float16]) -> None:
        if not (np.isfinite(values) & (values <= 0)).all():
            raise DataError(f"{self._folder}: ref_top_logprob has values outside of [-65504, 0]; clamp them first")

    def _check_form(self, name: str, values: NDArray[np.generic] | None, rows: int) -> None:
        """Raises DataError unless a column beside the tokens is given exactly if the format has it, with its form."""
        if name not in self._format.columns:
            if values is not None:
                raise DataError(
                    f"{self._folder}: {name} was given for a dataset without it; leave it out or write to one with it"
                )
            return
        _, dtype_name, sides = self._format.columns[name].split(":")
        dtype, shape = np.dtype(dtype_name), (rows, *map(int, sides.split(",")))
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
