"""Whether a tokenizer puts BOS before a text, and making it do so."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from megaslm.errors import DataError
from megaslm.tokenizer.bos import put_bos, puts_bos, require_bos
from megaslm.tokenizer.tokenizer import TokenizerFacts
from tests.messages import Says

BOS, EOS, A = 0, 1, 2
BYTES = processors.ByteLevel(trim_offsets=True)


def template(single: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=single, special_tokens=[("<s>", BOS), ("</s>", EOS)])


def made(post_processor: Any = None, bos: str = "<s>") -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({bos: BOS, "</s>": EOS, "a": A}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return tokenizer


def folder_of(folder: Path, tokenizer: Tokenizer, **config: object) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>", **config}))
    return folder


FRONTS = {
    "nothing": (None, False),
    "offsets alone": (BYTES, False),
    "BOS": (template("<s> $A"), True),
    "BOS after offsets": (processors.Sequence([BYTES, template("<s> $A")]), True),
    "BOS and EOS": (template("<s> $A </s>"), True),
    "EOS behind": (template("$A </s>"), False),
    "EOS in front": (template("</s> $A"), False),
}


@pytest.mark.parametrize("name", FRONTS)
def test_the_post_processor_tells(name: str, tmp_path: Path) -> None:
    post_processor, expected = FRONTS[name]
    assert puts_bos(folder_of(tmp_path, made(post_processor)), EOS) is expected


def test_padding_is_no_bos(tmp_path: Path) -> None:
    tokenizer = made()
    tokenizer.enable_padding(pad_id=A, pad_token="a", length=4)
    assert not puts_bos(folder_of(tmp_path, tokenizer), EOS)


@pytest.mark.parametrize("stated", [True, False])
def test_the_configuration_decides(stated: bool, tmp_path: Path) -> None:
    other = made(None if stated else template("<s> $A"))
    assert puts_bos(folder_of(tmp_path, other, add_bos_token=stated), EOS) is stated


@pytest.mark.parametrize("name", [None, "</s>"])
def test_no_bos_is_added_that_is_not_named_or_is_eos(name: str | None, tmp_path: Path) -> None:
    assert not puts_bos(folder_of(tmp_path, made(), add_bos_token=True, bos_token=name), EOS)


@pytest.mark.parametrize("name", FRONTS)
def test_bos_and_nothing_else_is_put_in_front(name: str) -> None:
    tokenizer = made(FRONTS[name][0])
    put_bos(tokenizer, BOS)
    stored = Tokenizer.from_str(tokenizer.to_str())
    assert stored.encode("a a").ids == [BOS, A, A]
    assert stored.encode("").ids == [BOS]
    assert stored.encode("a", add_special_tokens=False).ids == [A]


@pytest.mark.parametrize("name", ["<|begin: of text|>", "$A", "[BOS]"])
def test_a_name_may_hold_any_character(name: str) -> None:
    tokenizer = made(bos=name)
    put_bos(tokenizer, BOS)
    encoding = Tokenizer.from_str(tokenizer.to_str()).encode("a")
    assert (encoding.ids, encoding.tokens) == ([BOS, A], [name, "a"])


@pytest.mark.parametrize("bos_id", [None, EOS])
def test_rows_cannot_have_a_bos_that_is_missing_or_eos(bos_id: int | None, says: Says) -> None:
    facts = TokenizerFacts(vocab_size=3, eos_id=EOS, bos_id=bos_id, sha256="", ids_sha256="")
    require_bos("none", facts)
    for bos in ("document", "row"):
        with pytest.raises(DataError) as refused:
            require_bos(bos, facts)
        says(refused, f"bos: {bos}", *([] if bos_id is None else [EOS]))
