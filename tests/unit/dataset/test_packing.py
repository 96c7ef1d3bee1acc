"""Rows: every token but a part's first is a target exactly once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaslm.dataset.packing import RowPacker, as_stored, token_dtype
from megaslm.errors import DataError
from megaslm.slm.valid_targets import valid_targets

EOS = 2
documents = st.lists(st.lists(st.integers(3, 40), min_size=1, max_size=30), max_size=12)


def pack(batches: list[list[list[int]]], seq_len: int) -> np.ndarray:
    packer = RowPacker(seq_len, EOS)
    pieces = [packer.add([np.array(document, dtype=np.uint32) for document in batch]) for batch in batches]
    return np.concatenate([*pieces, packer.finish()])


def stream_of(batches: list[list[list[int]]]) -> list[int]:
    return [token for batch in batches for document in batch for token in [*document, EOS]]


@given(st.lists(documents, max_size=4), st.integers(1, 17))
def test_every_token_but_the_first_is_a_target_once(batches: list[list[list[int]]], seq_len: int) -> None:
    stream, rows = stream_of(batches), pack(batches, seq_len)
    targets = rows[:, 1:].ravel().tolist()
    assert targets[: max(0, len(stream) - 1)] == stream[1:]
    padding = targets[max(0, len(stream) - 1) :]
    assert len(padding) < seq_len
    assert set(padding) <= {EOS}


@given(st.lists(documents, max_size=4), st.integers(1, 17))
def test_neighbours_share_one_token(batches: list[list[list[int]]], seq_len: int) -> None:
    rows = pack(batches, seq_len)
    assert rows.shape[1] == seq_len + 1
    assert np.array_equal(rows[:-1, -1], rows[1:, 0])
    assert rows[:1, 0].tolist() == stream_of(batches)[:1]


@given(documents, st.integers(1, 17), st.integers(1, 5))
def test_rows_do_not_depend_on_batches(all_documents: list[list[int]], seq_len: int, size: int) -> None:
    batches = [all_documents[start : start + size] for start in range(0, len(all_documents), size)]
    assert np.array_equal(pack(batches, seq_len), pack([all_documents], seq_len))


@given(documents, st.integers(1, 17))
def test_valid_targets_are_all_but_each_documents_first_token(all_documents: list[list[int]], seq_len: int) -> None:
    expected = sum(len(document) for document in all_documents)
    assert int(valid_targets(pack([all_documents], seq_len), EOS).sum()) == expected


def test_no_document_no_row() -> None:
    assert pack([[]], 4).shape == (0, 5)


def test_tokens_are_as_narrow_as_the_vocabulary_allows() -> None:
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32


@pytest.mark.parametrize("id", [-1, 300, 65_541])
def test_an_id_outside_the_vocabulary_is_not_stored_as_another(id: int) -> None:
    rows = np.array([[1, 2, id]], dtype=np.int64)
    with pytest.raises(DataError, match=rf"{id} .* 300"):
        as_stored(rows, 300)
    assert as_stored(rows[:, :2], 300).tolist() == [[1, 2]]
