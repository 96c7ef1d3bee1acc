"""Joining the indices of 4,000 parts, with everything checked, beside streaming's own merge_index.

One part is written; the others are clones of it under other names: hard links to its shards, so that a clone costs
only its folder and its index.
"""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from harness.report import Bar, options, report
from harness.timing import in_turns

from megaslm.dataset.index import INDEX, merge_index, read_index
from megaslm.dataset.manifest import Part
from megaslm.dataset.shards import RowFormat, part_name, part_writer

FULL_PARTS, QUICK_PARTS = 4000, 200
SHARDS_OF_A_PART = 4
MOST_SECONDS = 20
ROW_FORMAT = RowFormat(seq_len=64, vocab_size=1000, shard_bytes=4000)


def make(folder: Path, count: int) -> list[Part]:
    """`count` parts of a few small shards each."""
    rows = np.random.default_rng(0).integers(0, 1000, (1000, 65)).astype(np.uint16)
    with part_writer(folder / part_name(0), ROW_FORMAT) as writer:
        writer.write(rows[: SHARDS_OF_A_PART * 27], 0)
    if len(read_index(folder / part_name(0)).shards) != SHARDS_OF_A_PART:
        raise SystemExit("a part has another number of shards than meant: nothing was measured")
    for number in range(1, count):
        shutil.copytree(folder / part_name(0), folder / part_name(number), copy_function=os.link)
    return [writer.part.model_copy(update={"name": part_name(number)}) for number in range(count)]


def merge_as_streaming_does(folder: Path) -> None:
    # Here, because it can be imported once the parts' writer has been, which knows what it lacks.
    from streaming.base.util import merge_index as streaming_merge

    # It moves the new index to where none may be.
    (folder / INDEX).unlink()
    streaming_merge(str(folder), keep_local=True)


def main() -> None:
    chosen = options(__doc__)
    logging.disable(logging.WARNING)
    count = QUICK_PARTS if chosen.quick else FULL_PARTS
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "text"
        parts = make(folder, count)
        alternatives: dict[str, Callable[[], object]] = {
            "megaslm, all checked": partial(merge_index, folder, parts),
            "streaming": partial(merge_as_streaming_does, folder),
        }
        times = in_turns(alternatives, repetitions=2 if chosen.quick else 5, clock=time.monotonic)
        merge_index(folder, parts)
        merged = read_index(folder)
        if merged.rows != sum(part.rows for part in parts):
            raise SystemExit("rows are missing from the joined index: nothing was measured")
    ours = times["megaslm, all checked"]
    rows = [
        {
            "merge": name,
            "parts": count,
            "shards": len(merged.shards),
            "seconds": taken.median,
            "to streaming": taken.over(times["streaming"]),
            "from – to": taken.spread(times["streaming"]),
        }
        for name, taken in times.items()
    ]
    bars = [Bar(f"seconds to join {count} parts", ours.median, MOST_SECONDS)]
    report(f"How long does it take to join {count} parts into one index? On the wall clock", rows, bars, chosen)


if __name__ == "__main__":
    main()
