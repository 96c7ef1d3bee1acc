"""The exported tokenizer gives the very ids of SentencePiece."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from megaslm.corpus.documents import Document
from megaslm.errors import DataError
from megaslm.preparing.sentencepiece_original import require_same_ids
from megaslm.tokenizer.sentencepiece_export import export_sentencepiece
from megaslm.tokenizer.tokenizer import FolderEncoder, SentencePieceEncoder, tokenizer_facts
from tests.messages import Says
from tests.unit.conftest import AWKWARD, shared_texts, standard_library_texts

Train = Callable[..., bytes]
UNIGRAM = {"model_type": "unigram"}
KINDS = {
    "bpe": {"model_type": "bpe"},
    "bpe-prefix": {"model_type": "bpe", "add_dummy_prefix": True},
    "bpe-digits-no-bytes": {"model_type": "bpe", "byte_fallback": False, "split_digits": True},
    "unigram": UNIGRAM,
    "unigram-prefix": {**UNIGRAM, "add_dummy_prefix": True},
    "unigram-no-bytes": {**UNIGRAM, "byte_fallback": False},
}
NORMALISED = {
    "bpe-defaults": {
        "model_type": "bpe",
        "normalization_rule_name": "nmt_nfkc",
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": True,
    },
    "unigram-nfkc": {**UNIGRAM, "normalization_rule_name": "nfkc"},
}


class Pair:
    """SentencePiece and what was exported of it."""

    def __init__(self, model: bytes, folder: Path) -> None:
        self.model = model
        self.folder = folder
        self.sentencepiece = SentencePieceEncoder(model)
        export_sentencepiece(model, folder)
        self.exported = FolderEncoder(folder)
        trainer = ModelProto.FromString(model).trainer_spec
        self.is_unigram = trainer.model_type == trainer.UNIGRAM

    def require_same(self, texts: list[str]) -> None:
        """Of a Unigram model, `111` may be `1 11` here and `11 1` there: such ties SentencePiece breaks by rounding."""
        assert texts
        for text, wanted, found in zip(
            texts, self.sentencepiece.encode(texts), self.exported.encode(texts), strict=True
        ):
            in_order = sorted if self.is_unigram else list
            assert in_order(found) == in_order(wanted), repr(text[:80])
            if not self.sentencepiece.has_unknown(wanted):
                assert self.exported.decode(found) == self.sentencepiece.decode(wanted), repr(text[:80])


@pytest.fixture(scope="module", params=[*KINDS, *NORMALISED])
def pair(request: pytest.FixtureRequest, train_model: Train, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    settings = {**KINDS, **NORMALISED}[request.param]
    return Pair(train_model(**settings), tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=["bpe", "bpe-prefix", "bpe-digits-no-bytes"])
def bpe(request: pytest.FixtureRequest, train_model: Train, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(train_model(**KINDS[request.param]), tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=["bpe", "bpe-prefix", "unigram", "unigram-prefix"])
def lossless(request: pytest.FixtureRequest, train_model: Train, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(train_model(**KINDS[request.param]), tmp_path_factory.mktemp(request.param))


def lines(texts: list[str]) -> list[str]:
    """SentencePiece adds Unigram's scores up in float32, so that long texts are cut by rounding at near ties."""
    return [line for text in texts for line in text.splitlines(keepends=True)]


def test_ids_are_those_of_sentencepiece_on_the_standard_library(pair: Pair) -> None:
    pair.require_same(lines(standard_library_texts()))


def test_whole_documents_of_a_bpe_model_are_cut_alike(bpe: Pair) -> None:
    bpe.require_same(standard_library_texts())


def test_whole_documents_of_other_real_text_are_cut_alike_by_bpe(bpe: Pair) -> None:
    bpe.require_same(shared_texts())


def test_whole_documents_of_a_unigram_model_differ_in_ties_alone(train_model: Train, tmp_path: Path) -> None:
    unigram = Pair(train_model(**KINDS["unigram"]), tmp_path)
    documents = [Document(text, text, f"text {number}") for number, text in enumerate(standard_library_texts())]
    require_same_ids(unigram.sentencepiece, unigram.exported, documents)


def test_ids_are_those_of_sentencepiece_on_awkward_texts(pair: Pair) -> None:
    pair.require_same(list(AWKWARD))


def test_ids_are_those_of_sentencepiece_on_other_real_text(pair: Pair) -> None:
    pair.require_same(lines(shared_texts()))


def test_text_comes_back(lossless: Pair) -> None:
    for text in [*AWKWARD, *standard_library_texts()]:
        (ids,) = lossless.exported.encode([text])
        assert lossless.exported.decode(ids) == text


def test_special_tokens_in_a_text_stay_text(lossless: Pair) -> None:
    facts = tokenizer_facts(lossless.folder)
    special = {facts.eos_id, facts.bos_id, SentencePieceProcessor(model_proto=lossless.model).unk_id()}
    for ids in lossless.exported.encode(list(AWKWARD)):
        assert not special & set(ids.tolist())


def test_a_byte_spelt_out_stays_text(lossless: Pair) -> None:
    (ids,) = lossless.exported.encode(["<0x41>"])
    assert ids.size > 1
    assert lossless.exported.decode(ids) == "<0x41>"


def test_transformers_loads_the_folder(pair: Pair) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pair.folder)
    facts = tokenizer_facts(pair.folder)
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (facts.eos_id, facts.bos_id)
    for text in standard_library_texts():
        (ids,) = pair.exported.encode([text])
        assert np.array_equal(tokenizer(text)["input_ids"], ids)
        assert tokenizer.decode(ids.tolist()) == pair.exported.decode(ids)


def test_facts_are_those_of_the_model(train_model: Train, tmp_path: Path) -> None:
    model = train_model(vocab_size=700, bos_id=5, eos_id=4, unk_id=3, pad_id=6)
    export_sentencepiece(model, tmp_path)
    facts = tokenizer_facts(tmp_path)
    assert (facts.vocab_size, facts.eos_id, facts.bos_id) == (700, 4, 5)
    assert json.loads((tmp_path / "special_tokens_map.json").read_text())["pad_token"] == "<pad>"


def test_user_defined_pieces_are_found_in_text(train_model: Train, tmp_path: Path) -> None:
    pair = Pair(train_model(user_defined_symbols=["<|tool|>"]), tmp_path)
    pair.require_same(["call <|tool|> now", "<|tool|><|tool|>", *AWKWARD])
    (ids,) = pair.exported.encode(["<|tool|>"])
    assert ids.size == 1


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"model_type": "word", "hard_vocab_limit": False, "byte_fallback": False}, "BPE"),
        ({"treat_whitespace_as_suffix": True}, "suffix"),
        ({"eos_id": -1}, "EOS"),
        ({"user_defined_symbols": ["<x>"], "add_dummy_prefix": True}, "user-defined"),
    ],
)
def test_a_model_without_exact_counterpart_is_refused(
    train_model: Train, tmp_path: Path, settings: dict[str, object], named: str, says: Says
) -> None:
    model = train_model(**settings)
    with pytest.raises(DataError) as refused:
        export_sentencepiece(model, tmp_path / "folder")
    says(refused, named)
    assert not (tmp_path / "folder").exists()
