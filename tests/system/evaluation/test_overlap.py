"""Items of tasks are found in a dataset: in both splits, across its rows, and not across its documents."""

import json
from pathlib import Path

import pytest

from megaslm.config.recipe import Bos, Recipe
from megaslm.dataset.manifest import read_manifest
from megaslm.evaluation.overlap import TaskOverlap, overlaps
from megaslm.jobs.progress import Unwatched
from megaslm.preparing.prepare import prepare
from megaslm.tasks.items import Item
from tests.corpus import documents_of
from tests.generating import EOS, make_tokenizer
from tests.launched import run_megaslm

DOCUMENTS = 12
SEQ_LEN = 16
"""Tokens of a row: fewer than 13 words have."""


def question(number: int) -> str:
    """15 words that no other question has in a row."""
    return f"Of {number} birds, {number + 100} fly off; then Ann counts (twice) the rest: how many are left?"


def item(number: int, text: str, solution: str = "") -> Item:
    return Item(number, text, "5", "", solution)


PLANTED = [item(number, question(number)) for number in range(DOCUMENTS)]
IN_SOLUTION = [item(0, "How many?", question(3).upper())]
OTHERS = [
    item(0, question(900)),
    item(1, "Of 3 birds, 103 fly off; then Ann counts"),
    item(2, question(777)),
    item(3, ""),
]
"""Nowhere; only eight words, which are there; half in one document and half in the next; no word."""


def make_dataset(folder: Path, bos: Bos) -> Path:
    first, rest = question(777)[:40], question(777)[40:]
    texts = [f"Some words before. {question(number).lower()} And after it." for number in range(DOCUMENTS)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in (*texts, first, rest)))
    make_tokenizer(folder / "tokenizer")
    recipe = {
        "name": "n",
        "licence": "CC0",
        "seq_len": SEQ_LEN,
        "bos": bos,
        "heldout_fraction": 0.5,
        "sources": [{"domain": "web", "reader": "jsonl", "paths": [str(folder / "text.jsonl")]}],
        "tokenizer": {"huggingface": str(folder / "tokenizer")},
    }
    if bos != "none":
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "bos_token": "the"}
        (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    prepare(Recipe.model_validate(recipe), folder / "dataset", workers=1)
    return folder / "dataset"


@pytest.mark.parametrize("bos", ["none", "row"])
def test_planted_items_are_found_and_no_others(bos: Bos, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, bos)
    for split in ("train", "heldout"):
        assert any("birds" in text for text in documents_of(dataset, read_manifest(dataset), split, "web"))
    tasks = {"planted": PLANTED, "in solution": IN_SOLUTION, "others": OTHERS}
    found = overlaps(tasks, str(dataset), cache=str(tmp_path), workers=1, watcher=Unwatched())
    assert found == [
        TaskOverlap("planted", DOCUMENTS, 0, tuple(range(DOCUMENTS))),
        TaskOverlap("in solution", 1, 0, (0,)),
        TaskOverlap("others", 4, 2, ()),
    ]


def test_the_command_names_how_many(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, "none")
    lines = [json.dumps({"q": each.question or "?", "a": "5"}) + "\n" for each in (PLANTED[5], *OTHERS)]
    (tmp_path / "birds.jsonl").write_text("".join(lines))
    task = {"files": ["birds.jsonl"], "format": "jsonl", "question": "{q}", "answer": "{a}"}
    (tmp_path / "birds.yaml").write_text(json.dumps(task))
    asked = ("--tasks", tmp_path / "birds.yaml", "--data", tmp_path, "--json", tmp_path / "found.json")
    said = run_megaslm("evaluate", "--overlap", dataset, *asked, "--workers", "1")
    assert "20.0%" in said
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert (found["items"], found["short"], found["found"]) == (5, 2, [0])
