"""Rows: every token but a part's first is a target exactly once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megaslm.config.recipe import Bos
from megaslm.dataset.packing import RowPacker, as_stored, documents_in, token_dtype
from megaslm.errors import DataError
from megaslm.model.documents import Documents
from megaslm.slm.valid_targets import valid_targets

BOS, EOS = 1, 2
documents = st.lists(st.lists(st.integers(3, 40), min_size=1, max_size=30), max_size=12)


def pack(batches: list[list[list[int]]], seq_len: int, bos: Bos = "none") -> np.ndarray:
    packer = RowPacker(seq_len, EOS, bos=bos, bos_id=None if bos == "none" else BOS)
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


@given(documents, st.integers(1, 17), st.integers(1, 5), st.sampled_from(["none", "document", "row"]))
def test_rows_do_not_depend_on_batches(all_documents: list[list[int]], seq_len: int, size: int, bos: Bos) -> None:
    batches = [all_documents[start : start + size] for start in range(0, len(all_documents), size)]
    assert np.array_equal(pack(batches, seq_len, bos), pack([all_documents], seq_len, bos))


@given(documents, st.integers(1, 17))
def test_valid_targets_are_all_but_each_documents_first_token(all_documents: list[list[int]], seq_len: int) -> None:
    expected = sum(len(document) for document in all_documents)
    assert int(valid_targets(pack([all_documents], seq_len), EOS).sum()) == expected


@given(documents, st.integers(1, 17))
def test_bos_before_documents_is_a_token_like_those_of_text(all_documents: list[list[int]], seq_len: int) -> None:
    with_bos = [[BOS, *document] for document in all_documents]
    assert np.array_equal(pack([all_documents], seq_len, "document"), pack([with_bos], seq_len))


@given(documents, st.integers(1, 17))
def test_bos_is_no_valid_target_and_what_follows_it_is_one(all_documents: list[list[int]], seq_len: int) -> None:
    rows = pack([all_documents], seq_len, "document")
    valid = valid_targets(rows, EOS)
    assert not (valid & (rows[:, 1:] == BOS)).any()
    assert valid[rows[:, :-1] == BOS].all()
    assert int(valid.sum()) == sum(len(document) + 1 for document in all_documents)


@given(documents, st.integers(1, 17))
def test_each_isolated_document_begins_with_bos_unless_its_row_does(
    all_documents: list[list[int]], seq_len: int
) -> None:
    inputs = pack([all_documents], seq_len, "document")[:, :-1]
    positions = Documents.of_tokens(torch.from_numpy(inputs.copy()), EOS, torch.device("cpu")).positions.numpy()
    begins = (positions == 0) & (inputs != EOS)
    begins[:, 0] = False
    assert np.array_equal(begins[:, 1:], inputs[:, 1:] == BOS)


@given(st.lists(documents, max_size=4), st.integers(1, 17))
def test_where_rows_begin_with_bos_every_other_token_is_a_target_once(
    batches: list[list[list[int]]], seq_len: int
) -> None:
    stream, rows = stream_of(batches), pack(batches, seq_len, "row")
    assert rows.shape[1] == seq_len + 1
    assert (rows[:, 0] == BOS).all()
    targets = rows[:, 1:].ravel().tolist()
    assert targets[: len(stream)] == stream
    padding = targets[len(stream) :]
    assert len(padding) < seq_len
    assert set(padding) <= {EOS}
    # The first target of a row follows BOS, so it is valid, even where it opens a document.
    valid = valid_targets(rows, EOS)
    assert valid[:, 0].all()
    assert np.array_equal(valid[:, 1:], rows[:, 1:-1] != EOS)


@pytest.mark.parametrize("bos", ["none", "document", "row"])
def test_no_document_no_row(bos: Bos) -> None:
    assert pack([[]], 4, bos).shape == (0, 5)


def test_tokens_are_as_narrow_as_the_vocabulary_allows() -> None:
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32


@pytest.mark.parametrize("id", [-1, 300, 65_541])
def test_an_id_outside_the_vocabulary_is_not_stored_as_another(id: int) -> None:
    rows = np.array([[1, 2, id]], dtype=np.int64)
    with pytest.raises(DataError, match=rf"{id} .* 300"):
        as_stored(rows, 300)
    assert as_stored(rows[:, :2], 300).tolist() == [[1, 2]]


@given(
    st.lists(documents, max_size=4), st.integers(1, 9), st.sampled_from(["none", "row", "document"]), st.integers(1, 5)
)
def test_documents_are_read_back_whole(batches: list[list[list[int]]], seq_len: int, bos: Bos, at_once: int) -> None:
    rows = pack(batches, seq_len, bos)
    pieces = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
    found = [document.tolist() for document in documents_in(pieces, EOS, bos)]
    assert found == [document for batch in batches for document in batch]
