"""Checks one part of a dataset: every byte against the checksums, and every value against its allowed range."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megaslm.config.recipe import Bos
from megaslm.dataset.folder import check_columns
from megaslm.dataset.index import INDEX, Shard, ShardIndex, check_size, read_part_index
from megaslm.dataset.manifest import BESIDE_ROWS, MANIFEST, Part
from megaslm.dataset.rows import pack_mask, require_checksum, rows_in, unpack_mask, unpacked
from megaslm.dataset.shards import RowFormat
from megaslm.errors import CorruptData
from megaslm.files import UNFINISHED
from megaslm.slm.valid_targets import valid_targets

_OF_AN_INTERRUPTED_RUN = (UNFINISHED, ".prepare", ".score", ".mask", ".attach")
_CHUNK_BYTES = 2**20
"""Rows are checked in chunks of this size, which stay in a core's cache from one check to the next."""
_LARGEST_FLOAT16 = 0x7BFF
"""The bits of 65504, the largest finite float16. Larger bit patterns are infinity, NaN and negative values."""
_TOP = ("ref_top_logprob", "ref_top_id")
OnBytes = Callable[[int], None]
"""Called with the number of bytes read since the last call, from any thread."""


def files_of_part(folder: Path, index: ShardIndex) -> Iterator[Path]:
    """The files of a part in `folder`: the written ones, and those that `streaming` may unpack."""
    yield folder / INDEX
    for shard in index.shards:
        yield folder / shard.stored.basename
        yield folder / shard.raw_data.basename


def leftovers(dataset: Path, known: Iterable[Path]) -> Iterator[Path]:
    """The files and folders in the dataset's folder that are not `known`, sorted.

    A folder without known content is listed as one item. A known folder is not searched.
    """
    ours = {*known, dataset / MANIFEST, *(dataset / name for name in BESIDE_ROWS)}
    yield from _unknown(dataset, ours, holders={parent for path in ours for parent in path.parents})


def what_it_is(path: Path) -> str:
    """The finding about a leftover."""
    if path.name.startswith(_OF_AN_INTERRUPTED_RUN):
        return "was left by a run that was interrupted; it may be removed when none is at work here"
    return "is no part of this dataset"


def _unknown(folder: Path, known: set[Path], holders: set[Path]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path in known:
            continue
        if path in holders:
            yield from _unknown(path, known, holders)
        else:
            yield path


@dataclass(frozen=True)
class RowRules:
    """The rules for every row of one domain."""

    row_format: RowFormat
    """Columns and vocabulary."""
    domain: int
    """The domain's number."""
    eos_id: int
    """A token after it is not a target."""
    bos: Bos = "none"
    """Where BOS stands."""
    bos_id: int | None = None
    """The BOS; None if rows have none, which allows a text to give that id."""


class RowCheck:
    """Checks the rows of one part, shard after shard."""

    def __init__(self, rules: RowRules) -> None:
        self.targets = 0
        """Valid targets so far."""
        self._rules = rules
        self._next_begins: bool | None = True
        """Whether the next row begins with BOS, if BOS stands before documents; None if the row before is unknown."""
        self._hashes = {name: hashlib.sha256() for name in rules.row_format.columns if name != "domain"}

    def add(self, path: Path, rows: NDArray[np.void]) -> Iterator[CorruptData]:
        """Check the next rows (n,), structured by column: those of the shard at `path`.

        Yields one finding per kind of fault: the first row of the shard that has it, and the number of such rows.
        """
        faults: dict[str, _Fault] = {}
        step = max(1, _CHUNK_BYTES // rows.dtype.itemsize)
        for start in range(0, len(rows), step):
            for fault in self._faults(rows[start : start + step]):
                first = faults.setdefault(fault.kind, replace(fault, row=start + fault.row, rows=0))
                faults[fault.kind] = replace(first, rows=first.rows + fault.rows)
        yield from (CorruptData(path, str(fault)) for fault in faults.values())

    def skip(self) -> None:
        """Leave out the rows of a shard that cannot be read."""
        self._next_begins = None

    def compare(self, path: Path, part: Part) -> Iterator[CorruptData]:
        """Compare the hashes of all rows of the part, stored at `path`, with its record."""
        names = ("tokens", "target_mask", "ref_loss", "ref_entropy", *_TOP, "selected", "weight")
        recorded = {name: getattr(part, f"{name}_sha256") for name in names} | dict(part.losses_sha256)
        found = {name: digest.hexdigest() for name, digest in self._hashes.items()}
        for name, expected in recorded.items():
            if found.get(name) != expected:
                yield CorruptData(
                    path,
                    f"holds a column {name} with the SHA-256 {_short(found.get(name))}, the manifest says "
                    f"{_short(expected)}",
                )

    def _faults(self, rows: NDArray[np.void]) -> Iterator["_Fault"]:
        """The faults of rows (n,). Counts and hashes the rows too."""
        columns = {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names or ()}
        for name, digest in self._hashes.items():
            digest.update(columns[name].data)
        tokens, vocab_size = columns["tokens"], self._rules.row_format.vocab_size
        if int(tokens.max()) >= vocab_size:
            yield from _Fault.at("token id", tokens, tokens >= vocab_size, f"an id below {vocab_size}")
        yield from self._bos_faults(tokens)
        domain = columns["domain"][:, None]
        yield from _Fault.at("domain", domain, domain != self._rules.domain, str(self._rules.domain))
        valid = valid_targets(tokens, self._rules.eos_id)
        if "target_mask" in columns:
            target_mask = columns["target_mask"]
            yield from _Fault.at("target_mask", target_mask, target_mask > valid, "0 or 1, and 0 after EOS")
            valid = valid_targets(tokens, self._rules.eos_id, target_mask)
        self.targets += int(np.count_nonzero(valid))
        for name in self._rules.row_format.losses_and_entropies:
            yield from _nats_faults(name, columns[name], valid)
        if "ref_top_id" in columns:
            log_probabilities, ids = (columns[name] for name in _TOP)
            in_range = np.isfinite(log_probabilities) & (log_probabilities <= 0)
            yield from _top_faults("ref_top_logprob", log_probabilities, in_range, valid, "-65504 to 0")
            yield from _top_faults("ref_top_id", ids, ids < vocab_size, valid, f"an id below {vocab_size}")
        if "selected" in columns:
            yield from _bits_faults(columns["selected"], valid)
        if "weight" in columns:
            weight = columns["weight"]
            yield from _Fault.at("weight", weight, ~np.isfinite(weight), "a finite number")
            yield from _Fault.at("weight without a target", weight, (weight != 0) & ~valid, "0")

    def _bos_faults(self, tokens: NDArray[np.unsignedinteger]) -> Iterator["_Fault"]:
        """The faults of rows (n, seq_len + 1) that lack BOS in its places, or have it elsewhere."""
        rules = self._rules
        if rules.bos_id is None:
            return
        found, expected = tokens == rules.bos_id, np.zeros(tokens.shape, dtype=np.bool_)
        if rules.bos == "row":
            expected[:, 0] = True
        else:
            is_eos = tokens == rules.eos_id
            expected[:, 1:] = is_eos[:, :-1] & ~is_eos[:, 1:]
            # A row begins with the last token of the row before.
            expected[1:, 0] = found[:-1, -1]
            expected[0, 0] = found[0, 0] if self._next_begins is None else self._next_begins
        self._next_begins = bool(found[-1, -1])
        yield from _Fault.at("the token", tokens, expected & ~found, f"BOS, {rules.bos_id}")
        yield from _Fault.at("BOS", tokens, found & ~expected, "another token")


def _nats_faults(name: str, values: NDArray[np.float16], valid: NDArray[np.bool_]) -> Iterator["_Fault"]:
    """The faults of `values` (n, seq_len): out of range, or not 0 where `valid` (n, seq_len) is false."""
    bits = values.view(np.uint16)
    # Comparing bits is fast. It also catches a negative zero, which the slower check then accepts.
    if int(bits.max()) > _LARGEST_FLOAT16:
        yield from _Fault.at(name, values, ~(np.isfinite(values) & (values >= 0)), "0 to 65504")
    invalid = ~valid
    if bits[invalid].any():
        yield from _Fault.at(f"{name} without a target", values, (values != 0) & invalid, "0")


def _top_faults(
    name: str, values: NDArray[np.generic], in_range: NDArray[np.bool_], valid: NDArray[np.bool_], expected: str
) -> Iterator["_Fault"]:
    """The faults of `values` (n, seq_len, m): not `in_range`, or not 0 where `valid` (n, seq_len) is false."""
    flat = values.reshape(len(values), -1)
    yield from _Fault.at(name, flat, ~in_range.reshape(flat.shape), expected)
    without = (values != 0) & ~valid[..., None]
    yield from _Fault.at(f"{name} without a target", flat, without.reshape(flat.shape), "0")


def _bits_faults(bits: NDArray[np.uint8], valid: NDArray[np.bool_]) -> Iterator["_Fault"]:
    """The faults of `bits` (n, bytes) of the column `selected`: bits that are set without a target."""
    wrong = bits & ~pack_mask(valid)
    if wrong.any():
        places = unpack_mask(wrong, 8 * bits.shape[1])
        yield from _Fault.at("a bit of selected", places.view(np.uint8), places, "0, as there is no target")


@dataclass(frozen=True)
class _Fault:
    kind: str
    finding: str
    """The first value and what was expected."""
    row: int
    """The first row that has it."""
    rows: int
    """The number of rows that have it."""

    @classmethod
    def at(cls, kind: str, values: NDArray[np.generic], where: NDArray[np.bool_], expected: str) -> Iterator["_Fault"]:
        """A fault if `where` is true anywhere; `values` and `where` are (n, m)."""
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


@dataclass(frozen=True)
class CheckedPart:
    """The findings of one part."""

    index: ShardIndex | None
    """Its index; None if that is corrupt, so that its shards could not be checked."""
    targets: int | None
    """Valid targets of its rows; None if not all rows could be read."""
    corruptions: tuple[CorruptData, ...]
    """All faults of the part."""


def check_part(domain_folder: Path, part: Part, rules: RowRules, on_bytes: OnBytes) -> CheckedPart:
    """Read a whole part, each byte once, and compare it with its record and with the rules for rows."""
    try:
        index = read_part_index(domain_folder, part)
    except CorruptData as corruption:
        return CheckedPart(None, None, (corruption,))
    folder = domain_folder / part.name
    check, corruptions, whole = RowCheck(rules), list[CorruptData](), True
    for shard in index.shards:
        path = folder / shard.stored.basename
        try:
            rows = _read(path, shard, rules)
            corruptions += check.add(path, rows)
            corruptions += _check_unpacked(folder, shard)
        except CorruptData as corruption:
            corruptions.append(corruption)
            check.skip()
            whole = False
        on_bytes(shard.stored.bytes)
    # The hashes of a part that lacks rows differ anyway, so that finding would add nothing.
    if whole:
        corruptions += check.compare(folder, part)
    return CheckedPart(index, check.targets if whole else None, tuple(corruptions))


def _read(path: Path, shard: Shard, rules: RowRules) -> NDArray[np.void]:
    check_columns(path, shard, rules.row_format.columns)
    check_size(path, shard)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorruptData(path, f"cannot be read: {error.strerror}") from error
    require_checksum(path, content, shard.stored)
    if shard.zip_data is None:
        return rows_in(path, np.frombuffer(content, dtype=np.uint8), shard)
    return rows_in(path, unpacked(path, content, shard), shard)


def _check_unpacked(folder: Path, shard: Shard) -> Iterator[CorruptData]:
    """Checks unpacked shards. `streaming` reads an unpacked file from then on, without checking it."""
    path = folder / shard.raw_data.basename
    if shard.zip_data is not None and path.is_file():
        try:
            require_checksum(path, path.read_bytes(), shard.raw_data)
        except CorruptData as corruption:
            yield CorruptData(
                path, f"{corruption.finding}; it was unpacked from {shard.zip_data.basename} and may be removed"
            )
