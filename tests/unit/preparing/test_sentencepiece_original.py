"""Texts that are taken for proved get the ids of SentencePiece; the others are compared."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaslm.corpus.documents import Document
from megaslm.errors import DataError
from megaslm.preparing.sentencepiece_original import _PLAIN, Original, texts_to_compare
from megaslm.tokenizer.sentencepiece_export import ORIGINAL, export_sentencepiece
from megaslm.tokenizer.tokenizer import FolderEncoder, SentencePieceEncoder

Train = Callable[..., bytes]
NFKC = {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True, "add_dummy_prefix": True}
KINDS = {
    "identity": {},
    "nfkc": NFKC,
    "nfkc-spaces-kept": {**NFKC, "remove_extra_whitespaces": False},
    "casefolded": {**NFKC, "normalization_rule_name": "nmt_nfkc_cf"},
    "unigram": {"model_type": "unigram", **NFKC},
}
# What combines, joins, vanishes or is written in halves, beside plain letters of many scripts.
ODD = "e\u0301\u0302\r\n\u2581\uffff\ufffd\x00\x0b\u200d\ufe0f\u1100\u1161\u11a8가ﾊﾟ\u3099が½ﬁ"
ODD += "\u00a0\u3000 <\u0e33ÅA\u212b\U0001f1e9\ue000"
PLAIN = "aA1½ﬁ²éÅΩжḕ“–…€№①語がパ가！ﾊ\u00a0\u3000\u2003 \t\n<~"


@pytest.mark.parametrize("kind", KINDS)
def test_texts_without_doubt_have_the_ids_of_sentencepiece(train_model: Train, tmp_path: Path, kind: str) -> None:
    model = train_model(vocab_size=600, **KINDS[kind])
    export_sentencepiece(model, tmp_path)
    sentencepiece, exported = SentencePieceEncoder(model), FolderEncoder(tmp_path)
    doubtful = texts_to_compare(model)
    assert (doubtful is None) == (kind == "identity")

    @given(st.lists(st.text(PLAIN, max_size=12) | st.text(ODD + PLAIN, max_size=8), min_size=30, max_size=30))
    @settings(deadline=None, max_examples=30)
    def compare(texts: list[str]) -> None:
        for text, wanted, found in zip(texts, sentencepiece.encode(texts), exported.encode(texts), strict=True):
            if doubtful is None or not doubtful.search(text):
                assert wanted.tolist() == found.tolist() or sentencepiece.is_tie(wanted, found), ascii(text)

    compare()


def test_neighbours_of_plain_characters_change_nothing(train_model: Train, tmp_path: Path) -> None:
    """Each plain character between others, so that none is a mark or replaced together with the next."""
    model = train_model(vocab_size=600, **NFKC)
    export_sentencepiece(model, tmp_path)
    doubtful = texts_to_compare(model)
    assert doubtful is not None
    plain = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000 and not doubtful.search(chr(code))]
    assert len(plain) > 40_000
    assert set(_PLAIN) - set("-") < set(plain)
    texts = [f"{one}{other}{one}e{one}가{one}カ{one}" for one, other in zip(plain, plain[1:] + plain[:1], strict=True)]
    blocks = ["".join(texts[start : start + 50]) for start in range(0, len(texts), 50)]
    for text, wanted, found in zip(
        blocks, SentencePieceEncoder(model).encode(blocks), FolderEncoder(tmp_path).encode(blocks), strict=True
    ):
        assert wanted.tolist() == found.tolist(), ascii(text)


@pytest.mark.parametrize("keeps_spaces", [False, True])
def test_line_ends_of_all_kinds_are_plain_where_spaces_are_joined(
    train_model: Train, tmp_path: Path, keeps_spaces: bool
) -> None:
    model = train_model(vocab_size=600, **{**NFKC, "remove_extra_whitespaces": not keeps_spaces})
    export_sentencepiece(model, tmp_path)
    doubtful = texts_to_compare(model)
    assert doubtful is not None
    assert bool(doubtful.search("one\r\ntwo")) is keeps_spaces
    sentencepiece, exported = SentencePieceEncoder(model), FolderEncoder(tmp_path)

    @settings(deadline=None)
    @given(st.lists(st.text("ae \r\n\té", max_size=30), min_size=20, max_size=20))
    def compare(texts: list[str]) -> None:
        for text, wanted, found in zip(texts, sentencepiece.encode(texts), exported.encode(texts), strict=True):
            if not doubtful.search(text):
                assert wanted.tolist() == found.tolist(), ascii(text)

    compare()


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_words_tell_of_a_whole_text(train_model: Train, tmp_path: Path, kind: str) -> None:
    """Where `require_same` looks at the doubtful words alone, it finds what a look at the whole text finds."""
    model = train_model(vocab_size=600, **NFKC, model_type=kind)
    export_sentencepiece(model, tmp_path)
    (tmp_path / ORIGINAL).write_bytes(model)
    original, exported = Original.of(tmp_path), FolderEncoder(tmp_path)
    assert original is not None
    assert original._words is not None
    sentencepiece = SentencePieceEncoder(model)

    @settings(deadline=None, max_examples=300)
    @given(st.text(ODD + PLAIN, max_size=24))
    def compare(text: str) -> None:
        (wanted,), (found,) = sentencepiece.encode([text]), exported.encode([text])
        is_right = wanted.tolist() == found.tolist() or sentencepiece.is_tie(wanted, found)
        try:
            original.require_same(Document(text, text, "b.jsonl, line 7"), found, exported)
        except DataError:
            # Or it decodes to another text.
            assert not is_right or sentencepiece.decode(wanted) != exported.decode(found)
        else:
            assert is_right, ascii(text)

    compare()


def test_the_model_goes_where_its_tokenizer_goes(train_model: Train, tmp_path: Path) -> None:
    model = train_model(vocab_size=600, **NFKC)
    export_sentencepiece(model, tmp_path)
    assert Original.of(tmp_path) is None
    (tmp_path / ORIGINAL).write_bytes(model)
    original, exported = Original.of(tmp_path), FolderEncoder(tmp_path)
    assert original is not None
    for text, is_refused in (("Việt", False), ("Vie\u0323\u0302t", True), ("ｶﾞ", True), ("Zu\u0308rich", False)):
        (ids,) = exported.encode([text])
        document = Document(text, text, "b.jsonl, line 7")
        if is_refused:
            with pytest.raises(DataError, match=r"b\.jsonl, line 7"):
                original.require_same(document, ids, exported)
        else:
            original.require_same(document, ids, exported)
