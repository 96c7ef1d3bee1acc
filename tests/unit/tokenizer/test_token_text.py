"""The text of tokens, one by one, is the text of them all."""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from megaslm.tokenizer.sentencepiece_export import export_sentencepiece
from megaslm.tokenizer.token_text import TokenText, pieces, texts_of_row
from tests.unit.conftest import AWKWARD, standard_library_texts

EOS = 2


@pytest.fixture(scope="module")
def sentencepiece(train_model: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    export_sentencepiece(train_model(add_dummy_prefix=True), folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<a>", "<b>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(standard_library_texts()[:1], trainer)
    return tokenizer


@pytest.fixture(params=["sentencepiece", "byte_level"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    found.encode_special_tokens = True
    return found


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def joined(found: list[TokenText]) -> str:
    return "".join(piece.text for piece in found)


@pytest.mark.parametrize("text", [*AWKWARD, "👩‍👩‍👧 ∮E⋅da = Q", "\u00e9" * 9])
def test_pieces_are_the_text_cut_between_characters(tokenizer: Tokenizer, text: str) -> None:
    ids = ids_of(tokenizer, text)
    found = list(pieces(tokenizer, ids, 5, after=None))
    assert joined(found) == text
    assert [place for piece in found for place in range(piece.first, piece.first + piece.tokens)] == list(
        range(5, 5 + len(ids))
    )


def test_a_character_of_several_tokens_is_one_piece(tokenizer: Tokenizer) -> None:
    found = list(pieces(tokenizer, ids_of(tokenizer, "x𝄞y"), 0, after=None))
    assert [piece.text for piece in found if "𝄞" in piece.text] == ["𝄞"]
    assert next(piece.tokens for piece in found if piece.text == "𝄞") > 1


def test_within_a_text_a_word_keeps_its_space(tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, "one of many")
    for cut in range(1, len(ids)):
        whole = joined(list(pieces(tokenizer, ids, 0, after=None)))
        begun = joined(list(pieces(tokenizer, ids[:cut], 0, after=None)))
        assert begun + joined(list(pieces(tokenizer, ids[cut:], cut, after=EOS))) == whole


def test_the_texts_of_a_row_continue_that_of_the_row_before(tokenizer: Tokenizer) -> None:
    text, end = "one of many 𝄞", tokenizer.id_to_token(EOS)
    ids = ids_of(tokenizer, text)
    for cut in range(1, len(ids_of(tokenizer, "one of many")) + 1):
        begun = joined(list(pieces(tokenizer, ids[:cut], 0, after=None)))
        texts = list(texts_of_row(tokenizer, [*ids[cut:], EOS, *ids, EOS, EOS], EOS))
        assert begun + "".join(texts) == f"{text}{end}{text}{end}{end}"
        assert texts[len(ids) - cut] == texts[-1] == end
        assert len(texts) == 2 * len(ids) - cut + 3


def test_bytes_of_half_a_character_hide_nothing_else(tokenizer: Tokenizer) -> None:
    """A row may begin or end within one."""
    whole = list(pieces(tokenizer, ids_of(tokenizer, "𝄞é and so on"), 0, after=None))
    (character,) = [piece for piece in whole if piece.text == "𝄞"]
    assert character.tokens > 1
    ids = ids_of(tokenizer, "𝄞é and so on")
    for start in range(character.first + 1, character.first + character.tokens):
        found = joined(list(pieces(tokenizer, ids[start:], 0, after=EOS)))
        assert found.lstrip("\N{REPLACEMENT CHARACTER}") == "é and so on"
        assert found.startswith("\N{REPLACEMENT CHARACTER}")
    last = list(pieces(tokenizer, ids_of(tokenizer, "x𝄞")[:-1], 0, after=None))[-1]
    assert last.tokens == 1
    assert last.text in ("\N{REPLACEMENT CHARACTER}", "")


def test_an_id_that_the_tokenizer_lacks_is_shown_as_its_number(tokenizer: Tokenizer) -> None:
    unknown = tokenizer.get_vocab_size() + 7
    ids = ids_of(tokenizer, "a é")
    texts = list(pieces(tokenizer, [*ids[:-1], unknown, ids[-1], unknown], 0, after=EOS))
    assert [text.tokens for text in texts if str(unknown) in text.text] == [1, 1]
    assert sum(text.tokens for text in texts) == len(ids) + 2
    assert all(text.text for text in texts)
