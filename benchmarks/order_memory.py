"""What the order of a long epoch costs a rank with loader processes: the training stream against plain streaming."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from argparse import SUPPRESS
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from harness.memory import family, family_bytes
from harness.report import Bar, Options, option_parser, report
from torch.utils.data import DataLoader

from megaslm.config.plan import BatchPlan
from megaslm.dataset.index import merge_index
from megaslm.dataset.mosaic import Stream, StreamingDataset
from megaslm.dataset.shards import RowFormat, part_writer
from megaslm.stream.loader import TrainingStream
from megaslm.stream.mixture import MixtureStream

TRAINING, PLAIN = "the training stream", "plain streaming"
SEQ_LEN, VOCAB_SIZE = 2, 64
BATCH_ROWS = 8
CANONICAL_NODES = BATCH_ROWS
WORKERS = 4
# Micro-batches read before the memory "while reading" is taken.
BATCHES = 400
PART_ROWS, FULL_PARTS, QUICK_PARTS = 250_000, 200, 2
# About ten thousand rows.
SHARD_BYTES = 150_000
LOOK_SECONDS = 0.05
MOST_OF_PLAIN = 0.4
MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """`peak_bytes`: until the first micro-batch. `reading_bytes`: after `BATCHES` of them. The times are until the
    first micro-batch, after the imports; `processor_seconds` are those of all processes."""

    peak_bytes: int
    reading_bytes: int
    wall_seconds: float
    processor_seconds: float


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--read", nargs=3, metavar=("READER", "FOLDER", "ROWS"), help=SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        reader, folder, rows = arguments.read
        read(reader, Path(folder), int(rows))
        return
    chosen = Options(arguments.quick, arguments.json)
    with tempfile.TemporaryDirectory() as temporary:
        rows = write_long_dataset(Path(temporary), QUICK_PARTS if chosen.quick else FULL_PARTS)
        costs = {reader: cost_of(reader, Path(temporary), rows) for reader in (PLAIN, TRAINING)}
    plain, training = costs[PLAIN], costs[TRAINING]
    report(
        f"What does the order of an epoch of {rows:,} rows cost one rank with {WORKERS} loader processes? All of them "
        "together, each shared page counted once",
        [
            {
                "reader": reader,
                "peak MiB": cost.peak_bytes / MIB,
                "MiB while reading": cost.reading_bytes / MIB,
                "to plain": cost.reading_bytes / plain.reading_bytes,
                "s to the first micro-batch": cost.wall_seconds,
                "processor s": cost.processor_seconds,
            }
            for reader, cost in costs.items()
        ],
        [
            Bar("memory while reading, to plain", training.reading_bytes / plain.reading_bytes, MOST_OF_PLAIN),
            Bar("peak memory, to plain", training.peak_bytes / plain.peak_bytes, MOST_OF_PLAIN),
        ],
        chosen,
    )


def write_long_dataset(folder: Path, parts: int) -> int:
    """Makes one part stand for many by links: it takes minutes to write as many rows. Returns their number."""
    row_format = RowFormat(SEQ_LEN, VOCAB_SIZE, shard_bytes=SHARD_BYTES)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (PART_ROWS, SEQ_LEN + 1)).astype(np.uint16)
    with part_writer(folder / "part-00000", row_format) as writer:
        writer.write(tokens, 0, None)
    names = [f"part-{number:05d}" for number in range(parts)]
    for name in names[1:]:
        (folder / name).mkdir()
        for file in (folder / names[0]).iterdir():
            (folder / name / file.name).hardlink_to(file)
    merge_index(folder, [writer.part.model_copy(update={"name": name}) for name in names])
    return parts * PART_ROWS


def cost_of(reader: str, folder: Path, rows: int) -> Cost:
    """Of a reader in a process of its own."""
    command = [sys.executable, __file__, "--read", reader, str(folder), str(rows)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    peak_bytes, has_begun, has_first = 0, threading.Event(), threading.Event()

    def watch() -> None:
        nonlocal peak_bytes
        has_begun.wait()
        while not has_first.wait(LOOK_SECONDS):
            peak_bytes = max(peak_bytes, family_bytes(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    lines = iter(process.stdout)
    try:
        expect(lines, "begins")
        began, before = time.monotonic(), processor_seconds(process.pid)
        has_begun.set()
        expect(lines, "first")
        wall_seconds, taken = time.monotonic() - began, processor_seconds(process.pid) - before
    finally:
        has_begun.set()
        has_first.set()
        watcher.join()
    expect(lines, "read")
    reading_bytes = family_bytes(process.pid)
    process.communicate("")
    return Cost(max(peak_bytes, reading_bytes), reading_bytes, wall_seconds, taken)


def processor_seconds(pid: int) -> float:
    """Of a process, its descendants, and those of them that have ended and were waited for."""
    ticks = 0
    for each in family(pid):
        # The command's name is in brackets and may contain spaces.
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def expect(lines: Iterator[str], word: str) -> None:
    found = next(lines, "").strip()
    if found != word:
        raise SystemExit(f"a reader ended before {word!r} (it said {found!r}): nothing was measured")


def read(reader: str, folder: Path, rows: int) -> None:
    """Reads micro-batches, says how far it is, and ends with its standard input."""
    say("begins")
    batches = plain_batches(folder) if reader == PLAIN else training_batches(folder, rows)
    next(batches)
    say("first")
    for _ in range(BATCHES):
        next(batches)
    say("read")
    sys.stdin.read()


def say(word: str) -> None:
    print(word, flush=True)


def plain_batches(folder: Path) -> Iterator[object]:
    dataset = StreamingDataset(
        streams=[Stream(local=str(folder))], batch_size=BATCH_ROWS, shuffle=True, shuffle_seed=1,
        num_canonical_nodes=CANONICAL_NODES,
    )  # fmt: skip
    return iter(DataLoader(dataset, batch_size=BATCH_ROWS, num_workers=WORKERS, drop_last=True))


def training_batches(folder: Path, rows: int) -> Iterator[object]:
    plan = BatchPlan(
        world_size=1, seq_len=SEQ_LEN, global_batch_rows=BATCH_ROWS, rows_per_rank=BATCH_ROWS,
        micro_batch_rows=BATCH_ROWS, micro_steps=1, total_steps=1, canonical_nodes=CANONICAL_NODES,
    )  # fmt: skip
    stream = MixtureStream(folder, remote=None, rows=rows, domain=0, proportion=None)
    return TrainingStream([stream], plan, shuffle_seed=1, workers=WORKERS).micro_batches(0)


if __name__ == "__main__":
    main()
