"""Whether the memory of prepare grows with its input: small files and a hundred times as large, plain and packed."""

import gzip
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import yaml
from harness.corpora import corpus_name, recipe_of, texts, train_tokenizer, write_jsonl
from harness.memory import family_bytes
from harness.report import Bar, options, report

FULL_BYTES, QUICK_BYTES = 30_000_000, 300_000
TIMES_AS_LARGE = 100
# So that the small input, too, keeps both workers busy.
PART_BYTES = 8_000_000
LOOK_SECONDS = 0.05
MIB = 2**20


def main() -> None:
    chosen = options(__doc__)
    documents = texts(QUICK_BYTES if chosen.quick else FULL_BYTES)
    rows, peaks = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train_tokenizer(folder / "tokenizer", documents, 1_500 if chosen.quick else 32_000)
        for name, repetitions in (("small", 1), ("large", 10 if chosen.quick else TIMES_AS_LARGE)):
            path = folder / f"{name}.jsonl"
            size = write_jsonl(path, documents, repetitions)
            peaks[name] = _peak_bytes(folder, path, workers=2)
            rows.append(_row(f"{name}, plain", size, peaks[name], peaks["small"]))
            path.unlink()
        path = folder / "one.jsonl.gz"
        # Members one after another are one gzip file, which a single task has to read.
        written = write_jsonl(folder / "one.jsonl", documents)
        member = gzip.compress((folder / "one.jsonl").read_bytes(), 1)
        path.write_bytes(member * 10)
        rows.append(_row("one .gz", 10 * written, _peak_bytes(folder, path, workers=2), peaks["small"]))
        longest = "".join(documents)[:10_000_000]
        size = write_jsonl(folder / "long.jsonl", [longest, "short"])
        rows.append(_row("one document", size, _peak_bytes(folder, folder / "long.jsonl", workers=2), peaks["small"]))
    report(
        f"Does the memory of prepare grow with its input? {corpus_name()}, two workers, all processes together "
        "(proportional set size)",
        rows,
        [Bar("peak memory, large to small input", peaks["large"] / peaks["small"], 1.2)],
        chosen,
    )


def _row(name: str, size: int, peak: int, least: int) -> dict[str, str | float]:
    return {"input": name, "MB of text": size / 1e6, "peak MiB": peak / MIB, "to the small one": peak / least}


def _peak_bytes(folder: Path, path: Path, workers: int) -> int:
    """The most memory that a run and its workers held together."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_of([path], folder / "tokenizer", PART_BYTES).model_dump(mode="json")))
    command = [
        sys.executable,
        "-m",
        "megaslm",
        "prepare",
        str(recipe),
        str(folder / f"{path.name}-dataset"),
        "--workers",
        str(workers),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak, over = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(LOOK_SECONDS):
            peak = max(peak, family_bytes(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    over.set()
    watcher.join()
    if status:
        raise SystemExit(f"prepare ended with {status}: nothing was measured")
    return peak


if __name__ == "__main__":
    main()
