"""A row is shown as the documents that were packed into it."""

from pathlib import Path

import pytest

from megaslm.errors import DataError
from megaslm.inspect.row_text import RowText, read_row
from tests.inspected import DOCUMENTS, EOS_ID, SEQ_LEN, Inspected, make_inspected
from tests.messages import Says
from tests.toy import make_dataset

ROWS = {"a": 6, "b": 3}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Inspected:
    return make_inspected(tmp_path_factory.mktemp("scored"), scored=True)


def shown(row: RowText) -> list[tuple[bool, str, bool]]:
    """Whether each document begins, its text, and whether it ends."""
    return [(each.begins, "".join(piece.text for piece in each.pieces), each.ends) for each in row.documents]


def test_documents_are_shown_with_their_bounds(scored: Inspected) -> None:
    rows = [read_row(scored.folder, "train", row, "a") for row in range(4)]
    assert [shown(row) for row in rows] == [
        [(True, "abcdefghi", False)],
        [(False, "ijkl", True), (True, "mnop", False)],
        [(False, "p", True), (True, "qrstuvw", False)],
        [(False, "wxyz", True)],
    ]
    assert [row.padding_tokens for row in rows] == [0, 0, 0, 4]
    assert {row.eos for row in rows} == {"</s>"}


def test_documents_that_end_or_begin_where_a_row_does(tmp_path: Path) -> None:
    """The token there is the last of one row and the first of the next."""
    given = make_inspected(tmp_path, scored=False)
    rows = [read_row(given.folder, "train", row, "b") for row in range(3)]
    assert [shown(row) for row in rows] == [
        [(True, "zyxwvuts", True)],
        [(False, "", True), (True, "rqponm", True), (True, "l", False)],
        [(True, "lkjihg", True)],
    ]
    assert [row.padding_tokens for row in rows] == [0, 0, 2]
    assert rows[0].ref_loss is rows[0].ref_entropy is None


def bos_at(row: RowText) -> list[int | None]:
    return [each.bos for each in row.documents]


def test_bos_stands_before_documents_that_begin(tmp_path: Path) -> None:
    given = make_inspected(tmp_path, scored=False, bos="document")
    rows = [read_row(given.folder, "train", row, "b") for row in range(3)]
    assert [shown(row) for row in rows] == [
        [(True, "zyxwvuts", False)],
        [(False, "s", True), (True, "rqponm", False)],
        [(False, "m", True), (True, "lkjihg", False)],
    ]
    assert [bos_at(row) for row in rows] == [[0], [None, 2], [None, 2]]
    assert {row.bos for row in rows} == {"<s>"}
    assert [document.start for document in rows[1].documents] == [0, 3]


def test_a_bos_that_ends_a_row_begins_its_document_in_both(tmp_path: Path) -> None:
    given = make_inspected(tmp_path, scored=False, bos="document")
    rows = [read_row(given.folder, "train", row, "a") for row in range(3)]
    assert [shown(row) for row in rows] == [
        [(True, "abcdefgh", False)],
        [(False, "hijkl", True), (True, "mn", False)],
        [(False, "nop", True), (True, "qrst", False)],
    ]
    assert [bos_at(row) for row in rows] == [[0], [None, 6], [None, 4]]


def test_each_row_begins_with_bos(tmp_path: Path) -> None:
    """The last row of `a` opens a document, as the row before ends with EOS."""
    given = make_inspected(tmp_path, scored=False, bos="row")
    of_a, of_b = ([read_row(given.folder, "train", row, name) for row in range(3)] for name in DOCUMENTS)
    assert [shown(row) for row in of_a] == [
        [(True, "abcdefgh", False)],
        [(False, "ijkl", True), (True, "mno", False)],
        [(False, "p", True), (True, "qrstuv", False)],
    ]
    assert [shown(row) for row in of_b] == [
        [(True, "zyxwvuts", False)],
        [(False, "", True), (True, "rqponm", True)],
        [(True, "lkjihg", True)],
    ]
    assert [bos_at(row) for row in (*of_a, *of_b)] == [[0], [0, None], [0, None], [0], [0, None], [0]]
    assert [row.padding_tokens for row in of_b] == [0, 0, 1]


def test_a_word_that_continues_from_the_row_before_keeps_its_space(tmp_path: Path) -> None:
    """The toy tokenizer puts a space between words and none before the first of a text."""
    make_dataset(tmp_path / "toy", {("train", "a"): [20]})
    for number in range(1, 20):
        first = read_row(tmp_path / "toy", "train", number).documents[0]
        if first.pieces:
            assert first.pieces[0].text.startswith(" ") == (not first.begins)


@pytest.mark.parametrize("domain", DOCUMENTS)
def test_the_rows_of_a_part_together_are_its_documents(scored: Inspected, domain: str) -> None:
    rows = [read_row(scored.folder, "train", row, domain) for row in range(ROWS[domain])]
    for number, texts in enumerate(DOCUMENTS[domain]):
        of_part = [row for row in rows if row.place.part == f"part-0000{number}"]
        stream = scored.streams[domain, number]
        tokens = [token for row in of_part for token in row.tokens[:-1]] + [of_part[-1].tokens[-1]]
        assert tokens == stream + [EOS_ID] * of_part[-1].padding_tokens
        assert [row.place.row_of_part for row in of_part] == list(range(len(of_part)))
        # The last token of a row is the first of the next, and what begins there is counted with that one.
        documents = [document for row in of_part for document in row.documents if document.start < SEQ_LEN]
        assert sum(document.begins for document in documents) == len(texts)


def test_rows_are_counted_over_the_domains(scored: Inspected) -> None:
    places = [read_row(scored.folder, "train", row).place for row in range(9)]
    assert [(place.domain, place.row) for place in places] == [("a", row) for row in range(6)] + [
        ("b", row) for row in range(3)
    ]


def test_each_token_has_the_loss_of_itself_as_a_target(scored: Inspected) -> None:
    row = read_row(scored.folder, "train", 1)
    place = row.tokens.index(EOS_ID)
    losses = [None, *((SEQ_LEN + target) / 4 for target in range(SEQ_LEN))]
    losses[place + 1] = None
    assert row.ref_loss == tuple(losses)
    assert row.ref_entropy == tuple(None if loss is None else 2 * loss for loss in losses)
    assert row.documents[0].stop == place
    assert row.documents[1].pieces[0].first == place + 1


@pytest.mark.parametrize(
    ("row", "domain", "named"),
    [
        (9, None, "row 9"),
        (-1, None, "row -1"),
        (6, "a", "row 6 in train/a"),
        (0, "c", "domain c"),
    ],
)
def test_rows_that_are_not_there_are_refused(
    scored: Inspected, row: int, domain: str | None, named: str, says: Says
) -> None:
    with pytest.raises(DataError) as refused:
        read_row(scored.folder, "train", row, domain)
    says(refused, named)


def test_a_split_that_is_not_there_is_refused(scored: Inspected, says: Says) -> None:
    with pytest.raises(DataError) as refused:
        read_row(scored.folder, "heldout", 0)
    says(refused, "heldout")
