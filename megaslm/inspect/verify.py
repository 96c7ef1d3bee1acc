"""The `verify` verb: checks every byte of a dataset for corruption, and every value for its allowed range."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.text import Text

from megaslm.dataset.folder import check_tokenizer
from megaslm.dataset.index import INDEX, check_merged, foreign_parts, in_order, joined, read_index
from megaslm.dataset.manifest import MANIFEST, TOKENIZER, DomainSplit, Manifest, Part, read_manifest
from megaslm.dataset.shards import RowFormat
from megaslm.errors import CorruptData
from megaslm.inspect.part_check import CheckedPart, RowRules, check_part, files_of_part, leftovers, what_it_is
from megaslm.observe.display import duration, size

OnProgress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes to read in all, from one thread at a time."""
_LINE_SECONDS = 5.0
_SHOWN = 100
"""Findings of one kind that are printed. The JSON report has all."""


@dataclass(frozen=True)
class Finding:
    """One finding about one file."""

    path: str
    """The file or folder, relative to the dataset."""
    finding: str
    """The value found and the value expected."""


@dataclass(frozen=True)
class Verification:
    """The result of verifying a dataset."""

    dataset: str
    problems: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    """Files and folders that are not part of the dataset."""
    parts: int
    """Number of parts in the manifest."""
    rows: int
    """Number of rows in the manifest."""
    bytes: int
    """Size of the shards that were read."""
    seconds: float
    workers: int


def verify(dataset: Path, *, workers: int | None = None, on_progress: OnProgress | None = None) -> Verification:
    """Read all of `dataset`, each byte once, and report all faults, not only the first.

    The manifest states its own checksum and the SHA-256 of the tokenizer's files, of each part's index and of each
    column. An index states the checksum of each shard. All of these are compared. The values are checked too: ids are
    in the vocabulary, BOS stands where `packing.bos` says and nowhere else, losses are finite (and 0 where nothing
    reads them), and targets are as many as counted. A corrupt manifest ends the check. `workers` threads (None: one per
    core) read parts. Each holds about one shard in memory, for compressed shards also the unpacked one.

    Raises DataError where the folder is not a finished dataset, or is one of another version.
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
        corruptions += _corruptions(dataset, share, parts)
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


@contextmanager
def progress_bar(console: Console, name: str) -> Iterator[OnProgress]:
    """A progress bar of bytes during the block, or lines without a terminal. Yields the function that moves it."""
    bar = Progress(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(name, total=None)
    began_at = said_at = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal said_at
        bar.update(task, completed=done, total=total)
        now = time.monotonic()
        if not console.is_terminal and now - said_at >= _LINE_SECONDS:
            said_at = now
            seconds = now - began_at
            left = duration((total - done) / done * seconds)
            rate = f"{size(done / seconds)}/s"
            console.print(
                f"{name} · {100 * done // total:3}% · {size(done)} of {size(total)} · {rate} · {left} left",
                markup=False,
                soft_wrap=True,
            )

    with bar:
        yield show


def show_verification(console: Console, found: Verification) -> None:
    """Prints every problem and every warning, and the amount and speed of reading."""
    _show(console, "problem", "bold red", found.problems)
    _show(console, "warning", "yellow", found.warnings)
    console.print(
        f"verify · {found.dataset} · {found.parts:,} parts · {found.rows:,} rows · {size(found.bytes)} in "
        f"{found.seconds:,.2f} s · {size(found.bytes / found.seconds)}/s · {found.workers} workers",
        markup=False,
        soft_wrap=True,
    )
    if not found.problems:
        console.print("every byte is intact", style="bold green")


def _show(console: Console, kind: str, style: str, findings: tuple[Finding, ...]) -> None:
    for finding in findings[:_SHOWN]:
        line = Text.assemble((kind, style), " · ", (finding.path, "bold"), " ", finding.finding)
        console.print(line, soft_wrap=True)
    if len(findings) > _SHOWN:
        console.print(f"{kind} · and {len(findings) - _SHOWN:,} more: `--json FILE` writes them all", soft_wrap=True)


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
            rules=RowRules(
                row_format,
                manifest.domains.index(domain),
                manifest.eos_id,
                manifest.packing.bos,
                manifest.bos_in_rows,
            ),
        )
        for split, domains in manifest.splits.items()
        for domain, counted in domains.items()
    ]


def _check_parts(shares: Sequence[_Share], threads: int, on_progress: OnProgress | None) -> list[list[CheckedPart]]:
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


def _corruptions(dataset: Path, share: _Share, checked: Sequence[CheckedPart]) -> Iterator[CorruptData]:
    """The faults of a share: of its parts, of its merged index, and of its counts."""
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
    """The files of a share, and its folders that cannot be checked further."""
    yield share.folder / INDEX
    for foreign in foreign_parts(share.folder, share.parts):
        yield foreign.path
    for part, found in zip(share.parts, checked, strict=True):
        folder = share.folder / part.name
        yield from [folder] if found.index is None else files_of_part(folder, found.index)


def _about(dataset: Path, path: Path, finding: str) -> Finding:
    return Finding(path.relative_to(dataset).as_posix(), finding)
