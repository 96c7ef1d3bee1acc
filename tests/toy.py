"""Small datasets, models and configurations for tests, made from nothing in a moment."""

import json
import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from megaslm.config.schema import RunConfig
from megaslm.config.section import Split
from megaslm.config.source import dump
from megaslm.dataset.folder import tokenizer_files
from megaslm.dataset.index import merge_index
from megaslm.dataset.manifest import TOKENIZER, DomainSplit, Manifest, Part, write_manifest
from megaslm.dataset.shards import RowFormat, part_writer
from megaslm.tokenizer.tokenizer import tokenizer_facts
from megaslm.training.resumption import identity

VOCAB_SIZE = 64
EOS_ID = 2
SEQ_LEN = 16
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "max_position_embeddings": 64,
}


class Unsharded:
    """A model that every rank holds whole."""

    def whole(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[object]:
        return nullcontext()


def make_tokenizer(folder: Path, vocab_size: int = VOCAB_SIZE) -> None:
    """A tokenizer of `vocab_size` words, `</s>` among them."""
    folder.mkdir(parents=True)
    words = {f"w{number}": number for number in range(vocab_size) if number != EOS_ID} | {"</s>": EOS_ID}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "w0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def random_rows(generator: np.random.Generator, rows: int, seq_len: int, vocab_size: int) -> np.ndarray:
    """Rows that can be learned a little: each token depends on the one before, with an EOS now and then."""
    tokens = np.zeros((rows, seq_len + 1), dtype=np.int64)
    tokens[:, 0] = generator.integers(3, vocab_size, rows)
    for place in range(1, seq_len + 1):
        follows = (tokens[:, place - 1] * 5 + 7) % (vocab_size - 3) + 3
        tokens[:, place] = np.where(generator.random(rows) < 0.7, follows, generator.integers(3, vocab_size, rows))
    tokens[generator.random(tokens.shape) < 0.05] = EOS_ID
    return tokens


def make_dataset(
    folder: Path,
    rows: dict[tuple[Split, str], list[int]],
    *,
    seq_len: int = SEQ_LEN,
    vocab_size: int = VOCAB_SIZE,
    seed: int = 0,
    target_mask: bool = False,
    tokenizer: Path | None = None,
) -> Manifest:
    """A dataset with parts of the given numbers of rows in each split and domain; one part ends padded. The target mask
    leaves about half of the targets. `tokenizer`: the folder of another one."""
    generator = np.random.default_rng(seed)
    domains = tuple(dict.fromkeys(domain for _, domain in rows))
    row_format = RowFormat(seq_len, vocab_size, target_mask=target_mask)
    splits: dict[Split, dict[str, DomainSplit]] = {}
    for (split, domain), part_rows in rows.items():
        parts: list[Part] = []
        targets = 0
        for number, count in enumerate(part_rows):
            tokens = random_rows(generator, count, seq_len, vocab_size)
            tokens[-1, seq_len // 2 :] = EOS_ID
            valid = tokens[:, :-1] != EOS_ID
            if target_mask:
                valid &= generator.random(valid.shape) < 0.5
            targets += int(valid.sum())
            with part_writer(folder / split / domain / f"part-{number:05d}", row_format) as writer:
                mask = valid.astype(np.uint8) if target_mask else None
                writer.write(tokens.astype(row_format.tokens_dtype), domains.index(domain), target_mask=mask)
            parts.append(writer.part)
        merge_index(folder / split / domain, parts)
        splits.setdefault(split, {})[domain] = DomainSplit(
            rows=sum(part_rows), tokens=targets, documents=1, parts=tuple(parts)
        )
    if tokenizer is None:
        make_tokenizer(folder / TOKENIZER, vocab_size)
    else:
        shutil.copytree(tokenizer, folder / TOKENIZER)
    facts = tokenizer_facts(folder / TOKENIZER)
    manifest = Manifest(
        kind="tokens",
        name="toy",
        megaslm_version="0",
        recipe_sha256="0",
        seq_len=seq_len,
        vocab_size=vocab_size,
        tokenizer_sha256=facts.sha256,
        tokenizer_files=tokenizer_files(folder / TOKENIZER),
        eos_id=facts.eos_id,
        bos_id=None,
        target_mask=target_mask,
        domains=domains,
        licences=dict.fromkeys(domains, "none"),
        splits=splits,
        sources=(),
    )
    write_manifest(folder, manifest)
    return manifest


def run_config(run_dir: Path, dataset: Path, **sections: dict[str, Any]) -> RunConfig:
    """A run on a toy dataset: 8 rows a step, 6 steps; `sections` change single settings."""
    settings: dict[str, Any] = {
        "run_dir": str(run_dir),
        "model": {"from_scratch": SHAPE},
        "data": {"train": str(dataset), "seq_len": SEQ_LEN, "loader_workers": 0},
        "train": {
            "objective": "clm",
            "total_tokens": 6 * 8 * SEQ_LEN,
            "global_batch_tokens": 8 * SEQ_LEN,
            "micro_batch_rows": 8,
            "lr": 1e-2,
        },
        "log": {"every_steps": 2},
        "zero": {"reduce_bucket_size": 100_000, "prefetch_bucket_size": 100_000, "param_persistence_threshold": 0},
    }
    for name, changes in sections.items():
        settings[name] = {**settings.get(name, {}), **changes}
    return RunConfig.model_validate(settings)


def write_config(path: Path, config: RunConfig) -> Path:
    """The configuration as a file."""
    path.write_text(dump(config))
    return path


def place_of(file: Path, start: str) -> str:
    """FILE:LINE of the first line of a file that begins so, after its indentation."""
    lines = file.read_text().splitlines()
    return f"{file}:{next(number for number, line in enumerate(lines, 1) if line.lstrip().startswith(start))}"


def leave_run(config: RunConfig, manifest: Manifest) -> Path:
    """The run's folder with what a first start records; `manifest` is that of data.train."""
    run = Path(config.run_dir)
    run.mkdir()
    (run / "config.yaml").write_text(dump(config))
    described = {**identity(manifest), "parts": manifest.part_counts()}
    (run / "manifest.json").write_text(json.dumps({"datasets": {"data.train": described}}))
    return run
