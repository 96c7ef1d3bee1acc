"""BOS in the rows that are prepared: where the recipe says, once each, or not at all."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from megaslm.config.recipe import Bos, Recipe
from megaslm.dataset.rows import RowReader
from megaslm.errors import DataError
from megaslm.inspect.verify import verify
from megaslm.preparing.prepare import prepare
from tests.messages import Says

PAD, BOS, EOS, A, B = range(5)
DOCUMENTS = [[A, B, A], [B], [A, A, B, B, A, B, A]]


def write_tokenizer(folder: Path, **names: str) -> Path:
    """Five words; the special ones have to be named."""
    folder.mkdir()
    words = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "a": A, "b": B}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", **names}))
    return folder


def recipe_of(folder: Path, bos: Bos | None = None, **names: str) -> Recipe:
    """One part of `DOCUMENTS`, in rows of four targets; without `bos` as of before there was one."""
    if not (folder / "text.jsonl").exists():
        texts = [" ".join("ab"[token - A] for token in document) for document in DOCUMENTS]
        (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = folder / "-".join(["tokenizer", *names.values()]).replace("/", "end")
    if not tokenizer.exists():
        write_tokenizer(tokenizer, **names)
    source = {"domain": "web", "reader": "jsonl", "paths": [str(folder / "text.jsonl")]}
    given = {"name": "n", "licence": "CC0", "seq_len": 4, "heldout_fraction": 0, "sources": [source]}
    chosen = {} if bos is None else {"bos": bos}
    return Recipe.model_validate({**given, "tokenizer": {"huggingface": str(tokenizer)}, **chosen})


ROWS = {
    "none": [[A, B, A, EOS, B], [B, EOS, A, A, B], [B, B, A, B, A], [A, EOS, EOS, EOS, EOS]],
    "document": [
        [BOS, A, B, A, EOS], [EOS, BOS, B, EOS, BOS], [BOS, A, A, B, B], [B, A, B, A, EOS],
    ],
    "row": [
        [BOS, A, B, A, EOS], [BOS, B, EOS, A, A], [BOS, B, B, A, B], [BOS, A, EOS, EOS, EOS],
    ],
}  # fmt: skip
TARGETS = {"none": 11, "document": 14, "row": 13}


@pytest.mark.parametrize("bos", [None, "none", "document", "row"])
def test_rows_have_bos_where_the_recipe_says(bos: Bos | None, tmp_path: Path) -> None:
    manifest = prepare(recipe_of(tmp_path, bos, bos_token="<s>"), tmp_path / "dataset", workers=1)
    place = bos or "none"
    assert (manifest.packing.bos, manifest.packing.overlap_tokens) == (place, 0 if place == "row" else 1)
    assert manifest.bos_id == BOS
    rows = RowReader(tmp_path / "dataset", "train", "web").rows(0, 4)["tokens"]
    assert np.array_equal(rows, ROWS[place])
    share = manifest.splits["train"]["web"]
    assert (share.rows, share.documents, share.tokens) == (4, 3, TARGETS[place])
    assert not verify(tmp_path / "dataset", workers=1).problems


def test_a_tokenizer_without_a_bos_of_its_own_is_refused_and_nothing_is_lost(tmp_path: Path, says: Says) -> None:
    """The same folder then takes the recipe with another tokenizer."""
    for names in ({}, {"bos_token": "</s>"}):
        with pytest.raises(DataError) as refused:
            prepare(recipe_of(tmp_path, "document", **names), tmp_path / "dataset", workers=1)
        says(refused, "bos: document")
        manifest = prepare(recipe_of(tmp_path, "none", **names), tmp_path / f"{len(names)}", workers=1)
        assert manifest.bos_in_rows is None
    prepare(recipe_of(tmp_path, "document", bos_token="<s>"), tmp_path / "dataset", workers=1)


@pytest.mark.parametrize("bos", ["document", "row"])
def test_a_text_that_gives_bos_is_refused(bos: Bos, tmp_path: Path, says: Says) -> None:
    with pytest.raises(DataError) as refused:
        prepare(recipe_of(tmp_path, bos, bos_token="b"), tmp_path / "dataset", workers=1)
    says(refused, "text.jsonl, line 1", "token 1", B)


def test_a_text_may_give_bos_where_rows_have_none(tmp_path: Path) -> None:
    """As in GPT-2's tokenizer, whose BOS is its EOS, the name alone does no harm."""
    manifest = prepare(recipe_of(tmp_path, "none", bos_token="b"), tmp_path / "dataset", workers=1)
    assert manifest.bos_id == B
    assert not verify(tmp_path / "dataset", workers=1).problems


def test_a_finished_dataset_is_that_of_the_recipe_before_it_had_the_key(tmp_path: Path, says: Says) -> None:
    before = prepare(recipe_of(tmp_path, bos_token="<s>"), tmp_path / "dataset", workers=1)
    assert prepare(recipe_of(tmp_path, "none", bos_token="<s>"), tmp_path / "dataset", workers=1) == before
    with pytest.raises(DataError) as refused:
        prepare(recipe_of(tmp_path, "row", bos_token="<s>"), tmp_path / "dataset", workers=1)
    says(refused, tmp_path / "dataset")


@pytest.mark.parametrize("bos", ["none", "document"])
def test_a_tokenizer_that_names_another_bos_since_makes_other_rows(bos: Bos, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, bos, bos_token="<s>")
    manifest = prepare(recipe, tmp_path / "dataset", workers=1)
    path = Path(str(recipe.tokenizer.huggingface)) / "tokenizer_config.json"
    path.write_text(json.dumps({"eos_token": "</s>", "bos_token": "<pad>"}))
    if bos == "none":
        assert prepare(recipe, tmp_path / "dataset", workers=1) == manifest
    else:
        with pytest.raises(DataError, match=r"tokenizer\.huggingface"):
            prepare(recipe, tmp_path / "dataset", workers=1)
