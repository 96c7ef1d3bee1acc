"""Rows out of shards into micro-batches, in one process: the training stream against plain streaming."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness.report import Bar, options, report
from harness.timing import Times, in_turns
from torch.utils.data import DataLoader

from megaslm.config.plan import BatchPlan
from megaslm.dataset.index import merge_index
from megaslm.dataset.mosaic import Stream, StreamingDataset
from megaslm.dataset.shards import RowFormat, part_writer
from megaslm.stream.loader import MicroBatch, TrainingStream
from megaslm.stream.mixture import MixtureStream

SEQ_LEN = 2048
VOCAB_SIZE = 32_000
BATCH_ROWS = 8
CANONICAL_NODES = 64
SHARD_BYTES = 8 * 2**20
FULL, QUICK = 4096, 128
FEWEST_TOKENS_A_SECOND = 2.5e6
MOST_FOR_ATTACHED = 1.02
CASES = {
    "tokens only": RowFormat(SEQ_LEN, VOCAB_SIZE, shard_bytes=SHARD_BYTES),
    "with ref_loss": RowFormat(SEQ_LEN, VOCAB_SIZE, scored=True, shard_bytes=SHARD_BYTES),
    "with weight": RowFormat(SEQ_LEN, VOCAB_SIZE, weighted=True, shard_bytes=SHARD_BYTES),
    "with ref_loss and weight": RowFormat(SEQ_LEN, VOCAB_SIZE, scored=True, weighted=True, shard_bytes=SHARD_BYTES),
    "with ref_loss, zstd": RowFormat(SEQ_LEN, VOCAB_SIZE, scored=True, shard_bytes=SHARD_BYTES, compression="zstd"),
}


@dataclass(frozen=True)
class Content:
    """The rows of every case."""

    tokens: np.ndarray
    """(rows, SEQ_LEN + 1) uint16."""
    losses: np.ndarray
    """(rows, SEQ_LEN) float16."""
    weights: np.ndarray
    """(rows, SEQ_LEN) float32."""

    @classmethod
    def drawn(cls, rows: int) -> "Content":
        generator = np.random.default_rng(0)
        # Few tokens are frequent and most are rare, as in text, or zstd would find nothing.
        tokens = np.minimum(generator.zipf(1.2, (rows, SEQ_LEN + 1)), VOCAB_SIZE - 1).astype(np.uint16)
        losses = generator.gamma(1.0, 2.0, (rows, SEQ_LEN)).astype(np.float16)
        return cls(tokens, losses, generator.random((rows, SEQ_LEN), np.float32))

    @property
    def rows(self) -> int:
        return len(self.tokens)

    def write(self, folder: Path, row_format: RowFormat) -> MixtureStream:
        with part_writer(folder / "part-00000", row_format) as writer:
            losses, weights = self.losses if row_format.scored else None, self.weights if row_format.weighted else None
            writer.write(self.tokens, 0, losses, weight=weights)
        merge_index(folder, [writer.part])
        return MixtureStream(folder, remote=None, rows=self.rows, domain=0, proportion=None)


class Plain(StreamingDataset):
    """Streaming as it is, but for the number of each row."""

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, np.ndarray | int]:
        return {**super().get_item(sample_id, retry), "row": sample_id}


def collate(rows: list[Mapping[str, np.ndarray | int]]) -> MicroBatch:
    return MicroBatch(
        tokens=torch.from_numpy(np.stack([row["tokens"] for row in rows]).astype(np.int64)),
        rows=torch.tensor([int(row["row"]) for row in rows]),
        domain=torch.tensor([int(row["domain"]) for row in rows]),
        visit=0,
        columns={
            name: torch.from_numpy(np.stack([row[name] for row in rows]).astype(np.float32))
            for name in ("ref_loss", "weight")
            if name in rows[0]
        },
    )


def plain_epochs(stream: MixtureStream) -> Callable[[], None]:
    dataset = Plain(
        streams=[Stream(local=str(stream.local))], batch_size=BATCH_ROWS, shuffle=True, shuffle_seed=1,
        num_canonical_nodes=CANONICAL_NODES,
    )  # fmt: skip
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=BATCH_ROWS, collate_fn=collate, drop_last=True)
    return lambda: use(iter(loader), stream.rows // BATCH_ROWS)


def training_epochs(training: TrainingStream, stream: MixtureStream) -> Callable[[], None]:
    source = training.micro_batches(0)
    return lambda: use(source, stream.rows // BATCH_ROWS)


def conversions(content: Content, row_format: RowFormat) -> Callable[[], None]:
    """What nobody can do without: the same values, widened, out of arrays in memory."""
    order = np.random.default_rng(1).permutation(content.rows).reshape(-1, BATCH_ROWS)

    def run() -> None:
        for numbers in order:
            torch.from_numpy(content.tokens[numbers].astype(np.int64))
            if row_format.scored:
                torch.from_numpy(content.losses[numbers].astype(np.float32))
            if row_format.weighted:
                torch.from_numpy(content.weights[numbers])

    return run


def use(batches: Iterator[MicroBatch], count: int) -> None:
    seen = sum(len(batch.rows) for batch in islice(batches, count))
    assert seen == count * BATCH_ROWS


def open_training(stream: MixtureStream) -> TrainingStream:
    plan = BatchPlan(
        world_size=1, seq_len=SEQ_LEN, global_batch_rows=BATCH_ROWS, rows_per_rank=BATCH_ROWS,
        micro_batch_rows=BATCH_ROWS, micro_steps=1, total_steps=1, canonical_nodes=CANONICAL_NODES,
    )  # fmt: skip
    return TrainingStream([stream], plan, shuffle_seed=1, workers=0)


def main() -> None:
    chosen = options(__doc__)
    content = Content.drawn(QUICK if chosen.quick else FULL)
    tokens = content.rows * SEQ_LEN
    rows: list[dict[str, str | float | int]] = []
    bars: list[Bar] = []
    epochs: dict[str, Callable[[], None]] = {}
    repetitions = 3 if chosen.quick else 11
    with tempfile.TemporaryDirectory() as folder:
        for case, row_format in CASES.items():
            stream = content.write(Path(folder) / case, row_format)
            training = open_training(stream)
            epochs[case] = training_epochs(training, stream)
            alternatives = {
                "the training stream": epochs[case],
                "plain streaming": plain_epochs(stream),
                "conversions alone": conversions(content, row_format),
            }
            times = in_turns(alternatives, repetitions=repetitions)
            rows += [row_of(case, name, taken, times["plain streaming"], tokens) for name, taken in times.items()]
            rate = tokens / times["the training stream"].median / 1e6
            bars.append(Bar(f"{case}: M tokens/s", rate, FEWEST_TOKENS_A_SECOND / 1e6, "higher"))
            checked = training.checked()
            rows.append(
                {
                    "case": case,
                    "reader": f"{checked.files} checksums, once",
                    "M tokens/s": tokens / checked.seconds / 1e6,
                    "time, to plain": checked.seconds / times["plain streaming"].median,
                    "from – to": "",
                }
            )
        columns = in_turns({case: epochs[case] for case in ("with ref_loss", "with weight")}, repetitions=repetitions)
        attached = columns["with weight"].over(columns["with ref_loss"])
        bars.append(Bar("with weight: time, to ref_loss", attached, MOST_FOR_ATTACHED))
    report(
        f"How fast does one process read rows of {SEQ_LEN:,} tokens? {content.rows:,} rows, shuffled, micro-batches of "
        f"{BATCH_ROWS}, int64 tokens and float32 losses, processor time",
        rows,
        bars,
        chosen,
    )


def row_of(case: str, name: str, taken: Times, plain: Times, tokens: int) -> dict[str, str | float | int]:
    return {
        "case": case,
        "reader": name,
        "M tokens/s": tokens / taken.median / 1e6,
        "time, to plain": taken.over(plain),
        "from – to": taken.spread(plain),
    }


if __name__ == "__main__":
    main()
