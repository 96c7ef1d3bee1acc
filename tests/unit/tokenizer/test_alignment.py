"""Values of one tokenisation as values of another."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaslm.tokenizer.alignment import TokensInText, begins_of, byte_offsets, carried_over
from megaslm.tokenizer.token_places import PlacedTokens
from megaslm.tokenizer.tokenizer import FolderEncoder
from tests.conversations import FOLDERS, TEXT
from tests.unit.conftest import AWKWARD


@pytest.mark.parametrize("text", [TEXT, *AWKWARD])
def test_the_places_of_a_documents_tokens_are_those_of_its_text(folder: Path, text: str) -> None:
    ids = FolderEncoder(folder).encode([text])[0]
    if not len(ids):
        return
    placed = TokensInText(folder).placed(ids)
    assert len(placed.begins) == len(ids)
    assert placed.begins[0] == 0
    assert (np.diff(placed.begins) >= 0).all()
    assert placed.begins[-1] <= len(placed.text)
    assert np.array_equal(FolderEncoder(folder).encode([placed.text])[0], ids)


def test_tokens_that_their_text_would_not_give_tell_their_own_text(tmp_path: Path) -> None:
    FOLDERS["byte level"](tmp_path / "tokenizer")
    encoder = FolderEncoder(tmp_path / "tokenizer")
    apart = np.concatenate([encoder.encode([letter])[0] for letter in "𝄞 is"])
    assert not np.array_equal(apart, encoder.encode(["𝄞 is"])[0])
    placed = TokensInText(tmp_path / "tokenizer").placed(apart)
    assert placed.text == "𝄞 is"
    assert placed.begins.tolist() == [0, 0, 0, 0, 1, 2, 3]


def test_offsets_count_the_bytes_of_utf_8() -> None:
    text = "aé鿿𝄞b"
    assert byte_offsets(text).tolist() == [0, *np.cumsum([len(letter.encode()) for letter in text])]
    assert byte_offsets("").tolist() == [0]


def test_what_stands_between_two_tokens_belongs_to_the_second_one() -> None:
    """Two words without their space, and two tokens of one character."""
    tokens = PlacedTokens(np.zeros(4, dtype=np.uint32), np.array([1, 4, 7, 7]), np.array([3, 6, 8, 8]))
    assert begins_of(tokens).tolist() == [0, 3, 6, 7]


def test_a_stretch_shares_its_sum_by_bytes() -> None:
    """Tokens ab|c|dé in place of abc|d|é: the first stretch is abc, the second dé."""
    offsets = byte_offsets("abcdé")
    shared = carried_over(np.array([[3.0, 1.0, 5.0]]), np.array([0, 3, 4]), np.array([0, 2, 3]), offsets)
    assert shared.tolist() == [[2.0, 1.0, 6.0]]
    back = carried_over(np.array([[2.0, 1.0, 6.0]]), np.array([0, 2, 3]), np.array([0, 3, 4]), offsets)
    assert back == pytest.approx(np.array([[3.0, 2.0, 4.0]]))


@given(st.data())
def test_sums_stay_and_common_tokens_keep_their_values(data: st.DataObject) -> None:
    text = data.draw(st.text(st.sampled_from("ab é鿿𝄞"), min_size=1, max_size=30))
    places = st.lists(st.integers(0, len(text)), max_size=40)
    begins, others = (np.array(sorted([0, *data.draw(places)])) for _ in range(2))
    values = np.array(
        data.draw(
            st.lists(st.lists(st.floats(0, 100), min_size=len(begins), max_size=len(begins)), min_size=2, max_size=2)
        )
    )
    shared = carried_over(values, begins, others, byte_offsets(text))
    assert shared.shape == (2, len(others))
    assert (shared >= 0).all()
    for column, of_column in zip(shared, values, strict=True):
        assert math.isclose(column.sum(), of_column.sum(), rel_tol=1e-12, abs_tol=1e-12)
    alone = np.unique(begins)
    same = carried_over(values[:, : len(alone)], alone, alone, byte_offsets(text))
    assert np.array_equal(same, values[:, : len(alone)])
