"""Documents with known kinds: cut, drawn, mixed, and with noise in them."""

from collections import Counter

import pytest

from benchmarks.selection_suite.noise import INNER, WHOLE, with_noise
from benchmarks.selection_suite.pairs import TARGET, docstrings
from benchmarks.selection_suite.texts import Document, Span, inserted, mixed, pieces
from megaslm.errors import DataError
from tests.messages import Says

LINES = Document("one\ntwo\nthree\n" + "x" * 12 + "\n", "plain", (Span(2, 6, "odd"), Span(14, 20, "odd")))
PLAIN = [Document(f"Document {number} has words.\n" + "Some more of them.\n" * 20, "plain") for number in range(400)]


def test_pieces_are_the_whole_text_cut_at_line_ends_where_there_are_some() -> None:
    cut = pieces(LINES, 8)
    assert [piece.text for piece in cut] == ["one\ntwo\n", "three\n", "xxxxxxxx", "xxxx\n"]
    assert "".join(piece.text for piece in cut) == LINES.text
    assert [piece.spans for piece in cut] == [(Span(2, 6, "odd"),), (), (Span(0, 6, "odd"),), ()]


def test_a_character_has_the_kind_of_its_span() -> None:
    found = Document("abcdef", "plain", (Span(1, 3, "odd"),)).kinds({"plain": 4, "odd": 7})
    assert found.tolist() == [4, 7, 7, 4, 4, 4]


def test_mixtures_have_their_shares_and_share_no_document() -> None:
    other = [Document(f"another {number} " * 9, "other") for number in range(400)]
    first, second = mixed({"plain": (0.75, PLAIN), "other": (0.25, other)}, (20_000, 8_000))
    assert not {document.text for document in first} & {document.text for document in second}
    for mixture, size in ((first, 20_000), (second, 8_000)):
        bytes_of = Counter[str]()
        for document in mixture:
            bytes_of[document.kind] += len(document.text)
        assert 0 <= bytes_of["plain"] - 0.75 * size < len(PLAIN[-1].text)
        assert 0 <= bytes_of["other"] - 0.25 * size < len(other[-1].text)
    assert mixed({"plain": (1.0, PLAIN[::-1])}, (5_000,)) == mixed({"plain": (1.0, PLAIN)}, (5_000,))


def test_a_pool_that_is_too_small_is_named(says: Says) -> None:
    with pytest.raises(DataError) as raised:
        mixed({"plain": (0.5, PLAIN[:2])}, (20_000,))
    says(raised.value, "plain", "10,000")


def test_what_is_inserted_is_a_span_and_moves_those_behind_it() -> None:
    document = Document("abcdef", "plain", (Span(0, 2, "odd"), Span(4, 6, "odd")))
    found = inserted(document, 3, "NEW", "new")
    assert found.text == "abcNEWdef"
    assert found.spans == (Span(0, 2, "odd"), Span(3, 6, "new"), Span(7, 9, "odd"))


def test_docstrings_are_found_character_by_character() -> None:
    source = 'x = "é"; y = """no"""\n\n\ndef f():\n    """Says ä."""\n\n\nclass A: "B."\n'
    assert [source[span.start : span.stop] for span in docstrings(source)] == ['"""Says ä."""', '"B."']
    assert list(docstrings("no python(")) == []


def test_noise_is_where_the_spans_say_and_nowhere_else() -> None:
    by_first_line = {document.text.split("\n")[0]: document for document in PLAIN}
    noisy = with_noise(PLAIN, TARGET)
    assert noisy == with_noise(PLAIN, TARGET)
    whole = Counter(document.kind for document in noisy)
    assert set(whole) == {"plain", *WHOLE}
    assert 0.3 < 1 - whole["plain"] / len(PLAIN) < 0.5
    inner = Counter[str]()
    for document in noisy:
        original = by_first_line.get(document.text.split("\n")[0])
        if document.kind != "plain" or original is None or not document.spans:
            continue
        (span,) = document.spans
        inner[span.kind] += 1
        before, after = document.text[: span.start], document.text[span.stop :]
        assert original.text.startswith(before)
        assert original.text.endswith(after)
        if span.kind == "OCR errors":
            assert len(document.text) == len(original.text)
        else:
            assert before + after == original.text
    assert set(inner) == set(INNER)


def test_noise_leaves_the_target_and_other_spans_as_they_are() -> None:
    clean = [Document(document.text, TARGET) for document in PLAIN]
    assert with_noise(clean, TARGET) == clean
    spanned = [Document(document.text, "plain", (Span(30, 120, TARGET),)) for document in PLAIN]
    for document, original in zip(with_noise(spanned, TARGET), spanned, strict=True):
        kept = [document.text[span.start : span.stop] for span in document.spans if span.kind == TARGET]
        assert document.kind != "plain" or kept == [original.text[30:120]]
        assert all(one.stop <= other.start for one, other in zip(document.spans, document.spans[1:], strict=False))
