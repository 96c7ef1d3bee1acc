"""A small corpus, its recipe, and what a dataset holds."""

import json
from pathlib import Path

import numpy as np

from megaslm.config.recipe import Recipe
from megaslm.dataset.manifest import Manifest
from megaslm.dataset.rows import RowReader
from megaslm.tokenizer.tokenizer import FolderEncoder

WORDS = ["the", "a", "loss", "token", "of", "reference", "model", "rho", "every", "corpus", "shard", "</s>", "é\n"]


def text(seed: int) -> str:
    """Some words, the name of the EOS token among them."""
    random = np.random.default_rng(seed)
    return " ".join(random.choice(WORDS, random.integers(5, 120)))


def write_corpus(folder: Path) -> Path:
    """Eight files of two domains; three documents share a book."""
    for domain in ("clean", "noisy"):
        (folder / domain).mkdir(parents=True)
        for file in range(4):
            seeds = range(1000 * file, 1000 * file + (30 if domain == "clean" else 60))
            records = [{"text": domain + " " + text(seed), "book": f"{domain} {seed // 3}"} for seed in seeds]
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (folder / domain / f"{file}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def recipe_of(corpus: Path, **changes: object) -> Recipe:
    """The recipe of `write_corpus`: some twenty tasks, files divided among them."""
    source = {"reader": "jsonl", "group_field": "book"}
    given = {
        "name": "words",
        "licence": "CC0",
        "seq_len": 32,
        "tokenizer": {"train_sentencepiece": {"vocab_size": 330, "sample_bytes": 40_000}},
        "sources": [{"domain": name, "paths": [str(corpus / name)], **source} for name in ("clean", "noisy")],
        "heldout_fraction": 0.1,
        "part_bytes": 10_000,
        "shard_bytes": 4_000,
    }
    return Recipe.model_validate({**given, **changes})


def content(folder: Path) -> dict[str, bytes]:
    """Every file in a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def documents_of(dataset: Path, manifest: Manifest, split: str, domain: str) -> list[str]:
    """The texts that the rows of a domain hold."""
    encoder, texts = FolderEncoder(dataset / "tokenizer"), []
    for part in manifest.splits[split][domain].parts:  # type: ignore[index]
        reader = RowReader(dataset, split, domain, part=part.name)  # type: ignore[arg-type]
        tokens = reader.rows(0, len(reader))["tokens"]
        stream = np.concatenate([tokens[0, :1], tokens[:, 1:].ravel()])
        for ids in np.split(stream, np.flatnonzero(stream == manifest.eos_id) + 1):
            text = ids[:-1] if manifest.packing.bos == "none" else ids[ids != manifest.bos_id][:-1]
            if text.size:
                texts.append(encoder.decode(text))
    return texts
