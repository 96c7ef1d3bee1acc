"""Real text to measure with, and a tokenizer for it.

MEGASLM_SHARED_DATA names a folder with `text/*.jsonl.gz`; without it the sources of the running Python serve.
"""

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

from megaslm.config.recipe import Recipe, TrainSentencePiece
from megaslm.corpus.python_stdlib import standard_library_files
from megaslm.preparing.tokenizer_training import train_on
from megaslm.tokenizer.sentencepiece_export import export_sentencepiece

_TRAINED_ON_BYTES = 6_000_000


def texts(most_bytes: int) -> list[str]:
    """Documents, about so many bytes of them or all there are."""
    found, size = [], 0
    for text in _all_texts():
        found.append(text)
        size += len(text.encode("utf-8"))
        if size >= most_bytes:
            break
    return found


def corpus_name() -> str:
    """What `texts` gives."""
    return "LaTeX and prose" if os.environ.get("MEGASLM_SHARED_DATA") else "the sources of Python"


def write_jsonl(path: Path, documents: list[str], repetitions: int = 1) -> int:
    """One document a line, all of them so many times; gives the bytes of text."""
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents).encode("utf-8")
    with path.open("wb") as file:
        for _ in range(repetitions):
            file.write(lines)
    return repetitions * sum(len(text.encode("utf-8")) for text in documents)


def train_tokenizer(folder: Path, documents: list[str], vocab_size: int) -> bytes:
    """A BPE tokenizer like those of the Llama family, exported to `folder`; gives the SentencePiece model."""
    model = train_on(documents, TrainSentencePiece(vocab_size=vocab_size, sample_bytes=_TRAINED_ON_BYTES))
    export_sentencepiece(model, folder)
    return model


def recipe_of(files: list[Path], tokenizer: Path, part_bytes: int, seq_len: int = 2048) -> Recipe:
    """One domain of JSON lines."""
    return Recipe.model_validate(
        {
            "name": "benchmark",
            "licence": "as its sources",
            "seq_len": seq_len,
            "tokenizer": {"huggingface": str(tokenizer)},
            "sources": [{"domain": "text", "reader": "jsonl", "paths": [str(path) for path in files]}],
            "part_bytes": part_bytes,
        }
    )


def _all_texts() -> Iterator[str]:
    shared = os.environ.get("MEGASLM_SHARED_DATA")
    if shared:
        for path in sorted((Path(shared) / "text").glob("*.jsonl.gz")):
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                yield from (json.loads(line)["text"] for line in lines)
        return
    for file in standard_library_files("python-source"):
        try:
            yield Path(file.path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # Python's tests hold some on purpose.
