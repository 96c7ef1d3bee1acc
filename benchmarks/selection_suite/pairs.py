"""The pairs of a target and a noisy corpus in which text like the target hides.

Every pair has a corpus, held-out text mixed as the corpus (`probe`), text of the target's domain that trains the
reference, held-out text of this domain (`target`) and, where there is one, of a domain nearby (`near`). No two of them
share a document.
"""

import ast
import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.selection_suite.noise import with_noise
from benchmarks.selection_suite.texts import Document, Span, mixed, pieces, shuffled
from megaslm.config.recipe import Recipe
from megaslm.corpus.documents import falls_within
from megaslm.corpus.tasks import TaskReader, plan_tasks
from megaslm.errors import ConfigError

TARGET = "target-like"
_SCARCE_SHARE = 0.04
_ANNOTATION = re.compile(r"<<[^<>]*>>")
_DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Sizes:
    """Bytes of text."""

    corpus_bytes: int
    heldout_bytes: int
    """Of each held-out text."""


@dataclass(frozen=True)
class Texts:
    """The documents of a pair."""

    corpus: list[Document]
    probe: list[Document]
    curated: list[Document]
    scarce: list[Document]
    """Some of the curated text, as much as the paper's share: 4% of the corpus."""
    target: list[Document]
    near: list[Document]


def problems(data: Path, sizes: Sizes) -> Texts:
    """Worked solutions of GSM8K hidden in LaTeX and books. The half that trains the reference is not in the corpus."""
    train = shuffled([_solved(line) for line in _lines(data / "problems" / "gsm8k_train.jsonl")])
    half = len(train) // 2
    pools = {
        TARGET: (0.1, train[half:]),
        **{
            name: (share, [piece for text in _texts(data, name) for piece in pieces(Document(text, name))])
            for name, share in {"stacks": 0.45, "openlogic": 0.2, "books": 0.25}.items()
        },
    }
    corpus, probe = mixed(pools, (sizes.corpus_bytes, sizes.heldout_bytes))
    test = [_solved(line) for line in _lines(data / "problems" / "gsm8k_test.jsonl")]
    (target,) = mixed({"held-out problems": (1.0, test)}, (sizes.heldout_bytes,))
    nearby = [_svamp(line) for line in _lines(data / "problems" / "svamp.jsonl")]
    (near,) = mixed({"svamp": (1.0, nearby)}, (sizes.heldout_bytes,))
    return Texts(corpus, probe, train[:half], scarce(train[:half], sizes), target, near)


def documentation(sizes: Sizes) -> Texts:
    """The documentation in the source of Python's standard library. Modules train the reference, or are in the corpus,
    or are held out. The docstrings in the corpus are spans of the target's kind."""
    held_out, curated = [], []
    for module, text in _standard_library("python-docs"):
        if _is_held_out(module):
            held_out.append(Document(text, TARGET))
        elif _is_curated(module):
            curated += pieces(Document(text, TARGET))
    source = [
        piece
        for module, text in _standard_library("python-source")
        if not _is_held_out(module) and not _is_curated(module)
        for piece in pieces(Document(text, "source", tuple(docstrings(text))))
    ]
    corpus, probe = mixed({"source": (1.0, source)}, (sizes.corpus_bytes, sizes.heldout_bytes))
    (target,) = mixed({"held-out documentation": (1.0, held_out)}, (sizes.heldout_bytes,))
    return Texts(corpus, probe, shuffled(curated), scarce(curated, sizes), target, [])


def scarce(curated: Sequence[Document], sizes: Sizes) -> list[Document]:
    """As much of the curated text as the paper had beside its corpus: 0.5B tokens of 14B (§3.1)."""
    (found,) = mixed({"curated": (1.0, curated)}, (round(_SCARCE_SHARE * sizes.corpus_bytes),))
    return found


def noisy(texts: Texts) -> Texts:
    """The same texts, with known noise in the corpus and in the probe."""
    return replace(texts, corpus=with_noise(texts.corpus, TARGET), probe=with_noise(texts.probe, TARGET))


def pairs(data: Path | None) -> dict[str, Callable[[Sizes], Texts]]:
    """The pairs by name. Without `data` only those of the running Python's own text.

    Raises ConfigError where `data` lacks a file.
    """
    if data is None:
        return {"documentation": documentation, "noise": lambda sizes: noisy(documentation(sizes))}
    for name in ("problems/gsm8k_train.jsonl", "text/stacks.jsonl.gz"):
        if not (data / name).is_file():
            raise ConfigError(
                f"--data {data}: has no file {name}; name a folder with problems/ and text/, or leave --data and "
                "MEGASLM_SHARED_DATA out to measure on Python's own text"
            )
    return {
        "problems": lambda sizes: problems(data, sizes),
        "documentation": documentation,
        "noise": lambda sizes: noisy(problems(data, sizes)),
    }


def docstrings(source: str) -> Iterator[Span]:
    """The docstrings of a module, in order; none where it is not Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    begins, begun = [], 0
    # Not `splitlines`: Python ends a line at a newline alone.
    for line in source.split("\n"):
        begins.append(begun)
        begun += len(line) + 1
    lines = source.split("\n")

    def place(line: int, column_bytes: int) -> int:
        return begins[line - 1] + len(lines[line - 1].encode()[:column_bytes].decode())

    found = []
    for node in ast.walk(tree):
        if isinstance(node, _DEFINITIONS) and ast.get_docstring(node, clean=False):
            text = node.body[0]
            found.append((place(text.lineno, text.col_offset), place(text.end_lineno or 0, text.end_col_offset or 0)))
    yield from (Span(start, stop, TARGET) for start, stop in sorted(found))


def _is_held_out(module: str) -> bool:
    return falls_within(0.2, "held out", module)


def _is_curated(module: str) -> bool:
    return falls_within(0.7, "curated", module)


def _standard_library(reader: str) -> Iterator[tuple[str, str]]:
    """The module and the text of each document."""
    source = {"domain": "python", "reader": reader}
    settings = {"name": "python", "licence": "PSF-2.0", "seq_len": 1, "tokenizer": {"huggingface": "none"}}
    recipe = Recipe.model_validate({**settings, "sources": [source]})
    for task in plan_tasks(recipe):
        yield from ((document.group, document.text) for document in TaskReader(task).documents())


def _solved(record: dict[str, str]) -> Document:
    return Document(f"{record['question']}\n{_ANNOTATION.sub('', record['answer'])}", TARGET)


def _svamp(record: Mapping[str, object]) -> Document:
    return Document(f"{record['Body']} {record['Question']}\n#### {record['Answer']:g}", "near")


def _lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _texts(data: Path, name: str) -> Iterator[str]:
    with gzip.open(data / "text" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        yield from (json.loads(line)["text"] for line in file)
