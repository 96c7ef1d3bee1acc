"""The `attach` verb: puts a mask or a weight from a file beside the tokens of a dataset."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from megaslm.config.section import Split
from megaslm.dataset.fit import require_attachable
from megaslm.dataset.folder import check_layout
from megaslm.dataset.manifest import (
    MANIFEST,
    AttachedColumn,
    AttachedName,
    DomainSplit,
    Manifest,
    read_manifest,
)
from megaslm.dataset.remote import DatasetFolder, open_dataset
from megaslm.dataset.rows import Rows, pack_mask
from megaslm.dataset.shards import RowFormat, part_writer
from megaslm.errors import ConfigError, CorruptData
from megaslm.jobs.ledger import keeping_what_is_done
from megaslm.jobs.progress import Unwatched, Watcher
from megaslm.scoring.column_file import ColumnFile, open_column
from megaslm.scoring.column_places import Documents, PartLines, SpanValues, spans_of
from megaslm.scoring.derivation import Derivation, PartOutcome
from megaslm.scoring.derivation_plan import SourcePart, source_parts
from megaslm.scoring.part_threads import PartThreads
from megaslm.slm.valid_targets import valid_targets

_WORKING = ".attach"
_UNWATCHED = Unwatched()
_DEFAULTS: dict[AttachedName, bool | float] = {"target_mask": True, "selected": False, "weight": 1.0}


@dataclass(frozen=True)
class AttachRequest:
    """The dataset, the column and the output."""

    dataset: str | Path
    """A folder or a URL."""
    column: Path
    """The parquet file."""
    name: AttachedName
    """The name of the column in the dataset."""
    output: str | Path
    """A folder or a URL."""
    default: bool | float | None = None
    """The value of targets that no line covers; None: true for `target_mask`, false for `selected`, 1 for `weight`."""
    workers: int | None = None
    """Threads; None: one per core."""
    working: Path | None = None
    """For an output at a URL: a local folder for parts before they are sent."""
    cache: Path = Path("~/.cache/megaslm")
    """For a dataset at a URL: the folder that keeps fetched files."""


class AttachedPart(PartOutcome):
    """The note of a part with its column."""

    targets: int
    """Its valid targets, under an attached `target_mask` too."""
    covered: int
    """Valid targets that lines of the file cover."""


def default_of(name: AttachedName, stated: str | None) -> bool | float:
    """The value of targets that no line covers, from the command line. Raises ConfigError for an invalid one."""
    if stated is None:
        return _DEFAULTS[name]
    if name != "weight":
        if stated not in ("true", "false"):
            raise ConfigError(f"--default {stated}: must be true or false for --as {name}")
        return stated == "true"
    try:
        value = float(stated)
    except ValueError:
        value = math.nan
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise ConfigError(f"--default {stated}: must be a finite number for --as {name}")
    return value


def attach(task: AttachRequest, watcher: Watcher = _UNWATCHED) -> Manifest:
    """Writes the output: the rows of the dataset, in order, with the column beside its other ones.

    All lines of the file are checked before anything is written.

    Raises:
        DataError: the dataset is corrupt or has the column already, a line of the file does not fit the dataset, or the
            output holds something else.
        Stopped: on SIGTERM.
        MegaSLMError: the system reports an error, such as a full disk.
    """
    source = open_dataset(str(task.dataset), str(task.cache))
    manifest = read_manifest(source.path)
    require_attachable(manifest, source.place, task.name)
    check_layout(source.path, shards_are_here=source.url is None)
    file = open_column(task.column, task.name, manifest, source.place)
    described = _described(manifest, task, file)
    derivation = Derivation(
        source,
        described,
        task.output,
        working=task.working,
        working_name=_WORKING,
        outcome_type=AttachedPart,
        # A file is about one dataset, so that a dataset that has grown needs another file, and another output.
        known_parts=lambda finished, read: {},
    )
    finished = derivation.finished()
    if finished is not None:
        watcher.say(f"{task.output} was finished already, from these rows and this column")
        return finished
    watcher.say(f"checks the {file.lines:,} lines of {task.column}")
    lines = lines_of_parts(file, source, manifest)
    with keeping_what_is_done(task.output), derivation.claimed(alone=True):
        make = partial(_make, described, task.name, source, lines)
        PartThreads(derivation, make, watcher, verb="attach", seq_len=manifest.seq_len).run(task.workers)
        watcher.say(f"joins the parts into {task.output}")
        outcomes = derivation.outcomes()
        return derivation.assemble(outcomes, derivation.beside_source(), _counted(described, task.name, outcomes))


def lines_of_parts(file: ColumnFile, source: DatasetFolder, manifest: Manifest) -> Mapping[str, PartLines]:
    """The lines that are about each part, by its name in the ledger. Reads the whole file, and checks every line.

    Raises DataError where a line does not fit the dataset.
    """
    found: dict[str, PartLines] = {}
    batches = file.read(0, file.lines)
    lines = next(batches, None)
    first_line = first_unit = 0
    documents_of = Counter[tuple[Split, str]]()
    for item in source_parts(manifest):
        documents = _documents(file, source, item)
        units = item.part.rows if documents is None else len(documents.first)
        documents_of[item.split, item.domain] += units
        begun = first_line
        while lines is not None:
            ours = int(np.searchsorted(lines.unit, first_unit + units))
            spans_of(lines.part(0, ours), first_unit, documents, file)
            first_line += ours
            if ours < len(lines.unit):
                lines = lines.part(ours, len(lines.unit))
                break
            lines = next(batches, None)
        found[item.name] = PartLines(file, begun, first_line - begun, first_unit)
        first_unit += units
    for (split, domain), count in documents_of.items() if file.addressed_by == "document" else ():
        stated = manifest.splits[split][domain].documents
        if count != stated:
            raise CorruptData(
                source.path / MANIFEST, f"counts {stated} documents in {split}/{domain}, its rows have {count}"
            )
    return found


def _documents(file: ColumnFile, source: DatasetFolder, item: SourcePart) -> Documents | None:
    """The documents of a part, if lines name documents."""
    if file.addressed_by == "row":
        return None
    return Documents.of(source.reader(item.split, item.domain, item.part.name, checked=True), file.manifest)


def _described(manifest: Manifest, task: AttachRequest, file: ColumnFile) -> Manifest:
    """The manifest of the output, but with the parts and counts of its source."""
    column = AttachedColumn(
        file=task.column.name,
        sha256=file.sha256,
        addressed_by=file.addressed_by,
        lines=file.lines,
        targets=0,
        default=_DEFAULTS[task.name] if task.default is None else task.default,
    )
    update: dict[str, object] = {"columns": {**manifest.columns, task.name: column}}
    if task.name == "selected":
        update["kind"] = "masked"
    if task.name == "target_mask":
        update["target_mask"] = True
    return manifest.model_copy(update=update)


def _make(
    described: Manifest,
    name: AttachedName,
    source: DatasetFolder,
    lines: Mapping[str, PartLines],
    item: SourcePart,
    stored: Iterator[tuple[int, Rows]],
    folder: Path,
) -> AttachedPart:
    of_part = lines[item.name]
    documents = _documents(of_part.file, source, item)
    values = SpanValues(of_part.spans(documents), described.columns[name].default)
    seq_len, eos_id = described.seq_len, described.eos_id
    targets = covered = 0
    with part_writer(folder, RowFormat.of(described)) as writer:
        for start, rows in stored:
            tokens = cast(NDArray[np.unsignedinteger], rows.pop("tokens"))
            domain = int(rows.pop("domain")[0])
            valid = valid_targets(tokens, eos_id, cast(NDArray[np.uint8] | None, rows.get("target_mask")))
            end = start + len(tokens)
            column, is_covered = (
                each.reshape(valid.shape)
                for each in values.take(start * seq_len, end * seq_len, np.float32 if name == "weight" else np.bool_)
            )
            covered += int((valid & is_covered).sum())
            column = np.where(valid, column, column.dtype.type(0))
            targets += int(column.sum()) if name == "target_mask" else int(valid.sum())
            columns: dict[str, Any] = {**rows, name: _as_stored(name, column)}
            if name == "target_mask" and "weight" in rows:
                columns["weight"] = np.where(column, rows["weight"], np.float32(0))
            writer.write(tokens, domain, **columns)
    return AttachedPart(part=writer.part, targets=targets, covered=covered)


def _as_stored(name: AttachedName, column: NDArray[np.generic]) -> NDArray[np.generic]:
    match name:
        case "weight":
            return column
        case "target_mask":
            return column.view(np.uint8)
        case "selected":
            return pack_mask(cast(NDArray[np.bool_], column))


def _counted(described: Manifest, name: AttachedName, outcomes: list[tuple[SourcePart, AttachedPart]]) -> Manifest:
    """The manifest with the counts of the parts."""
    targets = Counter[tuple[Split, str]]()
    for item, outcome in outcomes:
        targets[item.split, item.domain] += outcome.targets
    splits: dict[Split, dict[str, DomainSplit]] = {
        split: {
            domain: share.model_copy(update={"tokens": targets[split, domain]}) for domain, share in domains.items()
        }
        for split, domains in described.splits.items()
    }
    covered = sum(outcome.covered for _, outcome in outcomes)
    column = described.columns[name].model_copy(update={"targets": covered})
    return described.model_copy(update={"splits": splits, "columns": {**described.columns, name: column}})
