"""Nothing in a text is hidden, and no digit of a number that changes."""

import pytest

from megaslm.observe.display import gib, percent, rounded, short_count, visible


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


@pytest.mark.parametrize(
    ("number", "decimals", "shown"),
    [
        (0, 0, "0"),
        (0.0417, 0, "0.042"),
        (3.2, 0, "3.2"),
        (1_234.5, 0, "1,234"),
        (0.0042, 2, "0.0042"),
        (7.126, 2, "7.13"),
    ],
)
def test_a_small_number_keeps_two_digits(number: float, decimals: int, shown: str) -> None:
    assert rounded(number, decimals) == shown


def test_small_memory_and_small_shares_are_not_nothing() -> None:
    assert (gib(3 << 30), gib(1 << 20)) == ("3.00", "0.00098")
    assert (percent(0.473), percent(0.0021), percent(0.473, 1)) == ("47%", "0.21%", "47.3%")
