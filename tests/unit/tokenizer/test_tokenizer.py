"""Encoders, special ids and the fingerprint."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors

from megaslm.errors import DataError
from megaslm.tokenizer.sentencepiece_export import export_sentencepiece
from megaslm.tokenizer.tokenizer import FolderEncoder, SentencePieceEncoder, tokenizer_facts, tokenizer_sha256
from megaslm.tokenizer.word_encoder import fastest_encoder
from tests.messages import Says


@pytest.fixture
def folder(train_model: Callable[..., bytes], tmp_path: Path) -> Path:
    export_sentencepiece(train_model(vocab_size=600), tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_nothing_is_added_cut_or_filled(folder: Path) -> None:
    path = str(folder / "tokenizer.json")
    plain = FolderEncoder(folder).encode(["one two three", "four"])
    tokenizer = Tokenizer.from_file(path)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $0 </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save(path)
    found = FolderEncoder(folder).encode(["one two three", "four"])
    assert [ids.tolist() for ids in found] == [ids.tolist() for ids in plain]


def test_saving_again_does_not_change_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    before = tokenizer_sha256(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer("some text", truncation=True, max_length=4)
    tokenizer.save_pretrained(tmp_path / "again")
    assert tokenizer_sha256(tmp_path / "again") == before


def test_what_does_not_decide_ids_does_not_count(folder: Path) -> None:
    before = tokenizer_sha256(folder)
    rewrite(folder / "tokenizer.json", truncation=None, decoder=None, post_processor=None)
    assert tokenizer_sha256(folder) == before


def test_what_decides_ids_counts(folder: Path) -> None:
    path = folder / "tokenizer.json"
    original = json.loads(path.read_text())
    swapped = {**original, "model": {**original["model"], "merges": original["model"]["merges"][::-1]}}
    prefixed = {**original, "normalizer": {"type": "Prepend", "prepend": "▁"}}
    added = {"id": 600, "content": "<x>", "special": True}
    added |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    with_token = {**original, "added_tokens": [*original["added_tokens"], added]}
    fingerprints = {tokenizer_sha256(folder)}
    for changed in (swapped, prefixed, with_token):
        path.write_text(json.dumps(changed))
        fingerprints.add(tokenizer_sha256(folder))
    assert len(fingerprints) == 4


@pytest.mark.parametrize("eos", ["</s>", {"content": "</s>", "__type": "AddedToken"}])
def test_eos_is_found_by_name(folder: Path, eos: object) -> None:
    rewrite(folder / "tokenizer_config.json", eos_token=eos)
    assert tokenizer_facts(folder).eos_id == 2


def test_eos_is_found_where_only_one_file_has_it(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{}")
    assert tokenizer_facts(folder).eos_id == 2
    (folder / "special_tokens_map.json").unlink()
    (folder / "config.json").write_text('{"eos_token_id": [7, 8], "bos_token_id": null}')
    facts = tokenizer_facts(folder)
    assert (facts.eos_id, facts.bos_id) == (7, None)


def test_no_eos_is_refused(folder: Path, says: Says) -> None:
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "special_tokens_map.json").unlink()
    with pytest.raises(DataError) as refused:
        tokenizer_facts(folder)
    says(refused, "tokenizer_config.json", '"eos_token"')


def test_an_eos_outside_the_vocabulary_is_refused(folder: Path, says: Says) -> None:
    rewrite(folder / "tokenizer_config.json", eos_token="<|end|>")
    with pytest.raises(DataError) as refused:
        tokenizer_facts(folder)
    says(refused, "eos_token", "'<|end|>'")


def test_a_folder_without_tokenizer_json_is_refused(tmp_path: Path, says: Says) -> None:
    with pytest.raises(DataError) as refused:
        FolderEncoder(tmp_path)
    says(refused, tmp_path, "tokenizer.json", "`tokenizer.sentencepiece`")


def test_a_corrupt_tokenizer_json_is_refused(folder: Path, says: Says) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(DataError) as refused:
        FolderEncoder(folder)
    says(refused, folder / "tokenizer.json")


def test_what_is_not_a_sentencepiece_model_is_refused(says: Says) -> None:
    with pytest.raises(DataError) as refused:
        SentencePieceEncoder(b"nonsense")
    says(refused, "SentencePiece", REASON=refused.value.__cause__)


@pytest.mark.parametrize("charsmap", ["AAAA", "/////wAAAAAAAAAA"])
def test_a_tokenizer_over_which_the_library_panics_is_refused(folder: Path, charsmap: str) -> None:
    rewrite(folder / "tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": charsmap})
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        tokenizer_facts(folder)


@pytest.mark.parametrize("pattern", ["(a*)*$", "(a|aa)+$"])
def test_a_text_over_which_the_library_panics_is_refused(folder: Path, pattern: str) -> None:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    rewrite(folder / "tokenizer.json", pre_tokenizer=split)
    encoder = fastest_encoder(folder)
    with pytest.raises(DataError, match="text"):
        encoder.encode(["a" * 60 + "b"])
    assert encoder.encode(["b"])[0].size > 0


HALF = "\ud83d"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", {"eos_token": HALF}),
        ("tokenizer_config.json", {"eos_token": "</s>", "extra_special_tokens": [f"<{HALF}>"]}),
        ("special_tokens_map.json", {"pad_token": {"content": HALF}}),
        ("added_tokens.json", {HALF: 7}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"7": {"content": HALF}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 5000: {"content": "x"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"٣": {"content": "x"}}}),
    ],
)
def test_a_token_that_cannot_be_is_named_by_its_file(folder: Path, file: str, content: dict[str, object]) -> None:
    path = folder / file
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **content}))
    with pytest.raises(DataError, match=file):
        tokenizer_facts(folder)
