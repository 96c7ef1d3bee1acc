"""The `verify` verb: whether every byte of a dataset is what was written, and every value one that it may be."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from megaslm.dataset.folder import check_tokenizer
from megaslm.dataset.index import INDEX, check_merged, foreign_parts, in_order, joined, read_index
from megaslm.dataset.manifest import MANIFEST, TOKENIZER, DomainSplit, Manifest, Part, read_manifest
from megaslm.dataset.shards import RowFormat
from megaslm.errors import CorruptData
from megaslm.inspect.part_check import CheckedPart, RowRules, check_part, files_of_part, leftovers, what_it_is

OnProgress = Callable[[int, int], None]
"""Called with the bytes that were read and those that are to be read, from one thread at a time."""


@dataclass(frozen=True)
class Finding:
    """One thing about one file."""

    path: str
    """The file or folder, relative to the dataset."""
    finding: str
    """What was found and what was expected."""


@dataclass(frozen=True)
class Verification:
    """What a look at all of a dataset found."""

    dataset: str
    """Its folder."""
    problems: tuple[Finding, ...]
    """Everything that is wrong with it."""
    warnings: tuple[Finding, ...]
    """What lies in its folder and is no part of it."""
    parts: int
    """How many its manifest lists."""
    rows: int
    """How many its manifest counts."""
    bytes: int
    """Size of the shards that were read."""
    seconds: float
    """How long it took."""
    workers: int
    """Threads that read."""


def verify(dataset: Path, *, workers: int | None = None, on_progress: OnProgress | None = None) -> Verification:
    """Read all of `dataset`, each byte once, and report everything that is wrong with it, not only the first.

    The manifest states its own checksum, the SHA-256 of the tokenizer's files, of each part's index and of each
    column; an index states the checksum of each shard. What these cover is compared, and the values themselves are
    looked at: ids in the vocabulary, losses finite and 0 where nothing reads them, targets as many as counted. A
    manifest that is corrupt ends the look. Parts are read by `workers` threads (null: one a core); each holds about
    one shard in memory, and where shards are compressed also what it unpacks to.

    Raises DataError where the folder is no finished dataset, or one of another version.
    """
    started = time.monotonic()
    threads = workers or os.cpu_count() or 1
    try:
        manifest = read_manifest(dataset)
    except CorruptData as corruption:
        problems = (_about(dataset, corruption.path, corruption.finding),)
        return Verification(str(dataset), problems, (), 0, 0, 0, time.monotonic() - started, threads)
    shares = _shares(dataset, manifest)
    checked = _check_parts(shares, threads, on_progress)
    corruptions = list(check_tokenizer(dataset / TOKENIZER, manifest))
    known = [dataset / TOKENIZER / name for name in manifest.tokenizer_files]
    for share, parts in zip(shares, checked, strict=True):
        corruptions += _damages(dataset, share, parts)
        known += _known(share, parts)
    return Verification(
        dataset=str(dataset),
        problems=tuple(_about(dataset, corruption.path, corruption.finding) for corruption in corruptions),
        warnings=tuple(_about(dataset, path, what_it_is(path)) for path in leftovers(dataset, known)),
        parts=sum(len(share.parts) for share in shares),
        rows=sum(share.counted.rows for share in shares),
        bytes=sum(share.bytes for share in shares),
        seconds=time.monotonic() - started,
        workers=threads,
    )


@dataclass(frozen=True)
class _Share:
    """One domain of one split, as the manifest counts it."""

    folder: Path
    counted: DomainSplit
    rules: RowRules

    @property
    def parts(self) -> list[Part]:
        return in_order(self.folder, self.counted.parts)

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


def _shares(dataset: Path, manifest: Manifest) -> list[_Share]:
    row_format = RowFormat.of(manifest)
    return [
        _Share(
            folder=dataset / split / domain,
            counted=counted,
            rules=RowRules(row_format, manifest.domains.index(domain), manifest.eos_id),
        )
        for split, domains in manifest.splits.items()
        for domain, counted in domains.items()
    ]


def _check_parts(shares: Sequence[_Share], threads: int, on_progress: OnProgress | None) -> list[list[CheckedPart]]:
    """What was found in each part of each share, in the order of their numbers."""
    progress = _Progress(sum(share.bytes for share in shares), on_progress)
    pool = ThreadPoolExecutor(threads)
    try:
        futures = [
            [pool.submit(check_part, share.folder, part, share.rules, progress.add) for part in share.parts]
            for share in shares
        ]
        return [[future.result() for future in of_share] for of_share in futures]
    finally:
        pool.shutdown(cancel_futures=True)


class _Progress:
    """Adds up what the threads have read."""

    def __init__(self, total_bytes: int, on_progress: OnProgress | None) -> None:
        self._done_bytes = 0
        self._total_bytes = total_bytes
        self._on_progress = on_progress
        self._lock = threading.Lock()

    def add(self, read_bytes: int) -> None:
        with self._lock:
            self._done_bytes += read_bytes
            if self._on_progress is not None:
                self._on_progress(self._done_bytes, self._total_bytes)


def _damages(dataset: Path, share: _Share, checked: Sequence[CheckedPart]) -> Iterator[CorruptData]:
    """What is wrong with a share: with its parts, with what joins them, and with what is counted over them."""
    yield from foreign_parts(share.folder, share.parts)
    for part in checked:
        yield from part.corruptions
    try:
        _check_joined(share, checked)
    except CorruptData as corruption:
        yield corruption
    place = share.folder.relative_to(dataset).as_posix()
    rows = sum(part.rows for part in share.parts)
    if rows != share.counted.rows:
        yield CorruptData(dataset / MANIFEST, f"counts {share.counted.rows} rows in {place}, its parts {rows}")
    targets = [part.targets for part in checked if part.targets is not None]
    if len(targets) == len(checked) and sum(targets) != share.counted.tokens:
        yield CorruptData(
            dataset / MANIFEST, f"counts {share.counted.tokens} targets in {place}, its rows have {sum(targets)}"
        )


def _check_joined(share: _Share, checked: Sequence[CheckedPart]) -> None:
    found = zip(share.parts, checked, strict=True)
    indices = {part.name: check.index for part, check in found if check.index is not None}
    if len(indices) == len(checked):
        check_merged(share.folder, joined(indices))
    else:
        read_index(share.folder)


def _known(share: _Share, checked: Sequence[CheckedPart]) -> Iterator[Path]:
    """The files of a share, and the folders of it into which nobody can look further."""
    yield share.folder / INDEX
    for foreign in foreign_parts(share.folder, share.parts):
        yield foreign.path
    for part, found in zip(share.parts, checked, strict=True):
        folder = share.folder / part.name
        yield from [folder] if found.index is None else files_of_part(folder, found.index)


def _about(dataset: Path, path: Path, finding: str) -> Finding:
    return Finding(path.relative_to(dataset).as_posix(), finding)
