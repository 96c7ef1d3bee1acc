"""Small streams for the training stream's tests: rows whose every value tells which row it is."""

import itertools
import math
from contextlib import suppress
from pathlib import Path

import numpy as np

from megaslm.config.plan import BatchPlan
from megaslm.dataset.index import Shard, merge_index, read_index
from megaslm.dataset.shards import RowFormat, part_writer
from megaslm.files import locked
from megaslm.stream.loader import MicroBatch, TrainingStream
from megaslm.stream.mixture import MixtureStream

SEQ_LEN = 16
BATCH_ROWS = 4
GIB = 1 << 30
SHUFFLE_SEED = 1
VOCAB_SIZE = 60_000


def row_tokens(first_row: int, rows: int) -> np.ndarray:
    """(rows, SEQ_LEN + 1) uint16, each row different in each place."""
    numbers = np.arange(first_row, first_row + rows)[:, None] * 31 + np.arange(SEQ_LEN + 1)
    return (numbers % VOCAB_SIZE).astype(np.uint16)


def row_losses(first_row: int, rows: int) -> np.ndarray:
    """(rows, SEQ_LEN) float16."""
    return (row_tokens(first_row, rows)[:, 1:] % 500 / 8).astype(np.float16)


def write_stream(
    folder: Path, shards: int, rows_per_shard: int = 10, *, compression: str | None = None, domain: int = 0
) -> MixtureStream:
    """A scored stream of one part a shard."""
    parts = []
    row_format = RowFormat(SEQ_LEN, VOCAB_SIZE, scored=True, compression=compression)
    for number in range(shards):
        first_row = number * rows_per_shard
        with part_writer(folder / f"part-{number:05d}", row_format) as writer:
            writer.write(row_tokens(first_row, rows_per_shard), 0, row_losses(first_row, rows_per_shard))
        parts.append(writer.part)
    merge_index(folder, parts)
    return MixtureStream(folder, remote=None, rows=shards * rows_per_shard, domain=domain, proportion=None)


def shards_of(stream: MixtureStream) -> tuple[Shard, ...]:
    return read_index(stream.local).shards


def fetched(stream: MixtureStream, cache: Path, remote: str | None = None) -> MixtureStream:
    """The same stream, read from `remote` (its folder) through a cache that holds the index only."""
    cache.mkdir(parents=True)
    (cache / "index.json").write_bytes((stream.local / "index.json").read_bytes())
    return MixtureStream(cache, remote or stream.local.as_uri(), stream.rows, stream.domain, stream.proportion)


def plan(world_size: int = 1, micro_steps: int = 1) -> BatchPlan:
    """Micro-batches of BATCH_ROWS rows."""
    rows_per_rank = BATCH_ROWS * micro_steps
    return BatchPlan(
        world_size=world_size,
        seq_len=SEQ_LEN,
        global_batch_rows=rows_per_rank * world_size,
        rows_per_rank=rows_per_rank,
        micro_batch_rows=BATCH_ROWS,
        micro_steps=micro_steps,
        total_steps=1,
        canonical_nodes=4,
    )


def take(stream: TrainingStream, micro_batches: int, rows_seen: int = 0) -> list[MicroBatch]:
    """The first micro-batches after `rows_seen` rows."""
    source = stream.micro_batches(rows_seen)
    try:
        return list(itertools.islice(source, micro_batches))
    finally:
        source.close()


def numbers(batches: list[MicroBatch]) -> list[int]:
    return [int(number) for batch in batches for number in batch.rows]


def assert_right(batches: list[MicroBatch]) -> None:
    """Every row has the values that its number asks for, in streams that are written by `write_stream`."""
    for batch in batches:
        for place, number in enumerate(batch.rows.tolist()):
            assert batch.tokens[place].tolist() == row_tokens(number, 1)[0].tolist()
            assert batch.columns["ref_loss"][place].tolist() == row_losses(number, 1)[0].tolist()


def cached_bytes(training: TrainingStream, folder: Path) -> int:
    """What shards take in a cache folder at one moment: none is added and none leaves while they are counted."""
    total = 0
    with locked(training._host.path / "ready" / "room", patience_seconds=math.inf, busy=""):
        for path in folder.rglob("*.mds*"):
            # One that is on its way may be given its name meanwhile.
            with suppress(FileNotFoundError):
                total += path.stat().st_size
    return total
