"""What a second core is worth to prepare: one worker and two on eight equal files."""

import shutil
import tempfile
import time
from pathlib import Path

from harness.corpora import corpus_name, recipe_of, texts, train_tokenizer, write_jsonl
from harness.report import Bar, options, report
from harness.timing import in_turns

from megaslm.preparing.encoding import encoder_of
from megaslm.preparing.prepare import prepare

FILES = 8
FULL_BYTES, QUICK_BYTES = 30_000_000, 200_000


def main() -> None:
    chosen = options(__doc__)
    documents = texts(QUICK_BYTES if chosen.quick else FULL_BYTES)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train_tokenizer(folder / "tokenizer", documents, 1_500 if chosen.quick else 32_000)
        files = [folder / f"{number}.jsonl" for number in range(FILES)]
        megabytes = sum(write_jsonl(path, documents) for path in files) / 1e6
        # A file is a task, as the larger ones of a real corpus are.
        recipe = recipe_of(files, folder / "tokenizer", part_bytes=files[0].stat().st_size)

        def run(workers: int) -> None:
            shutil.rmtree(folder / "dataset", ignore_errors=True)
            # One worker is this process, which would remember what earlier runs have encoded.
            encoder_of.cache_clear()
            prepare(recipe, folder / "dataset", workers=workers)

        # The first run of each, which is not timed, also starts the server that workers are forked from.
        times = in_turns(
            {"one worker": lambda: run(1), "two workers": lambda: run(2)},
            repetitions=1 if chosen.quick else 3,
            clock=time.perf_counter,
        )
    one = times["one worker"]
    rows = [
        {
            "prepare": name,
            "seconds": taken.median,
            "MB/s": megabytes / taken.median,
            "speed, to one": one.over(taken),
            "from – to": one.spread(taken),
        }
        for name, taken in times.items()
    ]
    report(
        f"How much faster is prepare with a second core? {FILES} files of {megabytes / FILES:.1f} MB of "
        f"{corpus_name()}, by the clock on the wall",
        rows,
        [Bar("speed of two workers, to one", one.over(times["two workers"]), 1.7, "higher")],
        chosen,
    )


if __name__ == "__main__":
    main()
