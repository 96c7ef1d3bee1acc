"""The `mask` verb: stores a scored dataset's static choice as one bit per target, in place of losses and entropies."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from megaslm.dataset.folder import check_layout
from megaslm.dataset.manifest import COST, Manifest, Mask, read_manifest
from megaslm.dataset.remote import open_dataset
from megaslm.dataset.rows import Rows, pack_mask
from megaslm.dataset.shards import RowFormat, part_writer
from megaslm.errors import DataError
from megaslm.jobs.ledger import keeping_what_is_done
from megaslm.jobs.progress import Unwatched, Watcher
from megaslm.scoring.derivation import Derivation, PartOutcome
from megaslm.scoring.derivation_plan import SourcePart, source_parts
from megaslm.scoring.mask import describe_masked, selected_targets
from megaslm.scoring.part_scoring import StoredRows
from megaslm.scoring.part_threads import PartThreads

_WORKING = ".mask"
_UNWATCHED = Unwatched()


@dataclass(frozen=True)
class MaskRequest:
    """The dataset to mask, the rule and the output."""

    dataset: str | Path
    """A scored dataset: a folder or a URL."""
    output: str | Path
    """A folder or a URL."""
    rule: Mask
    """The selection rule."""
    workers: int | None = None
    """Threads; None: one per core."""
    working: Path | None = None
    """For an output at a URL: a local folder for parts before they are sent."""
    cache: Path = Path("~/.cache/megaslm")
    """For a dataset at a URL: the folder that keeps fetched files."""


def mask(task: MaskRequest, watcher: Watcher = _UNWATCHED) -> Manifest:
    """Writes the output: the rows of the dataset, in order, with `selected` in place of losses and entropies.

    Parts that an earlier job has finished, and those of a finished output whose dataset has grown, are not made again.

    Raises:
        DataError: the dataset is corrupt or lacks the column that the rule sorts by, or the output holds something
            else.
        Stopped: on SIGTERM.
        MegaSLMError: the system reports an error, such as a full disk.
    """
    source = open_dataset(str(task.dataset), str(task.cache))
    described = describe_masked(read_manifest(source.path), source, task.rule)
    check_layout(source.path, shards_are_here=source.url is None)
    derivation = Derivation(
        source,
        described,
        task.output,
        working=task.working,
        working_name=_WORKING,
        outcome_type=PartOutcome,
        known_parts=lambda finished, read: _known_parts(finished),
    )
    finished = derivation.finished()
    if finished is not None:
        watcher.say(f"{task.output} was finished already, from these rows by this rule")
        return finished
    with keeping_what_is_done(task.output), derivation.claimed(alone=True):
        make = partial(_make, described, task.rule)
        PartThreads(derivation, make, watcher, verb="mask", seq_len=described.seq_len).run(task.workers)
        watcher.say(f"joins the masked parts into {task.output}")
        cost = source.path / COST
        return derivation.assemble(
            derivation.outcomes(), {COST: cost.read_text(encoding="utf-8")} if cost.is_file() else {}
        )


def _known_parts(finished: Manifest) -> Mapping[str, PartOutcome]:
    return {item.name: PartOutcome(part=item.part) for item in source_parts(finished)}


def _make(
    described: Manifest, rule: Mask, item: SourcePart, stored: Iterator[tuple[int, Rows]], folder: Path
) -> PartOutcome:
    row_format = RowFormat.of(described)
    with part_writer(folder, row_format) as writer:
        for start, rows in stored:
            try:
                selected = selected_targets(rule, rows, described.eos_id)
            except DataError as error:
                raise DataError(f"{item.path}, of the rows from {start} on: {error}") from error
            tokens, domain, others = StoredRows.of(rows)
            kept = {name: column for name, column in others.items() if name in row_format.columns}
            writer.write(tokens, domain, selected=pack_mask(selected), **kept)
    return PartOutcome(part=writer.part)
