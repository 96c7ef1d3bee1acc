"""Conversations become rows whose target mask leaves what the assistant writes."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from megaslm.config.recipe import Recipe
from megaslm.corpus.record_text import Message
from megaslm.corpus.tasks import recipe_sha256
from megaslm.dataset.manifest import Manifest
from megaslm.dataset.rows import RowReader
from megaslm.errors import DataError
from megaslm.inspect.dataset_facts import dataset_facts
from megaslm.inspect.dataset_view import show_dataset
from megaslm.inspect.row_text import read_row
from megaslm.inspect.row_view import show_row
from megaslm.inspect.verify import verify
from megaslm.preparing.prepare import prepare
from megaslm.tokenizer.tokenizer import FolderEncoder
from tests.conversations import CHAT_ML, OWN_WORDS, TRAJECTORY, as_records, byte_level_folder
from tests.messages import Says

SEQ_LEN = 48
LONG = "One line after the other of a long thought that no row can hold.\n" * 9 + "The end."
CONVERSATIONS = (
    TRAJECTORY,
    (Message("user", "Think."), Message("assistant", LONG)),
    (Message("user", "Print nothing."), Message("assistant", "```python\n1\n```\n```output\n```\nNothing 鿿.")),
)
OWN = [*OWN_WORDS, LONG, "```python\n1\n```\n```output", "Nothing 鿿."]


def recipe_of(folder: Path, **changes: object) -> Recipe:
    byte_level_folder(folder / "tokenizer")
    (folder / "chats.jsonl").write_text(as_records(*CONVERSATIONS), encoding="utf-8")
    source = {
        "domain": "chats",
        "reader": "jsonl",
        "paths": [str(folder / "chats.jsonl")],
        "messages_field": "messages",
        "chat_format": "tora",
    }
    given = {
        "name": "chats",
        "licence": "CC0",
        "seq_len": SEQ_LEN,
        "tokenizer": {"huggingface": str(folder / "tokenizer")},
        "sources": [source],
        "heldout_fraction": 0,
    }
    return Recipe.model_validate({**given, **changes})


def streams_of(dataset: Path, manifest: Manifest, domain: str) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a domain's rows as one stream, and which of them are targets that are trained on."""
    reader = RowReader(dataset, "train", domain)
    rows = reader.rows(0, len(reader))
    tokens, mask = rows["tokens"], rows["target_mask"]
    none = np.zeros((len(tokens), 1), dtype=np.bool_)
    targets = np.hstack([none, mask.astype(np.bool_)])
    if manifest.packing.overlap_tokens:
        return np.append(tokens[0, :1], tokens[:, 1:]), np.append(targets[0, :1], targets[:, 1:])
    return tokens[:, 1:].ravel(), targets[:, 1:].ravel()


def trained_texts(dataset: Path, manifest: Manifest, domain: str = "chats") -> list[str]:
    """The texts of the tokens that are trained on side by side, each document's apart."""
    tokens, trained = streams_of(dataset, manifest, domain)
    decode = FolderEncoder(dataset / "tokenizer").decode
    texts, run = [], list[int]()
    for token, is_trained in zip(tokens.tolist(), trained.tolist(), strict=True):
        if is_trained:
            run.append(token)
        if run and (not is_trained or token == manifest.eos_id):
            texts.append(decode(np.array(run, dtype=np.uint32)))
            run = []
    return texts


@pytest.mark.parametrize("bos", ["none", "document", "row"])
def test_what_the_assistant_writes_is_trained_on_to_its_eos(tmp_path: Path, bos: str) -> None:
    """One of them is longer than a row: it continues in the next rows, as documents do."""
    manifest = prepare(recipe_of(tmp_path, bos=bos), tmp_path / "out", workers=1)
    ended = {OWN_WORDS[-1], LONG, "Nothing 鿿."}
    assert trained_texts(tmp_path / "out", manifest) == [text + "</s>" if text in ended else text for text in OWN]
    _, trained = streams_of(tmp_path / "out", manifest, "chats")
    assert manifest.target_mask
    assert manifest.splits["train"]["chats"].tokens == trained.sum()
    assert not verify(tmp_path / "out").problems


def test_texts_beside_conversations_are_trained_on_whole(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "A text."}) + "\n")
    recipe = recipe_of(tmp_path)
    text = {"domain": "texts", "reader": "jsonl", "paths": [str(tmp_path / "texts.jsonl")]}
    both = [source.model_dump() for source in recipe.sources] + [text]
    recipe = Recipe.model_validate({**recipe.model_dump(), "sources": both, "bos": "document"})
    manifest = prepare(recipe, tmp_path / "out", workers=1)
    assert trained_texts(tmp_path / "out", manifest, "texts") == ["A text.</s>"]
    assert len(trained_texts(tmp_path / "out", manifest)) == len(OWN)


def test_without_a_chat_format_all_is_as_before(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    settings = recipe.model_dump()
    settings["sources"][0]["chat_format"] = None
    plain = Recipe.model_validate(settings)
    del settings["sources"][0]["chat_format"]
    assert recipe_sha256(Recipe.model_validate(settings)) == recipe_sha256(plain) != recipe_sha256(recipe)
    manifest = prepare(plain, tmp_path / "out", workers=1)
    assert not manifest.target_mask
    assert manifest.splits["train"]["chats"].parts[0].target_mask_sha256 is None
    assert "target_mask" not in RowReader(tmp_path / "out", "train", "chats")[0]


def test_a_dataset_of_another_mask_holds_other_rows(tmp_path: Path) -> None:
    """The rows are alike, and a reference's losses of the one are none of the other."""
    first = prepare(recipe_of(tmp_path / "a"), tmp_path / "out", workers=1)
    (part,) = first.splits["train"]["chats"].parts
    other = part.model_copy(update={"target_mask_sha256": "0" * 64})
    share = first.splits["train"]["chats"].model_copy(update={"parts": (other,)})
    changed = first.model_copy(update={"splits": {"train": {"chats": share}}})
    assert changed.tokens_fingerprint() != first.tokens_fingerprint()


def test_another_chat_template_is_another_dataset(tmp_path: Path, says: Says) -> None:
    recipe = recipe_of(tmp_path)
    settings = recipe.model_dump()
    settings["sources"][0]["chat_format"] = "tokenizer"
    recipe = Recipe.model_validate(settings)
    template = tmp_path / "tokenizer" / "chat_template.jinja"
    template.write_text(CHAT_ML, encoding="utf-8")
    manifest = prepare(recipe, tmp_path / "out", workers=1)
    assert trained_texts(tmp_path / "out", manifest)[1] == f"{OWN_WORDS[1]}<|im_end|>\n</s>"
    assert prepare(recipe, tmp_path / "out", workers=1) == manifest
    template.write_text(CHAT_ML + " ", encoding="utf-8")
    with pytest.raises(DataError) as refused:
        prepare(recipe, tmp_path / "out", workers=1)
    says(refused, "chat_template.jinja")


def test_a_conversation_without_an_answer_is_named_with_its_line(tmp_path: Path, says: Says) -> None:
    recipe = recipe_of(tmp_path)
    (tmp_path / "chats.jsonl").write_text(as_records(TRAJECTORY, TRAJECTORY[:1]))
    with pytest.raises(DataError) as refused:
        prepare(recipe, tmp_path / "out", workers=1)
    says(refused, "chats.jsonl, line 2")


def test_inspect_shows_what_is_trained_on(tmp_path: Path, says: Says) -> None:
    prepare(recipe_of(tmp_path), tmp_path / "out", workers=1)
    output = io.StringIO()
    console = Console(file=output, width=140, highlight=False)
    show_row(console, read_row(tmp_path / "out", "train", 0))
    lines = output.getvalue().splitlines()
    says(lines[1], "sft")
    shown = "\n".join(lines[2:])
    says(shown, "<|assistant|>↵\n[[")
    facts = dataset_facts(tmp_path / "out")
    show_dataset(console, facts)
    (share,) = (line for line in output.getvalue().splitlines() if line.split()[:2] == ["train", "chats"])
    reader = RowReader(tmp_path / "out", "train", "chats")
    rows = reader.rows(0, len(reader))
    targets = (rows["tokens"][:, :-1] != facts.manifest.eos_id).sum()
    assert share.split()[-1] == f"{rows['target_mask'].sum() / targets:.2%}"
