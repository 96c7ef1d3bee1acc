"""How fast a dataset is verified by one core, beside plain SHA-256 over the same files."""

import hashlib
import json
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from harness.report import Bar, options, report
from harness.timing import in_turns
from tokenizers import Tokenizer, models

from megaslm.dataset.folder import tokenizer_files
from megaslm.dataset.index import merge_index
from megaslm.dataset.manifest import TOKENIZER, DomainSplit, Manifest, Reference, write_manifest
from megaslm.dataset.shards import RowFormat, part_writer
from megaslm.inspect.verify import verify
from megaslm.slm.valid_targets import valid_targets
from megaslm.tokenizer.tokenizer import tokenizer_facts

SEQ_LEN, VOCAB_SIZE, EOS_ID = 2048, 1000, 2
FULL_BYTES, QUICK_BYTES = 256_000_000, 16_000_000
LEAST_MEGABYTES_PER_SECOND = 300
FORMATS = {
    "tokens": RowFormat(SEQ_LEN, VOCAB_SIZE),
    "tokens, zstd": RowFormat(SEQ_LEN, VOCAB_SIZE, compression="zstd"),
    "scored": RowFormat(SEQ_LEN, VOCAB_SIZE, scored=True),
    "scored, zstd": RowFormat(SEQ_LEN, VOCAB_SIZE, scored=True, compression="zstd"),
}


def make(dataset: Path, row_format: RowFormat, row_bytes: int) -> None:
    """One part of `row_bytes` before compression: frequent and rare tokens as in text, losses as of a fair model."""
    generator = np.random.default_rng(0)
    rows = row_bytes // (SEQ_LEN * (4 if row_format.scored else 2))
    targets = 0
    with part_writer(dataset / "train" / "text" / "part-00000", row_format) as writer:
        for start in range(0, rows, 1000):
            shape = (min(1000, rows - start), SEQ_LEN + 1)
            tokens = np.minimum(generator.zipf(1.3, shape) + EOS_ID, VOCAB_SIZE - 1).astype(np.uint16)
            tokens[generator.random(shape) < 1 / 500] = EOS_ID
            losses = generator.gamma(0.7, 3, (shape[0], SEQ_LEN)).astype(np.float16)
            losses[tokens[:, :-1] == EOS_ID] = 0
            writer.write(tokens, 0, losses if row_format.scored else None)
            targets += int(valid_targets(tokens, EOS_ID).sum())
    merge_index(dataset / "train" / "text", [writer.part])
    share = DomainSplit(rows=rows, tokens=targets, documents=1, parts=(writer.part,))
    make_tokenizer(dataset / TOKENIZER)
    reference = Reference(
        weights_sha256="", name="", precision="fp32", document_isolation=True, window=SEQ_LEN, stride=SEQ_LEN,
        batch_rows=8, dataset_sha256="",
    )  # fmt: skip
    manifest = Manifest(
        kind="scored" if row_format.scored else "tokens", name="", megaslm_version="", recipe_sha256="",
        seq_len=SEQ_LEN, vocab_size=VOCAB_SIZE, tokenizer_sha256=tokenizer_facts(dataset / TOKENIZER).sha256,
        tokenizer_files=tokenizer_files(dataset / TOKENIZER), eos_id=EOS_ID, bos_id=None, domains=("text",),
        licences={}, splits={"train": {"text": share}}, sources=(), reference=reference if row_format.scored else None,
    )  # fmt: skip
    write_manifest(dataset, manifest)


def make_tokenizer(folder: Path) -> None:
    folder.mkdir()
    words = {f"w{number}": number for number in range(VOCAB_SIZE) if number != EOS_ID} | {"</s>": EOS_ID}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))


def read_all(dataset: Path) -> None:
    found = verify(dataset, workers=1)
    if found.problems:
        raise SystemExit(f"{found.problems[0]}: nothing was measured")


def hash_all(dataset: Path) -> None:
    for path in sorted(dataset.rglob("*.mds*")):
        hashlib.sha256(path.read_bytes())


def main() -> None:
    chosen = options(__doc__)
    row_bytes = QUICK_BYTES if chosen.quick else FULL_BYTES
    rows, bars = [], []
    for name, row_format in FORMATS.items():
        with tempfile.TemporaryDirectory() as folder:
            dataset = Path(folder) / "dataset"
            make(dataset, row_format, row_bytes)
            stored_megabytes = sum(path.stat().st_size for path in dataset.rglob("*.mds*")) / 1e6
            alternatives = {"verify": partial(read_all, dataset), "sha256": partial(hash_all, dataset)}
            times = in_turns(alternatives, repetitions=3 if chosen.quick else 9)
        ours, plain = times["verify"], times["sha256"]
        rate = row_bytes / 1e6 / ours.median
        rows.append(
            {
                "dataset": name,
                "MB of rows": row_bytes / 1e6,
                "MB on disk": stored_megabytes,
                "verify, MB/s of rows": rate,
                "on disk": stored_megabytes / ours.median,
                "sha256, MB/s on disk": stored_megabytes / plain.median,
                "time, to sha256": ours.over(plain),
                "from – to": ours.spread(plain),
            }
        )
        bars.append(Bar(f"MB/s of rows, {name}", rate, LEAST_MEGABYTES_PER_SECOND, better="higher"))
    report(
        "How fast does one core verify a dataset? One worker, files in the page cache, processor time; rows count as "
        "they are before compression",
        rows,
        bars,
        chosen,
    )


if __name__ == "__main__":
    main()
