"""Whether the rows of one part hold what rows may hold, and what they hash to."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megaslm.data.dataset.damage import Damaged
from megaslm.data.dataset.manifest import Part
from megaslm.data.dataset.shards import RowFormat
from megaslm.data.dataset.target_bits import pack_mask, unpack_mask
from megaslm.slm.valid_targets import valid_targets

_CHUNK_BYTES = 2**20
"""Rows are looked at so many bytes at a time, which stay in a core's cache from one check to the next."""
_LARGEST_FLOAT16 = 0x7BFF
"""The bits of 65504, the largest finite one; above come infinity, NaN and what is negative."""
_NATS = ("ref_loss", "ref_entropy")


@dataclass(frozen=True)
class RowRules:
    """What holds for every row of one domain."""

    row_format: RowFormat
    """Columns and vocabulary."""
    domain: int
    """The domain's number."""
    eos_id: int
    """What follows it is no target."""


class RowCheck:
    """Looks at the rows of one part, shard after shard."""

    def __init__(self, rules: RowRules) -> None:
        self.targets = 0
        """Valid targets so far."""
        self._rules = rules
        self._hashes = {name: hashlib.sha256() for name in rules.row_format.columns if name != "domain"}

    def add(self, path: Path, rows: NDArray[np.void]) -> Iterator[Damaged]:
        """Look at the next rows (n,), structured by column, which are those of the shard at `path`.

        Gives one finding for each kind of thing that is wrong: the first row of the shard that has it, and how many.
        """
        faults: dict[str, _Fault] = {}
        step = max(1, _CHUNK_BYTES // rows.dtype.itemsize)
        for start in range(0, len(rows), step):
            for fault in self._faults(rows[start : start + step]):
                first = faults.setdefault(fault.kind, replace(fault, row=start + fault.row, rows=0))
                faults[fault.kind] = replace(first, rows=first.rows + fault.rows)
        yield from (Damaged(path, str(fault)) for fault in faults.values())

    def compare(self, path: Path, part: Part) -> Iterator[Damaged]:
        """Whether all rows of the part, stored at `path`, hash to what its record says."""
        recorded = {name: getattr(part, f"{name}_sha256") for name in ("tokens", *_NATS, "selected")}
        found = {name: digest.hexdigest() for name, digest in self._hashes.items()}
        for name, expected in recorded.items():
            if found.get(name) != expected:
                yield Damaged(
                    path,
                    f"holds a column {name} with the SHA-256 {_short(found.get(name))}, the manifest says "
                    f"{_short(expected)}",
                )

    def _faults(self, rows: NDArray[np.void]) -> Iterator["_Fault"]:
        """What is wrong with rows (n,); they are counted and hashed on the way."""
        columns = {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names or ()}
        for name, digest in self._hashes.items():
            digest.update(columns[name].data)
        tokens, vocab_size = columns["tokens"], self._rules.row_format.vocab_size
        if int(tokens.max()) >= vocab_size:
            yield from _Fault.at("token id", tokens, tokens >= vocab_size, f"an id below {vocab_size}")
        domain = columns["domain"][:, None]
        yield from _Fault.at("domain", domain, domain != self._rules.domain, str(self._rules.domain))
        valid = valid_targets(tokens, self._rules.eos_id)
        self.targets += int(np.count_nonzero(valid))
        for name in _NATS:
            if name in columns:
                yield from _nats_faults(name, columns[name], valid)
        if "selected" in columns:
            yield from _bits_faults(columns["selected"], valid)


def _nats_faults(name: str, values: NDArray[np.float16], valid: NDArray[np.bool_]) -> Iterator["_Fault"]:
    """What is wrong with `values` (n, seq_len): their range, and 0 wherever `valid`, (n, seq_len), is false."""
    bits = values.view(np.uint16)
    # Comparing bits is quick and lets a negative zero through to the slower look, which is content with it.
    if int(bits.max()) > _LARGEST_FLOAT16:
        yield from _Fault.at(name, values, ~(np.isfinite(values) & (values >= 0)), "0 to 65504")
    invalid = ~valid
    if bits[invalid].any():
        yield from _Fault.at(f"{name} after EOS", values, (values != 0) & invalid, "0")


def _bits_faults(bits: NDArray[np.uint8], valid: NDArray[np.bool_]) -> Iterator["_Fault"]:
    """What is wrong with `bits` (n, bytes) of the column `selected`: only of a target may one be set."""
    wrong = bits & ~pack_mask(valid)
    if wrong.any():
        places = unpack_mask(wrong, 8 * bits.shape[1])
        yield from _Fault.at("a bit of selected", places.view(np.uint8), places, "0, as there is no target")


@dataclass(frozen=True)
class _Fault:
    """One kind of thing that is wrong with rows."""

    kind: str
    finding: str
    """The first value and what was expected."""
    row: int
    """The first row that has it."""
    rows: int
    """How many have it."""

    @classmethod
    def at(cls, kind: str, values: NDArray[np.generic], where: NDArray[np.bool_], expected: str) -> Iterator["_Fault"]:
        """A fault where `where` holds anywhere; `values` and `where` are (n, m)."""
        rows = where.any(axis=1)
        if rows.any():
            row, place = np.unravel_index(int(where.argmax()), where.shape)
            finding = f"{kind} {values[row, place]} at place {place}, expected {expected}"
            yield cls(kind, finding, int(row), int(rows.sum()))

    def __str__(self) -> str:
        more = f"; {self.rows - 1} more of its rows are like that" if self.rows > 1 else ""
        return f"has in row {self.row} {self.finding}{more}"


def _short(sha256: str | None) -> str:
    return "none" if sha256 is None else sha256[:12]
