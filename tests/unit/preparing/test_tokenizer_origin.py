"""The check of an exported tokenizer can fail."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from megaslm.corpus.documents import Document
from megaslm.errors import DataError
from megaslm.preparing.sentencepiece_original import require_same_ids
from megaslm.tokenizer.sentencepiece_export import export_sentencepiece
from megaslm.tokenizer.tokenizer import FolderEncoder, SentencePieceEncoder
from tests.messages import Says
from tests.unit.conftest import standard_library_texts

GOOD = Document("a text that agrees", "g", "a.jsonl, line 1")
BAD = Document("another text", "g", "a.jsonl, line 2")


class Altered:
    """An exported tokenizer with a fault in `BAD`."""

    def __init__(self, encoder: FolderEncoder, ids_too: bool) -> None:
        self._encoder, self._ids_too = encoder, ids_too

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        (ids,) = self._encoder.encode(texts)
        return [np.append(ids[:2], ids[1:])] if self._ids_too and texts == [BAD.text] else [ids]

    def decode(self, ids: np.ndarray) -> str:
        return self._encoder.decode(ids).replace("another", "other")


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def encoders(
    request: pytest.FixtureRequest, train_model: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory
) -> tuple[SentencePieceEncoder, FolderEncoder]:
    model, folder = train_model(model_type=request.param), tmp_path_factory.mktemp(request.param)
    export_sentencepiece(model, folder)
    return SentencePieceEncoder(model), FolderEncoder(folder)


def test_the_first_other_id_is_named(encoders: tuple[SentencePieceEncoder, FolderEncoder], says: Says) -> None:
    expected, exported = encoders
    altered = Altered(exported, ids_too=True)
    (ids,), (others,) = exported.encode([BAD.text]), altered.encode([BAD.text])
    with pytest.raises(DataError) as caught:
        require_same_ids(expected, altered, [GOOD, BAD])
    says(caught, "a.jsonl, line 2", "token 2", IDS=ids[2:10].tolist(), OTHERS=others[2:10].tolist())


def test_another_text_is_named(encoders: tuple[SentencePieceEncoder, FolderEncoder], says: Says) -> None:
    expected, exported = encoders
    with pytest.raises(DataError) as refused:
        require_same_ids(expected, Altered(exported, ids_too=False), [GOOD, BAD])
    says(refused, "a.jsonl, line 2")


def test_a_likelier_cut_is_no_tie(train_model: Callable[..., bytes]) -> None:
    encoder = SentencePieceEncoder(train_model(model_type="unigram"))
    text = standard_library_texts()[0]
    (ids,) = encoder.encode([text])
    assert encoder.is_tie(ids, ids[::-1])
    assert not encoder.is_tie(ids, ids[1:])


def test_bpe_knows_no_ties(train_model: Callable[..., bytes]) -> None:
    encoder = SentencePieceEncoder(train_model(model_type="bpe"))
    (ids,) = encoder.encode(["some text"])
    assert not encoder.is_tie(ids, ids[::-1])
