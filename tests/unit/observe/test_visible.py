"""Nothing in a text is hidden, and no digit of a number that changes."""

import pytest

from megaslm.observe.display import short_count, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 𝄞 中", "plain é 𝄞 中"),
        ("a\nb", "a↵\nb"),
        ("a\tb", "a⇥   b"),
        ("\x00\x1b[31m\r\x7f", "␀␛[31m␍␡"),
        ("\x85\u200b\u202e\ufeff\u2028", "⟨U+0085⟩⟨U+200B⟩⟨U+202E⟩⟨U+FEFF⟩⟨U+2028⟩"),
        ("\ufffd", "\ufffd"),
    ],
)
def test_what_has_no_form_gets_one(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (7_680, "7,680"),
        (999_999, "999,999"),
        (1_040_384, "1.04M"),
        (104_857_600, "104.86M"),
        (15_300_000_000, "15.30B"),
    ],
)
def test_a_count_has_digits_enough_to_be_seen_changing(number: int, shown: str) -> None:
    assert short_count(number) == shown
